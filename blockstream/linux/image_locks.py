"""The locks by which QEMU knows who has an image open: its guests, qemu-nbd, qemu-img.

Each permission is a byte of the file: 100 and on for those that somebody uses, 200 and on for those
that he lets nobody else use. All are read locks, and whoever finds one where he would take a write
lock leaves the image alone (QEMU: block/file-posix.c, include/block/block-common.h).
"""

import fcntl
import struct
from collections.abc import Iterable
from contextlib import suppress

_FLOCK = struct.Struct("hhqqi4x")  # struct flock: type, whence, start, length, pid
_USED, _UNSHARED = 100, 200
_PERMISSIONS = range(4)  # to read what is consistent, to write, to write the same, to resize
_WRITE, _RESIZE = 1, 3


def is_open_in_qemu(fd: int) -> bool:
    """Tell whether a QEMU has an open file or device as an image, in whatever way."""
    return _is_locked(fd, (*_bytes(_USED), *_bytes(_UNSHARED)))


def is_written_by_qemu(fd: int) -> bool:
    """Tell whether a QEMU may write an open file or device."""
    return _is_locked(fd, (_USED + _WRITE, _USED + _RESIZE))


def keep_qemu_out(fd: int) -> None:
    """Let no QEMU open it until the descriptor is closed; it must be open to be read and written.

    Where the file system has no such locks, QEMU has none either.
    """
    for byte in (_USED + _WRITE, *_bytes(_UNSHARED)):
        with suppress(OSError):
            fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_RDLCK, 0, byte, 1, 0))


def _bytes(first: int) -> list[int]:
    return [first + each for each in _PERMISSIONS]


def _is_locked(fd: int, wanted: Iterable[int]) -> bool:
    """Tell whether somebody else has locked one of these bytes."""
    for byte in wanted:
        with suppress(OSError):
            asked = _FLOCK.pack(fcntl.F_WRLCK, 0, byte, 1, 0)
            found = _FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_OFD_GETLK, asked))
            if found[0] != fcntl.F_UNLCK:
                return True
    return False
