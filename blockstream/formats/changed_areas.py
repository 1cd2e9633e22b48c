"""What VMware's change tracking says, page by page: `QueryChangedDiskAreas`, and the change id.

A page covers a part of the disk, from where it was asked on; the next one begins where it ends.
"""

import re
from collections.abc import Generator, Sequence
from dataclasses import dataclass

import numpy as np

from blockstream.errors import SourceError
from blockstream.extents import ExtentMap
from blockstream_protocol import Kind

# About 2,000 areas come in one page, of blocks of 64 KiB or larger: 128 MiB at least, but for small
# disks. What takes many more pages does not get anywhere.
_LEAST_PAGES = 1000
_PAGE_BYTES = 64 << 20

_STATE = re.compile(
    r"cbt:(?P<machine>[0-9a-fA-F-]{1,64}):(?P<key>\d{1,10}):(?P<disk>[^:]{0,64}):(?P<size>\d{1,20})"
    r":(?P<change>[^:]{1,100})"
)


class ChangeMapError(SourceError):
    """What the tracker said contradicts itself, so that nothing of it can be believed."""


@dataclass(frozen=True, slots=True)
class Page:
    """One answer.

    Attributes:
        start: First byte that it covers.
        length: How many bytes it covers.
        areas: What changed there: offsets and lengths in bytes.
    """

    start: int
    length: int
    areas: Sequence[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class TrackedState:
    """A moment of a disk that change tracking knows; its text is the id of that state.

    All of it lies with the target, so that any host can go on from there.

    Attributes:
        machine: The machine's instance UUID.
        key: The disk's number in the machine.
        disk: The disk's own UUID; empty where it has none.
        size: Bytes of the disk.
        change: The change id, as the snapshot's configuration told it.
    """

    machine: str
    key: int
    disk: str
    size: int
    change: str

    def __str__(self) -> str:
        """The id of this state."""
        return f"cbt:{self.machine}:{self.key}:{self.disk}:{self.size}:{self.change}"

    @classmethod
    def parse(cls, text: str) -> "TrackedState | None":
        """Return the state that an id stands for; None if it is none of ours."""
        found = _STATE.fullmatch(text)
        if found is None:
            return None
        key, size = int(found["key"]), int(found["size"])
        return cls(found["machine"], key, found["disk"], size, found["change"])

    def why_not_since(self, held: "TrackedState") -> str:
        """Say why the tracker cannot know what changed between `held` and this; empty if it can."""
        if (held.machine, held.key) != (self.machine, self.key):
            return "the target holds another disk"
        if held.disk != self.disk:
            return "the disk was replaced by another one"
        if held.size != self.size:
            return f"the disk had {held.size} bytes and has {self.size} now"
        # Only the part before the slash: the other one is the tracker's own business.
        if held.change.split("/")[0] != self.change.split("/")[0]:
            return "change tracking was reset"
        return ""


def pages(size: int) -> Generator[int, Page, ExtentMap]:
    """Put the pages of a disk together.

    Args:
        size: Bytes of the disk; never zero.

    Yields:
        From where the next page is to be asked for; send it in.

    Returns:
        What changed.

    Raises:
        ChangeMapError: If a page cannot be true.
    """
    offsets: list[int] = []
    lengths: list[int] = []
    start = 0
    most = _LEAST_PAGES + size // _PAGE_BYTES
    for _ in range(most):
        page = yield start
        _check(page, start, size)
        offsets += [offset for offset, _ in page.areas]
        lengths += [length for _, length in page.areas]
        # From what the answer says: it need not have begun to count where we think.
        start = page.start + page.length
        if start == size:
            columns = np.array(offsets, np.int64), np.array(lengths, np.int64)
            return ExtentMap.from_columns(*columns, Kind.DATA, size)
    raise ChangeMapError(f"{most} pages do not cover the disk's {size} bytes")


def _check(page: Page, asked: int, size: int) -> None:
    """Refuse a page that does not say what it was asked.

    Raises:
        ChangeMapError: With the first thing that is wrong.
    """
    if page.start != asked:
        raise ChangeMapError(f"a page begins at {page.start}, and {asked} was asked for")
    end = page.start + page.length
    if page.length <= 0 or end > size:
        raise ChangeMapError(f"a page of {page.length} bytes at {asked}, on a disk of {size}")
    least = page.start
    for offset, length in page.areas:
        if offset < least or length <= 0 or offset + length > end:
            raise ChangeMapError(
                f"an area of {length} bytes at {offset} is out of order, or outside its page, "
                f"which is {page.length} bytes at {asked}"
            )
        least = offset + length
