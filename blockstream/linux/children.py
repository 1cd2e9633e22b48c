"""Programs that are ended with us, however we end."""

import contextlib
import os
import subprocess
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from tempfile import TemporaryFile
from typing import IO, Final

# A shell that becomes the program, and leaves one behind in its process group that ends the group
# unless it hears from us: our end of the pipe closes with us, after a SIGKILL as well.
_GUARDED: Final = (
    "exec 3<&0 </dev/null; "
    "( trap '' HUP INT TERM; "
    "read -r _ || { kill -TERM 0; sleep 2; kill -KILL 0; } ) <&3 3<&- >/dev/null 2>&1 & "
    'exec 3<&-; exec "$@"'
)
_LONGEST: Final = 16 << 20

Heeding = Callable[[Callable[[str], None]], AbstractContextManager[None]]


@dataclass(frozen=True, slots=True)
class Ended:
    """How a program ended.

    Attributes:
        status: Its exit status, negative for a signal.
        out: What it wrote to its standard output.
        err: What it wrote to its standard error.
    """

    status: int
    out: str
    err: str


def run_guarded(words: Sequence[str], seconds: float, heeding: Heeding | None = None) -> Ended:
    """Run a program of this host that must not go on without us, with all that it starts.

    What it leaves running when it has ended by itself is left alone. Nothing is given to it as
    standard input.

    Args:
        words: The program and its arguments; no shell.
        seconds: How long it may take.
        heeding: Is told how to end it early, while it runs; `Run.heeding` is one.

    Raises:
        TimeoutError: If it took longer; it is ended.
        OSError: If it cannot be started.
    """
    reading, writing = os.pipe()
    with os.fdopen(writing, "wb", 0) as alive, TemporaryFile() as out, TemporaryFile() as err:
        try:
            process = subprocess.Popen(  # noqa: S603  # what the user asked to run
                ["/bin/sh", "-c", _GUARDED, "sh", *words],
                stdin=reading,
                stdout=out,
                stderr=err,
                process_group=0,
            )
        finally:
            os.close(reading)
        heeded = heeding(lambda _reason: alive.close()) if heeding is not None else None
        try:
            with heeded or contextlib.nullcontext():
                status = process.wait(seconds)
            with contextlib.suppress(BrokenPipeError, ValueError):  # it was ended
                alive.write(b"\n")
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"{words[0]} did not end within {seconds:.0f} s") from None
        finally:
            alive.close()
            process.wait()
        return Ended(status, _said(out), _said(err))


def _said(file: IO[bytes]) -> str:
    # Not with the descriptor's own position: what still runs may write on.
    return os.pread(file.fileno(), _LONGEST, 0).decode(errors="replace")
