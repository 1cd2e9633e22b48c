"""An NBD export as a source: a disk of another program, and with QEMU, what changed in it."""

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Final

import numpy as np
import numpy.typing as npt

from blockstream.errors import BlockstreamError, NotFoundError, SourceError
from blockstream.extents import DATA, NOTHING, ZERO, ExtentMap, Kinds
from blockstream.formats.extent_rows import ExtentList, Meaning
from blockstream.formats.nbd import ALLOCATION, BITMAP, CAN_MULTI_CONN, READ_ONLY
from blockstream.formats.nbd_replies import Request
from blockstream.linux.identity import Identity, Node
from blockstream.sources.nbd_connection import Line, LineLostError, Patience, Place
from blockstream_protocol import Kind

_SECTOR: Final = 512  # what frames are made of
# A frame in four requests, so that the server reads one while it sends another.
_READ_BYTES: Final = 256 << 10
# 1.2 GiB/s at 20 ms, and no more memory than a send has left below its limit of 150 MiB.
_READ_AHEAD: Final = 24
_STATUS_BYTES: Final = 1 << 30
_STATUS_IN_FLIGHT: Final = 16
_MOST_LINES: Final = 4
# base:allocation: a hole alone is no promise that it reads as zeros (nbd/doc/proto.md).
_ZERO: Final = 2
_DIRTY: Final = 1
# A server that has no room for one more connection may leave it waiting.
_HASTE: Final = Patience(connect=2.0, greeting=2.0)


class NbdSource:
    """Reads an export. See `interfaces.Source` for what each method promises.

    Whether it lies on a target of this host cannot be told, so it has no nodes. When a connection
    is lost, what was not answered is asked again on a new one, some times; of the export, only its
    size and its bitmap show then whether it is still the same.
    """

    immutable = False
    read_ahead = _READ_AHEAD
    nodes: frozenset[Node] = frozenset()

    def __init__(
        self, location: str, *, bitmap: str = "", patience: Patience | None = None
    ) -> None:
        """Connect.

        Args:
            location: `nbd://HOST[:PORT]/EXPORT`, with TLS `nbds://...`; on this host
                `nbd+unix:///EXPORT?socket=PATH` or `nbds+unix://...`.
            bitmap: A dirty bitmap of QEMU's that must be there, for `changes`.
            patience: How long to wait.

        Raises:
            UsageError: If the location is none.
            NotFoundError: If nobody listens there, or there is no such export or bitmap.
            AuthenticationError: If TLS fails.
            SourceError: If the server refuses, or is none that we know.
        """
        self.name = location
        self._lines = _Lines(Place.of(location), bitmap, patience or Patience())
        self._bitmap = bitmap
        export = self._lines.export
        self.size = export.size
        self.alignment = max(_SECTOR, export.least)
        self.identity = Identity(self._lines.place.key, lasting=True)
        self.warnings: list[str] = []
        self.is_still = bool(export.flags & READ_ONLY)
        if not self.is_still:
            self.warnings.append(
                f"{location} may be written while it is read: then what is sent is no one moment "
                "of it; an export of a snapshot would be"
            )
        # A server may take even less than a sector at once.
        most = export.most - export.most % min(self.alignment, export.most)
        self._step = min(_READ_BYTES, most)

    def extents(self) -> ExtentMap:
        """Return the map: what the server promises to be zeros is ZERO, all else DATA."""
        known = self._status(ALLOCATION).map(_allocation, self.size)
        return known.filled(Kind.DATA).rounded(self.alignment)

    def changes(self) -> ExtentList:
        """Return what the bitmap says has changed; what is zeros now is listed as ZERO."""
        rows = self._status(BITMAP + self._bitmap)
        # What the server does not tell may have changed, too.
        untold = ExtentMap.whole(self.size).without(rows.map(_told, self.size))
        changed = rows.map(_dirtiness, self.size).overlaid(untold)
        extents = self.extents().intersected(changed)
        return ExtentList(extents, Meaning.CHANGED, BITMAP + self._bitmap, self.size)

    def read_into(self, offsets: Sequence[int], lengths: Sequence[int], buffer: memoryview) -> None:
        """Fill `buffer` with the given ranges, one after the other."""
        requests, at = list[Request](), 0
        for offset, length in zip(offsets, lengths, strict=True):
            if offset < 0 or offset + length > self.size:
                raise SourceError(f"{self.name} has no {length} bytes at offset {offset}")
            for start in range(0, length, self._step):
                size = min(self._step, length - start)
                requests.append(Request(offset + start, size, buffer[at : at + size]))
                at += size
        for request in self._lines.asked(requests):
            if request.fault:
                raise SourceError(
                    f"{self.name}: {request.length} bytes at offset {request.offset} cannot be "
                    f"read: the server says {request.fault}; nothing was put in their place and "
                    "END was not sent"
                )

    def validate(self) -> None:
        """Nothing to do: whether an export changed cannot be told."""

    def close(self) -> None:
        """End the connections."""
        self._lines.close()

    def _status(self, context: str) -> "_Rows":
        """Ask for all extents of a context; what the server does not tell is left out."""
        found = _Rows(context, self.alignment)
        todo: deque[tuple[int, int]] = deque()
        if context in self._lines.export.contexts.values():
            starts = range(0, self.size, _STATUS_BYTES)
            todo.extend((start, min(_STATUS_BYTES, self.size - start)) for start in starts)
        while todo:
            batch = [todo.popleft() for _ in range(min(len(todo), _STATUS_IN_FLIGHT))]
            asked = self._lines.asked([Request(offset, length) for offset, length in batch])
            todo.extendleft(filter(None, map(found.add, asked)))
        return found


