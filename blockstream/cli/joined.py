"""Several connections of one session: they meet where the first one says."""

import contextlib
from collections.abc import Iterator

from blockstream.linux.stream_join import gathered, heard_token

_STDIN = 0


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
