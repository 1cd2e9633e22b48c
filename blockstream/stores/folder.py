"""A folder as a store: a disk of this host, a USB disk, NFS."""

import contextlib
import errno
import os
import re
import secrets
import stat
from collections.abc import Collection, Iterator, Sequence
from io import FileIO
from pathlib import Path
from typing import Final

from blockstream.errors import StoreDamagedError, StoreError
from blockstream.interfaces import ObjectInfo
from blockstream.linux.beneath import Beneath, ElsewhereError, entered, listable, sync_names
from blockstream.linux.buffers import write_stream
from blockstream.linux.files import is_immutable, rename_new
from blockstream.stores.ranges import Ranges

_UNFINISHED: Final = re.compile(r"\..+\.[0-9a-f]{12}\.part", re.DOTALL)
_NO_LINKS: Final = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS}
_NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class FolderObjects:
    """Objects as files below a folder. See `interfaces.Objects` for what each method promises.

    A file gets its name only when it is whole and durable: by a hard link where it must be new,
    which fails if the name is taken, on NFS as well; where there are none, as on FAT, by a rename
    that replaces nothing. Who may read and write it is what the folder's owner and umask say.
    """

    def __init__(self, root: Path) -> None:
        """Use the folder, which need not be there."""
        self._beneath = Beneath(root)
        self.name = f"dir:{root}"

    def put_new(self, key: str, data: bytes) -> bool:
        """Write an object that nobody has written."""
        with self._temporary(key, data) as (folder, temporary, name):
            try:
                _name_new(folder, temporary, name)
            except FileExistsError:
                # NFS says so, too, if it was done already and only the reply was lost.
                if not _is_same(folder, temporary, name):
                    return False
            sync_names(folder)
        return True

    def put(self, key: str, data: bytes) -> None:
        """Write an object, in place of an older one."""
        with self._temporary(key, data) as (folder, temporary, name):
            os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
            sync_names(folder)

    def upload(self, key: str) -> "FolderUpload":
        """Begin to write a large object."""
        with self.failures(key), self._beneath.holding(key, make=True) as (folder, name):
            return FolderUpload(self, key, os.dup(folder), name)

    def read(self, key: str, offset: int, length: int) -> bytes:
        """Return a range of an object."""
        with self.failures(key), self.opened(key) as file:
            return self._read(file, key, offset, length)

    def read_whole(self, key: str, most: int) -> bytes:
        """Return all of an object."""
        with self.failures(key), self.opened(key) as file:
            size = os.fstat(file.fileno()).st_size
            if size > most:
                raise StoreDamagedError(f"{self.name}: {key} has more than {most} bytes")
            return self._read(file, key, 0, size)

    def info(self, key: str) -> ObjectInfo | None:
        """Return what there is to say of an object."""
        with self.failures(key):
            try:
                with self.opened(key) as file:
                    found = os.fstat(file.fileno())
            except StoreDamagedError:
                return None
        return ObjectInfo(key, found.st_size, found.st_mtime)

    def listed(self, folder: str, depth: int = 1) -> Iterator[ObjectInfo]:
        """Give the objects of a folder."""
        with self.failures(folder), contextlib.suppress(FileNotFoundError):
            # Who looks for what nothing names must not take a folder that cannot be read for empty.
            with self._beneath.folder(folder) as fd:
                found = sorted(_listed(fd, folder, depth), key=lambda info: info.key)
            yield from found

    def folders(self, folder: str) -> Iterator[str]:
        """Give the names of the folders in a folder."""
        with self.failures(folder), contextlib.suppress(FileNotFoundError):
            with (
                self._beneath.folder(folder) as fd,
                listable(fd) as names,
                os.scandir(names) as entries,
            ):
                found = [each.name for each in entries if each.is_dir(follow_symlinks=False)]
            yield from found

    def delete(self, key: str) -> None:
        """Remove an object."""
        with self.failures(key), contextlib.suppress(FileNotFoundError):
            with self._beneath.holding(key) as (folder, name):
                os.unlink(name, dir_fd=folder)
                sync_names(folder)
            inner = key.rpartition("/")[0]
            with contextlib.suppress(OSError), self._beneath.holding(inner) as (folder, name):
                os.rmdir(name, dir_fd=folder)  # only if it is empty

    def locked(self, key: str) -> bool:
        """Tell whether a file is immutable: chattr +i."""
        try:
            with self.opened(key) as file:
                return is_immutable(file.fileno())
        except (StoreDamagedError, OSError):
            return False

    def forget_unfinished(
        self, folder: str, depth: int, before: float, spared: Collection[str] = ()
    ) -> int:
        """Give up uploads of others that nobody finished."""
        missing = contextlib.suppress(FileNotFoundError)
        with self.failures(folder), missing, self._beneath.folder(folder) as fd:
            return _forget(fd, depth, before, spared)
        return 0

    def close(self) -> None:
        """Nothing is held."""

    def opened(self, key: str) -> FileIO:
        """Open an object to be read.

        Raises:
            StoreDamagedError: If it is not there, or no file.
            OSError: If it cannot be read.
        """
        try:
            return self._beneath.opened(key)
        except FileNotFoundError as error:
            raise StoreDamagedError(f"{self.name} has no {key}") from error
        except ElsewhereError as error:
            raise self._elsewhere(key, error) from error

    @contextlib.contextmanager
    def failures(self, key: str) -> Iterator[None]:
        """Say what failed.

        Raises:
            StoreDamagedError: If something there is not what it must be.
            StoreError: If it cannot be reached.
        """
        try:
            yield
        except ElsewhereError as error:
            raise self._elsewhere(key, error) from error
        except OSError as error:
            raise StoreError(f"{self.name}: {key}: {error.strerror}; nothing was done") from error

    def _elsewhere(self, key: str, error: ElsewhereError) -> StoreDamagedError:
        return StoreDamagedError(
            f"{self.name}: {key}: {error.filename}: {error.strerror}; nothing in a store is "
            "followed elsewhere; put back what belongs there"
        )

    def _read(self, file: FileIO, key: str, offset: int, length: int) -> bytes:
        size = os.fstat(file.fileno()).st_size
        if offset + length > size:  # before there is room for what may never come
            raise StoreDamagedError(f"{self.name}: {key} ends at byte {size}")
        data = bytearray(length)
        view = memoryview(data)
        while view:
            with _bad_medium(self.name, key, offset):
                count = os.preadv(file.fileno(), [view], offset)
            if not count:
                raise StoreDamagedError(f"{self.name}: {key} ends before byte {offset}")
            view, offset = view[count:], offset + count
        return bytes(data)

    @contextlib.contextmanager
    def _temporary(self, key: str, data: bytes) -> Iterator[tuple[int, str, str]]:
        """Write a file beside its place, durably, and take it away if it was not renamed.

        Gives the descriptor of its folder, its name there, and the name that it is to have.
        """
        with self.failures(key), self._beneath.holding(key, make=True) as (folder, name):
            temporary = _beside(name)
            try:
                fd = os.open(temporary, _NEW, 0o666, dir_fd=folder)
                with FileIO(fd, "w") as file:
                    write_stream(file.fileno(), [memoryview(data)])
                    os.fsync(file.fileno())
                yield folder, temporary, name
            finally:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(temporary, dir_fd=folder)


