"""A chain of VMDKs: what a disk is where, newest link first.

What a link has, data or zeros, hides what lies below; what is absent is looked for in the next
link, and reads as zeros below the last.
"""

import math
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, TypeVar

import numpy as np

from blockstream.errors import VmdkError
from blockstream.extents import Column, ExtentMap, Kinds
from blockstream.formats.steps import Ranges, Steps
from blockstream.formats.vmdk.descriptor import LIVE, Descriptor
from blockstream.formats.vmdk.grains import ABSENT, GrainMap
from blockstream_protocol import Kind

T = TypeVar("T")
# ESXi takes 32 snapshots of a disk; whoever has more than twice that has a loop.
MOST_LINKS: Final = 64
# Decoded tables that are kept, over the whole chain: of 4096 entries each, 32 MiB.
_KEPT_TABLES: Final = 1024

NOWHERE: Final = -1  # no part: zeros


@dataclass(frozen=True, slots=True)
class Ask:
    """Ranges that are wanted of one file.

    Attributes:
        file: Its number.
        ranges: Offsets and lengths.
    """

    file: int
    ranges: Ranges


Asking = Generator[Ask, bytes, T]


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """A range of a link's disk that lies in one file, or is zeros.

    Attributes:
        number: Which part of the chain this is.
        file: Number of its file; NOWHERE for zeros.
        start: Its first byte on the disk.
        size: Its bytes.
        position: Of a flat file, where it begins there.
        map: Of a sparse file, its grains.
    """

    number: int
    file: int
    start: int
    size: int
    position: int = 0
    map: GrainMap | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Link:
    """One disk of a chain.

    Attributes:
        parts: What it is made of, in order and without gaps.
    """

    parts: tuple[Part, ...]

    @property
    def size(self) -> int:
        """Bytes of the disk."""
        return self.parts[-1].start + self.parts[-1].size


@dataclass(frozen=True, slots=True, eq=False)
class Places:
    """Where ranges of the disk lie; neighbours that lie side by side in a file are one.

    Attributes:
        starts: First bytes on the disk.
        lengths: Sizes in bytes.
        into: Where each goes in the buffer that takes all ranges, one after the other.
        parts: Numbers of the parts; NOWHERE for zeros.
        positions: First bytes in the parts' files; of a compressed grain, its marker.
    """

    starts: Column
    lengths: Column
    into: Column
    parts: Column
    positions: Column


