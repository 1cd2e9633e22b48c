"""Names and contents of files that outlive a power cut, and who may take them away."""

import ctypes
import fcntl
import os
import struct
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

_GETFLAGS = 0x80086601  # linux/fs.h: FS_IOC_GETFLAGS
_KEPT = 0x10 | 0x20  # FS_IMMUTABLE_FL, FS_APPEND_FL
_RENAME_NOREPLACE = 1  # linux/fs.h; Python has no name for it


def sync_directory(path: Path) -> None:
    """Make names in a directory durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def new_file(path: Path, mode: int = 0o666) -> BinaryIO:
    """Open a new file to be written, in place of one that is there, and never through a link."""
    path.unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.fdopen(os.open(path, flags, mode), "wb")


def kept_file(path: Path) -> int:
    """Open a file of ours to be read and written, or make it, and never through a link.

    Raises:
        OSError: If it is a link, or cannot be opened.
    """
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


def remove_made(path: str, made: os.stat_result) -> None:
    """Remove a file that we made, unless its name stands for something else by now."""
    with suppress(OSError):
        if os.path.samestat(Path(path).lstat(), made):
            Path(path).unlink()


def write_durably(path: Path, data: bytes) -> None:
    """Replace a file so that after a power cut it is the old one or the new one, whole."""
    temporary = path.with_name(path.name + ".new")
    try:
        with new_file(temporary) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def rename_new(folder: int, old: str, new: str) -> None:
    """Rename a file within a directory, given by its descriptor, and replace nothing.

    Raises:
        FileExistsError: If the new name is taken.
        OSError: If the file system cannot do that.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    names = (os.fsencode(old), os.fsencode(new))
    if libc.renameat2(folder, names[0], folder, names[1], _RENAME_NOREPLACE):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), new)


def is_immutable(fd: int) -> bool:
    """Tell whether a file was made immutable or append-only, so that nobody can remove it."""
    try:
        (flags,) = struct.unpack("l", fcntl.ioctl(fd, _GETFLAGS, bytes(8)))
    except OSError:
        return False  # a file system that does not know of it
    return bool(flags & _KEPT)


def file_system_of(fd: int) -> int:
    """Return the number of the kind of file system on which an open file lies; 0 if unknown."""
    buffer = ctypes.create_string_buffer(256)
    if ctypes.CDLL(None).fstatfs(fd, buffer):
        return 0
    (kind,) = struct.unpack_from("l", buffer)
    return int(kind) & 0xFFFFFFFF
