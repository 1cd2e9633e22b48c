"""Pipes: their size, their ends, and reads that can be woken."""

import contextlib
import errno
import fcntl
import os
import select
import stat
import threading

from blockstream.errors import InterruptedTransferError
from blockstream.linux.buffers import write_stream

# The most that an ordinary user may ask for; the default of 64 KiB costs a switch per 64 KiB.
PIPE_BYTES = 1 << 20


def widen_pipe(fd: int) -> None:
    """Give a pipe the largest buffer that anybody may ask for; other descriptors stay as is."""
    with contextlib.suppress(OSError):
        fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, PIPE_BYTES)


class _Bell:
    """Wakes whoever polls it; once it is closed, nobody, because its number may be another's."""

    def __init__(self) -> None:
        self._fd = os.eventfd(0, os.EFD_CLOEXEC)
        # A signal handler may find its own thread in here.
        self._lock = threading.RLock()

    def fileno(self) -> int:
        """Return what is polled."""
        return self._fd

    def ring(self) -> None:
        """Wake whoever polls."""
        with self._lock:
            if self._fd >= 0:
                os.eventfd_write(self._fd, 1)

    def close(self) -> None:
        """Give it back; more than once."""
        with self._lock:
            fd, self._fd = self._fd, -1
            if fd >= 0:
                os.close(fd)


class WakeableReader:
    """Reads a descriptor from threads, until it is told to stop.

    A thread that is blocked in read(2) cannot be woken; one that waits in poll(2) can.
    """

    def __init__(self, fd: int, ahead: bytes = b"") -> None:
        """Read from `fd`, which stays the caller's; `ahead` was read from it already."""
        self._fd = fd
        self._ahead = ahead
        self._wake = _Bell()
        self._poll = select.poll()
        self._poll.register(fd, select.POLLIN)
        self._poll.register(self._wake, select.POLLIN)
        self.stopped = False

    def read_into(self, buffer: memoryview) -> int:
        """Wait for bytes and read some; 0 at the end of input, or once stopped.

        Raises:
            InterruptedTransferError: If the descriptor cannot be read.
        """
        if self.stopped:
            return 0
        if self._ahead:
            count = min(len(self._ahead), len(buffer))
            buffer[:count], self._ahead = self._ahead[:count], self._ahead[count:]
            return count
        self._poll.poll()
        if self.stopped:
            return 0
        try:
            return os.readv(self._fd, [buffer])
        except OSError as error:
            raise InterruptedTransferError(
                f"the stream cannot be read any further: {error.strerror}"
            ) from error

    def stop(self) -> None:
        """Let every read, waiting or to come, return 0. Any thread, at any time."""
        self.stopped = True
        self._wake.ring()

    def close(self) -> None:
        """Give the wake-up descriptor back. Nobody may be reading."""
        self._wake.close()


class WakeableWriter:
    """Writes a pipe from threads, until it is told to stop; to a file, writes end by themselves.

    A thread that is blocked in write(2) on a full pipe cannot be woken. So the pipe is opened once
    more without blocking: the descriptor that others share stays as it is.
    """

    def __init__(self, fd: int) -> None:
        """Write to `fd`, which stays the caller's."""
        self._fd = fd
        self._twin = -1
        if stat.S_ISFIFO(os.fstat(fd).st_mode):
            with contextlib.suppress(OSError):  # somebody else's pipe, as behind sudo
                flags = os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC
                self._fd = self._twin = os.open(f"/proc/self/fd/{fd}", flags)
        self._wake = _Bell()
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLOUT)
        self._poll.register(self._wake, select.POLLIN)
        self._stopped = False

    def write(self, parts: list[memoryview]) -> None:
        """Write all parts.

        Raises:
            OSError: EPIPE if nobody reads any more, EINTR once stopped.
        """
        write_stream(self._fd, parts, self._wait)

    def _wait(self) -> None:
        self._poll.poll()
        if self._stopped:
            raise InterruptedError(errno.EINTR, "writing was stopped")

    def stop(self) -> None:
        """Let a write that waits fail; any thread, at any time."""
        self._stopped = True
        self._wake.ring()

    def close(self) -> None:
        """Give our own descriptors back. Nobody may be writing."""
        self._wake.close()
        twin, self._twin = self._twin, -1
        if twin >= 0:
            os.close(twin)