class Chain:
    """Says where every byte of a disk lies; asks for the tables that it needs.

    Its methods may be run by several threads at once.
    """

    def __init__(self, links: Sequence[Link], *, alone: bool = False) -> None:
        """Take links, newest first.

        Args:
            links: At least one; their parts are numbered from 0 in this order.
            alone: There is a parent that is not here: what is absent cannot be read.
        """
        self.links = links
        self.alone = alone
        self.size = links[0].size
        self.parts = [part for link in links for part in link.parts]
        self._unit = _common_unit(links, self.size)
        # A slot takes whatever was decoded last for it: threads need no lock for that.
        self._kept: list[tuple[int, int, Column] | None] = [None] * _KEPT_TABLES

    def extents(
        self, link: int | None = None, flat: Callable[[Part], ExtentMap] | None = None
    ) -> Asking[ExtentMap]:
        """Return what a link has; of the whole chain without `link`.

        Args:
            link: Its number, newest first.
            flat: Tells what is known of a flat file; without it, all of it is data.

        Raises:
            VmdkError: If a table cannot be trusted.
        """
        chosen = self.links if link is None else self.links[link : link + 1]
        found = ExtentMap.empty(self.size)
        for each in reversed(chosen):
            mine = yield from self._extents_of(each, flat)
            if each.size < self.size:  # past its end nothing below shows through
                found = found.intersected(ExtentMap.from_columns(
                    np.array([0]), np.array([each.size]), np.array([Kind.DATA], np.uint8), self.size
                ))  # fmt: skip
            found = mine if not len(found) else found.overlaid(mine)
        return found

    def _extents_of(
        self, link: Link, flat: Callable[[Part], ExtentMap] | None
    ) -> Asking[ExtentMap]:
        columns = []
        for part in link.parts:
            if part.map is not None:
                offsets, lengths, kinds = yield from _of(part, part.map.extents())
                inside = offsets < part.size
                offsets, lengths, kinds = offsets[inside], lengths[inside], kinds[inside]
                lengths = np.minimum(lengths, part.size - offsets)
                columns.append((offsets + part.start, lengths, kinds))
            elif flat is not None and part.file != NOWHERE:
                columns.append(_window(flat(part), part))
            else:
                kind = Kind.ZERO if part.file == NOWHERE else Kind.DATA
                row = np.array([part.start]), np.array([part.size]), np.array([kind], np.uint8)
                columns.append(row)
        offsets, lengths, kinds = (np.concatenate(each) for each in zip(*columns, strict=True))
        return ExtentMap.from_columns(offsets, lengths, kinds, self.size)

    def places(self, offsets: Sequence[int], lengths: Sequence[int]) -> Asking[Places]:
        """Find where ranges lie.

        Args:
            offsets: First bytes, ascending, on the disk.
            lengths: Sizes in bytes.

        Raises:
            VmdkError: If a table cannot be trusted, or what is absent is asked of a link alone.
        """
        starts, sizes = _cut(np.array(offsets, np.int64), np.array(lengths, np.int64), self._unit)
        parts = np.full(len(starts), NOWHERE, np.int64)
        positions = np.zeros(len(starts), np.int64)
        rows = np.arange(len(starts))
        for link in self.links:
            if not len(rows):
                break
            rows = yield from self._look(link, starts, rows, parts, positions)
        if self.alone and len(rows):
            raise VmdkError(
                f"{int(sizes[rows[0]])} bytes at offset {int(starts[rows[0]])} are in its parent"
            )
        return self._joined(starts, sizes, parts, positions)

    def _look(
        self, link: Link, starts: Column, rows: Column, parts: Column, positions: Column
    ) -> Asking[Column]:
        """Settle what a link has of `rows`; return those that it has not."""
        absent = []
        rows = rows[starts[rows] < link.size]  # what lies past its end is zeros
        bounds = np.searchsorted(starts[rows], [part.start for part in link.parts])
        for part, first, last in zip(link.parts, bounds, [*bounds[1:], len(rows)], strict=True):
            mine = rows[first:last]
            if not len(mine) or part.file == NOWHERE:
                continue
            within = starts[mine] - part.start
            if part.map is None:
                found = within + part.position
                parts[mine], positions[mine] = part.number, found
                continue
            grain = part.map.grain
            found = yield from self._entries(part, part.map, within // grain)
            there = found > 0
            parts[mine[there]] = part.number
            positions[mine[there]] = found[there]
            if not part.map.compressed:
                positions[mine[there]] += within[there] % grain
            absent.append(mine[found == ABSENT])
        return np.concatenate(absent) if absent else rows[:0]

    def _entries(self, part: Part, grains: GrainMap, numbers: Column) -> Asking[Column]:
        """Return where grains lie, given by number, ascending."""
        found = np.zeros(len(numbers), np.int64)
        missing: list[tuple[int, slice]] = []
        for table, rows in _by_table(numbers // grains.entries):
            kept = self._kept[self._slot(part, table)]
            if grains.tables[table] == ABSENT:
                continue
            if kept is not None and kept[:2] == (part.number, table):
                found[rows] = kept[2][numbers[rows] - table * grains.entries]
                continue
            missing.append((table, rows))
        for begin in range(0, len(missing), grains.batch):
            batch = missing[begin : begin + grains.batch]
            read = yield from _of(part, grains.read_tables(np.array([one for one, _ in batch])))
            for (table, rows), column in zip(batch, read, strict=True):
                found[rows] = column[numbers[rows] - table * grains.entries]
                # A copy: a row would keep the whole batch alive.
                self._kept[self._slot(part, table)] = (part.number, table, column.copy())
        return found

    def _slot(self, part: Part, table: int) -> int:
        return (table + part.number * 97) % _KEPT_TABLES

    def _joined(self, starts: Column, sizes: Column, parts: Column, positions: Column) -> Places:
        """Join rows that follow each other on the disk, in the buffer and in a file."""
        into = np.cumsum(sizes) - sizes
        packed = np.array([part.map is not None and part.map.compressed for part in self.parts])
        same = parts[1:] == parts[:-1]
        zeros = parts[1:] == NOWHERE
        whole = np.where(zeros, False, packed[parts[1:]])
        side_by_side = positions[1:] == positions[:-1] + np.where(whole, 0, sizes[:-1])
        same &= zeros | side_by_side
        same &= zeros | ~whole | (starts[1:] == starts[:-1] + sizes[:-1])
        heads = np.ones(len(starts) + 1, np.bool_)
        np.logical_not(same, out=heads[1:-1])
        first = heads[:-1]
        ends = (into + sizes)[heads[1:]]
        return Places(
            starts[first], ends - into[first], into[first], parts[first], positions[first]
        )


def _window(held: ExtentMap, part: Part) -> tuple[Column, Column, Kinds]:
    """Return what of a flat file's extents is a part, as offsets on the disk."""
    starts = np.maximum(held.offsets, part.position)
    ends = np.minimum(held.offsets + held.lengths, part.position + part.size)
    inside = ends > starts
    starts, ends = starts[inside], ends[inside]
    return starts - part.position + part.start, ends - starts, held.kinds[inside]


def _common_unit(links: Sequence[Link], size: int) -> int:
    """Return the largest unit in which no grain and no part of any link is cut."""
    marks = []
    for link in links:
        for part in link.parts:
            marks += [part.start, *([part.map.grain] if part.map is not None else [])]
        if link.size < size:
            marks.append(link.size)
    # Of flat files alone: one piece each.
    return math.gcd(*marks) or max(size, 1)


def _cut(offsets: Column, lengths: Column, unit: int) -> tuple[Column, Column]:
    """Cut ranges at every `unit`."""
    ends = offsets + lengths
    first = offsets // unit
    counts = np.where(lengths > 0, (ends - 1) // unit - first + 1, 0)
    row = np.repeat(np.arange(len(offsets)), counts)
    number = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts) + first[row]
    starts = np.maximum(number * unit, offsets[row])
    return starts, np.minimum((number + 1) * unit, ends[row]) - starts


def _by_table(tables: Column) -> Iterator[tuple[int, slice]]:
    """Give each table, and the rows that it tells of."""
    first, last = int(tables[0]), int(tables[-1])
    if first == last:  # as most frames have it, and the rest takes longer than all else
        yield first, slice(0, len(tables))
        return
    edges = [0, *(np.flatnonzero(tables[1:] != tables[:-1]) + 1).tolist(), len(tables)]
    for begin, end in pairwise(edges):
        yield int(tables[begin]), slice(begin, end)


def _of(part: Part, steps: Steps[T]) -> Asking[T]:
    """Ask for what a part's own parser wants."""
    try:
        ranges = next(steps)
        while True:
            ranges = steps.send((yield Ask(part.file, ranges)))
    except StopIteration as stop:
        result: T = stop.value
        return result


def check_parent(child: Descriptor, parent: Descriptor) -> str:
    """Check that a parent holds what its child was made of.

    Returns:
        What people should know; empty if it is certain.

    Raises:
        VmdkError: If it holds something else.
    """
    if child.parent_cid == parent.cid != LIVE:
        return ""
    if LIVE in {child.parent_cid, parent.cid}:
        return (
            "is in use by ESXi, or was when it was copied, so its content id does not tell whether "
            "it is the parent that was meant"
        )
    raise VmdkError(
        f"the parent that was meant has content {child.parent_cid}, and this one has {parent.cid}: "
        "it was written since, or is another disk"
    )


def size_notes(links: Sequence[Link]) -> list[str]:
    """Say where a link and its parent are not of one size."""
    return [
        f"link {number} of the chain has {child.size} bytes, its parent {parent.size}"
        for number, (child, parent) in enumerate(pairwise(links), 1)
        if child.size != parent.size
    ]
