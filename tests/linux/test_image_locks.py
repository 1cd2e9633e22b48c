"""What QEMU has open is not written, and what is being written no QEMU opens; with real ones."""

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from blockstream.errors import BusyError
from blockstream.linux.image_locks import is_open_in_qemu, is_written_by_qemu
from blockstream.sources.disk import DiskSource
from blockstream.targets.disk import DiskTarget
from tests.devices import loop_device

pytestmark = pytest.mark.needs("qemu-nbd", "qemu-io")
MIB = 1 << 20


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    path.write_bytes(bytes(4 * MIB))
    return path


@contextmanager
def served(path: str | Path, folder: Path, *words: str) -> Iterator[None]:
    """Let qemu-nbd have an image open."""
    place = folder / "nbd.sock"
    command = ["qemu-nbd", "-f", "raw", "-t", "-k", str(place), *words, str(path)]
    server = subprocess.Popen(command)  # noqa: S603  # as written
    try:
        until = time.monotonic() + 20
        while not place.exists():
            assert server.poll() is None
            assert time.monotonic() < until
            time.sleep(0.02)
        # It listens before it opens the image, and answers afterwards.
        with socket.socket(socket.AF_UNIX) as asking:
            asking.settimeout(20)
            asking.connect(str(place))
            assert asking.recv(8) == b"NBDMAGIC"
        yield
    finally:
        server.terminate()
        server.wait()
        place.unlink(missing_ok=True)


def io(path: str | Path, command: str) -> subprocess.CompletedProcess[str]:
    words = ["qemu-io", "-f", "raw", "-c", command, str(path)]
    return subprocess.run(words, capture_output=True, text=True, check=False)  # noqa: S603  # as written


def locks(path: str | Path) -> tuple[bool, bool]:
    fd = os.open(path, os.O_RDONLY)
    try:
        return is_open_in_qemu(fd), is_written_by_qemu(fd)
    finally:
        os.close(fd)


@pytest.mark.parametrize("words", [(), ("-r",), ("--shared=4",)])
def test_what_qemu_has_open_is_refused_as_a_target(
    image: Path, tmp_path: Path, words: tuple[str, ...]
) -> None:
    with served(image, tmp_path, *words):
        assert locks(image) == (True, "-r" not in words)
        with pytest.raises(BusyError, match=r"is open in QEMU: .*; nothing was written"):
            DiskTarget(str(image))
        with closing(DiskTarget(str(image), force_in_use=True)) as target:
            target.write_from([0], [4096], memoryview(bytes(4096)))
        with closing(DiskSource(str(image))) as source:
            warned = [text for text in source.warnings if "QEMU" in text]
        assert bool(warned) is ("-r" not in words)
    assert locks(image) == (False, False)
    with closing(DiskTarget(str(image))):
        assert locks(image) == (True, True)
    assert locks(image) == (False, False)


def test_no_qemu_opens_what_is_being_written(image: Path) -> None:
    with closing(DiskTarget(str(image))) as target:
        for command in ("write 0 4096", "read 0 4096"):
            ended = io(image, command)
            assert ended.returncode != 0
            assert "lock" in ended.stderr
        target.write_from([0], [4096], memoryview(b"x" * 4096))
        target.flush()
    assert io(image, "read -P 120 0 4096").returncode == 0


@pytest.mark.root
def test_a_device_is_locked_as_a_file_is(image: Path, tmp_path: Path) -> None:
    with loop_device(image) as device:
        with served(device, tmp_path), pytest.raises(BusyError, match="is open in QEMU"):
            DiskTarget(device)
        with closing(DiskTarget(device)):
            assert io(device, "write 0 4096").returncode != 0
