"""A point's index and manifest come back as they were, or are refused; newer extents win."""

import random
from dataclasses import fields, replace
from itertools import pairwise

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from blockstream.errors import StoreDamagedError
from blockstream.formats.point import Kind as PointKind
from blockstream.formats.point import Pack, Parent, Point, rooted
from blockstream.formats.point_index import Frames, PointIndex, Rows, most_index_bytes, starts_of
from blockstream.formats.point_map import flattened, merged
from blockstream_protocol import Kind, table_bytes

SIZE = 64
BASE = Point(
    disk="vm",
    seq=2,
    kind=PointKind.INCREMENT,
    id="0123456789ab-0123456789abcdef",
    created="2026-11-20T03:15:00Z",
    state="b",
    base="a",
    parent=Parent(1, "00" * 32),
    size=SIZE,
    source={"name": "/dev/vg/vm", "identity": "x"},
    transfer="11" * 32,
    frames=1,
    chain="22" * 32,
    total=64,
    data=64,
    index="index/0123456789ab-0123456789abcdef.index",
    index_digest="33" * 32,
    packs=(Pack("0123456789ab-0123456789abcdef/0000.pack", 123),),
    root="44" * 32,
    milliseconds=12,
    software="blockstream",
)


def index_of(*frames: list[tuple[int, int, Kind]], size: int = SIZE) -> PointIndex:
    """Return an index of frames with these extents."""
    rows = [(*row, number) for number, frame in enumerate(frames) for row in frame]
    raw = [
        4 + 20 * len(frame) + sum(length for _, length, kind in frame if kind is Kind.DATA)
        for frame in frames
    ]
    count = len(frames)
    offset, length, kind, number = np.array(rows, np.int64).reshape(-1, 4).T
    return PointIndex(
        size,
        Frames(
            np.zeros(count, np.int64),
            np.arange(count) * 1000,
            np.array(raw, np.int64),
            np.array(raw, np.int64),
            np.zeros(count, np.uint8),
            np.arange(count * 32, dtype=np.int64).astype(np.uint8).reshape(count, 32),
        ),
        Rows(
            offset, length, number, starts_of(offset, length, number, kind), kind.astype(np.uint8)
        ),
    )


WHOLE = index_of([(0, 32, Kind.DATA), (32, 16, Kind.ZERO)], [(48, 16, Kind.DATA)])


def same(one: PointIndex, other: PointIndex) -> bool:
    pairs: list[tuple[Frames | Rows, Frames | Rows]]
    pairs = [(one.frames, other.frames), (one.rows, other.rows)]
    return one.size == other.size and all(
        np.array_equal(getattr(mine, each.name), getattr(theirs, each.name))
        for mine, theirs in pairs
        for each in fields(mine)
    )


@pytest.mark.parametrize("index", [WHOLE, index_of(), PointIndex.empty(7)])
def test_an_index_comes_back(index: PointIndex) -> None:
    assert same(PointIndex.decode(index.encode()), index)


