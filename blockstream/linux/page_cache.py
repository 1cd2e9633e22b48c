"""What the page cache holds of a file, so that a reader can leave it as it was."""

import ctypes
import mmap
import os
from itertools import groupby

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


def absent_pages(fd: int, offset: int, length: int) -> list[tuple[int, int]]:
    """Return (offset, length) of the runs of whole pages around a range that are not cached.

    Nothing is read, and nothing is brought into the cache.

    Raises:
        OSError: If the file cannot be mapped.
    """
    first = offset // mmap.PAGESIZE * mmap.PAGESIZE
    size = offset + length - first
    pages = (ctypes.c_ubyte * -(-size // mmap.PAGESIZE))()
    address = _mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, fd, first)
    if address == _MAP_FAILED:
        raise _last_error()
    try:
        if _mincore(address, size, pages) != 0:
            raise _last_error()
    finally:
        _munmap(address, size)
    return _runs_of_zeros(bytes(pages), first)


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