class FolderUpload:
    """A file under way. See `interfaces.Upload`."""

    def __init__(self, objects: FolderObjects, key: str, folder: int, name: str) -> None:
        """Begin it beside its place.

        Args:
            objects: Where that is, and what may be copied.
            key: Its key.
            folder: Descriptor of its folder, which is closed with this.
            name: Its name there.
        """
        self._objects = objects
        self._key = key
        self._ranges = Ranges(objects)
        self._folder = folder
        self._name = name
        self._temporary = _beside(name)
        try:
            self._fd = os.open(self._temporary, _NEW, 0o666, dir_fd=folder)
        except OSError:
            os.close(folder)
            raise

    def write(self, parts: Sequence[memoryview]) -> None:
        """Append bytes."""
        with self._objects.failures(self._key):
            write_stream(self._fd, list(parts))

    def copy(self, key: str, offset: int, length: int) -> None:
        """Append a range of another object, which a file system may let both share."""
        done = self._copied(key, offset, length)
        if done < length:
            for piece in self._ranges.pieces(key, offset + done, length - done):
                self.write([piece])

    def finish(self) -> None:
        """Make it visible and durable."""
        with self._objects.failures(self._key):
            os.fsync(self._fd)
            os.rename(self._temporary, self._name, src_dir_fd=self._folder, dst_dir_fd=self._folder)
            sync_names(self._folder)
        self._close()

    def abort(self) -> None:
        """Forget it."""
        if self._fd >= 0:
            with contextlib.suppress(OSError):
                os.unlink(self._temporary, dir_fd=self._folder)
            self._close()

    def _close(self) -> None:
        os.close(self._fd)
        os.close(self._folder)
        self._fd = -1

    def _copied(self, key: str, offset: int, length: int) -> int:
        """Let the kernel copy; return how many bytes it has copied until it could not go on.

        Why it could not, if that is an error, is said by whoever reads and writes the rest.
        """
        done = 0
        with contextlib.suppress(OSError), self._objects.opened(key) as source:
            while done < length:
                left = length - done
                count = os.copy_file_range(source.fileno(), self._fd, left, offset + done)
                if not count:
                    break
                done += count
        return done


