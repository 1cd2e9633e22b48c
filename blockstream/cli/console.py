"""How commands speak: sizes, the closing line, progress, JSON events. All of it on stderr."""

import contextlib
import json
import os
import sys
from typing import TYPE_CHECKING

from blockstream.cli.closing import CLOSING
from blockstream.errors import InterruptedTransferError
from blockstream.pipeline.progress import Snapshot
from blockstream.words import printable, size_text

if TYPE_CHECKING:
    from blockstream.events import Event  # 35 dataclasses: 12 ms that only --json needs


def saving_text(counts: Snapshot, *, full: bool) -> str:
    """Return the closing line's heart: what was sent, what travelled, what that saved."""
    if full:
        text = f"{size_text(counts.data)} of data and {size_text(counts.zeros)} of zeros"
    else:
        text = f"{size_text(counts.covered)} changed of {size_text(counts.size)}"
    if counts.skipped:
        text += f", {size_text(counts.skipped)} of it brought by an earlier run"
    if not counts.wire:
        return text
    text += f", {size_text(counts.wire)} on the wire"
    factor = counts.size / counts.wire
    if full or factor < 1.05:
        return text
    return f"{text}, {factor:.{0 if factor >= 10 else 1}f}x less than a full copy"


def say(text: str) -> None:
    """Write to people, or where a program hears us to that, as an event."""
    if CLOSING.is_asked:
        from blockstream.events import Said

        emit(Said(text))
    else:
        _write(text)


def _write(text: str) -> None:
    """Write a line. If nobody can hear it, the transfer goes on."""
    with contextlib.suppress(OSError):
        sys.stderr.write(printable(text) + "\n")
        sys.stderr.flush()


def show(text: str) -> None:
    """Write the result to standard output.

    Raises:
        InterruptedTransferError: If it cannot be written.
    """
    try:
        sys.stdout.write(printable(text))
        sys.stdout.flush()
    except OSError as error:
        # Python would try again at exit, and complain in its own words.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        raise InterruptedTransferError(
            f"standard output cannot be written: {error.strerror}; what was shown is not whole"
        ) from error


def emit(event: "Event") -> None:
    """Say a line of JSON on what happens, beside the data."""
    _write(json.dumps(event.values(), sort_keys=True))


def emit_result(event: "Event") -> None:
    """Write a line of JSON that is itself what was asked for."""
    show(json.dumps(event.values(), sort_keys=True) + "\n")
