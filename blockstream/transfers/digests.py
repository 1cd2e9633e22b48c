"""Disks of two hosts compared by digests alone: each reads its own, 32 bytes a block travel."""

import contextlib
import math
import threading
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import blake3
import numpy as np

from blockstream.errors import (
    ConnectionLostError,
    IntegrityError,
    InterruptedTransferError,
    RefusedError,
)
from blockstream.extents import ExtentMap
from blockstream.interfaces import Source
from blockstream.linux.buffers import aligned_buffer, write_stream
from blockstream.linux.streams import WakeableReader, widen_pipe
from blockstream.locations.interface import DiskLocation
from blockstream.locations.ssh import Remote, open_link
from blockstream.pipeline.frame_sink import PipeSink
from blockstream.pipeline.limiter import Limiter
from blockstream.pipeline.progress import Progress
from blockstream.pipeline.read_ahead import Ranges, ReadAhead
from blockstream.pipeline.workers import Turnstile, Workers, default_workers
from blockstream.run import Run
from blockstream.transfers.opened_target import opened_at, record_adopted
from blockstream.transfers.peer_options import PeerOptions
from blockstream.transfers.remote_command import remote_command
from blockstream.transfers.remote_errors import explained
from blockstream.words import noise_text
from blockstream_protocol import OWED_SECONDS, Hello, Kind

