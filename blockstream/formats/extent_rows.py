"""The entries of a list of extents, whoever wrote it, and the checks that all syntaxes share."""

import reprlib
from array import array
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import numpy as np

from blockstream.errors import ExtentListError
from blockstream.extents import NOTHING, Column, ExtentMap, Kinds
from blockstream_protocol import DEVICE_BYTES

MAKE_AGAIN: Final = "make the list again, of this very device"


class Meaning(StrEnum):
    """What it means that a list names a range."""

    CHANGED = "changed"  # since the base; what is not listed is as it was
    ALLOCATED = "allocated"  # it is in use; nothing is said about changes


@dataclass(frozen=True, slots=True)
class ExtentList:
    """A list of extents that has been checked against its device.

    Attributes:
        extents: What it names; ranges that are clean or the same are not in it.
        meaning: Whether it may be used for an increment.
        origin: The tool and syntax it came from, in words for people.
        size: The size of the device in bytes, where the list itself tells it.
    """

    extents: ExtentMap
    meaning: Meaning
    origin: str
    size: int | None


class Rows:
    """The entries of one list in the order in which they stand.

    A row that says "nothing happened here" is kept too, as `NOTHING`: it may contradict another.

    Attributes:
        origin: The tool and syntax, for messages.
        unit: In what the tool counts, in bytes: the last entry may pass the device's end by less.
    """

    def __init__(self, origin: str, unit: int = 1) -> None:
        """Begin a list whose tool counts in `unit` bytes.

        An entry may pass the device's end by less than one unit, and is cut there.
        """
        self.origin = origin
        self.unit = unit
        self._offsets = array("q")
        self._lengths = array("q")
        self._kinds = bytearray()

    def __len__(self) -> int:
        return len(self._kinds)

    def add(self, offset: object, length: object, kind: int) -> None:
        """Take the next entry, in bytes.

        Raises:
            ExtentListError: If either is no whole number from 0 to 8 EiB - 1.
        """
        # `type` and not `isinstance`: JSON's true would pass as 1.
        if type(offset) is not int or not 0 <= offset <= DEVICE_BYTES:
            raise self.refused(f"its offset is {shown(offset)}, not a number of bytes")
        if type(length) is not int or not 0 <= length <= DEVICE_BYTES:
            raise self.refused(f"its length is {shown(length)}, not a number of bytes")
        self._offsets.append(offset)
        self._lengths.append(length)
        self._kinds.append(kind)

    def add_columns(self, offsets: Column, lengths: Column, kinds: Column) -> None:
        """Take many entries whose numbers are known to be whole and in range."""
        self._offsets.frombytes(offsets.tobytes())
        self._lengths.frombytes(lengths.tobytes())
        self._kinds += kinds.astype(np.uint8).tobytes()

    def refused(self, what: str, advice: str = MAKE_AGAIN) -> ExtentListError:
        """Return the error for the entry that is being read: the one after the last row."""
        return ExtentListError(self.origin, what, advice, len(self) + 1)

    def refused_whole(self, what: str, advice: str = MAKE_AGAIN) -> ExtentListError:
        """Return the error for the list as such."""
        return ExtentListError(self.origin, what, advice)

    def extents(self, size: int) -> ExtentMap:
        """Return the rows as a map of a device of `size` bytes.

        Raises:
            ExtentListError: If a row lies past the end, or two of different kinds overlap.
        """
        offsets, lengths, kinds = self._columns()
        limit = min(self._rounded(size), DEVICE_BYTES)
        past = np.flatnonzero(offsets > limit - lengths)  # a sum could be too large for int64
        if len(past):
            offset, length = int(offsets[past[0]]), int(lengths[past[0]])
            what = f"{length} bytes at {offset} pass the device's end at {size}"
            raise ExtentListError(self.origin, what, MAKE_AGAIN, int(past[0]) + 1)
        self._refuse_contradictions(offsets, lengths, kinds)
        keep = kinds != NOTHING
        if keep.all():
            keep = slice(None)
        return ExtentMap.from_columns(offsets[keep], lengths[keep], kinds[keep], size)

    def whole_extents(self, size: int) -> ExtentMap:
        """Return the map of a list whose entries must cover the device from end to end.

        A gap would be taken for a range that has not changed, although the tool never said so.

        Raises:
            ExtentListError: As `extents`; also if the rows leave a gap, or end elsewhere.
        """
        offsets, lengths, _ = self._columns()
        own = self.end()
        if own not in (size, self._rounded(size)):
            raise self.refused_whole(f"it is of a device of {own} bytes, this one has {size}")
        extents = self.extents(size)
        order = np.argsort(offsets, kind="stable")
        reached = np.concatenate(([0], np.maximum.accumulate((offsets + lengths)[order])))
        gaps = np.flatnonzero(offsets[order] > reached[:-1])
        if len(gaps):
            first, last = int(reached[gaps[0]]), int(offsets[order[gaps[0]]])
            what = f"it says nothing about the bytes from {first} to {last}"
            raise self.refused_whole(what, "make a list of the whole device")
        return extents

    def end(self) -> int:
        """Return where the last row ends: the size of the device, if the rows cover it."""
        offsets, lengths, _ = self._columns()
        if not len(offsets):
            return 0
        last = int(np.argmax(offsets.astype(np.uint64) + lengths.astype(np.uint64)))
        return int(offsets[last]) + int(lengths[last])

    def _rounded(self, size: int) -> int:
        return -(-size // self.unit) * self.unit

    def _columns(self) -> tuple[Column, Column, Kinds]:
        return (
            np.frombuffer(self._offsets, np.int64),
            np.frombuffer(self._lengths, np.int64),
            np.frombuffer(self._kinds, np.uint8),
        )

    def _refuse_contradictions(self, offsets: Column, lengths: Column, kinds: Kinds) -> None:
        if np.all(offsets[1:] >= (offsets + lengths)[:-1]):
            return  # in order and disjoint, as most tools write them
        filled = np.flatnonzero(lengths)  # an empty row is nowhere, hence in nobody's way
        order = filled[np.argsort(offsets[filled], kind="stable")]
        ends = np.maximum.accumulate(offsets[order] + lengths[order])
        # Up to the first clash, all rows that reach over a row are of one kind: its neighbour's.
        clash = np.flatnonzero(
            (offsets[order[1:]] < ends[:-1]) & (kinds[order[1:]] != kinds[order[:-1]])
        )
        if len(clash):
            later = int(order[clash[0] + 1])
            other = int(order[np.searchsorted(ends, ends[clash[0]])])
            what = f"it contradicts entry {other + 1} about the bytes at {int(offsets[later])}"
            raise ExtentListError(self.origin, what, MAKE_AGAIN, later + 1)


def shown(value: object) -> str:
    """Return a value from somebody's list, short enough for a message."""
    return reprlib.repr(value)
