"""Whatever kind a sparse VMDK is of, it is read as the model has it, or refused."""

import random
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blockstream.errors import VmdkError
from blockstream.formats.vmdk.chain import Chain, Link, Part
from blockstream.formats.vmdk.stream import GrainStream
from blockstream_protocol import Kind
from tests.vmdk_files import (
    SECTOR,
    Grains,
    Image,
    Zeros,
    cowd,
    described,
    difference,
    hosted,
    marker,
    overlaid,
    sesparse,
    some_grains,
    stream,
)
from tests.vmdk_memory import MemoryChain, map_of

MIB = 1 << 20
TEXT = described('RW 1 SPARSE "disk.vmdk"')


@dataclass(frozen=True)
class Sort:
    """A kind of file, with the ways in which it can be made.

    Attributes:
        make: Makes one of so many sectors.
        grain: Bytes of a grain.
        zeros: Whether it can say that a grain is zeros.
        sectors: Of a disk whose last table is not full.
    """

    make: Callable[[int, Grains], Image]
    grain: int
    zeros: bool
    sectors: int


SORTS = {
    "cowd": Sort(cowd, 512, False, 10 * 2048 + 3),
    "cowd grains of 8": Sort(lambda s, g: cowd(s, g, grain=8), 4096, False, 70_003),
    "cowd directory elsewhere": Sort(lambda s, g: cowd(s, g, directory=9), 512, False, 8195),
    "sesparse": Sort(sesparse, 4096, True, 17 * 2048 + 24),
    "hosted": Sort(hosted, 65_536, True, 33 * 2048 + 5),
    "hosted small": Sort(
        lambda s, g: hosted(s, g, grain=8, entries=64, text=TEXT), 4096, True, 9001
    ),
    "stream": Sort(lambda s, g: stream(s, g, text=TEXT), 65_536, False, 33 * 2048 + 5),
}


@pytest.fixture(params=SORTS)
def sort(request: pytest.FixtureRequest) -> Sort:
    return SORTS[request.param]


@pytest.mark.slow
def test_every_grain_is_where_the_model_has_it(sort: Sort) -> None:
    size = sort.sectors * SECTOR
    base = random.Random(1).randbytes(size)  # noqa: S311  # not secrets
    grains = some_grains(size, sort.grain, 2, zeros=sort.zeros)
    disk = MemoryChain([sort.make(sort.sectors, grains).data, base])
    model = overlaid(base, size, sort.grain, grains)
    assert not difference(disk.read((0, size)), model)
    seeded = random.Random(3)  # noqa: S311
    for _ in range(40):
        starts = sorted(seeded.sample(range(0, sort.sectors, 400), 3))
        lengths = [min(seeded.randrange(400), sort.sectors - start) for start in starts]
        ranges = [(a * SECTOR, b * SECTOR) for a, b in zip(starts, lengths, strict=True)]
        wanted = b"".join(model[start : start + length] for start, length in ranges)
        assert not difference(disk.read(*ranges), wanted)


@pytest.mark.slow
def test_what_nobody_has_is_zeros(sort: Sort) -> None:
    grains = some_grains(sort.sectors * SECTOR, sort.grain, 4, zeros=sort.zeros)
    disk = MemoryChain([sort.make(sort.sectors, grains).data])
    model = overlaid(b"", disk.chain.size, sort.grain, grains)
    assert not difference(disk.read((0, disk.chain.size)), model)