BAD = {
    "overlapping": index_of([(0, 32, Kind.DATA), (16, 16, Kind.DATA)]),
    "backwards": index_of([(32, 16, Kind.DATA)], [(0, 16, Kind.DATA)]),
    "beyond the end": index_of([(48, 17, Kind.DATA)]),
    "empty extent": index_of([(0, 0, Kind.ZERO)]),
    "unknown kind": index_of([(0, 16, 3)]),  # type: ignore[list-item]
    "negative": index_of([(-16, 16, Kind.DATA)]),
    "too large for a frame": index_of([(0, 2 << 20, Kind.DATA)], size=4 << 20),
    "frame too small": replace(WHOLE, frames=replace(WHOLE.frames, raw=WHOLE.frames.raw - 1)),
    "in a table": replace(WHOLE, rows=replace(WHOLE.rows, start=WHOLE.rows.start - 25)),
    "unknown codec": replace(WHOLE, frames=replace(WHOLE.frames, codec=np.array([7, 0], np.uint8))),
    "frame that is not listed": replace(
        WHOLE, rows=replace(WHOLE.rows, frame=np.array([0, 0, 2], np.int64))
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_an_index_that_contradicts_itself_is_refused(name: str) -> None:
    with pytest.raises(StoreDamagedError):
        PointIndex.decode(BAD[name].encode())


def test_every_cut_and_every_flip_of_an_index_is_refused_or_harmless() -> None:
    data = WHOLE.encode()
    for end in range(len(data)):
        with pytest.raises(StoreDamagedError):
            PointIndex.decode(data[:end])
    raw = zstandard.ZstdDecompressor().decompress(data)
    for at in range(len(raw)):
        bad = bytearray(raw)
        bad[at] ^= 0xFF
        packed = zstandard.ZstdCompressor().compress(bytes(bad))
        try:
            PointIndex.decode(packed).check()
        except StoreDamagedError:
            continue


def test_an_index_that_would_take_all_memory_is_refused() -> None:
    head = b"BSINDEX1" + (SIZE).to_bytes(8, "little") + (1 << 40).to_bytes(8, "little") * 2
    with pytest.raises(StoreDamagedError):
        PointIndex.decode(zstandard.ZstdCompressor().compress(head))


def test_what_unpacks_to_far_more_than_an_index_can_is_refused() -> None:
    """131 KB took 10.9 GiB."""
    rows = 1 << 22
    empty = np.zeros(rows, np.int64)
    bomb = replace(
        WHOLE, size=rows * 512, rows=Rows(empty, empty, empty, empty, empty.astype(np.uint8))
    ).encode()
    assert len(bomb) < 100_000
    with pytest.raises(StoreDamagedError, match="more than an index can"):
        PointIndex.decode(bomb)


def test_an_index_has_no_more_than_its_disk_and_its_manifest_allow() -> None:
    data = WHOLE.encode()
    assert same(PointIndex.decode(data, size=SIZE, frames=2), WHOLE)
    for size, frames in ((SIZE - 1, 2), (SIZE, 1)):
        with pytest.raises(StoreDamagedError, match="larger"):
            PointIndex.decode(data, size=size, frames=frames)
    rows = index_of([(16 * n, 16, Kind.DATA) for n in range(5000)], size=80_000)
    with pytest.raises(StoreDamagedError, match="larger"):
        PointIndex.decode(replace(rows, size=64).encode())


def test_the_finest_index_of_a_disk_is_read() -> None:
    """Each second sector, in frames that are full: nothing that can be saved is refused."""
    count = 200_000
    rows = np.arange(count)
    frame = rows // 2048
    kind = np.full(count, Kind.DATA, np.uint8)
    offset, length = rows * 1024, np.full(count, 512)
    start, frames = starts_of(offset, length, frame, kind), int(frame[-1]) + 1
    index = PointIndex(
        count * 1024,
        Frames(
            np.zeros(frames, np.int64),
            np.arange(frames) * 2000,
            np.full(frames, 1000),
            np.full(frames, table_bytes(2048) + (1 << 20)),
            np.zeros(frames, np.uint8),
            np.frombuffer(random.Random(1).randbytes(frames * 32), np.uint8).reshape(-1, 32),  # noqa: S311
        ),
        Rows(offset, length, frame, start, kind),
    )
    data = index.encode()
    assert len(data) <= most_index_bytes(index.size, frames)
    assert same(PointIndex.decode(data, size=index.size, frames=frames), index)


def test_a_manifest_comes_back() -> None:
    for point in (BASE, replace(BASE, parent=None, base="", packs=(), index="", frames=0)):
        assert Point.decode(point.encode()) == point


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"format":1', b'"format":2'),
        (b'"index":"index/', b'"index":"../index/'),
        (b'"index":"index/0123456789ab', b'"index":"index/1123456789ab'),
        (b'"index":"index/0123456789ab-0123456789abcdef.index"', b'"index":""'),
        (b'"key":"', b'"key":"../'),
        (b"/0000.pack", b"/../0000.pack"),
        (b"/0000.pack", b"/0000.pack\\u0000"),
        (b'"packs":[{', b'"packs":[{"key":"0123456789ab-0123456789abcdef/0000.pack","size":1},{'),
        (b'"size":123', b'"size":-1'),
        (b'"size":123', b'"size":"123"'),
        (b'"size":123', b'"size":1e3'),
        (b'"id":"0', b'"id":"/'),
        (b'"disk":"vm"', b'"disk":"../vm"'),
        (b'"state":"b"', b'"state":"b\\n"'),
        (b'"state":"b"', b'"state":"\\ud800"'),
        (b'"state":"b"', b'"state":""'),
        (b'"state":"b"', b'"state":"' + b"x" * 257 + b'"'),
        (b'"base":"a"', b'"base":" a"'),
        (b'"total":64', b'"total":65'),
        (b'"frames":1', b'"frames":2'),
        (b'"chain":"22', b'"chain":"xx'),
        (b'"transfer":"11', b'"transfer":"1'),
        (b'"digest":"00', b'"digest":"00xx'),
        (b'"seq":2', b'"seq":"2"'),
        (b'"seq":2', b'"seq":-2'),
        (b'"seq":2', b'"seq":true'),
        (b'"kind":"increment"', b'"kind":"other"'),
        (b'"disk":"vm"', b'"disk":null'),
        (b'"disk":"vm",', b""),
        (b'"disk":"vm"', b'"disk":"vm","more":1'),
        (b'"packs":[{', b'"packs":[{"more":1,'),
        (b'"packs":[{', b'"packs":[7,{'),
        (b'"parent":{', b'"parent":{"more":1,'),
        (b'"parent":{', b'"parent":{"seq":0,'),
        (b'"seq":1}', b'"seq":0}'),
        (b'"seq":1}', b'"seq":2}'),
        (b'"seq":1}', b'"seq":Infinity}'),
        (b'"size"', b'"missed":0,"size"'),
        (b'"size"', b'"audits":-1,"size"'),
        (b'{"base"', b'{ "base"'),
        (b"2026-11-20T", b"2026-99-20T"),
        (b"{", b"["),
    ],
)
def test_what_is_no_manifest_is_refused(old: bytes, new: bytes) -> None:
    data = BASE.encode().replace(old, new, 1)
    assert data != BASE.encode()
    with pytest.raises(StoreDamagedError):
        Point.decode(data)


