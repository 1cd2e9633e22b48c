"""A command as a way to another host: its standard input and output are the link."""

import contextlib
import os
import subprocess
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from blockstream.errors import NotFoundError
from blockstream.linux.streams import widen_pipe

# What a program says before it dies fits; what a hostile host could say without end does not.
_LAST_WORDS_BYTES = 8 << 10
_PIECE = 1024
# After its input has ended, a far program still flushes; after that, it hangs.
_PATIENCE_SECONDS = 5.0


class Running(Protocol):
    """A process that somebody started."""

    def wait(self, seconds: float) -> int | None:
        """Return its exit status, negative for a signal; None if it still runs after so long."""

    def terminate(self) -> None:
        """Ask it to end."""

    def kill(self) -> None:
        """End it."""


class PipedLink:
    """A process with three pipes to it. See `interfaces.Link` for what each method promises.

    Attributes:
        name: What people call the other end.
        to_peer: Descriptor of what the other end reads.
        from_peer: Descriptor of what the other end writes.
    """

    def __init__(self, process: Running, pipes: tuple[int, int, int], name: str) -> None:
        """Take over a process and our ends of its standard input, output and error."""
        self._process = process
        self.to_peer, self.from_peer, self._stderr = pipes
        self.name = name
        self._open = set(pipes)
        widen_pipe(self.to_peer)
        widen_pipe(self.from_peer)
        self._said: deque[bytes] = deque(maxlen=_LAST_WORDS_BYTES // _PIECE)
        self._listener = threading.Thread(target=self._listen, name="stderr", daemon=True)
        self._listener.start()

    def hang_up(self) -> None:
        """End our direction, so that the other end sees an end of input."""
        self._close(self.to_peer)

    def ended(self) -> tuple[int, str]:
        """Wait a moment for the end, then force it; return exit status and last words.

        Nothing can be read any more: what still writes to us must notice.
        """
        self.hang_up()
        self._close(self.from_peer)
        status = self._process.wait(_PATIENCE_SECONDS)
        if status is None:
            self._process.terminate()
            status = self._process.wait(_PATIENCE_SECONDS)
        while status is None:
            self._process.kill()
            status = self._process.wait(_PATIENCE_SECONDS)
        # A grandchild may hold the pipe open for ever.
        self._listener.join(1.0)
        lines = b"".join(self._said).decode(errors="replace").splitlines()
        return status, "\n".join(line for line in lines if line.strip())

    def close(self) -> None:
        """Give everything back."""
        self.ended()
        if not self._listener.is_alive():
            self._close(self._stderr)

    def _close(self, fd: int) -> None:
        if fd in self._open:
            self._open.remove(fd)
            os.close(fd)

    def _listen(self) -> None:
        with contextlib.suppress(OSError):
            while piece := os.read(self._stderr, _PIECE):
                self._said.append(piece)


class CommandLink(PipedLink):
    """A running command."""

    def __init__(self, command: Sequence[str], name: str) -> None:
        """Start it.

        Args:
            command: The program and its arguments; no shell.
            name: What people call the other end.

        Raises:
            NotFoundError: If there is no such program here.
        """
        ours, theirs = pipes_to_process()
        try:
            # In our own process group and session: it may have to ask for a passphrase.
            process = subprocess.Popen(  # noqa: S603  # what the user asked to run
                command, stdin=theirs[0], stdout=theirs[1], stderr=theirs[2]
            )
        except OSError as error:
            for fd in ours:
                os.close(fd)
            raise NotFoundError(
                f"{command[0]} cannot be started: {error.strerror}; nothing was sent"
            ) from error
        finally:
            for fd in theirs:
                os.close(fd)
        super().__init__(_Program(process), ours, name)


@dataclass(frozen=True, slots=True)
class _Program:
    """A program as `Running`."""

    process: subprocess.Popen[bytes]

    def wait(self, seconds: float) -> int | None:
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def terminate(self) -> None:
        self.process.terminate()

    def kill(self) -> None:
        self.process.kill()


def pipes_to_process() -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Make pipes for a process; return our ends and its ends: input, output, error."""
    (their_in, our_in), (our_out, their_out), (our_err, their_err) = (os.pipe() for _ in range(3))
    return (our_in, our_out, our_err), (their_in, their_out, their_err)
