"""Extent maps: which ranges of a device hold data, and which read as zeros.

An `ExtentMap` is three numpy columns: sorted, disjoint, coalesced. All algebra is vectorised, so
that ten million extents are no different from ten. Offsets and lengths are bytes.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
import numpy.typing as npt

from blockstream_protocol import DATA_BYTES, FRAME_EXTENTS, PLAN_EXTENTS, Extent, Kind, Plan

Column = npt.NDArray[np.int64]
Kinds = npt.NDArray[np.uint8]

NOTHING: Final = 0  # a range that a map does not list
# Plain numbers: numpy takes 30 us to make one of an enum's member, in each comparison.
DATA: Final = int(Kind.DATA)
ZERO: Final = int(Kind.ZERO)
# A window of the cutter: 16 GiB of one extent are 16,384 rows, so its memory stays small.
_WINDOW_BYTES = 16 << 30
_WINDOW_ROWS = 1 << 16
# A target that cannot zero by itself writes so much in seconds: then a signal, a line of progress
# and a checkpoint have their turn.
_ZERO_BYTES = 4 << 30


@dataclass(frozen=True, slots=True)
class Piece:
    """The extents of one frame.

    Attributes:
        offsets: First bytes.
        lengths: Sizes in bytes.
        kinds: `Kind` numbers.
    """

    offsets: Column
    lengths: Column
    kinds: Kinds

    @property
    def data_bytes(self) -> int:
        """How many bytes must be read for it."""
        return int(self.lengths[self.kinds == DATA].sum())

    @property
    def covered(self) -> int:
        """How many bytes of the device it covers."""
        return int(self.lengths.sum())


class ExtentMap:
    """Sorted, disjoint, coalesced extents of a device of `size` bytes. Immutable."""

    __slots__ = ("kinds", "lengths", "offsets", "size")

    def __init__(self, offsets: Column, lengths: Column, kinds: Kinds, size: int) -> None:
        """Take columns that are already in order; use `from_columns` for others."""
        self.offsets = offsets
        self.lengths = lengths
        self.kinds = kinds
        self.size = size

    # Making maps.

    @classmethod
    def empty(cls, size: int) -> "ExtentMap":
        """Return the map that lists nothing."""
        return cls(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.uint8), size)

    @classmethod
    def whole(cls, size: int, kind: Kind = Kind.DATA) -> "ExtentMap":
        """Return the map of one extent from end to end."""
        if not size:
            return cls.empty(0)
        return cls(np.array([0]), np.array([size]), np.array([kind], np.uint8), size)

    @classmethod
    def from_columns(
        cls, offsets: Column, lengths: Column, kinds: Kinds | Kind, size: int
    ) -> "ExtentMap":
        """Sort and coalesce; empty extents vanish, the device's end cuts.

        Raises:
            ValueError: If extents of different kinds overlap, or one has a negative number.
        """
        if isinstance(kinds, Kind):
            kinds = np.full(len(offsets), kinds, np.uint8)
        if len(offsets) and (int(offsets.min()) < 0 or int(lengths.min()) < 0):
            raise ValueError("an extent has a negative offset or length")
        keep = (lengths > 0) & (offsets < size)
        if not keep.all():
            offsets, lengths, kinds = offsets[keep], lengths[keep], kinds[keep]
        if not _ascends(offsets):
            order = np.argsort(offsets, kind="stable")
            offsets, lengths, kinds = offsets[order], lengths[order], kinds[order]
        # Cut by length, not by sum: offset + length may be past the largest number.
        lengths = np.minimum(lengths, size - offsets)
        return cls(*_coalesced(offsets, lengths, kinds), size)

    @classmethod
    def from_chunks(cls, chunks: Column, chunk_size: int, size: int) -> "ExtentMap":
        """Return the DATA extents of equal chunks, given by number, in any order, doubled or not.

        The array is sorted in place: at ten million chunks a copy would cost 80 MB.

        Raises:
            ValueError: If a chunk does not begin inside the device.
        """
        chunks.sort()
        if not len(chunks):
            return cls.empty(size)
        if int(chunks[0]) < 0 or int(chunks[-1]) * chunk_size >= size:
            raise ValueError("a chunk lies outside the device")
        # A run ends where the next chunk is neither the same nor the one after. As a mask, and in
        # place: at ten million chunks every column of numbers costs 80 MB.
        edges = np.ones(len(chunks) + 1, np.bool_)
        np.greater(chunks[1:] - chunks[:-1], 1, out=edges[1:-1])
        offsets = chunks[edges[:-1]]
        lengths = chunks[edges[1:]]
        lengths -= offsets
        lengths += 1
        tail = size - int(offsets[-1]) * chunk_size
        offsets *= chunk_size
        # Only the last can be cut short, and only its whole length can pass the largest number.
        tail = min(int(lengths[-1]) * chunk_size, tail)
        lengths *= chunk_size
        lengths[-1] = tail
        return cls(offsets, lengths, np.full(len(offsets), Kind.DATA, np.uint8), size)

    # Looking.

    def __len__(self) -> int:
        return len(self.offsets)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, ExtentMap)
            and self.size == other.size
            and np.array_equal(self.offsets, other.offsets)
            and np.array_equal(self.lengths, other.lengths)
            and np.array_equal(self.kinds, other.kinds)
        )

    def __hash__(self) -> int:
        raise TypeError("an extent map is compared, never used as a key")

    def __iter__(self) -> Iterator[Extent]:
        """Give the extents one by one, a block at a time out of numpy."""
        for start in range(0, len(self), _WINDOW_ROWS):
            block = slice(start, start + _WINDOW_ROWS)
            yield from map(
                Extent,
                self.offsets[block].tolist(),
                self.lengths[block].tolist(),
                self.kinds[block].tolist(),
            )

    def __repr__(self) -> str:
        return f"ExtentMap({len(self)} extents, {self.total()} of {self.size} bytes)"

    def total(self, kind: Kind | None = None) -> int:
        """Return how many bytes are listed, of one kind or of all."""
        chosen = self.lengths if kind is None else self.lengths[self.kinds == kind]
        return int(chosen.sum())

    def of_kind(self, kind: Kind) -> "ExtentMap":
        """Return what is listed with that kind."""
        rows = self.kinds == kind
        return ExtentMap(self.offsets[rows], self.lengths[rows], self.kinds[rows], self.size)

    # Algebra.

    def overlaid(self, other: "ExtentMap") -> "ExtentMap":
        """Return the union; where both list a range, `other` wins."""
        return _combined(self, other, lambda mine, theirs: np.where(theirs, theirs, mine))

    def intersected(self, other: "ExtentMap") -> "ExtentMap":
        """Return what both list, with this map's kinds."""
        return _combined(self, other, lambda mine, theirs: np.where(theirs, mine, 0))

    def without(self, other: "ExtentMap") -> "ExtentMap":
        """Return what only this map lists."""
        return _combined(self, other, lambda mine, theirs: np.where(theirs, 0, mine))

    def filled(self, kind: Kind) -> "ExtentMap":
        """Return a map of the whole device in which unlisted ranges are `kind`."""
        count = len(self)
        # Gaps and extents in turn: one pass and no sorting, as a map of millions wants it.
        offsets = np.empty(2 * count + 1, np.int64)
        lengths = np.empty(2 * count + 1, np.int64)
        kinds = np.empty(2 * count + 1, np.uint8)
        offsets[0], offsets[1::2] = 0, self.offsets
        np.add(self.offsets, self.lengths, out=offsets[2::2])
        lengths[1::2] = self.lengths
        lengths[0:-1:2] = self.offsets - offsets[0:-1:2]
        lengths[-1] = self.size - int(offsets[-1])
        kinds[0::2], kinds[1::2] = kind, self.kinds
        keep = lengths > 0
        used = np.flatnonzero(keep)
        if len(used) and keep[used[0] : used[-1]].all():
            rows: slice | npt.NDArray[np.bool_] = slice(used[0], used[-1] + 1)  # no copies
        else:
            rows = keep
        offsets, lengths, kinds = offsets[rows], lengths[rows], kinds[rows]
        if (self.kinds == kind).any():
            offsets, lengths, kinds = _coalesced(offsets, lengths, kinds)
        return ExtentMap(offsets, lengths, kinds, self.size)

    def rounded(self, alignment: int) -> "ExtentMap":
        """Widen every DATA extent to whole blocks, at the cost of the ZERO ones beside it."""
        if alignment <= 1 or not len(self) or self._is_aligned(alignment):
            return self
        data = self.kinds == DATA
        starts = self.offsets[data] // alignment * alignment
        ends = _ceiling(self.offsets[data] + self.lengths[data], alignment, self.size)
        wide = ExtentMap(*_coalesced(starts, ends - starts, self.kinds[data]), self.size)
        starts = _ceiling(self.offsets[~data], alignment, self.size)
        ends = self.offsets[~data] + self.lengths[~data]
        ends = np.where(ends == self.size, ends, ends // alignment * alignment)
        zeros = ExtentMap.from_columns(
            starts, np.maximum(ends - starts, 0), self.kinds[~data], self.size
        )
        # The edges that a ZERO extent lost must still be written: they are read as data.
        lost = self.without(zeros).without(wide)
        edges = ExtentMap.from_columns(lost.offsets, lost.lengths, Kind.DATA, self.size)
        wide = wide if not len(edges) else wide.overlaid(edges.rounded(alignment))
        return zeros.overlaid(wide)

    def _is_aligned(self, alignment: int) -> bool:
        """Tell whether every extent is made of whole blocks, but for the device's end."""
        if (self.offsets % alignment).any():
            return False
        odd = np.flatnonzero(self.lengths % alignment)
        ends = self.offsets[odd] + self.lengths[odd]
        return bool((ends == self.size).all())

    def coarsened(self, limit: int = PLAN_EXTENTS) -> "ExtentMap":
        """Return a map of at most `limit` ranges, made by closing the smallest gaps with DATA."""
        coverage = self.coverage()
        if len(coverage) <= limit:
            return self
        ends = coverage.offsets + coverage.lengths
        gaps = coverage.offsets[1:] - ends[:-1]
        widest = np.partition(gaps, len(gaps) - limit)[len(gaps) - limit]
        closed = gaps <= widest
        bridges = ExtentMap.from_columns(ends[:-1][closed], gaps[closed], Kind.DATA, self.size)
        return bridges.overlaid(self)

    def coverage(self) -> "ExtentMap":
        """Return the listed ranges without their kinds, as DATA."""
        kinds = np.full(len(self), Kind.DATA, np.uint8)
        return ExtentMap(*_coalesced(self.offsets, self.lengths, kinds), self.size)

    # Sending.

    def plan(self) -> Plan:
        """Return the plan that covers exactly what is listed."""
        coverage = self.coverage()
        rows = np.empty((len(coverage), 2), "<u8")
        rows[:, 0] = coverage.offsets
        rows[:, 1] = coverage.lengths
        return Plan.from_rows(rows.tobytes(), self.size)

    def pieces(self, data_bytes: int = DATA_BYTES, extents: int = FRAME_EXTENTS) -> Iterator[Piece]:
        """Cut into frames: at most so many bytes of data and so many extents each.

        A long hole is cut as well, into frames of its own. The cuts depend on the map alone, so
        that a resumed transfer meets the same frames.
        """
        for offsets, lengths, kinds in self._windows():
            yield from _cut(offsets, lengths, kinds, data_bytes, extents)

    def _windows(self) -> Iterator[tuple[Column, Column, Kinds]]:
        """Give the rows in blocks of bounded data, splitting giant extents."""
        holes = np.flatnonzero((self.kinds != DATA) & (self.lengths > _ZERO_BYTES)).tolist()
        first = 0
        for hole in [*holes, len(self)]:
            yield from self._bounded(first, hole)
            if hole < len(self):
                yield from _split_hole(int(self.offsets[hole]), int(self.lengths[hole]))
            first = hole + 1

    def _bounded(self, first: int, last: int) -> Iterator[tuple[Column, Column, Kinds]]:
        for start in range(first, last, _WINDOW_ROWS):
            block = slice(start, min(start + _WINDOW_ROWS, last))
            lengths, kinds = self.lengths[block], self.kinds[block]
            weights = np.where(kinds == DATA, lengths, 0)
            if int(weights.sum()) <= _WINDOW_BYTES:
                yield self.offsets[block], lengths, kinds
                continue
            yield from _split_window(self.offsets[block], lengths, kinds, weights)


def _split_hole(offset: int, length: int) -> Iterator[tuple[Column, Column, Kinds]]:
    """Cut one ZERO row."""
    kinds = np.array([ZERO], np.uint8)
    for start in range(0, length, _ZERO_BYTES):
        step = min(_ZERO_BYTES, length - start)
        yield np.array([offset + start], np.int64), np.array([step], np.int64), kinds


def _split_window(
    offsets: Column, lengths: Column, kinds: Kinds, weights: Column
) -> Iterator[tuple[Column, Column, Kinds]]:
    """Cut rows with much data at every `_WINDOW_BYTES` of it."""
    ends = np.cumsum(weights)
    starts = ends - weights
    total = int(ends[-1])
    for low in range(0, total, _WINDOW_BYTES):
        high = low + _WINDOW_BYTES
        first = int(np.searchsorted(ends, low, side="left"))
        last = int(np.searchsorted(starts, high, side="left")) if high < total else len(ends)
        rows = slice(first, last)
        data = kinds[rows] == DATA
        head = np.where(data, np.maximum(low - starts[rows], 0), 0)
        tail = np.where(data, np.maximum(ends[rows] - high, 0), 0)
        # A ZERO row weighs nothing and belongs to the window in which it starts.
        inside = np.where(data, ends[rows] > low, starts[rows] >= low)
        yield (
            (offsets[rows] + head)[inside],
            (lengths[rows] - head - tail)[inside],
            kinds[rows][inside],
        )


def _cut(
    offsets: Column, lengths: Column, kinds: Kinds, data_bytes: int, extents: int
) -> Iterator[Piece]:
    """Split rows at every `data_bytes` of data and give them frame by frame."""
    weights = np.where(kinds == DATA, lengths, 0)
    ends = np.cumsum(weights)
    starts = ends - weights
    parts = np.where(weights > 0, -(-ends // data_bytes) - starts // data_bytes, 1)
    if int(parts.max(initial=1)) > 1:
        row = np.repeat(np.arange(len(offsets)), parts)
        part = np.arange(len(row)) - np.repeat(np.cumsum(parts) - parts, parts)
        # Where in the stream of data each part begins; its end is the next boundary or the row's.
        low = np.where(part == 0, starts[row], (starts[row] // data_bytes + part) * data_bytes)
        high = np.minimum((low // data_bytes + 1) * data_bytes, ends[row])
        data = weights[row] > 0
        shift = np.where(data, low - starts[row], 0)
        offsets = offsets[row] + shift
        lengths = np.where(data, high - low, lengths[row])
        kinds, starts = kinds[row], low
    frame = starts // data_bytes
    bounds = np.flatnonzero(np.diff(frame)) + 1
    edges = [0, *bounds.tolist(), len(offsets)]
    for first, last in pairwise(edges):
        for start in range(first, last, extents):
            rows = slice(start, min(start + extents, last))
            yield Piece(offsets[rows], lengths[rows], kinds[rows])


def ascending(column: Column) -> Column:
    """Return the numbers of a column in order, each once.

    As `np.unique`, which takes ten times as long, because it hashes (numpy 2.4).
    """
    found = np.sort(column)
    keep = np.ones(len(found), np.bool_)
    np.not_equal(found[1:], found[:-1], out=keep[1:])
    return found[keep]


def _ceiling(column: Column, alignment: int, size: int) -> Column:
    """Round up to whole blocks, but not past `size`, beyond which numbers may overflow."""
    over = column % alignment
    return column + np.minimum(np.where(over, alignment - over, 0), size - column)


def _ascends(column: Column) -> bool:
    return bool(np.all(column[1:] >= column[:-1]))


def _coalesced(offsets: Column, lengths: Column, kinds: Kinds) -> tuple[Column, Column, Kinds]:
    """Join sorted rows that touch or overlap and are of one kind.

    Raises:
        ValueError: If rows of different kinds overlap.
    """
    if len(offsets) < 2:
        return offsets, lengths, kinds
    ends = np.maximum.accumulate(offsets + lengths)
    same = kinds[1:] == kinds[:-1]
    if np.any((offsets[1:] < ends[:-1]) & ~same):
        raise ValueError("extents of different kinds overlap")
    starts = np.ones(len(offsets) + 1, np.bool_)
    np.logical_or(offsets[1:] > ends[:-1], ~same, out=starts[1:-1])
    if starts.all():
        return offsets, lengths, kinds
    first = offsets[starts[:-1]]
    return first, ends[starts[1:]] - first, kinds[starts[:-1]]


def _combined(
    mine: ExtentMap,
    theirs: ExtentMap,
    choose: Callable[[Kinds, Kinds], Kinds],
) -> ExtentMap:
    """Return what `choose` makes of both kinds in every elementary range; 0 is unlisted."""
    edges = [one.offsets for one in (mine, theirs)]
    edges += [one.offsets + one.lengths for one in (mine, theirs)]
    bounds = ascending(np.concatenate(edges))
    if len(bounds) < 2:
        return ExtentMap.empty(mine.size)
    starts, ends = bounds[:-1], bounds[1:]
    kinds = choose(_kind_at(mine, starts), _kind_at(theirs, starts)).astype(np.uint8)
    keep = (kinds != NOTHING) & (starts < mine.size)
    starts, ends, kinds = starts[keep], np.minimum(ends[keep], mine.size), kinds[keep]
    return ExtentMap(*_coalesced(starts, ends - starts, kinds), mine.size)


def _kind_at(extents: ExtentMap, offsets: Column) -> Kinds:
    """Return the kind of each offset in the map; 0 where it lists nothing."""
    if not len(extents):
        return np.zeros(len(offsets), np.uint8)
    row = np.searchsorted(extents.offsets, offsets, side="right") - 1
    inside = (row >= 0) & (offsets < extents.offsets[row] + extents.lengths[row])
    return np.where(inside, extents.kinds[row], 0).astype(np.uint8)
