"""What a stream says, whoever made it: readers give these events, writers take them.

A reader is a generator without I/O. It yields either what it wants to see, a `Take` or `Window`,
and is sent those bytes; or an event, and is sent nothing. The bytes that follow a `Data` are for
whoever runs the reader to take: they may be many GiB and never pass through it.
"""

from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from typing import Protocol

from blockstream.errors import IntegrityError
from blockstream.extents import Column


@dataclass(frozen=True, slots=True)
class Take:
    """Asks for the next bytes of the stream.

    Attributes:
        length: Exactly how many; a stream that ends before was cut.
        or_end: Whether it may end here, which gives no bytes.
    """

    length: int
    or_end: bool = False


@dataclass(frozen=True, slots=True)
class Window:
    """Asks for what of the stream is at hand, without taking it; may be nothing."""


@dataclass(frozen=True, slots=True)
class Size:
    """The disk has this many bytes from here on; what it grew by is zeros."""

    size: int


@dataclass(frozen=True, slots=True)
class Whole:
    """This is a whole disk: what is not listed reads as zeros."""


@dataclass(frozen=True, slots=True)
class Base:
    """State that the disk must hold before."""

    name: str


@dataclass(frozen=True, slots=True)
class Goal:
    """State that the disk holds afterwards."""

    name: str


@dataclass(frozen=True, slots=True)
class Data:
    """Bytes of the disk; they follow in the stream.

    Attributes:
        offset: First byte, from the start of the disk.
        length: How many bytes; never zero.
    """

    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Packed:
    """As `Data`, but what follows are lz4 frames that unpack to so many bytes."""

    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Many:
    """Ranges of bytes within the window that was seen last: one event for thousands of them.

    Attributes:
        offsets: First bytes, from the start of the disk.
        length: Size of each, in bytes.
        stride: How far apart they begin in the window.
        first: Where the first begins in it.
    """

    offsets: Column
    length: int
    stride: int
    first: int

    @property
    def taken(self) -> int:
        """How many bytes of the window they end with."""
        return len(self.offsets) * self.stride


@dataclass(frozen=True, slots=True)
class Zero:
    """A range that must read as zeros afterwards.

    Attributes:
        offset: First byte, from the start of the disk.
        length: Size in bytes; never zero.
    """

    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Image:
    """All that follows is the disk, from its first byte to its last."""


@dataclass(frozen=True, slots=True)
class Digest:
    """What the whole disk has afterwards.

    Attributes:
        name: Of the digest, as OpenSSL calls it.
        value: The digest.
    """

    name: str
    value: bytes


@dataclass(frozen=True, slots=True)
class Remark:
    """Something that people should know of the stream."""

    text: str


Fact = Size | Whole | Base | Goal | Digest | Remark
Event = Fact | Data | Packed | Many | Zero | Image
Asking = Take | Window
Reading = Generator[Asking | Event, bytes, None]
# A part of a reader that finds something out.
Looking = Generator[Asking | Event, bytes, bytes]


@dataclass(frozen=True, slots=True)
class Head:
    """What a writer is told before the first range.

    Attributes:
        size: Bytes of the disk.
        base: State that the receiver must hold; empty for a whole disk.
        goal: State that it will hold.
        pool_chunk: Bytes of a chunk of the thin pool that receives; 0 if nobody knows.
    """

    size: int
    base: str
    goal: str
    pool_chunk: int = 0


class Writer(Protocol):
    """Turns ranges, ascending and disjoint, into the bytes of a stream."""

    def begin(self, head: Head) -> bytes:
        """Return what comes first.

        Raises:
            RefusedError: If the format cannot say that.
        """

    def data(self, offset: int, length: int) -> Iterable[tuple[bytes, int]]:
        """Give what goes before the bytes of a range, and how many of them follow it each time."""

    def zero(self, offset: int, length: int) -> Iterable[tuple[bytes, int]]:
        """Give the same for zeros; bytes that follow are zeros as well."""

    def end(self) -> bytes:
        """Return what comes last."""


@dataclass(frozen=True, slots=True)
class Format:
    """A format of another tool.

    Attributes:
        name: What options call it.
        title: What messages call it.
        read: Makes a reader, told how many bytes the disk has, or None where nobody knows.
        ends: Whether it has an end mark, so that a cut is always noticed.
        based: Whether it says onto what it belongs.
        unchecked: What it cannot tell, for the report.
        sizeless: Whether it does not say how large the disk is.
        write: Makes a writer; None if it is only read.
        lost: What a writer cannot carry over, said before anything is written.
        pooled: Whether its zeros are discards of a thin pool, which only fill whole chunks.
    """

    name: str
    title: str
    read: Callable[[int | None], Reading]
    ends: bool
    based: bool
    unchecked: tuple[str, ...]
    write: Callable[[], Writer] | None = None
    lost: tuple[str, ...] = ()
    sizeless: bool = False
    pooled: bool = False


def malformed(title: str, what: str) -> IntegrityError:
    """Return the error of a stream that its own tool would not have made."""
    return IntegrityError(f"{title} is damaged: {what}; nothing was written; make it again")


def skipped(length: int) -> Reading:
    """Pass over bytes."""
    while length:
        step = min(length, 1 << 20)
        yield Take(step)
        length -= step
