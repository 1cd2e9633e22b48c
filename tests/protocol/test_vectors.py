"""Golden vectors are append-only, and mean the same as on the day they were made."""

import json
import runpy
import shutil
from pathlib import Path

import pytest

from tests.protocol import vectors
from tests.protocol.vectors import DECODERS, Vector, load_vectors, meaning

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "make_vectors"
ALL = [(name, vector) for name in DECODERS for vector in load_vectors(name)]


@pytest.mark.parametrize(("name", "vector"), ALL, ids=[f"{name}-{one}" for name, one in ALL])
def test_vector_means_what_it_meant(name: str, vector: Vector) -> None:
    means = meaning(DECODERS[name], vector.given)
    assert json.loads(json.dumps(means)) == vector.means


def test_the_script_refuses_to_change_or_drop_a_vector(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(vectors.FOLDER, tmp_path, dirs_exist_ok=True)
    monkeypatch.setattr(vectors, "FOLDER", tmp_path)
    monkeypatch.setattr("sys.argv", ["make_vectors", "--check"])
    path = tmp_path / "plans.json"
    content = json.loads(path.read_text())

    def run() -> int:
        status = runpy.run_path(str(SCRIPT))["main"]()
        assert isinstance(status, int)
        return status

    assert run() == 0
    dropped = content["vectors"].pop()
    path.write_text(json.dumps(content))
    assert run() == 1, "not written yet"
    content["vectors"].append(dropped | {"spec": "1"})
    path.write_text(json.dumps(content))
    monkeypatch.setattr("sys.argv", ["make_vectors"])
    assert run() == 1
    assert "would change or vanish" in capsys.readouterr().err
    assert json.loads(path.read_text()) == content