def _listed(fd: int, folder: str, depth: int) -> Iterator[ObjectInfo]:
    """Give what lies in a folder, in any order."""
    with listable(fd) as names, os.scandir(names) as entries:
        for entry in entries:
            key = folder + entry.name
            try:
                found = entry.stat(follow_symlinks=False)
                if depth > 1 and stat.S_ISDIR(found.st_mode):
                    with entered(fd, entry.name) as inner:
                        yield from _listed(inner, f"{key}/", depth - 1)
                    continue
            except FileNotFoundError:
                continue  # deleted meanwhile
            is_file = stat.S_ISREG(found.st_mode)
            if is_file and _UNFINISHED.fullmatch(entry.name):
                continue
            key += "/" if stat.S_ISDIR(found.st_mode) else ""
            stray = depth > 1 or not is_file
            yield ObjectInfo(key, found.st_size, found.st_mtime, stray=stray)


def _forget(fd: int, depth: int, before: float, spared: Collection[str]) -> int:
    """Remove the unfinished files of a folder; return how many."""
    count = 0
    with listable(fd) as names, os.scandir(names) as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):  # finished meanwhile
                found = entry.stat(follow_symlinks=False)
                if depth > 1:
                    if stat.S_ISDIR(found.st_mode) and entry.name not in spared:
                        with entered(fd, entry.name) as inner:
                            count += _forget(inner, depth - 1, before, ())
                elif (
                    stat.S_ISREG(found.st_mode)
                    and _UNFINISHED.fullmatch(entry.name)
                    and found.st_mtime <= before
                ):
                    os.unlink(entry.name, dir_fd=fd)
                    count += 1
    return count


@contextlib.contextmanager
def _bad_medium(name: str, key: str, offset: int) -> Iterator[None]:
    """Take what the medium cannot read for damage: it can be named, and mended from elsewhere.

    Raises:
        StoreDamagedError: If it cannot.
    """
    try:
        yield
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        raise StoreDamagedError(
            f"{name}: {key} cannot be read from byte {offset}: {error.strerror}"
        ) from error


def _name_new(folder: int, temporary: str, name: str) -> None:
    """Give a file a name that nobody has.

    Raises:
        FileExistsError: If somebody has.
        OSError: If it cannot be done.
    """
    try:
        os.link(temporary, name, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        rename_new(folder, temporary, name)


def _is_same(folder: int, one: str, other: str) -> bool:
    """Tell whether two names are those of one file."""
    try:
        found = [os.stat(each, dir_fd=folder, follow_symlinks=False) for each in (one, other)]
    except FileNotFoundError:
        return False
    return os.path.samestat(*found)


def _beside(name: str) -> str:
    return f".{name}.{secrets.token_hex(6)}.part"
