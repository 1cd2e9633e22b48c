"""Chains of streams, of ours and of other tools: what they make together.

Every stream is read to its end first, and checked; what is kept is where its ranges lie, not their
bytes. Memory: what `formats.foreign.layers` states.
"""

import contextlib
import os
import stat
import threading
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from blockstream.captures.interface import Captured
from blockstream.errors import (
    BaseMismatchError,
    NotFoundError,
    RefusedError,
    UsageError,
)
from blockstream.extents import DATA
from blockstream.formats.extent_lists import ExtentList, Meaning
from blockstream.formats.foreign.events import Format, Head
from blockstream.formats.foreign.layers import ZEROS, Layers
from blockstream.formats.foreign.names import OURS
from blockstream.formats.foreign.table import HEAD_BYTES, by_name, chosen
from blockstream.formats.foreign.wrappings import wrapping
from blockstream.jobs.foreign.detect import beginning, is_ours
from blockstream.jobs.foreign.options import ConvertOptions
from blockstream.jobs.foreign.receive import UNVERIFIED, base_of, told_whole
from blockstream.jobs.foreign.unpacking import packed_ours, unpacking
from blockstream.linux.buffers import write_all
from blockstream.linux.descriptors import allow_descriptors
from blockstream.linux.streams import WakeableReader, widen_pipe
from blockstream.pipeline.receiver import FrameReader
from blockstream.run import Run
from blockstream.sources.foreign_stream import ForeignStream, unnamed
from blockstream.sources.layered import LayeredSource
from blockstream.transfers.send import SendPlan, TransferOptions, planned
from blockstream.transfers.stream_scan import StreamScan
from blockstream.transfers.write_foreign import head_of
from blockstream_protocol import (
    ALIGNMENT,
    Codec,
    Frame,
    FrameType,
    Table,
    is_id,
)

_STDIN = 0
_BUFFER_BYTES = 1 << 20
# What a process needs besides the streams, and for each: its file, where its bytes lie, what wakes
# its reader.
_DESCRIPTORS, _DESCRIPTORS_EACH = 64, 4


@dataclass(frozen=True, slots=True)
class ConvertRequest:
    """Which streams, and what people say of them.

    Attributes:
        streams: Files, or - for standard input, in the order in which they were made.
        state_dir: Where bytes are kept meanwhile that lie in no file as they are.
        said: What is said of them, and what is made of them.
    """

    streams: Sequence[str]
    state_dir: Path
    said: ConvertOptions


@dataclass(slots=True)
class Link:
    """What one stream of a chain says.

    Attributes:
        name: What people call it.
        how: Its format; None for ours.
        size: Bytes of its disk; None if it does not say.
        base: State that it belongs onto; empty if it does not say, or is whole.
        goal: State that it leads to; empty if it does not say.
        whole: Whether it is a whole disk.
        open_ended: Whether nothing says that all of it is there.
        moment: When its disk held the state that it leads to; None if it does not say.
    """

    name: str
    how: Format | None
    size: int | None
    base: str
    goal: str
    whole: bool
    open_ended: bool
    moment: int | None = None


@dataclass(frozen=True, slots=True)
class Combined:
    """What a chain of streams makes together.

    Attributes:
        source: The disk, or its changes.
        links: What each stream says.
        what: What would be sent of it.
    """

    source: LayeredSource
    links: tuple[Link, ...]
    what: SendPlan

    @property
    def head(self) -> Head:
        """What a writer is told."""
        return head_of(self.what)


@contextlib.contextmanager
def combined(request: ConvertRequest, run: Run) -> Iterator[Combined]:
    """Read a chain of streams, the oldest first; enter it in a thread.

    Args:
        request: Which.
        run: Told how much of them was seen, and stops it.

    Raises:
        BaseMismatchError: If one does not begin where the one before it leads.
        UsageError: If they do not say what must be known.
        BlockstreamError: If one is cut or damaged.
    """
    if not allow_descriptors(_DESCRIPTORS + _DESCRIPTORS_EACH * len(request.streams)):
        raise RefusedError(
            f"{len(request.streams)} streams are more than this process may have open (ulimit -Hn);"
            " nothing was made; merge them in parts, and then the parts"
        )
    with contextlib.ExitStack() as stack:
        chain = _Chain(request, stack, run)
        for name in request.streams:
            chain.add(name)
        yield chain.combined()


