"""A reader that waits can be woken, from any thread, and sees an end then."""

import fcntl
import os
import threading
from collections.abc import Iterator
from contextlib import closing

import pytest

from blockstream.linux.streams import PIPE_BYTES, WakeableReader, WakeableWriter, widen_pipe


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        try:
            os.close(end)
        except OSError:
            continue


def test_bytes_are_read_as_they_come(pipe: tuple[int, int]) -> None:
    buffer = memoryview(bytearray(10))
    with closing(WakeableReader(pipe[0])) as reader:
        os.write(pipe[1], b"hello")
        assert reader.read_into(buffer) == 5
        assert bytes(buffer[:5]) == b"hello"


def test_no_more_is_read_than_there_is_room_for(pipe: tuple[int, int]) -> None:
    with closing(WakeableReader(pipe[0])) as reader:
        os.write(pipe[1], b"hello")
        assert reader.read_into(memoryview(bytearray(2))) == 2
        assert os.read(pipe[0], 10) == b"llo"


def test_a_closed_pipe_gives_what_is_left_and_then_an_end(pipe: tuple[int, int]) -> None:
    with closing(WakeableReader(pipe[0])) as reader:
        os.write(pipe[1], b"last")
        os.close(pipe[1])
        assert reader.read_into(memoryview(bytearray(10))) == 4
        assert reader.read_into(memoryview(bytearray(10))) == 0
        assert not reader.stopped


def test_a_waiting_read_is_woken(pipe: tuple[int, int]) -> None:
    with closing(WakeableReader(pipe[0])) as reader:
        counts: list[int] = []
        thread = threading.Thread(
            target=lambda: counts.append(reader.read_into(memoryview(bytearray(10))))
        )
        thread.start()
        reader.stop()
        thread.join(10)
        assert counts == [0]
        assert reader.stopped


def test_once_stopped_nothing_is_read_although_it_is_there(pipe: tuple[int, int]) -> None:
    with closing(WakeableReader(pipe[0])) as reader:
        os.write(pipe[1], b"unread")
        reader.stop()
        reader.stop()
        assert reader.read_into(memoryview(bytearray(10))) == 0
        assert os.read(pipe[0], 10) == b"unread"


def test_a_regular_file_can_be_read_too(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("streams") / "file"
    path.write_bytes(b"stored")
    with path.open("rb") as file, closing(WakeableReader(file.fileno())) as reader:
        assert reader.read_into(memoryview(bytearray(10))) == 6
        assert reader.read_into(memoryview(bytearray(10))) == 0


def test_a_pipe_is_widened(pipe: tuple[int, int]) -> None:
    widen_pipe(pipe[0])
    assert fcntl.fcntl(pipe[1], fcntl.F_GETPIPE_SZ) == PIPE_BYTES


def test_what_is_no_pipe_stays_as_it_is() -> None:
    with open(os.devnull, "rb") as file:  # noqa: PTH123
        widen_pipe(file.fileno())


def test_a_writer_that_waits_for_a_full_pipe_can_be_woken(pipe: tuple[int, int]) -> None:
    seen: list[BaseException] = []
    with closing(WakeableWriter(pipe[1])) as writer:

        def fill() -> None:
            try:
                writer.write([memoryview(bytes(1 << 21))])
            except InterruptedError as error:
                seen.append(error)

        thread = threading.Thread(target=fill, daemon=True)
        thread.start()
        writer.stop()
        thread.join(10)
        assert not thread.is_alive()
    assert len(seen) == 1


def test_a_writer_leaves_the_shared_descriptor_blocking(pipe: tuple[int, int]) -> None:
    with closing(WakeableWriter(pipe[1])) as writer:
        writer.write([memoryview(b"hello"), memoryview(b" world")])
        assert os.get_blocking(pipe[1])
    assert os.read(pipe[0], 100) == b"hello world"


def test_a_writer_has_gone_when_it_is_closed(pipe: tuple[int, int]) -> None:
    with closing(WakeableWriter(pipe[1])):
        os.close(pipe[1])
    assert os.read(pipe[0], 1) == b""


@pytest.mark.parametrize("kind", [WakeableReader, WakeableWriter])
def test_a_stop_after_the_end_touches_no_descriptor(
    pipe: tuple[int, int], kind: type[WakeableReader | WakeableWriter]
) -> None:
    """A disk of a set that was done was stopped, because another failed: a traceback."""
    made = kind(pipe[kind is WakeableWriter])
    made.close()
    # Whoever opens something next gets the numbers that were given back.
    others = [os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK) for _ in range(4)]
    try:
        made.stop()
        made.close()
        for other in others:
            with pytest.raises(BlockingIOError):
                os.eventfd_read(other)
    finally:
        for other in others:
            os.close(other)
