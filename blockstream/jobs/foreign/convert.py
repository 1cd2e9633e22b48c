"""Streams written for other tools, or as one of ours, from a disk or a chain of streams."""

import contextlib

import blake3

from blockstream import __version__
from blockstream.errors import (
    InterruptedTransferError,
    OutcomeUnknownError,
    UsageError,
)
from blockstream.extents import DATA, ExtentMap
from blockstream.formats.foreign.events import Format, Head, Writer
from blockstream.interfaces import Source
from blockstream.jobs.foreign.chain import Combined
from blockstream.linux.streams import WakeableWriter, widen_pipe
from blockstream.pipeline.compression import CompressionChoice
from blockstream.pipeline.frame_sink import PipeSink
from blockstream.pipeline.limiter import Limiter
from blockstream.pipeline.packer import PackedFrame, Packer, data_of
from blockstream.pipeline.read_ahead import ReadAhead
from blockstream.pipeline.sender import SendEngine, SendOptions
from blockstream.run import Run
from blockstream_protocol import (
    Sender,
)

_STDIN = 0
# Parts of one call; IOV_MAX is 1024.
_MOST_PARTS = 1000
_ZEROS = memoryview(bytes(1 << 20))


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


async def write_ours(made: Combined, compression: CompressionChoice, fd: int, run: Run) -> None:
    """Write a stream of ours.

    Raises:
        BlockstreamError: If it cannot be read or written to its end.
    """
    await run.carry(lambda: _written(made, compression, fd, run))


def _written(made: Combined, compression: CompressionChoice, fd: int, run: Run) -> None:
    what, source, progress = made.what, made.source, run.count_anew()
    progress.size, progress.total = source.size, what.opening.total
    widen_pipe(fd)
    with contextlib.closing(PipeSink(fd, Limiter(None), progress)) as outlet:
        session = Sender(
            what.opening,
            what.plan,
            new_digest=blake3.blake3,
            duplex=False,
            software=f"blockstream {__version__}",
            moment=what.moment,
        )
        options = SendOptions(compression=compression)
        engine = SendEngine(session, source, what.extents, outlet, progress, options)

        def stop(reason: str) -> None:
            engine.stop(reason)
            outlet.stop()

        with run.heeding(stop):
            finish = engine.run()
    if finish.committed is None:
        raise OutcomeUnknownError("the stream was not written to its end")
