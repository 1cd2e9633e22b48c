"""Every fuzz target takes its corpus, and a few mutations of it, without atheris."""

from importlib import import_module
from pathlib import Path
from random import Random

import pytest

FOLDER = Path(__file__).parent
NAMES = sorted(path.stem.removeprefix("fuzz_") for path in FOLDER.glob("fuzz_*.py"))
INPUTS = [(name, path) for name in NAMES for path in sorted((FOLDER / "corpus" / name).iterdir())]


@pytest.mark.parametrize(
    ("name", "path"), INPUTS, ids=[f"{name}-{path.name}" for name, path in INPUTS]
)
def test_a_target_takes_its_corpus(name: str, path: Path) -> None:
    check = import_module(f"tests.fuzz.fuzz_{name}").check
    data = path.read_bytes()
    check(data)
    random = Random(path.name)  # noqa: S311  # the same mutations every time
    for _ in range(10):
        altered = bytearray(data)
        for _ in range(random.randint(1, 4)):
            altered[random.randrange(len(altered))] = random.randrange(256)
        check(bytes(altered))


@pytest.mark.parametrize("name", NAMES)
def test_a_target_states_its_invariant_in_its_first_line(name: str) -> None:
    first = (FOLDER / f"fuzz_{name}.py").read_text().splitlines()[0]
    assert first.startswith('"""Whatever ')


@pytest.mark.parametrize("name", NAMES)
def test_a_target_takes_nothing_at_all(name: str) -> None:
    import_module(f"tests.fuzz.fuzz_{name}").check(b"")
