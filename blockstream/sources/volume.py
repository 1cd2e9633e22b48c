"""A logical volume, or a snapshot of one, as a source; and what changed in it since a snapshot."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from blockstream.errors import ExceptionStoreError, SnapshotInvalidError, SourceError
from blockstream.formats.exception_store import (
    HEADER_BYTES,
    Exceptions,
    Ranges,
    chunk_of,
    exceptions,
    read_with,
)
from blockstream.linux import lvm
from blockstream.linux.block import size_of
from blockstream.linux.buffers import aligned_buffer, read_all
from blockstream.linux.lvm import Volume
from blockstream.sources.disk import DiskSource


class VolumeSource(DiskSource):
    """Reads a volume with O_DIRECT, and knows whether the snapshots behind it are still valid.

    A classic snapshot that is filled by changes of its origin loses what it held without a word
    to anybody but who asks: `validate` asks, after the last byte was read.
    """

    def __init__(self, volume: Volume, *, depends_on: Sequence[Volume] = ()) -> None:
        """Open it.

        Args:
            volume: What is read; active.
            depends_on: Snapshots whose word was taken for what has changed.

        Raises:
            SourceError: If it cannot be read.
        """
        super().__init__(node_of(volume.dm_path))
        self.name = str(volume)
        self.volume = volume
        self._watched = [each for each in (volume, *depends_on) if each.is_snapshot]
        # Nobody can write it; a classic one is gone when it is full, which `validate` sees.
        self.immutable = bool(volume.origin) and not volume.is_written
        if self.immutable:
            self.is_still = True
            self.warnings.clear()

    def validate(self) -> None:
        """Check that every snapshot that was relied on is still valid.

        Raises:
            SourceError: If the volume changed its size.
            SnapshotInvalidError: If one is not valid.
        """
        super().validate()
        for snapshot in self._watched:
            check_valid(snapshot)


class Store:
    """The exception store of a classic snapshot, past the page cache, which is stale there."""

    def __init__(self, path: str) -> None:
        """Open it.

        Raises:
            SourceError: If it cannot be read.
        """
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
        except OSError as error:
            raise SourceError(
                f"{path} cannot be opened: {error.strerror}; nothing was sent"
            ) from error
        self._path = path

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def header(self) -> bytes:
        """Return the first bytes."""
        return self._read([(0, HEADER_BYTES)])

    def exceptions(self, origin: int) -> Exceptions:
        """Read the whole table.

        Raises:
            SourceError: If it cannot be read or trusted.
        """
        return read_with(exceptions(size_of(self._fd), origin), self._read)

    def _read(self, ranges: Ranges) -> bytes:
        parts = []
        for offset, length in ranges:
            buffer = aligned_buffer(length)
            try:
                read_all(self._fd, buffer, offset)
            except EOFError:
                raise ExceptionStoreError("it ends within its table") from None
            except OSError as error:
                raise SourceError(
                    f"{self._path} cannot be read at offset {offset}: {error.strerror}; "
                    "END was not sent"
                ) from error
            parts.append(bytes(buffer))
        return b"".join(parts)


def node_of(dm_path: str) -> str:
    """Return the path of a volume's device, which udev may have made a link."""
    return str(Path(dm_path).resolve())


def check_valid(snapshot: Volume) -> None:
    """Check that a classic snapshot holds what it held.

    Raises:
        SnapshotInvalidError: If it does not.
        NotFoundError: If somebody removed it.
        RefusedError: If somebody renamed or merges it.
        SourceError: If it cannot be told.
    """
    try:
        trouble = lvm.snapshot_trouble(snapshot.dm_path)
    except SourceError:
        lvm.again(snapshot)  # names what somebody else did to it
        raise
    if trouble:
        raise SnapshotInvalidError(
            f"{snapshot} is not valid any more ({trouble}): it was filled by changes of its "
            "origin, merged or removed; END was not sent; send again, with more room for the "
            "snapshot (--snapshot-size)"
        )
    with Store(f"{snapshot.dm_path}-cow") as store:
        try:
            chunk_of(store.header())
        except SnapshotInvalidError as error:
            raise SnapshotInvalidError(f"{snapshot}: {error}; END was not sent") from None


def changed_since(snapshot: Volume) -> Exceptions:
    """Return what of its origin a classic snapshot says has changed; valid before and after.

    Raises:
        SnapshotInvalidError: If it is not valid, or is being merged.
        SourceError: If it cannot be read.
    """
    check_valid(snapshot)
    try:
        with Store(f"{snapshot.dm_path}-cow") as store:
            found = store.exceptions(snapshot.origin_size)
    except ExceptionStoreError as error:
        raise SourceError(f"{snapshot}: {error}; what changed since is not known") from error
    check_valid(snapshot)
    return found


def flush(volume: Volume) -> None:
    """Write back what the kernel keeps of a volume in memory, whoever wrote it.

    Raises:
        SourceError: If it cannot.
    """
    try:
        fd = os.open(node_of(volume.dm_path), os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
    except OSError as error:
        raise SourceError(f"{volume} cannot be flushed: {error.strerror}") from error
