"""A file or block device as a source."""

import contextlib
import errno
import os
import stat
from array import array
from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np

from blockstream.errors import NotFoundError, SourceError
from blockstream.extents import ExtentMap
from blockstream.linux.aio import FEWEST, batch
from blockstream.linux.block import data_ranges, logical_block_of, size_of
from blockstream.linux.buffers import aligned_buffer, read_all
from blockstream.linux.identity import Identity, Node, identity_of, node_of, users_of
from blockstream.linux.image_locks import is_written_by_qemu
from blockstream.linux.page_cache import CacheView, lies_in_memory, may_see_cache
from blockstream_protocol import Kind

_BY_NBD = "nbd+unix:///?socket=PATH, with `qemu-nbd -r -t -k PATH` on the file"
_IMAGES = (
    (b"KDMV", "a VMDK", "vmdk:FILE"),
    (b"COWD", "a VMDK", "vmdk:FILE"),
    (b"# Disk DescriptorFile", "the descriptor of a VMDK", "vmdk:FILE"),
    (b"\xef\xbb\xbf# Disk DescriptorFile", "the descriptor of a VMDK", "vmdk:FILE"),
    (b"QFI\xfb", "a qcow2 image", _BY_NBD),
    (b"vhdxfile", "a VHDX image", _BY_NBD),
    (b"conectix", "a VHD image", f"{_BY_NBD}, `-f vpc`"),
)
_HEAD_BYTES = 512
# What a VHD has in its last sector, and a growing one in its first as well.
VHD_COOKIE: Final = b"conectix"


