"""Several connections of one session: they meet where the first one says."""

import contextlib
import re
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import click

from blockstream.errors import UsageError
from blockstream.linux.meeting import MOST_STREAMS, gathered

F = TypeVar("F", bound=Callable[..., Any])

_MEETING = re.compile(r"([0-9a-f]{32}):(\d{1,2})")


def with_meeting(function: F) -> F:
    """Add --meeting."""
    return click.option("--meeting", default="", hidden=True, metavar="TOKEN:COUNT")(function)


@contextlib.contextmanager
def meeting_of(text: str) -> Iterator[list[tuple[int, int]]]:
    """Wait for the further connections of a session; give their input and output.

    Raises:
        UsageError: If it is no meeting.
        ConnectionLostError: If they do not come in time.
    """
    if not text:
        yield []
        return
    found = _MEETING.fullmatch(text)
    if found is None or int(found[2]) >= MOST_STREAMS:
        raise UsageError("--meeting is TOKEN:COUNT")
    with gathered(found[1], int(found[2])) as pairs:
        yield pairs
