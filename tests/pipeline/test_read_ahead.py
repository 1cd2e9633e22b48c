"""A far source is asked for what comes next; whoever reads it sees no difference."""

import itertools
import os
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from blockstream.errors import SourceError
from blockstream.linux.buffers import aligned_buffer
from blockstream.pipeline.read_ahead import ReadAhead
from blockstream.sources.nbd import NbdSource
from blockstream.sources.nbd_connection import Patience
from tests.nbd_servers import asked, data, fault, open_export, scripted
from tests.pipeline.test_packer import Memory

MIB = 1 << 20
STEP = 4096
MOST = 4
QUICK = Patience(reply=5.0, pauses=(0.01, 0.05, 0.1))


class Clock:
    """Lets every read take as long as a test says."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._local = threading.local()

    def __call__(self) -> float:
        self._local.now = getattr(self._local, "now", 0.0) + self.seconds
        now: float = self._local.now
        return now


class Far(Memory):
    """Notes who reads what, and lets a test hold it up."""

    read_ahead = MOST

    def __init__(self, steps: int) -> None:
        super().__init__(random.Random(2).randbytes(steps * STEP))  # noqa: S311  # not secrets
        self.readers: dict[int, str] = {}
        self.hold: Callable[[], object] = lambda: None

    def read_into(self, offsets: Sequence[int], lengths: Sequence[int], buffer: memoryview) -> None:
        self.hold()
        self.readers[offsets[0]] = threading.current_thread().name
        super().read_into(offsets, lengths, buffer)

    def was_ahead(self, step: int) -> bool:
        return self.readers[step * STEP].startswith("ahead")


@contextmanager
def reading(source: Far, clock: Clock, *, is_far: bool = True) -> Iterator[ReadAhead]:
    """Read ahead; `is_far` if that is known already."""
    with closing(ReadAhead(source, clock)) as ahead:
        for _ in range(12 if is_far else 0):
            ahead.read_into([0], [STEP], aligned_buffer(STEP))
        source.readers.clear()
        yield ahead


def ranges(step: int) -> tuple[list[int], list[int]]:
    return [step * STEP], [STEP]


def got(ahead: ReadAhead, step: int) -> bytes:
    buffer = aligned_buffer(STEP)
    ahead.read_into(*ranges(step), buffer)
    return bytes(buffer)


def test_what_is_near_is_read_when_it_is_wanted() -> None:
    source = Far(100)
    with reading(source, Clock(0.001), is_far=False) as ahead:
        steps = ahead.following(range(100), ranges)
        assert b"".join(got(ahead, step) for step in steps) == source.content
    assert not any(map(source.was_ahead, range(100)))


def test_a_near_source_that_is_slow_now_and_then_is_near() -> None:
    source, clock = Far(100), Clock(0.001)
    with reading(source, clock, is_far=False) as ahead:
        for step in ahead.following(range(100), ranges):
            clock.seconds = 0.05 if step % 8 else 0.001
            assert got(ahead, step) == source.content[step * STEP :][:STEP]
    assert not any(map(source.was_ahead, range(100)))


def test_of_what_is_far_as_much_is_under_way_as_it_allows() -> None:
    source = Far(10 * MOST)
    with reading(source, Clock(0.05)) as ahead:
        # None is answered before all are under way.
        source.hold = threading.Barrier(MOST, timeout=10).wait
        steps = ahead.following(range(10 * MOST), ranges)
        assert b"".join(got(ahead, step) for step in steps) == source.content
        assert 0 < len(ahead._free) <= MOST + 1
    assert all(map(source.was_ahead, range(10 * MOST)))


def test_several_threads_get_what_each_of_them_wants() -> None:
    source, taking = Far(256), threading.Lock()
    found: dict[int, bytes] = {}
    with reading(source, Clock(0.05)) as ahead, ThreadPoolExecutor(4) as threads:
        steps = ahead.following(range(256), ranges)

        def work() -> None:
            while True:
                with taking:
                    step = next(steps, None)
                if step is None:
                    return
                found[step] = got(ahead, step)

        for each in [threads.submit(work) for _ in range(4)]:
            each.result()
        assert len(ahead._free) <= MOST + 4
    assert b"".join(found[step] for step in range(256)) == source.content


def test_a_source_that_comes_near_is_read_when_it_is_wanted_again() -> None:
    source, clock = Far(50), Clock(0.05)
    with reading(source, clock) as ahead:
        clock.seconds = 0.001
        for step in ahead.following(range(50), ranges):
            got(ahead, step)
    assert source.was_ahead(0)
    assert not any(map(source.was_ahead, range(20, 50)))


def test_an_error_comes_to_whoever_wants_what_cannot_be_read() -> None:
    source = Far(20)
    source.bad = 5 * STEP + 1
    with reading(source, Clock(0.05)) as ahead:
        for step in ahead.following(range(20), ranges):
            if step == 5:
                with pytest.raises(SourceError, match=f"offset {5 * STEP} cannot be read"):
                    got(ahead, step)
            else:
                assert got(ahead, step) == source.content[step * STEP :][:STEP]
    assert source.was_ahead(6)


def test_what_is_not_read_is_not_asked_for() -> None:
    source = Far(20)
    with reading(source, Clock(0.05)) as ahead:
        nothing: list[int] = []
        steps = ahead.following(
            range(20), lambda step: ranges(step) if step % 2 else (nothing,) * 2
        )
        for step in steps:
            if step % 2:
                got(ahead, step)
    assert sorted(source.readers) == [step * STEP for step in range(1, 20, 2)]


def test_closing_waits_for_what_is_under_way_and_begins_nothing_more() -> None:
    source, gate = Far(20), threading.Event()
    with reading(source, Clock(0.05)) as ahead:
        source.hold = gate.wait
        next(ahead.following(range(20), ranges))
        queued = ahead._under_way[MOST * STEP]
        with ThreadPoolExecutor(1) as threads:
            closed = threads.submit(ahead.close)
            deadline = time.monotonic() + 10
            while not queued.cancelled() and time.monotonic() < deadline:
                os.sched_yield()
            assert not closed.done()
            gate.set()
            closed.result(10)
    assert sorted(source.readers) == [step * STEP for step in range(MOST)]


# With an NBD server, where a MiB is four requests.

FRAMES = 8
CONTENT = random.Random(3).randbytes(FRAMES * MIB)  # noqa: S311  # not secrets
REQUESTS = 4 * FRAMES
Answer = Callable[[socket.socket, list[tuple[int, int, int, int]]], None]


def answering(answer: Answer) -> Callable[[socket.socket], None]:
    """Return a script that says nothing before it was asked for everything."""

    def script(line: socket.socket) -> None:
        open_export(line, len(CONTENT))
        answer(line, [asked(line) for _ in range(REQUESTS)])
        while True:
            give(line, asked(line))

    return script


def give(line: socket.socket, request: tuple[int, int, int, int]) -> None:
    _, cookie, offset, length = request
    line.sendall(data(cookie, offset, CONTENT[offset : offset + length]))


def frames_of(location: str) -> list[bytes | SourceError]:
    """Read all from a far server, with two threads; return each frame, or why it cannot be read."""
    with (
        closing(NbdSource(location, patience=QUICK)) as source,
        closing(ReadAhead(source, Clock(0.05))) as ahead,
        ThreadPoolExecutor(2) as threads,
    ):
        ahead._depth = FRAMES

        def frame(start: int) -> bytes | SourceError:
            buffer = aligned_buffer(MIB)
            try:
                ahead.read_into([start], [MIB], buffer)
            except SourceError as error:
                return error
            return bytes(buffer)

        starts = ahead.following(range(0, len(CONTENT), MIB), lambda start: ([start], [MIB]))
        return list(threads.map(frame, starts))


def whole(frames: list[bytes | SourceError]) -> bytes:
    return b"".join(each for each in frames if isinstance(each, bytes))


def test_many_requests_are_under_way_on_one_connection(tmp_path: Path) -> None:
    def in_order(line: socket.socket, requests: list[tuple[int, int, int, int]]) -> None:
        for each in requests:
            give(line, each)

    with scripted(tmp_path, answering(in_order)) as location:
        assert whole(frames_of(location)) == CONTENT


def test_replies_in_any_order_come_to_whom_they_belong(tmp_path: Path) -> None:
    def shuffled(line: socket.socket, requests: list[tuple[int, int, int, int]]) -> None:
        random.Random(4).shuffle(requests)  # noqa: S311  # not secrets
        for each in requests:
            give(line, each)

    with scripted(tmp_path, answering(shuffled)) as location:
        assert whole(frames_of(location)) == CONTENT


def test_an_error_in_one_of_many_requests_is_that_of_its_frame(tmp_path: Path) -> None:
    bad = 3 * MIB + (512 << 10)

    def failing(line: socket.socket, requests: list[tuple[int, int, int, int]]) -> None:
        for each in reversed(requests):
            if each[2] == bad:
                line.sendall(fault(each[1], 5, b"worn out"))
            else:
                give(line, each)

    with scripted(tmp_path, answering(failing)) as location:
        frames = frames_of(location)
    errors = [each for each in frames if isinstance(each, SourceError)]
    assert frames.index(errors[0]) == 3
    assert f"offset {bad} cannot be read: the server says EIO: worn out" in str(errors[0])
    assert len(errors) == 1
    assert whole(frames) == CONTENT[: 3 * MIB] + CONTENT[4 * MIB :]


@pytest.mark.parametrize("answered", [0, 1, REQUESTS // 2])
def test_a_connection_that_is_cut_with_many_requests_under_way_costs_nothing(
    tmp_path: Path, answered: int
) -> None:
    seen = itertools.count()

    def cut(line: socket.socket, requests: list[tuple[int, int, int, int]]) -> None:
        next(seen)
        for each in requests[:answered]:
            give(line, each)
        _, cookie, offset, length = requests[-1]
        line.sendall(data(cookie, offset, bytes(length))[:-1])
        raise EOFError

    def serving(line: socket.socket) -> None:
        open_export(line, len(CONTENT))
        while True:
            give(line, asked(line))

    with scripted(tmp_path, answering(cut), serving) as location:
        assert whole(frames_of(location)) == CONTENT
    assert next(seen) == 1