class DiskSource:
    """Reads a file or block device and leaves the host's page cache as it was.

    A device is read with O_DIRECT. Of a file, pages that were in the cache are read there, and
    pages that we had to bring in are dropped again; of a file of somebody else's that we may not
    write, all pages are, because the kernel does not tell us which were there.
    """

    read_ahead = 0

    def __init__(self, path: str, *, from_medium: bool = False) -> None:
        """Open `path`.

        Args:
            path: A file or block device.
            from_medium: Read a file past the cache, too, where its file system lets us.

        Raises:
            NotFoundError: If there is nothing.
            SourceError: If it cannot be read, or is neither a file nor a block device.
        """
        self.name = path
        self.immutable = False
        self.is_still = True
        self.warnings: list[str] = []
        self._fd = _opened(path)
        try:
            info = os.fstat(self._fd)
            self._is_device = stat.S_ISBLK(info.st_mode)
            _check_kind(path, info.st_mode)
            self.size = size_of(self._fd)
            self.alignment = max(512, logical_block_of(self._fd))
            self._before = (info.st_size, info.st_mtime_ns)
            node = node_of(self._fd)
            self.identity: Identity = identity_of(self._fd)
            self.nodes: frozenset[Node] = frozenset({node})
            self._look_for_users(node)
            # Our own readahead would look like somebody's cached pages.
            if not self._is_device:
                os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_RANDOM)
            self._data_fd = self._direct() if self._is_device or from_medium else self._fd
            self._is_cached = self._data_fd == self._fd and not (
                self._is_device or lies_in_memory(self._fd)
            )
            self._cache = self._view_of_cache() if self._is_cached else None
        except BaseException:
            os.close(self._fd)
            raise

    def extents(self) -> ExtentMap:
        """Return the map: holes of a file are ZERO, everything else is DATA."""
        columns = array("q")
        try:
            for start, end in data_ranges(self._fd, self.size):
                columns.append(start)
                columns.append(end - start)
        except OSError as error:
            raise SourceError(f"the holes of {self.name} cannot be listed: {error}") from error
        rows = np.frombuffer(columns, np.int64).reshape(-1, 2) if columns else np.empty((0, 2), int)
        data = ExtentMap.from_columns(rows[:, 0], rows[:, 1], Kind.DATA, self.size)
        # A hole need not begin on a sector where the file's end is odd.
        return data.rounded(self.alignment).filled(Kind.ZERO)

    def read_into(self, offsets: Sequence[int], lengths: Sequence[int], buffer: memoryview) -> None:
        """Fill `buffer`; see `interfaces.Source`."""
        done = self._read_batch(offsets, lengths, buffer)
        position = 0
        for offset, length, count in zip(offsets, lengths, done, strict=True):
            if count != length:
                # Once more by itself, which also finds the words for what is wrong with it.
                self._read(buffer[position : position + length], offset)
            position += length

    def _read_batch(
        self, offsets: Sequence[int], lengths: Sequence[int], buffer: memoryview
    ) -> Sequence[int]:
        """Read what can be read at once; return how much of each range, -errno if it failed."""
        # Of a file, what a read brings into the cache has to be known range by range.
        if len(offsets) >= FEWEST and not self._is_cached:
            with batch() as queue:
                if queue is not None:
                    return queue.read(self._data_fd, offsets, lengths, buffer)
        return [0] * len(offsets)

    def _read(self, view: memoryview, offset: int) -> None:
        absent = self._absent(offset, len(view)) if self._is_cached else ()
        try:
            read_all(self._data_fd, view, offset)
        except OSError as error:
            if error.errno == errno.EINVAL and self._data_fd != self._fd:
                # The end of a device whose size is no multiple of its block.
                self._read_buffered(view, offset)
                return
            raise self._unreadable(offset, len(view), error) from error
        except EOFError:
            raise SourceError(
                f"{self.name} has become shorter than its {self.size} bytes while it was read; "
                "END was not sent; send again from a snapshot, or with its user stopped"
            ) from None
        for start, length in absent:
            os.posix_fadvise(self._fd, start, length, os.POSIX_FADV_DONTNEED)

    def _absent(self, offset: int, length: int) -> Sequence[tuple[int, int]]:
        """Return what a read will bring into the cache; all of it where that cannot be told."""
        if self._cache is not None:
            with contextlib.suppress(OSError):
                return self._cache.absent(offset, length)
        return [(offset, length)]

    def _view_of_cache(self) -> CacheView | None:
        if self.size and may_see_cache(self._fd):
            with contextlib.suppress(OSError):
                return CacheView(self._fd, self.size)
        return None

    def _read_buffered(self, view: memoryview, offset: int) -> None:
        try:
            read_all(self._fd, view, offset)
            os.posix_fadvise(self._fd, offset, len(view), os.POSIX_FADV_DONTNEED)
        except (OSError, EOFError) as error:
            raise self._unreadable(offset, len(view), error) from error

    def validate(self) -> None:
        """Check that the file was not written; of a device only its size can be told."""
        info = os.fstat(self._fd)
        if self._is_device:
            if size_of(self._fd) != self.size:
                raise SourceError(
                    f"{self.name} changed its size while it was read; END was not sent; send again"
                )
        elif (info.st_size, info.st_mtime_ns) != self._before:
            raise SourceError(
                f"{self.name} was written while it was read, so what was sent is no one state of "
                "it; END was not sent; send again from a snapshot, or with its user stopped"
            )

    def close(self) -> None:
        """Close the descriptors."""
        if self._cache is not None:
            self._cache.close()
        if self._data_fd != self._fd:
            os.close(self._data_fd)
        os.close(self._fd)

    def _direct(self) -> int:
        try:
            return os.open(f"/proc/self/fd/{self._fd}", os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
        except OSError:
            return self._fd

    def _look_for_users(self, node: Node) -> None:
        """Warn of a disk that somebody may write: what is read then is no one moment."""
        users = users_of(node) if self._is_device else []
        if is_written_by_qemu(self._fd):
            users.append("QEMU, or another blockstream, may write it")
        if users:
            self.is_still = False
            self.warnings.append(
                f"{self.name} is in use ({'; '.join(users)}): what is sent may be no one moment "
                "of it; a snapshot would be"
            )

    def look_for_an_image(self) -> None:
        """Warn of a file that holds a disk in another form; for whoever sends it as it is."""
        if not self.size:
            self.warnings.append(
                f"{self.name} has no bytes: it is an empty file, or a device without a medium"
            )
        if self._is_device or self.size < _HEAD_BYTES:
            return
        head, foot = aligned_buffer(_HEAD_BYTES), aligned_buffer(_HEAD_BYTES)
        with contextlib.suppress(SourceError):  # whoever reads it all hears of it
            self._read(head, 0)
        with contextlib.suppress(SourceError):
            self._read(foot, self.size - len(foot))
        for kind, instead in _images(bytes(head), bytes(foot)):
            self.warnings.append(
                f"{self.name} is {kind}, and is sent as the file that it is; for the disk in it "
                f"give {instead}"
            )

    def _unreadable(self, offset: int, length: int, error: Exception) -> SourceError:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        return SourceError(
            f"{self.name}: {length} bytes at offset {offset} cannot be read: {reason}; nothing "
            "was put in their place and END was not sent"
        )


def _images(head: bytes, foot: bytes) -> Iterator[tuple[str, str]]:
    """Give what a file holds that begins and ends so, and how its disk is named instead."""
    for magic, kind, instead in _IMAGES:
        if head.startswith(magic):
            yield kind, instead
    if foot.startswith(VHD_COOKIE) and not head.startswith(VHD_COOKIE):
        yield "a VHD image of fixed size", f"{_BY_NBD}, `-f vpc`"
    if head[257:262] == b"ustar" and head[:100].rstrip(b"\0").lower().endswith(b".ovf"):
        yield "an OVA, which tar unpacks", "vmdk:FILE of one of its disks"


def _opened(path: str) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise NotFoundError(f"{path} does not exist; nothing was sent") from None
    except OSError as error:
        raise SourceError(f"{path} cannot be opened: {error.strerror}; nothing was sent") from error


def _check_kind(path: str, mode: int) -> None:
    if not stat.S_ISBLK(mode) and not stat.S_ISREG(mode):
        raise SourceError(f"{path} is neither a file nor a block device; nothing was sent")
