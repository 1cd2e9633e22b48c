"""Samples of a target: enough of it to notice that somebody wrote to it behind our back."""

import random

import blake3

from blockstream.interfaces import Target

_EDGE_BYTES = 1 << 20  # partition tables and file system headers, at both ends
_CHUNKS = 32
_CHUNK_BYTES = 64 << 10


def sample(target: Target) -> str:
    """Return the digest, hex, of 34 ranges read from the medium.

    The ranges depend on the size alone, so that the same disk gives the same ranges.

    Raises:
        TargetError: If one cannot be read.
    """
    digest = blake3.blake3()
    for offset, length in sampled_ranges(target.size):
        digest.update(target.read_medium(offset, length))
    return digest.hexdigest()


def sampled_ranges(size: int) -> list[tuple[int, int]]:
    """Return (offset, length) of the ranges: first and last MiB, and 32 seeded chunks between."""
    edge = min(_EDGE_BYTES, size)
    ranges = [(0, edge), (size - edge, edge)]
    last = (size - _CHUNK_BYTES) // _CHUNK_BYTES
    if last > 0:
        seeded = random.Random(size)  # noqa: S311  # spread, not secrecy
        chunks = sorted(seeded.randrange(last + 1) for _ in range(_CHUNKS))
        ranges += [(chunk * _CHUNK_BYTES, _CHUNK_BYTES) for chunk in chunks]
    return ranges
