"""Whatever the disk holds and however it is cut: the payload says exactly that."""

from collections.abc import Sequence

import blake3
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from blockstream.errors import SourceError
from blockstream.extents import ExtentMap
from blockstream.linux.identity import Identity, Node
from blockstream.pipeline.packer import SHORTEST_ZERO_RUN, ZERO_BLOCK, PackedFrame, Packer
from blockstream_protocol import DATA_BYTES, FRAME_EXTENTS, Extent, Kind, parse_table

SECTOR = 512


class Memory:
    """A source in memory."""

    name = "memory"
    alignment = SECTOR
    immutable = True
    is_still = True
    read_ahead = 0
    identity = Identity("memory", lasting=False)
    nodes: frozenset[Node] = frozenset()
    warnings: Sequence[str] = ()

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.size = len(content)
        self.bad = -1

    def extents(self) -> ExtentMap:
        return ExtentMap.whole(self.size)

    def read_into(self, offsets: Sequence[int], lengths: Sequence[int], buffer: memoryview) -> None:
        position = 0
        for offset, length in zip(offsets, lengths, strict=True):
            if offset <= self.bad < offset + length:
                raise SourceError(f"offset {offset} cannot be read")
            assert offset + length <= self.size
            buffer[position : position + length] = self.content[offset : offset + length]
            position += length
        assert position == len(buffer)

    def validate(self) -> None:
        return

    def close(self) -> None:
        return


def packed(content: bytes, extents: ExtentMap) -> list[PackedFrame]:
    """Pack a map and check every frame against the disk and the map."""
    packer, frames, end = Packer(Memory(content).read_into), [], 0
    for piece in extents.pieces():
        frame = packer.pack(piece)
        assert frame.digest == blake3.blake3(frame.raw).digest()
        table = parse_table(bytes(frame.raw))
        position, covered = 0, 0
        for offset, length, kind in table.extents:
            assert offset >= end, "rows must ascend"
            end = offset + length
            assert offset % SECTOR == 0
            assert end % SECTOR == 0 or end == len(content)
            covered += length
            if kind == Kind.DATA:
                assert table.data[position : position + length] == content[offset:end]
                position += length
        assert position == len(table.data) == len(frame.data)
        assert covered == frame.covered == piece.covered
        assert len(table.extents) <= FRAME_EXTENTS
        rows = zip(frame.offsets.tolist(), frame.lengths.tolist(), frame.kinds.tolist())  # noqa: B905
        assert [Extent(*row) for row in rows] == table.extents
        frames.append(frame)
    return frames


def zeros_of(frames: list[PackedFrame]) -> list[tuple[int, int]]:
    """Return the zero ranges as (offset, length), neighbours joined."""
    found: list[tuple[int, int]] = []
    for frame in frames:
        for offset, length, kind in zip(frame.offsets, frame.lengths, frame.kinds, strict=True):
            if kind != Kind.ZERO:
                continue
            if found and sum(found[-1]) == offset:
                found[-1] = (found[-1][0], found[-1][1] + int(length))
            else:
                found.append((int(offset), int(length)))
    return found


def disk_of(pattern: str, tail: int = 0) -> bytes:
    """Return a disk of one block a letter: Z zeros, D data, s zeros but for the last byte."""
    blocks = {"Z": bytes(4096), "D": b"d" * 4096, "s": bytes(4095) + b"s"}
    return b"".join(blocks[letter] for letter in pattern) + b"t" * tail


