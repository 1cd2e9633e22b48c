"""`extents NEW --since OLD`: what differs between two disks of this host, where nobody tracked."""

from array import array
from collections.abc import Iterator

import numpy as np

from blockstream.errors import InterruptedTransferError, SourceError
from blockstream.extents import ExtentMap
from blockstream.interfaces import Source
from blockstream.linux.buffers import aligned_buffer
from blockstream.pipeline.progress import Progress
from blockstream_protocol import Kind

_STEP = 1 << 20
_GRAIN = 4096


def changes(new: Source, old: Source, progress: Progress, stopped: list[str]) -> ExtentMap:
    """Return the blocks in which `new` differs from `old`: DATA, or ZERO where they became zeros.

    Ranges that are holes in both are not read. What `new` has beyond the end of `old` has changed.

    Args:
        new: The disk as it is.
        old: The disk as it was.
        progress: Counted as ranges are compared.
        stopped: Filled from outside with a reason to end.

    Raises:
        SourceError: If one cannot be read, or `new` is the smaller one.
        InterruptedTransferError: If it was stopped.
    """
    if old.size > new.size:
        raise SourceError(
            f"{old.name} has {old.size} bytes, {new.name} only {new.size}: an increment cannot "
            "make a disk smaller"
        )
    size = new.size
    data = _data_of(new).overlaid(_data_of(old, size))
    progress.size, progress.total = size, data.total()
    buffers = aligned_buffer(_STEP), aligned_buffer(_STEP)
    found = array("q")
    for offset, length in _steps(data):
        if stopped:
            raise InterruptedTransferError(f"{stopped[0]}; no list was written")
        views = buffers[0][:length], buffers[1][:length]
        new.read_into([offset], [length], views[0])
        _read_old(old, offset, views[1])
        found.extend(_differing(views[0], views[1], offset))
        progress.frame(data=length, covered=length, wire=0)
    beyond = np.array([old.size]), np.array([size - old.size])
    grown = ExtentMap.from_columns(*beyond, Kind.DATA, size).rounded(_GRAIN)
    return _mapped(found, size).overlaid(new.extents().intersected(grown))


def _data_of(source: Source, size: int | None = None) -> ExtentMap:
    extents = source.extents()
    data = extents.kinds == Kind.DATA
    aligned = ExtentMap(
        extents.offsets[data], extents.lengths[data], extents.kinds[data], size or source.size
    )
    return aligned.rounded(_GRAIN)


def _steps(extents: ExtentMap) -> Iterator[tuple[int, int]]:
    """Cut into reads."""
    for offset, length, _ in extents:
        for start in range(offset, offset + length, _STEP):
            yield start, min(_STEP, offset + length - start)


def _read_old(old: Source, offset: int, view: memoryview) -> None:
    """Read what `old` has of a range; beyond its end it counts as zeros."""
    inside = max(0, min(len(view), old.size - offset))
    if inside:
        old.read_into([offset], [inside], view[:inside])
    view[inside:] = bytes(len(view) - inside)


def _differing(new: memoryview, old: memoryview, offset: int) -> "array[int]":
    """Return (offset, length, kind) of each block that differs."""
    rows = array("q")
    for start in _suspects(new, old):
        mine = bytes(new[start : start + _GRAIN])
        if mine != old[start : start + _GRAIN]:
            kind = Kind.DATA if mine.strip(b"\0") else Kind.ZERO
            rows.extend((offset + start, len(mine), kind))
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