# A block that differs travels whole: smaller ones would cost more digests than they save.
GRAIN = 64 << 10
_STEP = 1 << 20
_DIGEST_BYTES = 32
_HEADING = "blockstream-digests 1 {size} {grain}\n"
_HEADING_BYTES = 80
_ZEROS = blake3.blake3(bytes(GRAIN)).digest() * (_STEP // GRAIN)

Emit = Callable[[int, bytes], None]


@dataclass(frozen=True, slots=True)
class Comparison:
    """What two disks have in common.

    Attributes:
        size: How much was compared, in bytes.
        differing: The blocks that differ, as DATA.
        target_size: Bytes of the other disk.
        base: What the other disk is called now; empty if it was not called anything.
    """

    size: int
    differing: ExtentMap
    target_size: int
    base: str = ""


class Digesting:
    """Reads a disk with several threads and gives the digests of its blocks in order."""

    def __init__(self, source: Source, size: int, emit: Emit, progress: Progress) -> None:
        """Prepare; `emit` is called with the offset of a MiB and the digests of its blocks."""
        self._source = source
        self._size = size
        self._emit = emit
        self._progress = progress
        self._ahead = ReadAhead(source)
        self._steps = self._ahead.following(self._numbered(), lambda step: step.ranges)
        self._taking = threading.Lock()
        self._turnstile = Turnstile()
        self._crew = Workers(self._turnstile.break_open)

    def run(self) -> None:
        """Read everything.

        Raises:
            SourceError: If it cannot be read; whatever `emit` raises.
        """
        self._progress.size = self._progress.total = self._size
        with contextlib.closing(self._ahead):
            self._crew.run(self._work, default_workers())
        if self._crew.error is not None:
            raise self._crew.error

    def stop(self, reason: str) -> None:
        """Make `run` end soon."""
        self._crew.fail(InterruptedTransferError(f"{reason}; nothing was written"))

    def _work(self) -> None:
        buffer = aligned_buffer(_STEP)
        while self._crew.error is None:
            with self._taking:
                step = next(self._steps, None)
            if step is None:
                return
            if step.zero:
                digests = _ZEROS
            else:
                data = buffer[: step.length]
                self._ahead.read_into(*step.ranges, data)
                digests = _digests_of(data)
            self._turnstile.wait_for(step.number)
            self._emit(step.offset, digests)
            self._progress.frame(data=step.length, covered=step.length, wire=len(digests))
            self._turnstile.advance()

    def _numbered(self) -> Iterator["_Step"]:
        extents = self._source.extents()
        zero = extents.kinds == Kind.ZERO
        starts, ends = extents.offsets[zero], (extents.offsets + extents.lengths)[zero]
        for number, offset in enumerate(range(0, self._size, _STEP)):
            row = int(np.searchsorted(starts, offset, side="right")) - 1
            length = min(_STEP, self._size - offset)
            zero = length == _STEP and row >= 0 and int(ends[row]) >= offset + _STEP
            yield _Step(number, offset, length, zero)


@dataclass(frozen=True, slots=True)
class _Step:
    """A part of a disk whose digests are taken at once.

    Attributes:
        number: How many come before it.
        offset: Its first byte.
        length: Its size in bytes.
        zero: Whether it is a whole one, and the source says that it is zeros.
    """

    number: int
    offset: int
    length: int
    zero: bool

    @property
    def ranges(self) -> Ranges:
        """What is read for it."""
        return ((), ()) if self.zero else ((self.offset,), (self.length,))


def _digests_of(data: memoryview) -> bytes:
    starts = range(0, len(data), GRAIN)
    return b"".join(blake3.blake3(data[start : start + GRAIN]).digest() for start in starts)


async def send_digests(
    location: DiskLocation,
    most: int,
    fd: int,
    run: Run,
    adopt: tuple[str, Path] | None = None,
    identity: str = "",
) -> None:
    """Write the digests of a disk's blocks to `fd`: what runs on the other host.

    Args:
        location: The disk.
        most: How many bytes of it to read.
        fd: Where to.
        run: Counts, and stops it.
        adopt: Id to give it, once all was read, and where journals lie; it is held until then.
        identity: What it must be known by; empty for anything.

    Raises:
        BlockstreamError: If it cannot be read, or not be held.
    """
    await run.carry(lambda: digests_sent(location, most, fd, run, adopt, identity))


def digests_sent(
    location: DiskLocation,
    most: int,
    fd: int,
    run: Run,
    adopt: tuple[str, Path] | None = None,
    identity: str = "",
) -> None:
    """Write the digests, in a thread. See `send_digests`."""
    with contextlib.ExitStack() as stack:
        everything = None
        if adopt is not None:
            everything = stack.enter_context(opened_at(str(location), adopt[1]))
        opening = contextlib.closing(location.open_source(from_medium=True))
        source = stack.enter_context(opening)
        if identity and not source.identity.is_known_as(identity):
            raise RefusedError("the disk is not the one that was granted; nothing was read")
        whole = blake3.blake3()

        def emit(_offset: int, digests: bytes) -> None:
            whole.update(digests)
            write_stream(fd, [memoryview(digests)])

        heading = _HEADING.format(size=source.size, grain=GRAIN).encode()
        job = Digesting(source, min(most, source.size), emit, run.progress)
        try:
            write_stream(fd, [memoryview(heading)])
            with run.heeding(job.stop):
                job.run()
            if everything is not None and adopt is not None:
                record_adopted(everything, str(location), adopt[0])
            write_stream(fd, [memoryview(whole.digest())])
        except OSError as error:
            raise ConnectionLostError("whoever compares has hung up") from error


class _Incoming:
    """The digests that the other host sends."""

    def __init__(self, reader: WakeableReader) -> None:
        self._reader = reader
        self._whole = blake3.blake3()
        self._waiting_since = math.inf
        self._is_late = False
        self.size = 0

    def tick(self) -> None:
        """Give up a peer of which nothing comes, as where a line is cut without a word."""
        if time.monotonic() - self._waiting_since >= OWED_SECONDS:
            self._is_late = True
            self._reader.stop()

    def heading(self) -> None:
        """Take the first line."""
        line = bytearray()
        while not line.endswith(b"\n") and len(line) < _HEADING_BYTES:
            line += self._exactly(1)
        words = line.decode(errors="replace").split()
        if len(words) != 4 or words[:2] != ["blockstream-digests", "1"] or words[3] != str(GRAIN):
            if words[:1] == _HEADING.split()[:1]:
                raise IntegrityError("the other host does not send digests as this version does")
            raise InterruptedTransferError(noise_text("the other host", bytes(line)))
        self.size = int(words[2]) if words[2].isdecimal() else 0

    def take(self, count: int) -> bytes:
        """Take as many digests, as bytes."""
        data = self._exactly(count)
        self._whole.update(data)
        return data

    def end(self) -> None:
        """Take the digest of all digests."""
        if self._exactly(_DIGEST_BYTES) != self._whole.digest():
            raise IntegrityError("the digests were altered on their way; nothing was compared")

    def _exactly(self, count: int) -> bytes:
        data = bytearray(count)
        view = memoryview(data)
        while view:
            self._waiting_since = time.monotonic()
            got = self._reader.read_into(view)
            self._waiting_since = math.inf
            if self._is_late:
                raise ConnectionLostError(f"the other host said nothing for {OWED_SECONDS:.0f} s")
            if not got:
                raise ConnectionLostError("the other host ended before it had read its disk")
            view = view[got:]
        return bytes(data)


def compare(source: Source, from_peer: int, run: Run) -> Comparison:
    """Compare a disk with the digests that come from the other host.

    Raises:
        RefusedError: If the other disk is smaller.
        IntegrityError: If what came are no digests.
        ConnectionLostError: If the other host ended too early.
    """
    widen_pipe(from_peer)
    found = array("q")
    with contextlib.closing(WakeableReader(from_peer)) as reader:
        incoming = _Incoming(reader)

        def emit(offset: int, digests: bytes) -> None:
            theirs = incoming.take(len(digests))
            if theirs != digests:
                found.extend(offset + start for start in _unequal(digests, theirs))

        job = Digesting(source, source.size, emit, run.count_anew())

        def stop(reason: str) -> None:
            job.stop(reason)
            reader.stop()

        with run.heeding(stop, incoming.tick):
            incoming.heading()
            if incoming.size < source.size:
                raise RefusedError(
                    f"{source.name} has {source.size} bytes, the target only {incoming.size}: "
                    "they cannot be equal; nothing was written"
                )
            job.run()
            incoming.end()
    offsets = np.frombuffer(found, np.int64) if found else np.empty(0, np.int64)
    lengths = np.minimum(GRAIN, source.size - offsets)
    differing = ExtentMap.from_columns(offsets, lengths, Kind.DATA, source.size)
    return Comparison(source.size, differing, incoming.size)


def _unequal(ours: bytes, theirs: bytes) -> Iterator[int]:
    for number, start in enumerate(range(0, len(ours), _DIGEST_BYTES)):
        end = start + _DIGEST_BYTES
        if ours[start:end] != theirs[start:end]:
            yield number * GRAIN


def digest_words(size: int, adopt: str = "") -> Sequence[str]:
    """Return the command that `compare` needs on the other host, without the disk's path."""
    return ["digests", "--most", str(size), *(["--adopt", adopt] if adopt else [])]


def ask_to_verify(fd: int, name: str, most: int) -> None:
    """Ask `serve` on the other host for the digests of a disk that it knows by name."""
    facts = {"operation": "verify", "name": name, "most": most}
    with contextlib.closing(PipeSink(fd, Limiter(None), Progress())) as outlet:
        outlet.send(Hello(duplex=True, target=facts))


async def compared(
    source: Source,
    where: Remote,
    options: PeerOptions,
    run: Run,
    *,
    adopt: str = "",
) -> Comparison:
    """Compare a disk of this host with one of another by digests.

    Args:
        source: The disk here.
        where: The disk there.
        options: How its host is reached.
        run: Counts, and stops it.
        adopt: Id to give the disk there, which nobody else may use meanwhile.

    Raises:
        BlockstreamError: With what the other end said.
    """
    return await run.carry(lambda: _compared(source, where, options, run, adopt))


def _compared(
    source: Source, where: Remote, options: PeerOptions, run: Run, adopt: str
) -> Comparison:
    command = remote_command(options, digest_words(source.size, adopt), where)
    with contextlib.closing(open_link(where, command, options.way)) as link:
        try:
            if where.name:
                ask_to_verify(link.to_peer, where.name, source.size)
            return compare(source, link.from_peer, run)
        except ConnectionLostError as error:
            raise explained(error, [link], greeted=False) from error
