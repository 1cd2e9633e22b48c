"""What a restore point holds where: the indexes of its chain laid one over the other."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from blockstream.errors import StoreDamagedError
from blockstream.extents import ExtentMap, ascending
from blockstream.formats.point_index import Bytes, Frames, Numbers, PointIndex, Rows

_NOBODY = -1


@dataclass(frozen=True, slots=True)
class PointMap:
    """Extents of a whole disk, ascending, one entry of each column an extent.

    Attributes:
        size: Bytes of the disk.
        offset: First byte in the disk.
        length: Size in bytes.
        kind: `Kind` number.
        layer: Which of the indexes holds it.
        frame: Number of its frame there.
        start: Where its bytes begin in the frame's unpacked payload; nothing for ZERO.
    """

    size: int
    offset: Numbers
    length: Numbers
    kind: Bytes
    layer: Numbers
    frame: Numbers
    start: Numbers

    def __len__(self) -> int:
        return len(self.offset)

    def extents(self) -> ExtentMap:
        """Return which ranges hold data, and which read as zeros."""
        return ExtentMap.from_columns(self.offset, self.length, self.kind, self.size)


def merged(layers: Sequence[PointIndex]) -> PointMap:
    """Lay indexes one over the other, the full copy first; the newest says what a byte is.

    Raises:
        StoreDamagedError: If they leave a byte of the disk out.
    """
    size = layers[-1].size
    layers = [each.within(size) for each in layers]
    edges = [each.rows.offset for each in layers]
    edges += [each.rows.offset + each.rows.length for each in layers]
    bounds = ascending(np.concatenate([*edges, np.array([0, size])]))
    del edges
    # Half as wide as other numbers: no index has so many rows, and this is what memory goes into.
    owner = np.full(len(bounds) - 1, _NOBODY, np.int32)
    first = 0
    for layer in layers:
        low = np.searchsorted(bounds, layer.rows.offset)
        high = np.searchsorted(bounds, layer.rows.offset + layer.rows.length)
        counts = high - low
        rows = np.repeat(np.arange(first, first + len(low), dtype=np.int32), counts)
        # The places low[i] to high[i] of every row, one after the other.
        places = np.repeat((low - (np.cumsum(counts) - counts)).astype(np.int32), counts)
        places += np.arange(len(rows), dtype=np.int32)
        owner[places] = rows
        first += len(low)
    if np.equal(owner, _NOBODY).any():
        hole = int(bounds[int(np.argmin(owner))])
        raise StoreDamagedError(f"nothing says what the disk holds at offset {hole}")
    return _mapped(layers, bounds, owner, size)


def _mapped(
    layers: Sequence[PointIndex], bounds: Numbers, owner: npt.NDArray[np.int32], size: int
) -> PointMap:
    """Join neighbouring ranges of one row, and say where the bytes of each lie."""
    begin = np.ones(len(owner), np.bool_)
    np.not_equal(owner[1:], owner[:-1], out=begin[1:])
    begins = np.flatnonzero(begin)
    rows = owner[begins]
    offset = bounds[begins]
    ends = bounds[np.append(begins, len(owner))[1:]]
    all_offset = np.concatenate([each.rows.offset for each in layers])
    all_start = np.concatenate([each.rows.start for each in layers])
    counts = [len(each.rows) for each in layers]
    return PointMap(
        size,
        offset,
        ends - offset,
        np.concatenate([each.rows.kind for each in layers])[rows],
        np.repeat(np.arange(len(layers)), counts)[rows],
        np.concatenate([each.rows.frame for each in layers])[rows],
        all_start[rows] + offset - all_offset[rows],
    )


def flattened(layers: Sequence[PointIndex], first_packs: Sequence[int]) -> PointIndex:
    """Return one index that says what several, laid over each other, say.

    Args:
        layers: As for `merged`.
        first_packs: What the numbers of each layer's packs are counted from.

    Raises:
        StoreDamagedError: As `merged`.
    """
    found = merged(layers)
    counts = np.array([len(each.frames) for each in layers], np.int64)
    base = np.cumsum(counts) - counts
    used, frame = np.unique(base[found.layer] + found.frame, return_inverse=True)
    columns = {
        name: np.concatenate([getattr(each.frames, name) for each in layers])[used]
        for name in ("offset", "wire", "raw", "codec", "digest")
    }
    shifted = [each.frames.pack + first for each, first in zip(layers, first_packs, strict=True)]
    return PointIndex(
        found.size,
        Frames(pack=np.concatenate(shifted)[used], **columns),
        Rows(found.offset, found.length, frame.astype(np.int64), found.start, found.kind),
    )
