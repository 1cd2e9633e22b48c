"""Whatever a stream of another tool says, its ranges lie on the disk and in its file.

The first byte tells whether the size of the target is known, and whether the first record wins.
"""

import os

from tests.fuzz.engine import fuzz, instrumented

with instrumented("blockstream.formats.foreign", "blockstream.sources.foreign_stream"):
    from blockstream.errors import BlockstreamError
    from blockstream.formats.foreign.layers import ZEROS
    from tests.foreign_streams import intake, read

from blockstream.formats.foreign.table import HEAD_BYTES, recognised

_SIZE = 1 << 20


def check(data: bytes) -> None:
    """Take one input."""
    known, stream = data[:1] > b"\x3f", data[1:]
    size = _SIZE if known else None
    try:
        _check(stream, size, first_wins=data[:1] > b"\xbf")
    except BlockstreamError:
        return
    read(stream, size)  # what was taken once is taken always


def _check(stream: bytes, size: int | None, *, first_wins: bool) -> None:
    with intake(stream, pipe=False) as made:
        taken = made.run(recognised(made.head(HEAD_BYTES)), size)
        disk = next(each for each in (taken.size, size, taken.reach) if each is not None)
        placed = taken.layers.flattened(disk, first_wins=first_wins)
        end = 0
        for offset, length, place in zip(
            placed.offsets.tolist(), placed.lengths.tolist(), placed.places.tolist(), strict=True
        ):
            if not end <= offset < offset + length <= disk:
                raise AssertionError((offset, length, disk))
            if place != ZEROS and not 0 <= place <= place + length <= _held(made.fd):
                raise AssertionError((place, length))
            end = offset + length


def _held(fd: int) -> int:
    return os.fstat(fd).st_size


if __name__ == "__main__":
    fuzz(check)
