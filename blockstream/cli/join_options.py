"""Several connections of one session: they meet where the first one says."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import click

from blockstream.linux.stream_join import MOST_STREAMS, gathered, heard_token

F = TypeVar("F", bound=Callable[..., Any])

_STDIN = 0


def with_meeting(function: F) -> F:
    """Add --meeting."""
    return click.option(
        "--meeting",
        type=click.IntRange(0, MOST_STREAMS - 1),
        default=0,
        hidden=True,
        metavar="COUNT",
    )(function)


@contextlib.contextmanager
def meeting_of(count: int) -> Iterator[list[tuple[int, int]]]:
    """Wait for so many further connections of a session; give their input and output.

    Their secret comes first on standard input.

    Raises:
        ConnectionLostError: If they do not come in time.
    """
    if not count:
        yield []
        return
    with gathered(heard_token(_STDIN), count) as pairs:
        yield pairs