def test_extents_are_the_grains_that_are_there(sort: Sort) -> None:
    size = sort.sectors * SECTOR
    grains = some_grains(size, sort.grain, 5, zeros=sort.zeros)
    found = MemoryChain([sort.make(sort.sectors, grains).data]).extents()
    kinds = {
        number: kind
        for offset, length, kind in found
        for number in range(offset // sort.grain, -(-(offset + length) // sort.grain))
    }
    assert kinds == {
        number: Kind.ZERO if isinstance(data, Zeros) else Kind.DATA
        for number, data in grains.items()
    }
    assert found.total() == sum(min(sort.grain, size - n * sort.grain) for n in grains)


def test_a_file_without_grains_is_one_too(sort: Sort) -> None:
    disk = MemoryChain([sort.make(sort.sectors, {}).data])
    assert len(disk.extents()) == 0
    assert disk.read((0, 4096)) == bytes(4096)


@pytest.mark.slow
@settings(deadline=None)  # disks of megabytes
@given(data=st.data())
def test_chains_of_any_kind_read_as_the_model(data: st.DataObject) -> None:
    sectors = data.draw(st.integers(1, 5000), "sectors")
    model = random.Random(sectors).randbytes(sectors * SECTOR)  # noqa: S311
    files: list[bytes | bytearray] = [model]
    for _ in range(data.draw(st.integers(1, 3), "links")):
        sort = SORTS[data.draw(st.sampled_from(sorted(SORTS)), "kind")]
        count = -(-sectors * SECTOR // sort.grain)
        zeros = st.sampled_from(list(Zeros))
        content = st.integers(0, 255) | zeros if sort.zeros else st.integers(0, 255)
        drawn = data.draw(st.dictionaries(st.integers(0, count - 1), content, max_size=12))
        grains = {
            number: bytes([what]) * sort.grain if isinstance(what, int) else what
            for number, what in drawn.items()
        }
        files.insert(0, sort.make(sectors, grains).data)
        model = overlaid(model, sectors * SECTOR, sort.grain, grains)
    disk = MemoryChain(files)
    assert not difference(disk.read((0, sectors * SECTOR)), model)
    start = data.draw(st.integers(0, sectors - 1))
    length = data.draw(st.integers(0, sectors - start))
    wanted = model[start * SECTOR : (start + length) * SECTOR]
    assert not difference(disk.read((start * SECTOR, length * SECTOR)), wanted)


def test_parts_of_one_compressed_grain_are_read_apart() -> None:
    noise = random.Random(1).randbytes(65_536)  # noqa: S311
    disk = MemoryChain([stream(256, {1: noise}, text=TEXT).data])
    ranges = [(65_536, 512), (65_536 + 4096, 1024), (131_072 - 512, 512)]
    wanted = noise[:512] + noise[4096:5120] + noise[-512:]
    assert not difference(disk.read(*ranges), wanted)


def test_tables_of_two_links_do_not_take_each_others_place() -> None:
    tables = range(0, 1100, 97)
    links = [{table * 4096: bytes([link]) * SECTOR for table in tables} for link in (1, 2, 3)]
    links[1] |= {number + 1: bytes([4]) * SECTOR for number in links[1]}
    disk = MemoryChain([cowd(1100 * 4096, grains).data for grains in links])
    for _ in range(2):
        for number in links[0]:
            wanted = bytes([1]) * SECTOR + bytes([4]) * SECTOR
            assert disk.read((number * SECTOR, 2 * SECTOR)) == wanted


def test_past_the_end_of_a_smaller_parent_are_zeros() -> None:
    grandparent = bytes([7]) * (3 * MIB)
    parent = cowd(2048, {0: bytes([5]) * SECTOR}).data
    child = cowd(3 * 2048, {3 * 2048 - 1: bytes([3]) * SECTOR}).data
    disk = MemoryChain([child, parent, grandparent])
    wanted = bytes([5]) * SECTOR + bytes([7]) * (MIB - SECTOR) + bytes(2 * MIB - SECTOR)
    assert not difference(disk.read((0, 3 * MIB)), wanted + bytes([3]) * SECTOR)
    assert [(e.offset, e.length) for e in disk.extents()] == [(0, MIB), (3 * MIB - 512, 512)]


def test_a_delta_alone_does_not_make_up_what_its_parent_has() -> None:
    grains = map_of(cowd(100, {7: bytes(SECTOR)}).data)
    chain = Chain([Link((Part(0, 0, 0, grains.size, 0, grains),))], alone=True)
    asking = chain.places([0], [SECTOR])
    ask = next(asking)
    with pytest.raises(VmdkError, match="512 bytes at offset 0 are in its parent"):
        asking.send(bytes(ask.ranges[0][1]))


# What is damaged, or was made to deceive.


def test_the_last_grain_need_not_be_whole() -> None:
    image = hosted(130, {1: bytes([2]) * 65_536})
    end = image.places[1] + 2 * SECTOR
    assert end + 65_536 - 2 * SECTOR == len(image.data)
    assert read_all(image.data[:end])[-1024:] == bytes([2]) * 1024
    with pytest.raises(VmdkError, match="points past the file's end"):
        read_all(image.data[: end - 1])


def test_a_file_that_was_cut_is_refused_wherever_it_was(sort: Sort) -> None:
    sectors = 71 * 128  # whole grains: the rest of a cut one need not be there
    grains = some_grains(sectors * SECTOR, sort.grain, 6, zeros=sort.zeros)
    data = sort.make(sectors, grains).data
    cuts = {*range(0, len(data), -(-len(data) // 300)), *range(0, min(len(data), 9000), 512)}
    for cut in sorted(cuts):
        with pytest.raises(VmdkError):
            read_all(data[:cut] or b"COWD")


FIELDS = {
    "cowd": ("<4s7I", [1, 2, 3, 4, 5, 6, 7]),
    "sesparse": ("<64Q", range(64)),
    "hosted": ("<4sIIQQQQIQQQB4sH", range(1, 14)),
    "stream": ("<4sIIQQQQIQQQB4sH", range(1, 14)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FIELDS)
def test_any_header_is_read_right_or_refused_within_little_memory(name: str) -> None:
    sort, (form, numbers) = SORTS[name], FIELDS[name]
    sectors = 9001 if name != "sesparse" else 9000
    grains = some_grains(sectors * SECTOR, sort.grain, 7, zeros=sort.zeros)
    data = sort.make(sectors, grains).data
    layout, refused = struct.Struct(form), 0
    tracemalloc.start()
    try:
        for number in numbers:
            for value in (0, 1, 2, 0x7FFF, 1 << 31, 1 << 40, (1 << 63) - 1, (1 << 64) - 1):
                fields = list(layout.unpack_from(data))
                most = b"\xff" if isinstance(fields[number], bytes) else value
                altered = bytearray(data)
                fields[number] = most
                try:
                    layout.pack_into(altered, 0, *fields)
                except struct.error:
                    continue  # the field is smaller than that
                try:
                    read_all(altered, most=MIB)
                except VmdkError:
                    refused += 1
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert refused > len(numbers)
    assert peak < 64 * MIB


def read_all(data: bytes | bytearray, most: int = 1 << 40) -> bytes:
    """Read everything that a file says."""
    disk = MemoryChain([data])
    disk.extents()
    return disk.read((0, min(disk.chain.size, most)))


@pytest.mark.parametrize(
    ("make", "place", "form", "value", "words"),
    [
        (cowd, "table", "<I", 3, "points into its header"),
        (cowd, "table", "<I", 1, "points into its header"),
        (cowd, "table", "<I", 1 << 31, "points past the file's end"),
        (cowd, "directory", "<I", 1, "into the header"),
        (cowd, "directory", "<I", 3, "into the header"),
        (cowd, "directory", "<I", 1 << 31, "past the file's end"),
        (cowd, "shared", "<I", 0, "share a table"),
        (sesparse, "table", "<Q", 0x0000000000000001, "an entry that is none"),
        (sesparse, "table", "<Q", 0x4000000000000000, "an entry that is none"),
        (sesparse, "table", "<Q", 0xF000000000000000, "an entry that is none"),
        (sesparse, "table", "<Q", 0x3FFFFFFFFFFFFFFF, "points past the file's end"),
        (sesparse, "table", "<Q", 0x3000000000001000, "points past the file's end"),
        (sesparse, "directory", "<Q", 0x2000000000000000, "an entry that is none"),
        (sesparse, "directory", "<Q", 0x1000000100000000, "an entry that is none"),
        (sesparse, "directory", "<Q", 1, "an entry that is none"),
        (sesparse, "directory", "<Q", 0x10000000FFFFFFFF, "past the file's end"),
        (sesparse, "shared", "<Q", 0, "share a table"),
        (hosted, "table", "<I", 2, "points into its header"),
        (hosted, "table", "<I", 1 << 31, "points past the file's end"),
        (hosted, "directory", "<I", 1 << 31, "past the file's end"),
        (hosted, "shared", "<I", 0, "share a table"),
    ],
)
def test_an_entry_that_points_nowhere_is_refused(
    make: Callable[[int, Grains], Image], place: str, form: str, value: int, words: str
) -> None:
    grain = {cowd: 512, sesparse: 4096, hosted: 65_536}[make]
    last = 2 * 512 * 128 - 128
    image = make(last + 128, {0: bytes(grain), last * 512 // grain: bytes(grain)})
    width = struct.calcsize(form)
    where = image.directory if place != "table" else image.tables[0]
    if place == "shared":
        other = image.directory + max(image.tables) * width
        image.data[where : where + width] = image.data[other : other + width]
    else:
        struct.pack_into(form, image.data, where, value)
    with pytest.raises(VmdkError, match=words):
        read_all(image.data)


def header_of(image: Image, offset: int, form: str, value: object) -> bytes:
    struct.pack_into(form, image.data, offset, value)
    return bytes(image.data)


GRAIN = {0: bytes(65_536)}
SMALL = {0: bytes(4096)}


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (header_of(cowd(5000, {}), 4, "<I", 2), "version 2"),
        (header_of(cowd(5000, {}), 12, "<I", 0), "0 sectors, which is no disk"),
        (header_of(cowd(5000, {}), 16, "<I", 0), "grains have 0 sectors"),
        (header_of(cowd(5000, {}), 24, "<I", 1), "directory has 1 entries"),
        (header_of(cowd(5000, {}), 24, "<I", 1000), "directory has 1000 entries"),
        (header_of(cowd(5000, {}), 20, "<I", 3), "directory lies in the header"),
        (bytes(sesparse(5000, SMALL, replay=1).data), "journal was not replayed"),
        (header_of(sesparse(5000, {}), 8, "<Q", 1), "word 1 of its header"),
        (header_of(sesparse(5000, {}), 400, "<Q", 1), "word 50 of its header"),
        (header_of(sesparse(5000, {}), 512, "<Q", 1), "second header is none"),
        (header_of(sesparse(5000, {}), 192, "<Q", 0), "grains would lie at 0"),
        (header_of(hosted(5000, {}), 4, "<I", 4), "version 4"),
        (header_of(hosted(5000, {}), 12, "<Q", 0), "0 sectors, which is no disk"),
        (header_of(hosted(5000, {}), 12, "<Q", 1 << 50), "more than 4194304"),
        (header_of(hosted(5000, {}), 20, "<Q", 0), "grains have 0 sectors"),
        (header_of(hosted(5000, {}), 20, "<Q", 1 << 40), "sectors, not 1 to"),
        (header_of(hosted(5000, {}), 44, "<I", 0), "tables have 0 entries"),
        (header_of(hosted(5000, {}), 44, "<I", 513), "tables have 513 entries"),
        (header_of(hosted(5000, {}), 73, "<4s", b"\n\n\n\n"), "as if it were text"),
        (header_of(hosted(5000, {}), 64, "<Q", 1 << 40), "data would begin at"),
        (header_of(stream(5000, GRAIN, text=TEXT), 77, "<H", 2), "algorithm 2"),
        (header_of(stream(5000, GRAIN, text=TEXT), 36, "<Q", 1 << 20), "descriptor is longer"),
    ],
)
def test_a_header_that_contradicts_itself_is_refused(data: bytes, words: str) -> None:
    with pytest.raises(VmdkError, match=words):
        read_all(data)


def deflated(data: bytearray, place: int, content: bytes) -> None:
    """Put something else in the place of a grain."""
    packed = zlib.compress(content)
    struct.pack_into("<I", data, place + 8, len(packed))
    put(data, place + 12, packed)


def put(data: bytearray, place: int, content: bytes) -> None:
    data[place : place + len(content)] = content


# What is done to the file, where its first grain is, how large that is, and where the second is.
DAMAGE: dict[str, Callable[[bytearray, int, int, int], object]] = {
    "no footer": lambda data, *_: data.__delitem__(slice(-1536, None)),
    "other marker": lambda data, *_: put(data, len(data) - 1536, marker(1, 2)),
    "no end": lambda data, *_: put(data, len(data) - 512, marker(1, 3)),
    "too large": lambda data, first, *_: struct.pack_into("<I", data, first + 8, 1 << 31),
    "cut": lambda data, first, size, _: struct.pack_into("<I", data, first + 8, size - 5),
    "checksum": lambda data, first, size, _: put(data, first + 8 + size, b"none"),
    "expands": lambda data, first, *_: deflated(data, first, bytes(1 << 24)),
    "too short": lambda data, first, *_: deflated(data, first, bytes(100)),
    "outside": lambda data, first, *_: struct.pack_into("<Q", data, first, 1 << 60),
    "not aligned": lambda data, first, *_: struct.pack_into("<Q", data, first, 1),
    "backwards": lambda data, _, __, second: struct.pack_into("<Q", data, second, 0),
    "unknown marker": lambda data, first, *_: put(data, first, marker(1, 9)),
    "trailing": lambda data, *_: data.extend(b"x"),
}


def damaged_stream(what: str) -> bytearray:
    noise = random.Random(1).randbytes(65_536)  # noqa: S311
    image = stream(1000, {0: noise, 7: bytes(65_536)}, text=TEXT)
    (size,) = struct.unpack_from("<I", image.data, image.places[0] + 8)
    DAMAGE[what](image.data, image.places[0], size, image.places[7])
    return image.data


DAMAGES = {
    "no footer": ("no footer", "cut off"),
    "other marker": ("no footer", "without a footer"),
    "no end": ("not the end", "not the end"),
    "too large": ("is another, or none", "which no grain does"),
    "cut": ("cut", "cut"),
    "checksum": ("damaged", "damaged"),
    "expands": ("larger than a grain", "larger than a grain"),
    "too short": ("100 bytes", "100 bytes"),
    "outside": ("is another, or none", "where none can be"),
    "not aligned": ("is another, or none", "where none can be"),
    "backwards": ("is another, or none", "where none can be"),
    "unknown marker": ("is another, or none", "which is none"),
    "trailing": ("no footer", "follows the end"),
}


@pytest.mark.parametrize("what", DAMAGES)
def test_a_damaged_stream_is_refused(what: str) -> None:
    data, (by_directory, by_markers) = damaged_stream(what), DAMAGES[what]
    with pytest.raises(VmdkError, match=by_directory):
        read_all(data)
    with pytest.raises(VmdkError, match=by_markers):
        walked(bytes(data), 1000)


def walked(data: bytes, cut: int) -> dict[int, bytes]:
    """Read a stream as it comes, in pieces."""
    reader, found = GrainStream(), {}
    for start in range(0, len(data), cut):
        for grain in reader.feed(data[start : start + cut]):
            assert grain.offset not in found
            found[grain.offset] = grain.data
    reader.finish()
    return found


@pytest.mark.parametrize("cut", [1, 7, 512, 100_000, 1 << 30])
def test_a_stream_is_read_by_its_markers_however_it_arrives(cut: int) -> None:
    size = 3005 * SECTOR
    grains = some_grains(size, 65_536, 8) if cut > 7 else {0: bytes(65_536), 23: bytes(65_536)}
    found = walked(bytes(stream(3005, grains, text=TEXT).data), cut)
    packed = {number: data for number, data in grains.items() if isinstance(data, bytes)}
    assert sorted(found) == [number * 65_536 for number in sorted(packed)]
    for offset, data in found.items():
        assert not difference(data, packed[offset // 65_536][: size - offset])


def test_a_stream_that_stops_anywhere_is_not_whole() -> None:
    data = bytes(stream(1000, {0: bytes(65_536), 7: bytes(65_536)}, text=TEXT).data)
    for end in range(0, len(data), 509):
        reader = GrainStream()
        reader.feed(data[:end])
        with pytest.raises(VmdkError, match="cut off"):
            reader.finish()


@settings(deadline=None)
@given(st.binary(max_size=3000), st.sampled_from([b"COWD", b"KDMV", b"\xbe\xba\xfe\xca", b""]))
def test_any_bytes_are_read_or_refused(tail: bytes, magic: bytes) -> None:
    try:
        read_all(magic + tail, most=MIB)
    except VmdkError:
        return
