"""The disks that every source and every target is tried with."""

import os
import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.devices import loop_device
from tests.nbd_servers import nbdkit

SIZE = 1 << 20
ODD_SIZE = 1234567
Maker = Callable[[Path], AbstractContextManager["Disk"]]


@dataclass(frozen=True)
class Disk:
    """A disk with known content.

    Attributes:
        path: What is opened.
        content: What it holds at the beginning.
        sector: The unit in which it can be read.
        file: Where its bytes lie; the same as `path` for a file.
    """

    path: str
    content: bytes
    sector: int
    file: Path


def content_of(size: int) -> bytes:
    """Return random bytes with runs of zeros, the same ones each time."""
    content = bytearray(random.Random(size).randbytes(size))  # noqa: S311  # not secrets
    for start in range(0, size, 100_000):
        content[start + 4096 : start + 12288] = bytes(len(content[start + 4096 : start + 12288]))
    return bytes(content)


@contextmanager
def in_file(folder: Path, size: int = SIZE) -> Iterator[Disk]:
    path = folder / "disk.img"
    content = content_of(size)
    path.write_bytes(content)
    yield Disk(str(path), content, 512, path)


@contextmanager
def in_memory(folder: Path) -> Iterator[Disk]:
    memory = Path("/dev/shm")  # noqa: S108  # this file system is what is wanted
    if not memory.is_dir() or memory.stat().st_dev == folder.stat().st_dev:
        pytest.skip("this machine has no tmpfs at /dev/shm")
    with TemporaryDirectory(dir=memory) as name, in_file(Path(name)) as disk:
        yield disk


@contextmanager
def in_odd_file(folder: Path) -> Iterator[Disk]:
    with in_file(folder, ODD_SIZE) as disk:
        yield disk


@contextmanager
def in_sparse_file(folder: Path) -> Iterator[Disk]:
    path = folder / "sparse.img"
    content = bytearray(SIZE)
    with path.open("wb") as file:
        file.truncate(SIZE)
        for start, end in ((8192, 12288), (700_000, 700_001), (SIZE - 4096, SIZE)):
            content[start:end] = content_of(SIZE)[: end - start]
            os.pwrite(file.fileno(), content[start:end], start)
    yield Disk(str(path), bytes(content), 512, path)


@contextmanager
def in_empty_file(folder: Path) -> Iterator[Disk]:
    with in_file(folder, 0) as disk:
        yield disk


@contextmanager
def on_loop(folder: Path, sector: int = 512) -> Iterator[Disk]:
    with in_file(folder) as disk, loop_device(disk.file, sector=sector) as device:
        yield Disk(device, disk.content, sector, disk.file)


@contextmanager
def on_big_sectors(folder: Path) -> Iterator[Disk]:
    with on_loop(folder, 4096) as disk:
        yield disk


@contextmanager
def behind_nbd(folder: Path) -> Iterator[Disk]:
    with in_sparse_file(folder) as disk, nbdkit(folder, "-r", "file", disk.file) as location:
        yield Disk(location, disk.content, 512, disk.file)


@contextmanager
def behind_odd_nbd(folder: Path) -> Iterator[Disk]:
    with (
        in_odd_file(folder) as disk,
        nbdkit(folder, "-r", "--no-sr", "--filter=noparallel", "file", disk.file) as location,
    ):
        yield Disk(location, disk.content, 512, disk.file)


DISKS = [
    pytest.param(in_file, id="file"),
    pytest.param(in_memory, id="tmpfs"),
    pytest.param(in_odd_file, id="odd"),
    pytest.param(in_sparse_file, id="sparse"),
    pytest.param(on_loop, id="loop512", marks=pytest.mark.root),
    pytest.param(on_big_sectors, id="loop4096", marks=pytest.mark.root),
]

EXPORTS = [
    pytest.param(behind_nbd, id="nbd", marks=pytest.mark.needs("nbdkit")),
    pytest.param(behind_odd_nbd, id="nbd-simple", marks=pytest.mark.needs("nbdkit")),
]


def open_descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())
