"""A batch does what as many single calls would do, and tells of each request what became of it."""

import contextlib
import errno
import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockstream.linux import aio as module
from blockstream.linux.aio import DEPTH, Batch, batch
from blockstream.linux.buffers import aligned_buffer

SIZE = 1 << 20


@pytest.fixture
def queue() -> Iterator[Batch]:
    with batch() as lent:
        if lent is None:
            pytest.skip("this kernel gives no queues")
        yield lent


@contextlib.contextmanager
def opened(path: Path, flags: int) -> Iterator[int]:
    fd = os.open(path, flags)
    try:
        yield fd
    finally:
        os.close(fd)


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk"
    path.write_bytes(os.urandom(SIZE))
    return path


@pytest.mark.parametrize("count", [1, 2, DEPTH - 1, DEPTH, DEPTH + 1, 2 * DEPTH + 3])
def test_every_range_is_read_in_its_place(queue: Batch, disk: Path, count: int) -> None:
    offsets = [(number * 7919 * 512) % (SIZE - 512) for number in range(count)]
    buffer = aligned_buffer(512 * count)
    with opened(disk, os.O_RDONLY) as fd:
        assert queue.read(fd, offsets, [512] * count, buffer) == [512] * count
    content = disk.read_bytes()
    assert bytes(buffer) == b"".join(content[o : o + 512] for o in offsets)


@given(st.data())
def test_a_write_is_what_single_writes_would_be(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(0, 5000), min_size=2, max_size=40)))
    ranges = [(a, b - a) for a, b in itertools.pairwise(cuts) if data.draw(st.booleans())]
    content = os.urandom(sum(length for _, length in ranges))
    expected, position = bytearray(5000), 0
    for offset, length in ranges:
        expected[offset : offset + length] = content[position : position + length]
        position += length
    path = tmp_path_factory.mktemp("batch") / "disk"
    path.write_bytes(bytes(5000))
    with batch() as queue, opened(path, os.O_RDWR) as fd:
        if queue is None:
            pytest.skip("this kernel gives no queues")
        lengths = [length for _, length in ranges]
        # Memory that may not be written, as a payload has that was unpacked.
        assert queue.write(fd, [o for o, _ in ranges], lengths, memoryview(content)) == lengths
    assert path.read_bytes() == bytes(expected)


def test_past_the_end_less_is_read_and_the_others_are_whole(queue: Batch, disk: Path) -> None:
    buffer = aligned_buffer(3 * 4096)
    with opened(disk, os.O_RDONLY) as fd:
        done = queue.read(fd, [0, SIZE - 100, SIZE + 5], [4096] * 3, buffer)
    assert done == [4096, 100, 0]


def test_a_request_that_fails_is_told_by_its_number(queue: Batch, disk: Path) -> None:
    buffer = aligned_buffer(3 * 4096)
    try:
        direct = os.open(disk, os.O_RDWR | os.O_DIRECT)
    except OSError:
        pytest.skip("this file system has no O_DIRECT")
    try:
        done = queue.write(direct, [0, 100, 8192], [4096] * 3, buffer)
    finally:
        os.close(direct)
    assert done == [4096, -errno.EINVAL, 4096]


def test_of_what_cannot_be_queued_nothing_is_done(queue: Batch, disk: Path) -> None:
    with opened(disk, os.O_RDONLY) as fd:
        assert queue.write(fd, [0, 512], [512, 512], memoryview(bytes(1024))) == [0, 0]


def test_a_queue_is_lent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_idle", [])
    with batch() as first, batch() as second:
        assert first is None or first is not second
    with batch() as third:
        assert third in {first, second}


def test_without_queues_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_idle", [])
    monkeypatch.setattr(module, "_NUMBERS", {})
    with batch() as queue:
        assert queue is None
