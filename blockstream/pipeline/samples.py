"""Whether somebody wrote to a target behind our back: what the kernel knows of it, and samples."""

import random
from dataclasses import dataclass

import blake3

from blockstream.interfaces import Target
from blockstream.linux.traces import Verdict, compared

_EDGE_BYTES = 1 << 20  # partition tables and file system headers, at both ends
_CHUNKS = 32
_CHUNK_BYTES = 64 << 10


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is noted of a target at its commit, to tell later whether somebody wrote to it.

    Attributes:
        samples: Digest of samples, hex.
        trace: What the kernel knows of writes to it; empty for nothing.
    """

    samples: str
    trace: str = ""


@dataclass(frozen=True, slots=True)
class BaseCheck:
    """What evidence says of a target that should be as it was.

    Attributes:
        written: How it shows that somebody wrote to it; empty if it does not.
        sampled: Why only samples tell that nobody did; empty if the kernel does as well.
    """

    written: str = ""
    sampled: str = ""


def base_check(then: Evidence, now: Evidence) -> BaseCheck:
    """Compare what was noted of a target with what it is now.

    Samples count even where the kernel says that nobody wrote: it does not see another host.
    """
    found = compared(then.trace, now.trace)
    if found.verdict is Verdict.WRITTEN:
        return BaseCheck(written=found.reason)
    if then.samples != now.samples:
        return BaseCheck(written="sampled ranges differ")
    return BaseCheck(sampled=found.reason if found.verdict is Verdict.UNKNOWN else "")


def evidence(target: Target) -> Evidence:
    """Take the evidence of a target as it is now.

    Raises:
        TargetError: If it cannot be read or flushed.
    """
    samples = sample(target)
    return Evidence(samples, target.trace())


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
