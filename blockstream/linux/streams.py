"""Pipes: their size, their ends, and reads that can be woken."""

import contextlib
import fcntl
import os
import select

from blockstream.errors import InterruptedTransferError

# The most that an ordinary user may ask for; the default of 64 KiB costs a switch per 64 KiB.
PIPE_BYTES = 1 << 20


def widen_pipe(fd: int) -> None:
    """Give a pipe the largest buffer that anybody may ask for; other descriptors stay as is."""
    with contextlib.suppress(OSError):
        fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, PIPE_BYTES)


class WakeableReader:
    """Reads a descriptor from threads, until it is told to stop.

    A thread that is blocked in read(2) cannot be woken; one that waits in poll(2) can.
    """

    def __init__(self, fd: int) -> None:
        """Read from `fd`, which stays the caller's."""
        self._fd = fd
        self._wake = os.eventfd(0, os.EFD_CLOEXEC)
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
        """Let every read, waiting or to come, return 0. Any thread, and signal handlers."""
        self.stopped = True
        os.eventfd_write(self._wake, 1)

    def close(self) -> None:
        """Give the wake-up descriptor back. Nobody may be reading."""
        os.close(self._wake)
