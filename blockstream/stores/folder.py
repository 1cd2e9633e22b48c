"""A folder as a store: a disk of this host, a USB disk, NFS."""

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator, Sequence
from io import FileIO
from pathlib import Path

from blockstream.errors import StoreDamagedError, StoreError
from blockstream.interfaces import ObjectInfo
from blockstream.linux.buffers import write_stream
from blockstream.linux.files import is_immutable, rename_new, sync_directory
from blockstream.stores.ranges import Ranges

_UNFINISHED = ".part"
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS}


class FolderObjects:
    """Objects as files below a folder. See `interfaces.Objects` for what each method promises.

    A file gets its name only when it is whole and durable: by a hard link where it must be new,
    which fails if the name is taken, on NFS as well; where there are none, as on FAT, by a rename
    that replaces nothing.
    """

    def __init__(self, root: Path) -> None:
        """Use the folder, which need not be there."""
        self._root = root
        self.name = f"dir:{root}"

    def put_new(self, key: str, data: bytes) -> bool:
        """Write an object that nobody has written."""
        path = self._path(key)
        with self._temporary(path, data) as temporary:
            try:
                _name_new(temporary, path)
            except FileExistsError:
                # NFS says so, too, if it was done already and only the reply was lost.
                if not _is_same(temporary, path):
                    return False
            sync_directory(path.parent)
        return True

    def put(self, key: str, data: bytes) -> None:
        """Write an object, in place of an older one."""
        path = self._path(key)
        with self._temporary(path, data) as temporary:
            temporary.replace(path)
            sync_directory(path.parent)

    def upload(self, key: str) -> "FolderUpload":
        """Begin to write a large object."""
        path = self._path(key)
        with self._failures(key):
            _make(path.parent)
            return FolderUpload(path, self)

    def read(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        """Return a range of an object."""
        with self._failures(key), self.opened(key) as file:
            want = os.fstat(file.fileno()).st_size - offset if length is None else length
            data = bytearray(max(0, want))
            view = memoryview(data)
            while view:
                with _bad_medium(self.name, key, offset):
                    count = os.preadv(file.fileno(), [view], offset)
                if not count:
                    raise StoreDamagedError(f"{self.name}: {key} ends before byte {offset}")
                view, offset = view[count:], offset + count
        return bytes(data)

    def listed(self, prefix: str, after: str = "") -> Iterator[ObjectInfo]:
        """Give the objects whose keys begin so."""
        with self._failures(prefix):
            found = sorted(self._walked(prefix.rpartition("/")[0]))
        for key in found:
            if key.startswith(prefix) and key > after:
                with self._failures(key):
                    info = self._info(key)
                if info is not None:
                    yield info

    def delete(self, key: str) -> None:
        """Remove an object."""
        path = self._path(key)
        with self._failures(key), contextlib.suppress(FileNotFoundError):
            path.unlink()
            sync_directory(path.parent)
            with contextlib.suppress(OSError):
                path.parent.rmdir()  # only if it is empty

    def locked(self, key: str) -> bool:
        """Tell whether a file is immutable: chattr +i."""
        try:
            with self.opened(key) as file:
                return is_immutable(file.fileno())
        except (StoreDamagedError, OSError):
            return False

    def forget_unfinished(self, prefix: str, before: float) -> int:
        """Give up uploads of others that nobody finished."""
        folder, count = self._root / prefix.rpartition("/")[0], 0
        with self._failures(prefix):
            for path in folder.rglob(f"*{_UNFINISHED}"):
                with contextlib.suppress(FileNotFoundError):  # finished meanwhile
                    if path.stat().st_mtime <= before:
                        path.unlink()
                        count += 1
        return count

    def close(self) -> None:
        """Nothing is held."""

    def opened(self, key: str) -> FileIO:
        """Open an object to be read.

        Raises:
            StoreDamagedError: If it is not there.
            OSError: If it cannot be read.
        """
        try:
            return self._path(key).open("rb", buffering=0)
        except FileNotFoundError as error:
            raise StoreDamagedError(f"{self.name} has no {key}") from error

    def _info(self, key: str) -> ObjectInfo | None:
        try:
            stat = (self._root / key).stat()
        except FileNotFoundError:
            return None  # deleted meanwhile
        return ObjectInfo(key, stat.st_size, stat.st_mtime)

    def _path(self, key: str) -> Path:
        return self._root / key

    def _walked(self, folder: str) -> Iterator[str]:
        # Who looks for what nothing names must not take a folder that cannot be read for empty.
        for place, _, files in os.walk(self._root / folder, onerror=_unless_missing):
            for name in files:
                if not name.endswith(_UNFINISHED):
                    yield str((Path(place) / name).relative_to(self._root))

    @contextlib.contextmanager
    def _temporary(self, path: Path, data: bytes) -> Iterator[Path]:
        """Write a file beside its place, durably, and take it away if it was not renamed."""
        with self._failures(path.name):
            _make(path.parent)
            temporary = _beside(path)
            try:
                with temporary.open("xb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                yield temporary
            finally:
                temporary.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _failures(self, key: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StoreError(f"{self.name}: {key}: {error.strerror}; nothing was done") from error


class FolderUpload:
    """A file under way. See `interfaces.Upload`."""

    def __init__(self, path: Path, objects: FolderObjects) -> None:
        """Begin it beside its place.

        Args:
            path: Its place.
            objects: Where that is, and what may be copied.
        """
        self._path = path
        self._objects = objects
        self._ranges = Ranges(objects)
        self._temporary = _beside(path)
        self._fd = os.open(
            self._temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600
        )

    def write(self, parts: Sequence[memoryview]) -> None:
        """Append bytes."""
        with self._failures():
            write_stream(self._fd, list(parts))

    def copy(self, key: str, offset: int, length: int) -> None:
        """Append a range of another object, which a file system may let both share."""
        done = self._copied(key, offset, length)
        if done < length:
            for piece in self._ranges.pieces(key, offset + done, length - done):
                self.write([piece])

    def finish(self) -> None:
        """Make it visible and durable."""
        with self._failures():
            os.fsync(self._fd)
            os.close(self._fd)
            self._fd = -1
            self._temporary.replace(self._path)
            sync_directory(self._path.parent)

    def abort(self) -> None:
        """Forget it."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        with contextlib.suppress(OSError):
            self._temporary.unlink()

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

    @contextlib.contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StoreError(
                f"{self._path} cannot be written: {error.strerror}; nothing of it is visible"
            ) from error


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


def _name_new(temporary: Path, path: Path) -> None:
    """Give a file a name that nobody has.

    Raises:
        FileExistsError: If somebody has.
        OSError: If it cannot be done.
    """
    try:
        os.link(temporary, path)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        rename_new(temporary, path)


def _is_same(one: Path, other: Path) -> bool:
    """Tell whether two names are those of one file."""
    try:
        return one.samefile(other)
    except FileNotFoundError:
        return False


def _unless_missing(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(6)}{_UNFINISHED}")


def _make(folder: Path) -> None:
    """Make a folder and its parents, durably."""
    if folder.is_dir():
        return
    _make(folder.parent)
    folder.mkdir(exist_ok=True)
    sync_directory(folder.parent)
