"""Streams written as one of ours, from a disk or a chain of streams."""

import contextlib

import blake3

from blockstream import __version__
from blockstream.errors import (
    OutcomeUnknownError,
)
from blockstream.jobs.foreign.chain import Combined
from blockstream.linux.streams import widen_pipe
from blockstream.pipeline.compression import CompressionChoice
from blockstream.pipeline.frame_sink import PipeSink
from blockstream.pipeline.limiter import Limiter
from blockstream.pipeline.sender import SendEngine, SendOptions
from blockstream.run import Run
from blockstream_protocol import (
    Sender,
)


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
