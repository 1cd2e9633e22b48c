"""What the page cache holds of a file, so that a reader can leave it as it was."""

import ctypes
import mmap
import os
from itertools import groupby
from pathlib import Path

_MAP_FAILED = ctypes.c_void_p(-1).value
_libc = ctypes.CDLL(None, use_errno=True)
_mmap = _libc.mmap
_mmap.restype = ctypes.c_void_p
_mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_int64]
_munmap = _libc.munmap
_munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_mincore = _libc.mincore
_mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]


def may_see_cache(fd: int) -> bool:
    """Tell whether the kernel will say what is cached: only to owners, writers and root.

    To others it calls every page cached (linux mm/mincore.c).
    """
    return os.geteuid() in {0, os.fstat(fd).st_uid} or os.access(
        f"/proc/self/fd/{fd}", os.W_OK, effective_ids=True
    )


def lies_in_memory(fd: int) -> bool:
    """Tell whether a file's pages are all there is of it, so that there is no cache to spare."""
    device = os.fstat(fd).st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    try:
        lines = Path("/proc/self/mountinfo").read_text(errors="replace").splitlines()
    except OSError:
        return False
    for line in lines:
        before, _, after = line.partition(" - ")
        if before.split(" ", 3)[2] == number:
            return after.split(" ", 1)[0] in {"tmpfs", "ramfs"}
    return False


class CacheView:
    """Tells which pages of a file are in the page cache; reads nothing, and brings nothing in.

    The file is mapped once, as addresses only: a mapping for each read would cost more than
    small reads themselves.
    """

    def __init__(self, fd: int, size: int) -> None:
        """Map a file.

        Raises:
            OSError: If that is not possible.
        """
        self._size = size
        self._address = _mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, fd, 0)
        if self._address == _MAP_FAILED:
            raise _last_error()

    def absent(self, offset: int, length: int) -> list[tuple[int, int]]:
        """Return (offset, length) of the runs of whole pages around a range that are not cached.

        Raises:
            OSError: If the kernel does not say.
        """
        first = offset // mmap.PAGESIZE * mmap.PAGESIZE
        size = offset + length - first
        pages = ctypes.create_string_buffer(-(-size // mmap.PAGESIZE))
        if _mincore(self._address + first, size, pages) != 0:
            raise _last_error()
        return _runs_of_zeros(pages.raw, first)

    def close(self) -> None:
        """Give the mapping back."""
        _munmap(self._address, self._size)


def _runs_of_zeros(pages: bytes, first: int) -> list[tuple[int, int]]:
    if 0 not in pages:
        return []
    runs, position = [], first
    for resident, run in groupby(pages):
        size = sum(1 for _ in run) * mmap.PAGESIZE
        if not resident & 1:
            runs.append((position, size))
        position += size
    return runs


def _last_error() -> OSError:
    code = ctypes.get_errno()
    return OSError(code, os.strerror(code))
