"""A sender needs one capability and no root: it can read any disk then, and write none."""

import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.devices import loop_device
from tests.end_to_end.hosts import COMMAND, ROOT

NOBODY = 65534
READER = ["--inh-caps", "+dac_read_search", "--ambient-caps", "+dac_read_search"]
NOTHING = ["--inh-caps", "-all"]

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.needs("setpriv")]


@pytest.fixture
def home() -> Iterator[Path]:
    """A folder that an ordinary user may write, all the way down."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        os.chown(folder, NOBODY, NOBODY)
        yield Path(folder)


def as_nobody(
    home: Path, capabilities: list[str], *words: str, data: bytes = b""
) -> subprocess.CompletedProcess[bytes]:
    ids = ["--reuid", str(NOBODY), "--regid", str(NOBODY), "--clear-groups"]
    limits = ["--bounding-set", "-all,+dac_read_search", "--no-new-privs"]
    return subprocess.run(  # noqa: S603  # ourselves
        ["setpriv", *ids, *capabilities, *limits, *COMMAND, *words],  # noqa: S607
        input=data,
        capture_output=True,
        check=False,
        env={
            "PATH": os.environ["PATH"],
            "PYTHONPATH": f"{ROOT}:{ROOT / 'protocol'}",
            "BLOCKSTREAM_STATE_DIR": str(home / "state"),
            "HOME": str(home),
        },
    )


def test_with_the_capability_to_read_a_disk_is_sent_and_none_is_written(
    home: Path, tmp_path: Path
) -> None:
    image = tmp_path / "image"
    image.write_bytes(os.urandom(1 << 20))
    image.chmod(0o600)
    with loop_device(image) as device:
        os.chmod(device, 0o600)  # noqa: PTH101  # a device
        refused = as_nobody(home, NOTHING, "send", "-q", device)
        assert refused.returncode == 14, refused.stderr
        sent = as_nobody(home, READER, "send", "-q", device)
        assert sent.returncode == 0, sent.stderr
        copy = home / "copy"
        taken = as_nobody(home, NOTHING, "recv", "-q", "--create", str(copy), data=sent.stdout)
        assert taken.returncode == 0, taken.stderr
        assert copy.read_bytes() == image.read_bytes()
        written = as_nobody(home, READER, "recv", "-q", device, data=sent.stdout)
        assert written.returncode == 10
        assert b"Permission denied" in written.stderr
