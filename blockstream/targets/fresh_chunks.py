"""Chunks that a thin pool gives out as they are, with what lay in them before.

A pool zeroes a chunk that is written in part, unless that was switched off (`lvcreate -Zn`). Then
the rest of it, which read as zeros before, shows old data of any volume: a target that was given
4 KiB of changes would differ in the other 60 (drivers/md/dm-thin.c, provision_block).
"""

import errno
import os
import threading

from blockstream.linux.buffers import aligned_buffer, write_all

_ZEROS = 1 << 20


class FreshChunks:
    """Writes zeros over each chunk that reads as zeros, before a part of it is written.

    Past the page cache and in one piece, so that the pool maps the chunk once all of it is written:
    after a power cut in between it still reads as zeros. Chunks of more than 1 MiB are written in
    several pieces, and have no such promise.

    Memory: a bit a chunk, and a buffer of a chunk, at most 1 MiB.
    """

    def __init__(self, fd: int, size: int, chunk: int) -> None:
        """Prepare; nothing is written.

        Args:
            fd: The volume; it stays the caller's.
            size: Its bytes.
            chunk: Bytes of a chunk.

        Raises:
            OSError: If it cannot be opened past the page cache.
        """
        self._fd = os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_CLOEXEC | os.O_DIRECT)
        self._size = size
        self._chunk = chunk
        self._lock = threading.Lock()
        self._buffer = aligned_buffer(min(chunk, _ZEROS))
        self._zeros = aligned_buffer(min(chunk, _ZEROS))
        self._zeros[:] = bytes(len(self._zeros))
        self.begin()

    def begin(self) -> None:
        """Know nothing of any chunk: some may have been unmapped."""
        self._mapped = bytearray(self._size // self._chunk // 8 + 1)

    def provide(self, offset: int, length: int) -> None:
        """Let a range be written without bringing up anything old; any thread.

        Raises:
            OSError: If a chunk cannot be read, or written.
        """
        end = offset + length
        for at in {offset, end}:  # those between are written whole
            number = at // self._chunk
            if at % self._chunk and at < self._size:
                self._provide(number)

    def _provide(self, number: int) -> None:
        byte, bit = divmod(number, 8)
        with self._lock:
            if self._mapped[byte] >> bit & 1:
                return
            first = number * self._chunk
            last = min(first + self._chunk, self._size)
            if self._reads_as_zeros(first, last):
                for start in range(first, last, len(self._zeros)):
                    write_all(self._fd, self._zeros[: min(len(self._zeros), last - start)], start)
            self._mapped[byte] |= 1 << bit

    def _reads_as_zeros(self, first: int, last: int) -> bool:
        for start in range(first, last, len(self._buffer)):
            view = self._buffer[: min(len(self._buffer), last - start)]
            if os.preadv(self._fd, [view], start) != len(view):
                raise OSError(errno.EIO, "it ends within a chunk")
            if view != self._zeros[: len(view)]:
                return False
        return True

    def close(self) -> None:
        """Close it."""
        os.close(self._fd)
