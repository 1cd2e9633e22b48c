"""What a disk would be once changes are on it, digested before anything is written."""

import contextlib
import hashlib

import numpy as np

from blockstream.extents import DATA, ExtentMap
from blockstream.interfaces import Source
from blockstream.locations.local import LocalDisk
from blockstream.run import Run
from blockstream.sources.layered import LayeredSource

_WINDOW_BYTES = 1 << 20


def can_digest(name: str, length: int) -> bool:
    """Tell whether this host knows a digest of that name, as OpenSSL calls it, and length."""
    try:
        return hashlib.new(name, usedforsecurity=False).digest_size == length
    except ValueError:
        return False


def foretold(name: str, changes: LayeredSource, disk: str, run: Run) -> bytes:
    """Return the digest that `disk` would have, as far as the changes' own disk reaches.

    Args:
        name: Of the digest.
        changes: What would be written.
        disk: Location of the disk; empty for one that is all zeros.
        run: Told how much was seen, and stops it.

    Raises:
        InterruptedTransferError: If it was stopped.
        SourceError: If the disk cannot be read.
    """
    hasher = hashlib.new(name, usedforsecurity=False)
    window = memoryview(bytearray(_WINDOW_BYTES))
    listed = changes.changes()
    ends = listed.offsets + listed.lengths
    with contextlib.ExitStack() as stack:
        base = (
            stack.enter_context(contextlib.closing(LocalDisk(disk).open_source())) if disk else None
        )
        for start in range(0, changes.size, _WINDOW_BYTES):
            run.check("nothing was written")
            part = window[: min(_WINDOW_BYTES, changes.size - start)]
            _fill(part, start, base)
            first = int(np.searchsorted(ends, start, side="right"))
            last = int(np.searchsorted(listed.offsets, start + len(part), side="left"))
            _overlay(part, start, listed, slice(first, last), changes)
            hasher.update(part)
            run.progress.look(len(part))
    return hasher.digest()


def _fill(part: memoryview, start: int, base: Source | None) -> None:
    """Read what is there; behind the end of a smaller disk there are zeros."""
    there = 0 if base is None else max(0, min(len(part), base.size - start))
    if base is not None and there:
        base.read_into([start], [there], part[:there])
    part[there:] = bytes(len(part) - there)


def _overlay(
    part: memoryview, start: int, listed: ExtentMap, rows: slice, changes: LayeredSource
) -> None:
    """Put changes over the bytes of a disk from `start` on."""
    end = start + len(part)
    for offset, length, kind in zip(
        listed.offsets[rows].tolist(),
        listed.lengths[rows].tolist(),
        listed.kinds[rows].tolist(),
        strict=True,
    ):
        first, last = max(offset, start), min(offset + length, end)
        place = part[first - start : last - start]
        if kind == DATA:
            changes.read_into([first], [last - first], place)
        else:
            place[:] = bytes(last - first)
