"""Page-aligned memory, and reads and writes that end only when all is done."""

import errno
import mmap
import os
from collections.abc import Callable

# One allocation is reused for the life of a worker: a fresh MiB costs its page faults each time.
PAGE = mmap.PAGESIZE


def aligned_buffer(size: int) -> memoryview:
    """Return zeroed memory that begins on a page, as O_DIRECT wants it."""
    return memoryview(mmap.mmap(-1, max(1, -(-size // PAGE)) * PAGE))[:size]


def write_all(fd: int, data: memoryview, offset: int) -> None:
    """Write all of `data` at `offset`; a short write is continued, never skipped.

    Raises:
        OSError: If the device took less; what lies in the range then is not known.
    """
    written = os.pwrite(fd, data, offset)
    while written < len(data):
        if written == 0:
            raise OSError(errno.EIO, "the device took no bytes")
        data = data[written:]
        offset += written
        written = os.pwrite(fd, data, offset)


def read_all(fd: int, buffer: memoryview, offset: int, flags: int = 0) -> None:
    """Fill `buffer` from `offset`.

    Raises:
        OSError: If the device failed.
        EOFError: If it ends before.
    """
    count = os.preadv(fd, [buffer], offset, flags)
    while count < len(buffer):
        if count == 0:
            raise EOFError(f"nothing can be read at offset {offset}")
        buffer = buffer[count:]
        offset += count
        count = os.preadv(fd, [buffer], offset, flags)


def write_stream(fd: int, parts: list[memoryview], wait: Callable[[], None] | None = None) -> None:
    """Write all parts, one after the other, to a pipe or file.

    Args:
        fd: Where to.
        parts: What.
        wait: Called where a descriptor that does not block takes nothing now.

    Raises:
        OSError: EPIPE if nobody reads any more; whatever `wait` raises.
    """
    while parts:
        try:
            written = os.writev(fd, parts)
        except BlockingIOError:
            if wait is None:
                raise
            wait()
            continue
        if written == sum(map(len, parts)):
            return
        rest = []
        for part in parts:
            if written < len(part):
                rest.append(part[written:])
            written = max(0, written - len(part))
        parts = rest
