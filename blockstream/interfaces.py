"""What the pipeline knows of the world: something to read, something to write.

Each interface has one contract suite in tests/contracts; an implementation is one parameter of it.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from blockstream.linux.identity import Identity, Node

if TYPE_CHECKING:
    from blockstream.extents import ExtentMap  # numpy: 60 ms that `recv` need not wait


# A large object travels in parts of this; larger ones, or many at a time, lose to the cache.
PART_BYTES: Final = 8 << 20


class Source(Protocol):
    """A disk that is read. Methods may be called from several threads at once."""

    @property
    def name(self) -> str:
        """What people call it; no secrets."""

    @property
    def size(self) -> int:
        """Its size in bytes; does not change."""

    @property
    def alignment(self) -> int:
        """Offsets and lengths of reads must be multiples of this, but for the device's end."""

    @property
    def immutable(self) -> bool:
        """Whether it provably gives the same bytes for ever, so that a resume need not re-read."""

    @property
    def is_still(self) -> bool:
        """Whether what is read is of one moment: nobody is known who may write it meanwhile."""

    @property
    def read_ahead(self) -> int:
        """How many frames may be asked for before they are wanted, where answers take long.

        0 for what lies on this host, and for what reads ahead itself.
        """

    @property
    def identity(self) -> Identity:
        """What it is known by."""

    @property
    def nodes(self) -> frozenset[Node]:
        """What its bytes lie on, for the check that a target is not its own source."""

    @property
    def warnings(self) -> Sequence[str]:
        """What people should know before they trust a copy of it."""

    def extents(self) -> "ExtentMap":
        """Return DATA and ZERO extents that cover the device; may take seconds.

        Raises:
            SourceError: If it cannot be told.
        """

    def read_into(self, offsets: Sequence[int], lengths: Sequence[int], buffer: memoryview) -> None:
        """Fill `buffer` with the given ranges, one after the other.

        Args:
            offsets: First bytes, ascending.
            lengths: Sizes in bytes; their sum is the size of `buffer`.
            buffer: Page-aligned memory of the caller's.

        Raises:
            SourceError: If a range cannot be read, named with its offset. The buffer is undefined.
        """

    def validate(self) -> None:
        """Check that all that was read so far is one state of the disk.

        Raises:
            SourceError: If it changed.
        """

    def close(self) -> None:
        """Give everything back. Nobody may be reading."""


class Target(Protocol):
    """A disk that is written, through one descriptor. Methods may be called from several threads.

    After any error the target must be closed: a later flush would succeed without meaning it.
    """

    @property
    def name(self) -> str:
        """What people call it."""

    @property
    def size(self) -> int:
        """Its size in bytes."""

    @property
    def identity(self) -> Identity:
        """What it is known by in the state directory."""

    def write_from(
        self, offsets: Sequence[int], lengths: Sequence[int], buffer: memoryview
    ) -> None:
        """Write `buffer` to the given ranges, one after the other; durable only after `flush`.

        Args:
            offsets: First bytes, ascending.
            lengths: Sizes in bytes; their sum is the size of `buffer`.
            buffer: The bytes; the caller's again afterwards.

        Raises:
            TargetError: If the device took less, or none, named with the offset.
        """

    def zero(self, offset: int, length: int) -> None:
        """Make a range read as zeros; durable only after `flush`.

        Raises:
            TargetError: If it could not.
        """

    def flush(self) -> None:
        """Make every earlier write durable. Never called again after it failed.

        Raises:
            TargetError: If the device could not keep what was written.
        """

    def read_medium(self, offset: int, length: int) -> bytes:
        """Return what the medium holds, not what the page cache says; call `flush` before.

        Raises:
            TargetError: If it cannot be read.
        """

    def begin(self) -> None:
        """Begin a transfer: check that the name stands for what was opened.

        Raises:
            RefusedError: If it stands for something else, or for nothing.
        """

    def check_whole(self) -> None:
        """Compare it with its name, and with itself: the last thing before it is called whole.

        Raises:
            TargetError: If its name stands for something else, it has another size, or what was
                written since `begin` is not there.
        """

    def trace(self) -> str:
        """Return what the kernel knows of writes to it; empty for nothing. See `linux.traces`.

        Raises:
            TargetError: If what is in the cache cannot be flushed.
        """

    def close(self) -> None:
        """Give the descriptor back. Nobody may be writing."""


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """What a store says of an object.

    Attributes:
        key: Its name.
        size: Its size in bytes.
        modified: When it was written, in seconds since 1970, by the store's clock.
        stray: Whether it is none of ours: it lies at another depth, or is a link, a folder or a
            device where a file must be. Nobody may read or delete it.
    """

    key: str
    size: int
    modified: float
    stray: bool = False