@st.composite
def disks_and_maps(draw: st.DrawFn) -> tuple[bytes, ExtentMap]:
    content = disk_of(draw(st.text("ZDs", min_size=1, max_size=40)), draw(st.integers(0, 5000)))
    size = len(content)
    edges = draw(st.lists(st.integers(0, size // SECTOR), unique=True, max_size=24))
    bounds = sorted({edge * SECTOR for edge in edges} | {size})
    kinds = draw(st.lists(st.sampled_from([0, 1, 2]), min_size=len(bounds), max_size=len(bounds)))
    rows, start = [], 0
    for end, kind in zip(bounds, kinds, strict=True):
        # Only what is zero may be called so.
        kind = Kind.DATA if kind == Kind.ZERO and content[start:end].strip(b"\0") else kind
        if kind and end > start:
            rows.append((start, end - start, int(kind)))
        start = end
    if not rows:
        rows = [(0, size, int(Kind.DATA))]
    columns = np.array(rows, np.int64)
    return content, ExtentMap.from_columns(
        columns[:, 0].copy(), columns[:, 1].copy(), columns[:, 2].astype(np.uint8), size
    )


@given(disks_and_maps())
@example((disk_of("Z", 1), ExtentMap.whole(4097)))
@example((disk_of("ZZZZZ", 4095), ExtentMap.whole(5 * 4096 + 4095)))
def test_unpacking_gives_the_same_bytes(disk: tuple[bytes, ExtentMap]) -> None:
    packed(*disk)


@pytest.mark.parametrize(
    ("pattern", "zeros"),
    [
        ("D", []),
        ("Z", [(0, 1)]),
        ("ZZZZZZ", [(0, 6)]),
        ("DZZZZD", [(1, 4)]),
        ("DZZZD", []),
        ("ZZZD", []),
        ("DZZZ", []),
        ("DZZZZ", [(1, 4)]),
        ("ZZZZDZZZDZZZZZ", [(0, 4), (9, 5)]),
        ("sZZZZs", [(1, 4)]),
        ("ssss", []),
    ],
)
def test_runs_of_zeros_are_found_if_they_are_worth_a_row(
    pattern: str, zeros: list[tuple[int, int]]
) -> None:
    assert SHORTEST_ZERO_RUN == 4 * ZERO_BLOCK == 16384
    content = disk_of(pattern)
    wanted = [(offset * 4096, length * 4096) for offset, length in zeros]
    assert zeros_of(packed(content, ExtentMap.whole(len(content)))) == wanted


@pytest.mark.parametrize("length", [512, 1024, 4096, 8192])
def test_an_extent_that_is_all_zeros_needs_no_bytes_however_short(length: int) -> None:
    extents = ExtentMap.from_columns(
        np.array([0, 16384]), np.array([512, length]), Kind.DATA, 1 << 20
    )
    frames = packed(b"x" * 512 + bytes((1 << 20) - 512), extents)
    assert zeros_of(frames) == [(16384, length)]


@pytest.mark.parametrize("tail", [1, 7, 8, 9, 511, 4095])
@pytest.mark.parametrize("last", [b"\0", b"\1"])
def test_the_odd_end_of_a_file_is_zero_only_if_every_byte_is(tail: int, last: bytes) -> None:
    content = b"d" * 4096 + bytes(5 * 4096 + tail - 1) + last
    frames = packed(content, ExtentMap.whole(len(content)))
    whole = 5 * 4096 + tail if last == b"\0" else 5 * 4096
    assert zeros_of(frames) == [(4096, whole)]


def test_a_buffer_used_again_holds_nothing_of_the_frame_before() -> None:
    """The first disk leaves bytes behind the odd end of the second."""
    source = Memory(b"\xff" * 8192)
    packer = Packer(source.read_into)
    for piece in ExtentMap.whole(8192).pieces():
        packer.pack(piece)
    source.content = bytes(5001)
    source.size = 5001
    for piece in ExtentMap.whole(5001).pieces():
        frame = packer.pack(piece)
        assert frame.kinds.tolist() == [Kind.ZERO]


def test_a_disk_of_many_frames_is_packed_frame_by_frame() -> None:
    content = (disk_of("D" * 100 + "Z" * 60) * 6)[: 3 * DATA_BYTES + 5]
    frames = packed(content, ExtentMap.whole(len(content)))
    assert len(frames) == 4
    assert sum(frame.covered for frame in frames) == len(content)


def test_a_frame_never_has_more_rows_than_it_may() -> None:
    """2048 extents of a sector, each its own row already, and zeros between."""
    offsets = np.arange(FRAME_EXTENTS) * 1024
    content = bytearray((FRAME_EXTENTS + 1) * 1024)
    content[::2048] = b"x" * len(content[::2048])
    lengths = np.full(FRAME_EXTENTS, SECTOR)
    extents = ExtentMap.from_columns(offsets, lengths, Kind.DATA, len(content))
    packed(bytes(content), extents)


def test_a_range_that_cannot_be_read_is_the_sources_error() -> None:
    source = Memory(bytes(8192))
    source.bad = 5000
    packer = Packer(source.read_into)
    with pytest.raises(SourceError):
        packer.pack(next(iter(ExtentMap.whole(8192).pieces())))
