"""A disk of a virtual machine as a snapshot froze it, read from its datastore."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final, Protocol

from blockstream.errors import SourceError
from blockstream.extents import ExtentMap
from blockstream.linux.identity import Identity, Node
from blockstream.sources.datastore import Datastore, DatastorePath
from blockstream.sources.sftp import Sftp, SftpFile
from blockstream.sources.vmdk import VmdkSource

# A host has room for about 48 reads (VDDK guide, "NFC Session Limits"): a few disks at a time.
_READ_AHEAD: Final = 8


class Reader(Protocol):
    """Gives ranges of a frozen disk. Methods may be called from several threads at once."""

    @property
    def alignment(self) -> int:
        """Offsets and lengths of reads must be multiples of this, but for the disk's end."""

    @property
    def warnings(self) -> Sequence[str]:
        """What people should know."""

    @property
    def read_ahead(self) -> int:
        """How many frames may be asked for before they are wanted; see `interfaces.Source`."""

    def extents(self) -> ExtentMap:
        """Return DATA and ZERO extents that cover the disk."""

    def read_into(self, offsets: Sequence[int], lengths: Sequence[int], buffer: memoryview) -> None:
        """Fill `buffer`; see `interfaces.Source`."""

    def close(self) -> None:
        """Give everything back. Nobody may be reading."""


class VirtualDiskSource:
    """Reads a frozen disk. See `interfaces.Source` for what each method promises.

    It gives the same bytes as long as its snapshot is there, which `validate` sees to.
    """

    immutable = True
    is_still = True

    def __init__(
        self,
        name: str,
        size: int,
        key: str,
        reader: Reader,
        still_frozen: Callable[[], None],
        tick: Callable[[], None],
    ) -> None:
        """Take over a reader.

        Args:
            name: What people call the disk.
            size: Its bytes.
            key: What it is known by, as no other disk is.
            reader: Reads it.
            still_frozen: Raises SourceError if the snapshot is not there any more.
            tick: Called with each read, so that the session does not end for want of calls.
        """
        self.name = name
        self.size = size
        self.alignment = reader.alignment
        self.identity = Identity(f"vsphere:{key}", lasting=True)
        self.nodes: frozenset[Node] = getattr(reader, "nodes", frozenset())
        self.warnings = list(reader.warnings)
        self.read_ahead = reader.read_ahead
        self._reader = reader
        self._still_frozen = still_frozen
        self._tick = tick

    def extents(self) -> ExtentMap:
        """Return what the reader knows; holes of a thin disk are found by looking."""
        return self._reader.extents()

    def read_into(self, offsets: Sequence[int], lengths: Sequence[int], buffer: memoryview) -> None:
        """Fill `buffer`; see `interfaces.Source`."""
        self._tick()
        self._reader.read_into(offsets, lengths, buffer)

    def validate(self) -> None:
        """Check that the snapshot is there, without which the disk was written meanwhile."""
        self._still_frozen()

    def close(self) -> None:
        """Close the reader."""
        self._reader.close()


class DatastoreFile:
    """A file of a datastore as a source: what a chain of VMDKs is read from.

    It is frozen while a snapshot lies above it, which is not its own business.
    """

    immutable = False
    is_still = True
    alignment = 1
    read_ahead = _READ_AHEAD
    nodes: frozenset[Node] = frozenset()

    def __init__(self, store: Datastore, path: DatastorePath) -> None:
        """Ask for its size.

        Raises:
            SourceError: If the server does not give ranges of it.
            NotFoundError: If it is not there.
        """
        self.name = str(path)
        self.size = store.size(path)
        self.identity = Identity(f"datastore:{path.datacenter}:{path}", lasting=True)
        self.warnings: list[str] = []
        self._store = store
        self._path = path

    def extents(self) -> ExtentMap:
        """Return one DATA extent: nobody tells of holes."""
        return ExtentMap.whole(self.size)

    def read_into(self, offsets: Sequence[int], lengths: Sequence[int], buffer: memoryview) -> None:
        """Fill `buffer`; see `interfaces.Source`."""
        position = 0
        for offset, length in zip(offsets, lengths, strict=True):
            self._store.read_into(self._path, offset, buffer[position : position + length])
            position += length

    def validate(self) -> None:
        """Trust the snapshot above it."""

    def close(self) -> None:
        """Leave the datastore to others."""


def chain_of(store: Datastore, descriptor: DatastorePath, size: int) -> VmdkSource:
    """Open a frozen disk with the chain of what lies below it.

    Args:
        store: Reads the datastore.
        descriptor: What describes the disk.
        size: Bytes that it must have.

    Raises:
        SourceError: If it cannot be read, or is not of that size.
        NotFoundError: If a file is not there.
    """

    def opened(path: str) -> DatastoreFile:
        return DatastoreFile(store, replace(descriptor, path=path))

    return _checked(VmdkSource(descriptor.path, open_file=opened), descriptor, size)


def chain_there(server: Sftp, volumes: str, descriptor: DatastorePath, size: int) -> VmdkSource:
    """Open the same on the ESXi host that has it.

    Raises:
        SourceError: If it cannot be read, or is not of that size.
        NotFoundError: If a file is not there.
    """

    def opened(path: str) -> SftpFile:
        return SftpFile(server, f"{volumes}/{descriptor.datastore}/{path}")

    return _checked(VmdkSource(descriptor.path, open_file=opened), descriptor, size)


def mounted(folder: str, descriptor: DatastorePath, size: int) -> VmdkSource:
    """Open the same where the datastore is mounted on this host, as NFS may be.

    Raises:
        SourceError: If it cannot be read, or is not of that size.
        NotFoundError: If it is not there.
    """
    return _checked(VmdkSource(str(Path(folder) / descriptor.path)), descriptor, size)


def _checked(chain: VmdkSource, descriptor: DatastorePath, size: int) -> VmdkSource:
    if chain.size != size:
        chain.close()
        raise SourceError(
            f"{descriptor} describes {chain.size} bytes, and the disk has {size}; nothing was sent"
        )
    return chain