class Objects(Protocol):
    """A store of objects, each written once and whole. Methods may be called from several threads.

    A key is words between slashes; a folder is a key with a slash at its end. Others may write the
    store, too, so that nothing there is taken for what it seems: no link is followed.

    Every method raises StoreError if the store fails, and StoreDamagedError if an object is not
    what it must be.
    """

    @property
    def name(self) -> str:
        """What people call it; no secrets."""

    def put_new(self, key: str, data: bytes) -> bool:
        """Write an object that nobody has written; durable when this returns.

        Returns:
            Whether it is ours; of several writers exactly one hears that.
        """

    def put(self, key: str, data: bytes) -> None:
        """Write an object, in place of an older one; durable when this returns."""

    def upload(self, key: str) -> "Upload":
        """Begin to write a large object under a key that nobody else uses."""

    def read(self, key: str, offset: int, length: int) -> bytes:
        """Return a range of an object.

        Raises:
            StoreDamagedError: If it is not there, or ends too early.
        """

    def read_whole(self, key: str, most: int) -> bytes:
        """Return all of an object.

        Args:
            key: Its key.
            most: Its size at most, in bytes.

        Raises:
            StoreDamagedError: If it is not there, or larger; then it was not read.
        """

    def info(self, key: str) -> ObjectInfo | None:
        """Return what the store says of an object; None if it is not there."""

    def listed(self, folder: str, depth: int = 1) -> Iterator[ObjectInfo]:
        """Give the objects of a folder, in order of their keys; none if it is not there.

        Args:
            folder: The folder.
            depth: How many words their keys have below it. What has more comes once, by the first
                so many, as a stray; so does what has fewer.
        """

    def folders(self, folder: str) -> Iterator[str]:
        """Give the names of the folders in a folder, in any order."""

    def delete(self, key: str) -> None:
        """Remove an object; nothing happens if it is not there."""

    def locked(self, key: str) -> bool:
        """Tell whether an object is to be kept yet, as whoever owns the store has told it."""

    def forget_unfinished(
        self, folder: str, depth: int, before: float, spared: Collection[str] = ()
    ) -> int:
        """Give up uploads of others that nobody finished.

        Args:
            folder: The folder.
            depth: How many words their keys have below it.
            before: When they began at the latest, in seconds since 1970.
            spared: Folders in it that are left alone.

        Returns:
            How many there were.
        """

    def close(self) -> None:
        """Give everything back."""


class Upload(Protocol):
    """An object under way. Nobody sees it before `finish`. One thread at a time."""

    def write(self, parts: Sequence[memoryview]) -> None:
        """Append bytes, which are the caller's again afterwards."""

    def copy(self, key: str, offset: int, length: int) -> None:
        """Append a range of an object of the same store, within the store if it can do that.

        After an error only `abort` may follow.

        Args:
            key: The object.
            offset: First byte of the range in it.
            length: Size of the range, in bytes.

        Raises:
            StoreDamagedError: If it is not there, or ends too early.
        """

    def finish(self) -> None:
        """Make it visible and durable."""

    def abort(self) -> None:
        """Forget it; may be called after anything failed."""


class Link(Protocol):
    """A program on another host, with a pipe each way. Descriptors are the link's own."""

    @property
    def name(self) -> str:
        """What people call the other end."""

    @property
    def to_peer(self) -> int:
        """Descriptor of what the other end reads."""

    @property
    def from_peer(self) -> int:
        """Descriptor of what the other end writes."""

    def hang_up(self) -> None:
        """End our direction; any thread, and more than once."""

    def ended(self) -> tuple[int, str]:
        """Hang up both ways, and wait a moment for the other end before it is ended.

        Returns:
            Its exit status, 255 where the connection failed, and what it last said to people, as
            it may be shown.
        """

    def close(self) -> None:
        """Give everything back. Nobody may be reading or writing."""
