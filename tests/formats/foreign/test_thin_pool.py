"""What a thin pool makes of our streams: it keeps the part of a discard that fills no chunk."""

import random
import struct

from hypothesis import example, given
from hypothesis import strategies as st

from blockstream.formats.foreign.events import Head
from blockstream.formats.foreign.thin_send import ThinSendWriter
from tests.foreign_streams import Change, applied

CHUNK = 65_536
UNIT = 4096
SIZE = 8 * CHUNK
OLD = random.Random(0).randbytes(SIZE)  # noqa: S311  # the same in each run
UNMAP = 1

# Lengths of what lies there in turn: bytes kept, bytes written, bytes kept, zeros.
runs = st.lists(st.tuples(*[st.integers(0, 40)] * 4), min_size=1, max_size=4)


def changes_of(lengths: list[tuple[int, ...]]) -> list[Change]:
    """Return ascending changes of a disk of SIZE bytes."""
    found: list[Change] = []
    at = 0
    for kept, written, between, zeros in lengths:
        at += kept * UNIT
        end = min(at + written * UNIT, SIZE)
        if at < end:
            found.append((at, OLD[:UNIT] * ((end - at) // UNIT)))
        at = end + between * UNIT
        end = min(at + zeros * UNIT, SIZE)
        if at < end:
            found.append((at, end - at))
        at = end
    return found


def written(changes: list[Change], pool_chunk: int) -> bytes:
    """Return our stream of changes."""
    writer = ThinSendWriter()
    parts = [writer.begin(Head(SIZE, "a", "b", pool_chunk))]
    for offset, what in changes:
        if isinstance(what, int):
            parts += [header + bytes(follow) for header, follow in writer.zero(offset, what)]
        else:
            parts += [header + what for header, _ in writer.data(offset, len(what))]
    return b"".join([*parts, writer.end()])


def in_a_pool(disk: bytes, stream: bytes) -> tuple[bytes, int]:
    """Return a thin volume after `thin_recv`, and how many bytes were unmapped.

    As seen of thin_recv 1.1 on Linux 6.1 with a pool of 64 KiB chunks.
    """
    found, at, unmapped = bytearray(disk), 28, 0
    while True:
        offset, length, command = struct.unpack_from(">8xQQI", stream, at)
        at += 28
        if command == 0:
            found[offset : offset + length] = stream[at : at + length]
            at += length
        elif command == UNMAP:
            first, last = -(-offset // CHUNK) * CHUNK, (offset + length) // CHUNK * CHUNK
            found[first:last] = bytes(max(0, last - first))
            unmapped += length
        else:
            assert at + length == len(stream)
            return bytes(found), unmapped


@given(runs, st.sampled_from([0, CHUNK, 2 * CHUNK]))
@example([(3, 0, 0, 1)], CHUNK)
def test_all_zeros_arrive_in_a_thin_pool(lengths: list[tuple[int, ...]], chunk: int) -> None:
    changes = changes_of(lengths)
    found, unmapped = in_a_pool(OLD, written(changes, chunk))
    assert found == applied(OLD, changes)
    if not chunk:
        assert unmapped == 0


def test_whole_chunks_are_unmapped_and_travel_as_headers() -> None:
    changes: list[Change] = [(UNIT, 3 * CHUNK)]
    stream = written(changes, CHUNK)
    assert in_a_pool(OLD, stream) == (applied(OLD, changes), 2 * CHUNK)
    assert len(stream) < CHUNK + 6 * 28