def test_every_cut_and_every_flip_of_a_manifest_is_noticed() -> None:
    whole = BASE.checked().encode()
    assert Point.decode(whole) == BASE.checked()
    flips = (
        whole[:place] + bytes([whole[place] ^ flip]) + whole[place + 1 :]
        for place in range(len(whole))
        for flip in (1, 2, 32)
    )
    for bad in (*flips, *(whole[:end] for end in range(len(whole)))):
        with pytest.raises(StoreDamagedError):
            Point.decode(bad)


def test_the_root_is_of_the_whole_history() -> None:
    first = rooted(None, "aa")
    assert rooted(replace(BASE, root=first), "bb") != rooted(None, "bb")


Row = tuple[int, int, Kind]
Place = tuple[int, int, int]


def layer_of(rng: random.Random, *, whole: bool) -> list[list[Row]]:
    """Return the frames of a layer, with random extents."""
    marks = sorted(rng.sample(range(SIZE + 1), rng.randrange(0, 8) * 2))
    if whole:
        marks = sorted({0, SIZE, *marks})
    rows = [
        (low, high - low, rng.choice([Kind.DATA, Kind.ZERO]))
        for number, (low, high) in enumerate(pairwise(marks))
        if whole or number % 2 == 0
    ]
    frames: list[list[Row]] = []
    for row in rows:
        if frames and rng.random() < 0.5:
            frames[-1].append(row)
        else:
            frames.append([row])
    return frames


def laid(model: list[Place], layer: int, frames: list[list[Row]]) -> None:
    """Note for each byte which layer and frame say what it is, and where it lies there."""
    for number, frame in enumerate(frames):
        at = 4 + 20 * len(frame)
        for offset, length, kind in frame:
            data = kind is Kind.DATA
            for byte in range(length):
                model[offset + byte] = (layer, number, at + byte if data else -1)
            at += length if data else 0


@given(st.integers(0, 2**32), st.integers(1, 8))
def test_the_newest_layer_says_what_a_byte_is(seed: int, count: int) -> None:
    rng = random.Random(seed)  # noqa: S311  # the same each time
    model = [(-1, 0, 0)] * SIZE
    layers = []
    for number in range(count):
        frames = layer_of(rng, whole=not number)
        laid(model, number, frames)
        layers.append(index_of(*frames))
    found = merged(layers)
    assert int(found.length.sum()) == SIZE
    for at in range(len(found)):
        for byte in range(int(found.length[at])):
            holds = int(found.kind[at]) == Kind.DATA
            start = int(found.start[at]) + byte if holds else -1
            place = (int(found.layer[at]), int(found.frame[at]), start)
            assert place == model[int(found.offset[at]) + byte]


@given(st.integers(0, 2**32), st.integers(1, 8))
def test_one_index_says_what_several_say(seed: int, count: int) -> None:
    rng = random.Random(seed)  # noqa: S311  # the same each time
    layers = [index_of(*layer_of(rng, whole=not number)) for number in range(count)]
    found = merged(layers)
    flat = flattened(layers, [10 * number for number in range(count)])
    flat.check()
    again = merged([flat])
    for name in ("offset", "length", "kind", "start"):
        assert np.array_equal(getattr(again, name), getattr(found, name))
    assert np.array_equal(flat.frames.pack[again.frame], 10 * found.layer)
    assert np.array_equal(flat.frames.offset[again.frame], 1000 * found.frame)


def test_a_byte_that_nobody_tells_of_is_damage() -> None:
    with pytest.raises(StoreDamagedError, match="at offset 16"):
        merged([index_of([(0, 16, Kind.DATA), (32, 32, Kind.DATA)])])
