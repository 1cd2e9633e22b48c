"""A command as a way to another host: its standard input and output are the link."""

import contextlib
import os
import subprocess
import threading
from collections import deque
from collections.abc import Sequence
from typing import IO

from blockstream.errors import NotFoundError
from blockstream.linux.streams import widen_pipe

# What a program says before it dies fits; what a hostile host could say without end does not.
_LAST_WORDS_BYTES = 8 << 10
_PIECE = 1024
# After its input has ended, a far program still flushes; after that, it hangs.
_PATIENCE_SECONDS = 5.0


class CommandLink:
    """A running command. See `interfaces.Link` for what each method promises."""

    def __init__(self, command: Sequence[str], name: str) -> None:
        """Start it.

        Args:
            command: The program and its arguments; no shell.
            name: What people call the other end.

        Raises:
            NotFoundError: If there is no such program here.
        """
        self.name = name
        try:
            # In our own process group and session: it may have to ask for a passphrase.
            self._process = subprocess.Popen(  # noqa: S603  # what the user asked to run
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )
        except OSError as error:
            raise NotFoundError(
                f"{command[0]} cannot be started: {error.strerror}; nothing was sent"
            ) from error
        widen_pipe(self.to_peer)
        widen_pipe(self.from_peer)
        self._said: deque[bytes] = deque(maxlen=_LAST_WORDS_BYTES // _PIECE)
        self._listener = threading.Thread(target=self._listen, name="stderr", daemon=True)
        self._listener.start()

    @property
    def to_peer(self) -> int:
        """Descriptor of what the other end reads."""
        return _fd(self._process.stdin)

    @property
    def from_peer(self) -> int:
        """Descriptor of what the other end writes."""
        return _fd(self._process.stdout)

    def hang_up(self) -> None:
        """End our direction, so that the other end sees an end of input."""
        with contextlib.suppress(OSError):
            if self._process.stdin is not None:
                self._process.stdin.close()

    def ended(self) -> tuple[int, str]:
        """Wait a moment for the end, then force it; return exit status and last words.

        Nothing can be read any more: what still writes to us must notice.
        """
        self.hang_up()
        if self._process.stdout is not None:
            self._process.stdout.close()
        try:
            self._process.wait(_PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.terminate()
            try:
                self._process.wait(_PATIENCE_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        # A grandchild may hold the pipe open for ever.
        self._listener.join(1.0)
        words = b"".join(self._said).decode(errors="replace")
        return self._process.returncode, _plain(words)

    def close(self) -> None:
        """Give everything back."""
        self.ended()
        if self._process.stderr is not None and not self._listener.is_alive():
            self._process.stderr.close()

    def _listen(self) -> None:
        stderr = self._process.stderr
        if stderr is None:
            return
        with contextlib.suppress(OSError, ValueError):
            while piece := os.read(stderr.fileno(), _PIECE):
                self._said.append(piece)


def _fd(stream: IO[bytes] | None) -> int:
    return -1 if stream is None else stream.fileno()


def _plain(text: str) -> str:
    """Return another host's words without what could move a terminal's cursor."""
    lines = ("".join(c for c in line if c.isprintable()) for line in text.splitlines())
    return "\n".join(line for line in lines if line.strip())
