"""Reads and writes end only when all is done, however the kernel cuts them."""

import errno
import mmap
import os
import threading
from pathlib import Path

import pytest

from blockstream.linux.buffers import aligned_buffer, read_all, write_all, write_stream


def cut_writes(monkeypatch: pytest.MonkeyPatch, most: int) -> list[int]:
    """Let every pwrite take `most` bytes at most; return where the sizes are noted."""
    real, sizes = os.pwrite, []

    def short(fd: int, data: memoryview, offset: int) -> int:
        sizes.append(real(fd, data[:most], offset))
        return sizes[-1]

    monkeypatch.setattr(os, "pwrite", short)
    return sizes


@pytest.mark.parametrize("size", [0, 1, 4096, 4097, 1 << 20])
def test_a_buffer_is_zeroed_writable_and_begins_on_a_page(size: int) -> None:
    buffer = aligned_buffer(size)
    assert len(buffer) == size
    assert bytes(buffer) == bytes(size)
    buffer[:] = b"x" * size
    if size:
        address = buffers_address(buffer)
        assert address % mmap.PAGESIZE == 0


def buffers_address(buffer: memoryview) -> int:
    import ctypes

    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))


@pytest.mark.parametrize("most", [1, 7, 999, 1000, 5000])
def test_a_short_write_is_continued_where_it_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    sizes = cut_writes(monkeypatch, most)
    data = os.urandom(1000)
    with (tmp_path / "file").open("w+b") as file:
        write_all(file.fileno(), memoryview(data), 300)
        file.seek(0)
        assert file.read() == bytes(300) + data
    assert sum(sizes) == 1000


def test_a_device_that_takes_nothing_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_writes(monkeypatch, 0)
    with (tmp_path / "file").open("w+b") as file, pytest.raises(OSError, match="took no bytes"):
        write_all(file.fileno(), memoryview(b"data"), 0)


def test_the_error_after_a_short_write_is_not_swallowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = os.pwrite, [0]

    def full(fd: int, data: memoryview, offset: int) -> int:
        calls[0] += 1
        if calls[0] == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(fd, data[:10], offset)

    monkeypatch.setattr(os, "pwrite", full)
    with (tmp_path / "file").open("w+b") as file, pytest.raises(OSError, match="No space left"):
        write_all(file.fileno(), memoryview(bytes(20)), 0)


@pytest.mark.parametrize("most", [1, 7, 5000])
def test_a_short_read_is_continued_where_it_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    real = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, into, *rest: real(fd, [into[0][:most]], *rest))
    path = tmp_path / "file"
    path.write_bytes(bytes(range(250)) * 4)
    buffer = aligned_buffer(900)
    with path.open("rb") as file:
        read_all(file.fileno(), buffer, 100)
    assert bytes(buffer) == path.read_bytes()[100:]


def test_an_end_before_all_was_read_is_an_error_with_its_offset(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(1000))
    with path.open("rb") as file, pytest.raises(EOFError, match="offset 1000"):
        read_all(file.fileno(), aligned_buffer(200), 900)


def test_parts_leave_as_one_stream_through_a_pipe_that_takes_little() -> None:
    read_end, write_end = os.pipe()
    parts = [os.urandom(n) for n in (3, 200_000, 0, 1, 70_000)]
    taken: list[bytes] = []

    def take() -> None:
        while piece := os.read(read_end, 4099):
            taken.append(piece)

    reader = threading.Thread(target=take)
    reader.start()
    write_stream(write_end, [memoryview(part) for part in parts])
    os.close(write_end)
    reader.join()
    os.close(read_end)
    assert b"".join(taken) == b"".join(parts)


@pytest.mark.parametrize("most", [1, 3, 4, 5, 100])
def test_a_stream_cut_anywhere_is_continued_there(
    monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    taken = bytearray()

    def writev(_fd: int, parts: list[memoryview]) -> int:
        piece = b"".join(parts)[:most]
        taken.extend(piece)
        return len(piece)

    monkeypatch.setattr(os, "writev", writev)
    write_stream(0, [memoryview(b"abc"), memoryview(b""), memoryview(b"defgh"), memoryview(b"i")])
    assert taken == b"abcdefghi"


def test_a_stream_that_nobody_reads_is_a_broken_pipe() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    with pytest.raises(BrokenPipeError):
        write_stream(write_end, [memoryview(b"data")])
    os.close(write_end)