class _Chain:
    """Streams that were read so far."""

    def __init__(self, request: ConvertRequest, stack: contextlib.ExitStack, run: Run) -> None:
        self._request = request
        self._run = run
        self._stack = stack
        self._layers = Layers()
        self._fds: list[int] = []
        self._before: dict[int, os.stat_result] = {}
        self._links: list[Link] = []
        self._size = request.said.size or None

    def add(self, name: str) -> None:
        """Read one more."""
        fd = self._opened(name)
        name = "standard input" if name == "-" else name
        given = self._request.said.format
        head = beginning(fd, given=bool(given))
        widen_pipe(fd)
        packed, head = packed_ours(fd, head) if not given else ("", head)
        if packed:
            fd = self._unpacked(fd, packed, head)
            head = beginning(fd)
        ours = is_ours(head, given)
        if ours and given:
            raise UsageError(
                f"--format has no effect: {name} is a stream of ours, which says that itself; "
                "nothing was made"
            )
        link = self._ours(name, fd, head) if ours else self._foreign(name, fd, head)
        if self._links:
            self._follows(link)
        elif link.size is not None and self._size not in {None, link.size}:
            raise RefusedError(
                f"{name} is for a disk of {link.size} bytes, and --size says {self._size}; nothing "
                "was made; leave out --size, or see whether the stream was cut"
            )
        if link.size is not None:
            self._size = link.size
        self._links.append(link)

    def combined(self) -> Combined:
        """Return what they make."""
        request, first, last = self._request, self._links[0], self._links[-1]
        # What the new format does not carry need not be known.
        to = by_name(request.said.to) if request.said.to != OURS else None
        if self._size is None and to is not None and to.sizeless:
            self._size = -(-self._layers.end() // ALIGNMENT) * ALIGNMENT
        if self._size is None:
            raise UsageError(
                f"{last.name} does not say how large the disk is: give --size; nothing was made"
            )
        if first.whole and request.said.base:
            raise UsageError(
                f"{first.name} is a whole disk, which needs no --base; nothing was made"
            )
        base = "" if first.whole else base_of(first.name, first.base, request.said.base)
        if not base and to is not None and not to.based:
            base = UNVERIFIED
        if not base and not first.whole:
            raise UsageError(
                f"{first.name} does not say onto what it belongs: name that state with --base; "
                "nothing was made"
            )
        name = " and ".join(link.name for link in self._links[:3])
        placed = self._layers.flattened(self._size)
        source = LayeredSource(name, placed, self._fds, self._size, self._before)
        goal, moment = self._goal(last), last.moment
        changes = ExtentList(source.changes(), Meaning.CHANGED, name, self._size) if base else None
        made = Captured(name, name, source, goal, moment, base, changes)
        plan = planned(made, TransferOptions(request.state_dir))
        return Combined(source, tuple(self._links), plan)

    def _goal(self, last: Link) -> str:
        """Return the name of the state that they lead to; empty for a random one."""
        request = self._request
        doubtful = next((link.how for link in self._links if link.open_ended), None)
        if doubtful is not None and not request.said.accept_open_end and not request.said.goal:
            return f"{UNVERIFIED}-{doubtful.name}-{uuid.uuid4()}"
        return request.said.goal or (last.goal if is_id(last.goal) else "")

    def _opened(self, name: str) -> int:
        if name == "-":
            return _STDIN
        try:
            fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise NotFoundError(
                f"{name} cannot be opened: {error.strerror}; nothing was made"
            ) from error
        self._stack.callback(os.close, fd)
        return fd

    def _unpacked(self, fd: int, packed: str, head: bytes) -> int:
        """Unpack a stream of ours into a file without a name, because it is read by place."""
        file = unnamed(self._request.state_dir)
        self._stack.callback(os.close, file)
        buffer = memoryview(bytearray(_BUFFER_BYTES))
        position = 0
        with unpacking(fd, packed, head) as inside:
            while count := os.readv(inside, [buffer]):
                _kept_at(file, buffer[:count], position)
                position += count
        return file

    def _follows(self, link: Link) -> None:
        """Refuse what does not begin where the stream before it leads."""
        before = self._links[-1]
        if link.whole:
            raise RefusedError(
                f"{link.name} is a whole disk, so nothing of {before.name} would be left; nothing "
                "was made; merge what was made since"
            )
        names_goals = before.how is None or before.how.based
        if link.base and (before.goal or names_goals) and link.base != before.goal:
            leads, advice = repr(before.goal), "give the oldest first, and leave none out"
            if not before.goal:
                leads = "a state without a name"
                advice = "if it is the same, name it first with `blockstream convert --goal`"
            raise BaseMismatchError(
                f"{link.name} belongs onto {link.base!r}, but {before.name} leads to {leads}; "
                f"nothing was made; {advice}"
            )

    def _foreign(self, name: str, fd: int, head: bytes) -> Link:
        packed = wrapping(head)
        folder, number = self._request.state_dir, len(self._fds)
        intake = ForeignStream(
            fd,
            ahead=head,
            wrapping=packed,
            folder=folder,
            number=number,
            layers=self._layers,
            tell=self._run.progress.look,
        )
        self._stack.callback(intake.close)
        self._fds.append(-1)
        given = self._request.said.format
        with self._run.heeding(intake.stop):
            how = chosen(intake.head(HEAD_BYTES), given)
            if self._links:
                intake.found.size = self._size
            found = intake.run(how, self._size if how.sizeless else None)
        self._fds[number] = intake.fd
        self._before |= intake.before
        return Link(
            name=name,
            how=how,
            size=found.size,
            base=found.base,
            goal=found.goal,
            whole=found.whole,
            open_ended=not told_whole(how, packed, found.size, self._size),
        )

    def _ours(self, name: str, fd: int, head: bytes) -> Link:
        # Where packed frames are unpacked to, and all of a pipe.
        kept = unnamed(self._request.state_dir)
        self._stack.callback(os.close, kept)
        info = os.fstat(fd)
        regular = stat.S_ISREG(info.st_mode)
        if regular:
            self._before[len(self._fds)] = info
        numbers = (len(self._fds) if regular else -1, len(self._fds) + 1)
        self._fds += [fd, kept]
        origin = os.lseek(fd, 0, os.SEEK_CUR) - len(head) if regular else 0
        places: list[int] = []
        with contextlib.closing(
            StreamScan(fd, head, self._run, lambda reader: _NotingReader(reader, places))
        ) as stream:
            opening = stream.opening
            if self._links and self._size is not None and opening.size > self._size:
                grown = opening.size - self._size
                self._layers.add(self._size, grown, numbers[1], ZEROS)
            stream.run(_Placing(self._layers, places, numbers, kept, origin))
        return Link(
            name=name,
            how=None,
            size=opening.size,
            base=opening.base,
            goal=opening.goal,
            whole=opening.full,
            open_ended=False,
            moment=stream.moment,
        )


class _NotingReader(FrameReader):
    """Frames of a file, and where in it the payload of each data frame begins."""

    def __init__(self, reader: WakeableReader, places: list[int]) -> None:
        super().__init__(reader)
        self._places = places

    def next(self, buffer: memoryview) -> Frame | None:
        """Read one frame; see `FrameReader`."""
        frame = super().next(buffer)
        if frame is not None and frame.kind is FrameType.EXTENTS:
            self._places.append(self.wire_bytes - len(frame.payload))
        return frame


class _Placing:
    """Notes where the bytes of frames lie, and keeps those that were packed."""

    def __init__(
        self,
        layers: Layers,
        places: Sequence[int],
        numbers: tuple[int, int],
        kept: int,
        origin: int,
    ) -> None:
        """Note into `layers`.

        Args:
            layers: Where each range lies.
            places: Where the payload of each frame begins.
            numbers: Of the stream's own file, -1 if it is none, and of the one for what is packed.
            kept: The latter.
            origin: Where the stream begins in its file.
        """
        self._layers = layers
        self._places = places
        self._file, self._kept_number = numbers
        self._kept = kept
        self._origin = origin
        self._used = 0
        self._lock = threading.Lock()

    def __call__(self, seq: int, frame: Frame, table: Table) -> None:
        """Note a frame that was checked."""
        data = table.data
        if self._file >= 0 and frame.codec is Codec.NONE:
            file, place = self._file, self._origin + self._places[seq]
            place += len(frame.payload) - len(data)
        else:
            with self._lock:
                file, place = self._kept_number, self._used
                self._used += len(data)
            _kept_at(self._kept, data, place)
        with self._lock:
            for offset, length, kind in table.extents:
                if kind == DATA:
                    self._layers.add(offset, length, file, place)
                    place += length
                else:
                    self._layers.add(offset, length, file, ZEROS)


def _kept_at(fd: int, data: memoryview, place: int) -> None:
    try:
        write_all(fd, data, place)
    except OSError as error:
        raise RefusedError(
            f"what is unpacked cannot be kept: {error.strerror}; nothing was made; make room, or "
            "choose another place with --state-dir"
        ) from error
