"""A disk, or what changed in it, as a stream that another tool receives."""

import contextlib
from dataclasses import dataclass

from blockstream.errors import (
    InterruptedTransferError,
    UsageError,
)
from blockstream.extents import DATA, ExtentMap
from blockstream.formats.foreign.events import Format, Head, Writer
from blockstream.interfaces import Source
from blockstream.linux.streams import WakeableWriter, widen_pipe
from blockstream.pipeline.packer import PackedFrame, Packer, data_of
from blockstream.pipeline.progress import Snapshot
from blockstream.pipeline.read_ahead import ReadAhead
from blockstream.run import Run
from blockstream.transfers.send import SendPlan

# Parts of one call; IOV_MAX is 1024.
_MOST_PARTS = 1000
_ZEROS = memoryview(bytes(1 << 20))


@dataclass(frozen=True, slots=True)
class WriteResult:
    """What was written.

    Attributes:
        format: Whose stream it is.
        counts: Final counters.
        state: The state that was sent.
        moment: When the source held it, in nanoseconds since 1970, UTC; None where nobody knows.
    """

    format: str
    counts: Snapshot
    state: str = ""
    moment: int | None = None


def head_of(what: SendPlan) -> Head:
    """Return what a writer is told of what would be sent."""
    return Head(what.opening.size, what.opening.base, what.opening.goal)


def lost(to: Format, head: Head) -> tuple[str, ...]:
    """Return what a format cannot carry over, of a stream with this head."""
    whole = () if head.base or to.based else ("that it is a whole disk",)
    zeros = ("zeros, other than as bytes, without --pool-chunk",)
    return (*to.lost, *whole, *(zeros if to.pooled and not head.pool_chunk else ()))


async def write_foreign(
    to: Format, source: Source, extents: ExtentMap, head: Head, fd: int, run: Run
) -> None:
    """Write a disk, or its changes, as a stream of another tool.

    Raises:
        RefusedError: If the format cannot say it; nothing was written.
        BlockstreamError: If it cannot be read or written to its end.
    """
    if to.write is None:
        raise UsageError(f"{to.title} is only read here; nothing was written")
    if head.pool_chunk and not to.pooled:
        raise UsageError(f"--pool-chunk is not for {to.title}; nothing was written")
    writer = to.write()
    begin = writer.begin(head)
    progress = run.count_anew()
    progress.size, progress.total = head.size, extents.total()

    def write() -> None:
        widen_pipe(fd)
        with (
            contextlib.closing(WakeableWriter(fd)) as outlet,
            contextlib.closing(ReadAhead(source)) as ahead,
            run.heeding(lambda _reason: outlet.stop()),
        ):
            packer = Packer(ahead.read_into)
            _say(outlet, [memoryview(begin)], run)
            for piece in ahead.following(extents.pieces(), data_of):
                packed = packer.pack(piece)
                wire = _say(outlet, _parts(writer, packed), run)
                progress.frame(data=len(packed.data), covered=packed.covered, wire=wire)
            source.validate()
            _say(outlet, [memoryview(writer.end())], run)

    await run.carry(write)


def _parts(writer: Writer, packed: PackedFrame) -> list[memoryview]:
    """Return the bytes of a stream that one piece of a disk makes."""
    parts: list[memoryview] = []
    data = packed.data
    for offset, length, kind in zip(
        packed.offsets.tolist(), packed.lengths.tolist(), packed.kinds.tolist(), strict=True
    ):
        if kind == DATA:
            for header, follow in writer.data(offset, length):
                parts += [memoryview(header), data[:follow]]
                data = data[follow:]
            continue
        for header, follow in writer.zero(offset, length):
            parts.append(memoryview(header))
            if follow:
                parts.append(_ZEROS[:follow])
    return parts


def _say(outlet: WakeableWriter, parts: list[memoryview], run: Run) -> int:
    run.check("what was written is no whole stream")
    try:
        for start in range(0, len(parts), _MOST_PARTS):
            outlet.write(parts[start : start + _MOST_PARTS])
    except OSError as error:
        raise InterruptedTransferError(
            f"the stream cannot be written: {run.stopped or error.strerror}; what was written is "
            "no whole stream"
        ) from error
    return sum(map(len, parts))
