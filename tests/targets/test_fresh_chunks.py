"""Before a part of a chunk is written that may be unmapped, all of it is zeros on purpose."""

import os
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

import blockstream.targets.disk as target_module
from blockstream.linux.block import data_ranges
from blockstream.linux.device_mapper import Thin
from blockstream.targets.disk import DiskTarget
from tests.devices import loop_device

KIB = 1 << 10
CHUNK = 64 * KIB
SIZE = 16 * CHUNK

pytestmark = pytest.mark.root


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    with path.open("wb") as file:
        file.truncate(SIZE)
    return path


@pytest.fixture
def device(image: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A loop device that passes for a thin volume of a pool that does not zero."""
    thin = Thin(CHUNK, shows_old=True)
    monkeypatch.setattr(target_module, "thin_at", lambda _device: thin)
    with loop_device(image) as name:
        yield name


def written(image: Path) -> list[int]:
    """Return the numbers of the chunks that are there whole."""
    with image.open("rb") as file:
        ranges = list(data_ranges(file.fileno(), SIZE))
    return [
        number
        for number in range(SIZE // CHUNK)
        if any(a <= number * CHUNK and (number + 1) * CHUNK <= b for a, b in ranges)
    ]


@pytest.mark.parametrize(
    ("offset", "length", "whole"),
    [
        (0, 4 * KIB, [0]),
        (4 * KIB, 4 * KIB, [0]),
        (CHUNK - 4 * KIB, 8 * KIB, [0, 1]),
        (CHUNK, CHUNK, [1]),
        (CHUNK // 2, 3 * CHUNK, [0, 1, 2, 3]),
        (SIZE - 4 * KIB, 4 * KIB, [15]),
        (SIZE - CHUNK, CHUNK, [15]),
    ],
)
def test_a_chunk_that_is_written_in_part_is_there_whole(
    image: Path, device: str, offset: int, length: int, whole: list[int]
) -> None:
    with closing(DiskTarget(device)) as target:
        target.write_from([offset], [length], memoryview(b"x" * length))
        target.flush()
        assert written(image) == whole
    assert image.read_bytes() == bytes(offset) + b"x" * length + bytes(SIZE - offset - length)


def test_what_a_chunk_holds_stays(image: Path, device: str) -> None:
    before = bytearray(os.urandom(SIZE))
    image.write_bytes(before)
    with closing(DiskTarget(device)) as target:
        target.write_from([4 * KIB], [4 * KIB], memoryview(b"x" * 4 * KIB))
        target.zero(CHUNK + 4 * KIB, 4 * KIB)
        target.flush()
    before[4 * KIB : 8 * KIB] = b"x" * 4 * KIB
    before[CHUNK + 4 * KIB : CHUNK + 8 * KIB] = bytes(4 * KIB)
    assert image.read_bytes() == before


def test_threads_that_share_chunks_lose_nothing(image: Path, device: str) -> None:
    """One thread's zeros would go over what another has written since they were decided on."""
    wanted = b"".join(bytes([1 + block % 250]) * (4 * KIB) for block in range(SIZE // (4 * KIB)))

    def write(target: DiskTarget, gate: threading.Barrier, first: int) -> None:
        gate.wait()
        for offset in range(first * 4 * KIB, SIZE, 16 * KIB):
            target.write_from([offset], [4 * KIB], memoryview(wanted)[offset : offset + 4 * KIB])

    for _ in range(20):
        with image.open("r+b") as file:
            file.truncate(0)
            file.truncate(SIZE)
        gate = threading.Barrier(4)
        with closing(DiskTarget(device)) as target:
            each = [threading.Thread(target=write, args=(target, gate, n)) for n in range(4)]
            for thread in each:
                thread.start()
            for thread in each:
                thread.join()
            target.flush()
            assert target.read_medium(0, SIZE) == wanted


def test_the_next_transfer_looks_again(image: Path, device: str) -> None:
    """What was mapped in one may be unmapped in the next."""
    with closing(DiskTarget(device)) as target:
        target.write_from([0], [4 * KIB], memoryview(b"x" * 4 * KIB))
        target.flush()
        target.zero(0, CHUNK)
        target.flush()
        target.begin()
        target.write_from([0], [4 * KIB], memoryview(b"y" * 4 * KIB))
        target.flush()
        assert 0 in written(image)
