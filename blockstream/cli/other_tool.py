"""Streams that another tool receives, on the command line."""

from dataclasses import dataclass

from blockstream.declared import Needs, option
from blockstream.errors import UsageError
from blockstream.formats.foreign.names import WRITTEN
from blockstream.units import parse_size

# What dm-thin allows.
_CHUNK_STEP = 64 << 10
_CHUNK_MOST = 1 << 30


def _pool_chunk(text: str) -> int:
    """Return the bytes of a chunk.

    Raises:
        UsageError: If no pool has such chunks.
    """
    chunk = parse_size(text)
    if chunk % _CHUNK_STEP or not _CHUNK_STEP <= chunk <= _CHUNK_MOST:
        raise UsageError(
            f"--pool-chunk {text}: chunks of a pool are a multiple of 64 KiB, at most 1 GiB"
        )
    return chunk


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class PoolOptions:
    """What a writer of zeros for a thin pool must know.

    Attributes:
        pool_chunk: Bytes of a chunk of the pool that receives; 0 if nobody knows.
    """

    pool_chunk: int = option(
        0,
        "For thin-send: chunk size of the pool that receives, by `lvs -o chunk_size`; zeros that "
        "fill whole chunks are unmapped there.",
        metavar="SIZE",
        shown="all zeros are sent as bytes",
        parse=_pool_chunk,
        rare=True,
    )


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class OtherToolOptions(PoolOptions):
    """Whose stream `send` writes.

    Attributes:
        format: The other tool's; empty for ours.
    """

    format: str = option(
        "",
        f"Write a stream for another tool: {', '.join(WRITTEN)}.",
        metavar="TOOL",
        choices=WRITTEN,
        needs=(Needs.PIPE,),
    )
