"""What differs between two disks of this host, where nobody tracked."""

from array import array
from collections.abc import Iterator

import numpy as np

from blockstream.errors import SourceError
from blockstream.extents import Column, ExtentMap, Piece
from blockstream.interfaces import Source
from blockstream.linux.buffers import aligned_buffer
from blockstream.run import Run
from blockstream_protocol import DATA_BYTES, Kind

_GRAIN = 4096


async def changes(new: Source, old: Source, run: Run) -> ExtentMap:
    """Return what changed from `old` to `new`, as an increment; see `differing`.

    Raises:
        SourceError: If `new` is the smaller one.
    """
    if old.size > new.size:
        raise SourceError(
            f"{old.name} has {old.size} bytes, {new.name} only {new.size}: an increment cannot "
            "make a disk smaller"
        )
    return await run.carry(lambda: differing(new, old, run))


def differing(
    new: Source,
    old: Source,
    run: Run,
    within: ExtentMap | None = None,
) -> ExtentMap:
    """Return the blocks in which `new` differs from `old`: DATA, or ZERO where they became zeros.

    Ranges that are holes in both are not read. What `new` has beyond the end of `old` differs; what
    `old` has beyond the end of `new` is not looked at.

    Args:
        new: The disk as it is.
        old: The disk as it was.
        run: Counts ranges as they are compared, and stops it.
        within: Where they can differ at all; None for anywhere.

    Raises:
        SourceError: If one cannot be read.
        InterruptedTransferError: If it was stopped.
    """
    size = new.size
    data = _data_of(new, size).overlaid(_data_of(old, size)) if within is None else within
    both = size if old.size >= size else old.size // _GRAIN * _GRAIN
    data = data.intersected(ExtentMap.from_columns(*_one(0, both), Kind.DATA, size))
    progress = run.count_anew()
    progress.size, progress.total = size, data.total()
    buffers = aligned_buffer(DATA_BYTES), aligned_buffer(DATA_BYTES)
    found = array("q")
    for piece in data.pieces():
        run.check("the comparison did not end")
        length = int(piece.lengths.sum())
        views = buffers[0][:length], buffers[1][:length]
        for source, view in zip((new, old), views, strict=True):
            source.read_into(piece.offsets.tolist(), piece.lengths.tolist(), view)
        found.extend(_differing(*views, piece))
        progress.frame(data=length, covered=length, wire=0)
    grown = ExtentMap.from_columns(*_one(both, size - both), Kind.DATA, size)
    return _mapped(found, size).overlaid(new.extents().intersected(grown))


def _data_of(source: Source, size: int) -> ExtentMap:
    data = source.extents().of_kind(Kind.DATA)
    if data.size > size:
        data = data.intersected(ExtentMap.from_columns(*_one(0, size), Kind.DATA, data.size))
    return ExtentMap(data.offsets, data.lengths, data.kinds, size).rounded(_GRAIN)


def _one(offset: int, length: int) -> tuple[Column, Column]:
    """Return one range as columns; none if it is empty."""
    return np.array([offset] if length else [], np.int64), np.array(
        [length] if length else [], np.int64
    )


def _differing(new: memoryview, old: memoryview, piece: Piece) -> "array[int]":
    """Return (offset, length, kind) of each block that differs."""
    rows = array("q")
    starts = np.cumsum(piece.lengths) - piece.lengths
    for start in _suspects(new, old):
        mine = bytes(new[start : start + _GRAIN])
        if mine != old[start : start + _GRAIN]:
            kind = Kind.DATA if mine.strip(b"\0") else Kind.ZERO
            row = int(np.searchsorted(starts, start, side="right")) - 1
            rows.extend((int(piece.offsets[row]) + start - int(starts[row]), len(mine), kind))
    return rows


def _suspects(new: memoryview, old: memoryview) -> Iterator[int]:
    """Give where the blocks begin that differ, and the odd end, if there is one, unseen."""
    whole = len(new) // _GRAIN * _GRAIN
    mine, theirs = (np.frombuffer(view[:whole], np.uint64) for view in (new, old))
    differing = (mine != theirs).reshape(-1, _GRAIN // 8).any(axis=1)
    yield from (np.flatnonzero(differing) * _GRAIN).tolist()
    if whole < len(new):
        yield whole


def _mapped(found: "array[int]", size: int) -> ExtentMap:
    rows = np.frombuffer(found, np.int64).reshape(-1, 3) if found else np.empty((0, 3), np.int64)
    return ExtentMap.from_columns(rows[:, 0], rows[:, 1], rows[:, 2].astype(np.uint8), size)