def _allocation(flags: npt.NDArray[np.uint32]) -> Kinds:
    return np.where(flags & _ZERO, ZERO, DATA)


def _dirtiness(flags: npt.NDArray[np.uint32]) -> Kinds:
    return np.where(flags & _DIRTY, DATA, NOTHING)


def _told(flags: npt.NDArray[np.uint32]) -> Kinds:
    return np.full(len(flags), DATA)


class _Rows:
    """The extents of one context, as they are told."""

    def __init__(self, context: str, unit: int) -> None:
        self._context = context
        self._unit = unit
        self._offsets = [np.empty(0, np.int64)]
        self._lengths = [np.empty(0, np.int64)]
        self._flags = [np.empty(0, np.uint32)]

    def add(self, request: Request) -> tuple[int, int] | None:
        """Take an answer; return what it leaves to be asked again.

        None if that is nothing, or no use: then the rest counts as data.
        """
        rows = request.status.get(self._context)
        if request.fault or rows is None:
            return None
        ends = np.cumsum(rows[:, 0], dtype=np.int64)
        # The last may go past what was asked, or end within a block.
        told = min(int(ends[-1]), request.length)
        if told < request.length:
            told -= told % self._unit
        np.minimum(ends, told, out=ends)
        starts = np.concatenate(([0], ends[:-1]))
        self._offsets.append(starts + request.offset)
        self._lengths.append(ends - starts)
        self._flags.append(rows[:, 1])
        if not told or told == request.length:
            return None
        return request.offset + told, request.length - told

    def map(self, kinds: Callable[[npt.NDArray[np.uint32]], Kinds], size: int) -> ExtentMap:
        """Return the extents, with what `kinds` makes of their flags; NOTHING leaves one out."""
        found = kinds(np.concatenate(self._flags)).astype(np.uint8)
        keep = found != NOTHING
        offsets, lengths = np.concatenate(self._offsets), np.concatenate(self._lengths)
        return ExtentMap.from_columns(offsets[keep], lengths[keep], found[keep], size)


class _Lines:
    """The connections to one export: as many as threads ask, where the server allows several."""

    def __init__(self, place: Place, bitmap: str, patience: Patience) -> None:
        self.place = place
        self._bitmap = bitmap
        self._patience = patience
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._failures = 0  # attempts to connect that failed
        self._failure: Exception = LineLostError("it was never lost")
        try:
            first = Line(place, bitmap, patience)
        except LineLostError as error:
            raise SourceError(f"{place.location}: {error}; nothing was sent") from error
        self.export = first.export
        self._users = {first: 0}
        self._most = _MOST_LINES if first.export.flags & CAN_MULTI_CONN else 1

    def asked(self, requests: Sequence[Request]) -> Sequence[Request]:
        """Ask until all was answered; with faults, where the server says so.

        Raises:
            SourceError: If the connection is lost too often, or the server is not what it was.
        """
        pauses = iter(self._patience.pauses)
        while todo := [each for each in requests if not each.done or each.goes_away]:
            try:
                for each in todo:
                    each.begin_again()
                with self._borrowed() as line:
                    line.ask(todo)
            except (LineLostError, NotFoundError) as error:
                pause = next(pauses, None)
                if pause is None or self._closed.wait(pause):
                    raise self._given_up(error, requests) from error
        return requests

    def close(self) -> None:
        """End them."""
        self._closed.set()
        for line in self._users:
            line.close()

    def _given_up(self, error: Exception, requests: Sequence[Request]) -> SourceError:
        at = next((each.offset for each in requests if not each.done), 0)
        # What else it says is of a server that was never there.
        why = str(error).removeprefix(f"{self.place.location}: ").partition(";")[0]
        return SourceError(
            f"{self.place.location}: the connection was lost at offset {at}: {why}; it was "
            f"tried {len(self._patience.pauses)} more times; END was not sent; run it again when "
            "the server is there"
        )

    @contextlib.contextmanager
    def _borrowed(self) -> Iterator[Line]:
        before = self._failures
        with self._lock:
            if before != self._failures:
                # Another thread has just tried: with many that wait, each for its own attempt, a
                # server that is silent would hold up the last one for as many times as long.
                raise LineLostError(str(self._failure)) from self._failure
            line = self._chosen()
            self._users[line] = self._users.get(line, 0) + 1
        try:
            yield line
        finally:
            with self._lock:
                self._users[line] -= 1
                if line.lost is not None and not self._users[line]:
                    del self._users[line]
                    line.close()

    def _chosen(self) -> Line:
        """Return an idle line, a new one, or the one that has the least to do."""
        usable = {line: count for line, count in self._users.items() if line.lost is None}
        if not usable:
            try:
                return self._another(self._patience)
            except (LineLostError, BlockstreamError) as error:
                self._failures += 1
                self._failure = error
                raise
        least = min(usable, key=lambda line: usable[line])
        if not usable[least] or len(usable) >= self._most:
            return least
        try:
            return self._another(_HASTE)
        except (LineLostError, BlockstreamError):
            self._most = len(usable)  # the server allows several, but no more
            return least

    def _another(self, patience: Patience) -> Line:
        line = Line(self.place, self._bitmap, replace(patience, reply=self._patience.reply))
        if line.export.size != self.export.size:
            line.close()
            raise SourceError(
                f"{self.place.location} had {self.export.size} bytes and has "
                f"{line.export.size} now: it is another disk; END was not sent; send it again"
            )
        return line
