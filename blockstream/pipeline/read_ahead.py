"""Reads of a far source that are under way before anybody waits for them."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeVar

from blockstream.interfaces import Source
from blockstream.linux.buffers import aligned_buffer
from blockstream_protocol import DATA_BYTES

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

# A near server takes a millisecond or two; a thread that waits for the interpreter loses five.
_FAR_SECONDS: Final = 0.006
# On a busy host a near server is slow, too, but not so many times in a row.
_FAR_READS: Final = 8

T = TypeVar("T")
# First bytes and sizes of the ranges of one read.
Ranges = tuple[Sequence[int], Sequence[int]]


@dataclass(frozen=True, slots=True)
class _Read:
    """What was read ahead.

    Attributes:
        buffer: The bytes, and room behind them.
        seconds: How long it took.
    """

    buffer: memoryview
    seconds: float


class ReadAhead:
    """Reads a source whose answers take long as if it were near, where the order is known.

    Whoever reads does so with its own thread as long as the source is near. Once several reads in a
    row made somebody wait long, what comes next is asked for meanwhile, by other threads: twice as
    much each time somebody waits nevertheless, and one frame less for each read that was quick. So
    as much is under way as fills the way there and back, and at most `Source.read_ahead` frames.
    Never for a near one: there, more at once only wait for each other.

    Memory: a buffer of a frame for each of them, and for each thread that reads.
    """

    def __init__(self, source: Source, clock: Callable[[], float] = time.monotonic) -> None:
        """Prepare; nothing is read.

        Args:
            source: What is read.
            clock: Tells the time, in seconds.
        """
        self._source = source
        self._clock = clock
        self._most = source.read_ahead
        self._depth = self._slow = 0
        self._lock = threading.Lock()
        self._under_way: dict[int, Future[_Read]] = {}
        self._free: list[memoryview] = []
        self._pool: ThreadPoolExecutor | None = None

    def following(self, items: Iterable[T], ranges: Callable[[T], Ranges]) -> Iterator[T]:
        """Give what is to be read, in order; one thread at a time may ask for the next one.

        Each must be read by `read_into` soon, or everything closed.

        Args:
            items: What is to be read; no two begin at the same offset.
            ranges: Tells what will be asked of `read_into` for it; nothing, if nothing will.
        """
        coming: deque[T] = deque()
        for item in items:
            if self._depth:
                self._begin(*ranges(item))
            coming.append(item)
            while len(coming) > self._depth:
                yield coming.popleft()
        yield from coming

    def read_into(self, offsets: Sequence[int], lengths: Sequence[int], buffer: memoryview) -> None:
        """Fill `buffer`; see `interfaces.Source`. An error of a read ahead is raised here."""
        with self._lock:
            read = self._under_way.pop(offsets[0], None)
        if read is None:
            began = self._clock()
            self._source.read_into(offsets, lengths, buffer)
            self._note(self._clock() - began, waited=True)
            return
        waited = not read.done()
        found = read.result()
        buffer[:] = found.buffer[: len(buffer)]
        self._free.append(found.buffer)
        self._note(found.seconds, waited=waited)

    def close(self) -> None:
        """Ask for nothing more, and wait for what is under way. Nobody may be reading."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def _begin(self, offsets: Sequence[int], lengths: Sequence[int]) -> None:
        if not offsets:
            return
        if self._pool is None:
            from concurrent.futures import ThreadPoolExecutor  # of no use for a near source

            self._pool = ThreadPoolExecutor(self._most, thread_name_prefix="ahead")
        read = self._pool.submit(self._read, offsets, lengths)
        with self._lock:
            self._under_way[offsets[0]] = read

    def _read(self, offsets: Sequence[int], lengths: Sequence[int]) -> _Read:
        try:
            buffer = self._free.pop()
        except IndexError:
            buffer = aligned_buffer(DATA_BYTES)
        began = self._clock()
        self._source.read_into(offsets, lengths, buffer[: sum(lengths)])
        return _Read(buffer, self._clock() - began)

    def _note(self, seconds: float, *, waited: bool) -> None:
        """Learn from a read: how long it took, and whether somebody had to wait for it."""
        with self._lock:
            if seconds < _FAR_SECONDS:
                self._slow, self._depth = 0, max(self._depth - 1, 0)
            elif waited:
                self._slow += 1
                if self._slow >= _FAR_READS:
                    self._depth = min(2 * self._depth + 1, self._most)
