"""A list is either exactly understood, or refused with a sentence; never guessed, never a crash."""

import json
import subprocess
import sys
from pathlib import Path
from typing import IO

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockstream.errors import ExitStatus, ExtentListError
from blockstream.extents import ExtentMap
from blockstream.formats.extent_lists import Meaning, parse_extent_list, written
from blockstream_protocol import DEVICE_BYTES, Kind

GOLDEN = Path(__file__).parent.parent / "data" / "extent_lists"
DATA, ZERO = Kind.DATA, Kind.ZERO
CHANGED, ALLOCATED = Meaning.CHANGED, Meaning.ALLOCATED
KIB, MIB = 1 << 10, 1 << 20
SIZE = 64 * KIB

Rows = list[tuple[int, int, int]]


def parsed(text: str, size: int = SIZE) -> Rows:
    return rows_of(parse_extent_list(text.encode(), size).extents)


def rows_of(extents: ExtentMap) -> Rows:
    return [(extent.offset, extent.length, extent.kind) for extent in extents]


def ours(entries: str = "", **changes: object) -> str:
    header = {"format": "blockstream-extents", "version": 1, "size": SIZE, "meaning": "changed"}
    fields = [f"{json.dumps(key)}:{json.dumps(value)}" for key, value in (header | changes).items()]
    return "{" + ",".join([*fields, f'"extents":[{entries}]']) + "}"


def entry(offset: object = 0, length: object = 512, kind: object = "data") -> str:
    return json.dumps({"offset": offset, "length": length, "kind": kind})


def rbd(*rows: tuple[object, object, object]) -> str:
    return json.dumps([dict(zip(("offset", "length", "exists"), row, strict=True)) for row in rows])


def nbd(*rows: tuple[object, object, object, object]) -> str:
    keys = ("offset", "length", "type", "description")
    return json.dumps([dict(zip(keys, row, strict=True)) for row in rows])


def qemu(*rows: tuple[object, object, object, object]) -> str:
    keys = ("start", "length", "zero", "data")
    return json.dumps([dict(zip(keys, row, strict=True)) for row in rows])


def thin(entries: str, chunk: object = 128) -> str:
    return (
        f'<superblock uuid="" data_block_size="{chunk}" nr_data_blocks="0">'
        f'<diff left="1" right="2">{entries}</diff></superblock>'
    )


# What the real tools wrote (tests/data/extent_lists/make): file, size, origin, meaning, own size.
GOLDEN_LISTS: list[tuple[str, int, str, Meaning, int | None, Rows]] = [
    (
        "qemu_map.json",
        16 * MIB,
        "qemu-img map",
        ALLOCATED,
        16 * MIB,
        [
            (0, 128 * KIB, DATA),
            (128 * KIB, 960 * KIB, ZERO),
            (1088 * KIB, 128 * KIB, DATA),
            (1216 * KIB, 6976 * KIB, ZERO),
            (8 * MIB, 4 * KIB, DATA),
            (8196 * KIB, 8188 * KIB, ZERO),
        ],
    ),
    (
        "nbdinfo_allocation.json",
        16 * MIB,
        "nbdinfo --map=base:allocation",
        ALLOCATED,
        16 * MIB,
        [
            (0, 128 * KIB, DATA),
            (128 * KIB, 960 * KIB, ZERO),
            (1088 * KIB, 128 * KIB, DATA),
            (1216 * KIB, 6976 * KIB, ZERO),
            (8 * MIB, 4 * KIB, DATA),
            (8196 * KIB, 8188 * KIB, ZERO),
        ],
    ),
    (
        "nbdinfo_bitmap.json",
        16 * MIB,
        "nbdinfo --map=qemu:dirty-bitmap",
        CHANGED,
        16 * MIB,
        [(64 * KIB, 64 * KIB, DATA), (MIB, 64 * KIB, DATA), (8 * MIB, 64 * KIB, DATA)],
    ),
    (
        "nbdinfo_states.json",
        MIB,
        "nbdinfo --map=base:allocation",
        ALLOCATED,
        MIB,
        [(0, 4096, DATA), (4096, MIB - 4096, ZERO)],
    ),
    (
        "nbdinfo_odd.json",
        10000,
        "nbdinfo --map=base:allocation",
        ALLOCATED,
        10000,
        [(0, 4096, DATA), (4096, 5904, ZERO)],
    ),
    (
        "qemu_map_odd.json",
        10000,
        "qemu-img map",
        ALLOCATED,
        10240,
        [(0, 4096, DATA), (4096, 5904, ZERO)],
    ),
    (
        "rbd_diff.json",
        16 * MIB,
        "rbd diff",
        CHANGED,
        None,
        [(0, 4 * MIB, DATA), (8 * MIB, 4 * MIB, ZERO), (12 * MIB, 64 * KIB, DATA)],
    ),
    (
        "thin_delta.xml",
        # The last chunk, 41, is cut after 512 bytes.
        41 * 64 * KIB + 512,
        "thin_delta",
        CHANGED,
        None,
        [
            # Two chunks of it were discarded: what they read as, nobody says.
            (5 * 64 * KIB, 5 * 64 * KIB, DATA),
            (16 * 64 * KIB, 4 * 64 * KIB, DATA),
            (30 * 64 * KIB, 64 * KIB, DATA),
            (40 * 64 * KIB, 64 * KIB + 512, DATA),
        ],
    ),
    ("thin_delta_same.xml", 16 * MIB, "thin_delta", CHANGED, None, []),
]


@pytest.mark.parametrize(
    ("name", "size", "origin", "meaning", "own", "rows"),
    GOLDEN_LISTS,
    ids=[row[0] for row in GOLDEN_LISTS],
)
def test_outputs_of_the_real_tools_are_understood(
    name: str, size: int, origin: str, meaning: Meaning, own: int | None, rows: Rows
) -> None:
    result = parse_extent_list((GOLDEN / name).read_bytes(), size)
    assert rows_of(result.extents) == rows
    assert (result.origin, result.meaning, result.size) == (origin, meaning, own)
    assert result.extents.size == size


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("nbdinfo_allocation.txt", "add --json"),
        ("nbdinfo_totals.json", "leave out --totals"),
        ("nbdinfo_depth.json", "use --map=base:allocation or --map=qemu:dirty-bitmap:NAME"),
        ("qemu_map.txt", "add --output=json"),
        ("qemu_map_part.json", "it is of a device of 131072 bytes, this one has 16777216"),
        ("thin_delta_verbose.xml", "run thin_delta without --verbose"),
        ("thin_dump.xml", "thin_dump is another list"),
    ],
)
def test_other_outputs_of_these_tools_are_refused_with_advice(name: str, advice: str) -> None:
    with pytest.raises(ExtentListError, match=advice):
        parse_extent_list((GOLDEN / name).read_bytes(), 16 * MIB)


@pytest.mark.parametrize("name", sorted(path.name for path in GOLDEN.glob("*.*")))
def test_no_prefix_of_a_list_is_taken_for_the_list(name: str) -> None:
    content = (GOLDEN / name).read_bytes().rstrip()
    for cut in range(len(content)):
        with pytest.raises(ExtentListError):
            parse_extent_list(content[:cut], 16 * MIB)


UNDERSTOOD: list[tuple[str, str, Rows]] = [
    ("ours, empty", ours(), []),
    ("ours", ours(entry(0, 512) + "," + entry(1024, 512, "zero")), [(0, 512, 1), (1024, 512, 2)]),
    ("ours, in any order", ours(entry(1024, 9) + "," + entry(0, 9)), [(0, 9, 1), (1024, 9, 1)]),
    ("ours, doubled", ours(entry() + "," + entry()), [(0, 512, 1)]),
    ("ours, overlapping", ours(entry(0, 100) + "," + entry(50, 100)), [(0, 150, 1)]),
    ("ours, touching", ours(entry(0, 100) + "," + entry(100, 100)), [(0, 200, 1)]),
    ("ours, an empty entry", ours(entry(0, 9) + "," + entry(5, 0, "zero")), [(0, 9, 1)]),
    ("ours, to the end", ours(entry(SIZE - 1, 1)), [(SIZE - 1, 1, 1)]),
    ("ours, with a note", ours(entry(), note={"by": ["me"]}), [(0, 512, 1)]),
    ("ours, indented", json.dumps(json.loads(ours(entry())), indent=1), [(0, 512, 1)]),
    ("ours, sorted", json.dumps(json.loads(ours(entry())), sort_keys=True), [(0, 512, 1)]),
    ("ours, many blanks", ours(entry()).replace(',"', "," + " \n" * 5000 + '"'), [(0, 512, 1)]),
    ("a byte order mark", "\ufeff" + ours(entry()), [(0, 512, 1)]),
    ("rbd, nothing changed", "[]", []),
    ("rbd, words", rbd((0, 9, "true"), (9, 9, "false")), [(0, 9, 1), (9, 9, 2)]),
    ("rbd, booleans", rbd((0, 9, True), (9, 9, False)), [(0, 9, 1), (9, 9, 2)]),
    ("nbd, out of order", nbd((9, SIZE - 9, 1, "dirty"), (0, 9, 0, "clean")), [(9, SIZE - 9, 1)]),
    ("nbd, overlapping", nbd((0, SIZE, 3, "hole,zero"), (9, 9, 3, "hole,zero")), [(0, SIZE, 2)]),
    ("qemu, unknown contents", qemu((0, SIZE, False, False)), [(0, SIZE, 1)]),
    ("thin, nothing", thin(""), []),
    ("thin, one", thin('<different begin="0" length="1" x="y"/>'), [(0, SIZE, 1)]),
    ("thin, a comment", "<!-- a -->" + thin('<left_only begin="0" length="1"/>'), [(0, SIZE, 1)]),
    ("thin, other codec", '<?xml version="1.0" encoding="cp37"?>' + thin(""), []),
]


@pytest.mark.parametrize(
    ("text", "rows"), [row[1:] for row in UNDERSTOOD], ids=[row[0] for row in UNDERSTOOD]
)
def test_list_is_understood(text: str, rows: Rows) -> None:
    assert parsed(text) == rows


def test_entries_may_stand_before_the_header() -> None:
    fields = json.loads(ours(entry()))
    assert parsed(json.dumps(dict(reversed(fields.items())))) == [(0, 512, DATA)]


def test_list_of_an_empty_device_is_understood() -> None:
    assert parsed(ours(size=0), 0) == []
    assert parsed(qemu((0, 0, False, False)), 0) == []


def test_last_byte_of_the_largest_device_is_reached() -> None:
    size = DEVICE_BYTES
    assert parsed(ours(entry(size - 1, 1), size=size), size) == [(size - 1, 1, DATA)]
    assert parsed(nbd((0, size, 1, "dirty")), size) == [(0, size, DATA)]
    last = size // (64 * KIB) - 1
    text = thin(f'<different begin="{last}" length="1"/>')
    assert parsed(text, size) == [(last * 64 * KIB, 64 * KIB, DATA)]


NAN = float("nan")
DEEP = "[" * 100_000
HUGE = "9" * 4000
BOMB = '<!DOCTYPE a [<!ENTITY a "aaaaaaaa"><!ENTITY b "&a;&a;&a;">]>'

# What it is, the text, and what the message must say.
REFUSED: list[tuple[str, str, str]] = [
    ("nothing", "", "empty"),
    ("blanks", " \n", "empty"),
    ("words", "hello", "begins with b'hello'.*known are"),
    ("a number", "5", "known are"),
    ("an array of numbers", "[1,2]", "known are"),
    ("an array of strange objects", '[{"a":1}]', "known are"),
    ("depth", DEEP, "known are"),
    # Ours.
    ("object", "{}", 'no "format"'),
    ("other object", '{"format":"else"}', 'no "format"'),
    ("depth in ours", '{"a":' + DEEP, "begins no whole value"),
    ("depth in an entry", ours('{"offset":' + DEEP), "entry 1.*begins no whole value"),
    ("wide value", ours(entry(), note="x" * 4095), "more than 4096"),
    ("cut off", ours(entry())[:-3], "entry 1.*cut off"),
    ("cut off after an entry", ours(entry()).partition("]")[0], "entry 2.*cut off"),
    ("trailing", ours() + "{}", "should begin the end"),
    ("NUL", ours() + "\0", "should begin the end"),
    ("lone comma", ours(entry() + ","), "entry 2"),
    ("no comma", ours(entry() + entry()), "should begin ','"),
    ("doubled name", ours('{"offset":0,"offset":1,"length":1,"kind":"data"}'), "a name twice"),
    ("doubled header", ours().replace("{", '{"version":1,', 1), "'version' occurs twice"),
    ("doubled extents", ours().replace("{", '{"extents":[],', 1), "'extents' occurs twice"),
    ("number as name", "{1:2}", "should begin a name"),
    ("version 2", ours(version=2), "version is 2.*newer"),
    ("version true", ours(version=True), "version is True"),
    ("version 1.0", ours(version=1.0), "version is 1.0"),
    ("no meaning", ours(meaning=None), "meaning is None"),
    ("other meaning", ours(meaning="Changed"), "neither changed nor allocated"),
    ("meaning as array", ours(meaning=["changed"]), "neither changed nor allocated"),
    (
        "no extents",
        '{"format":"blockstream-extents","version":1,"size":65536,"meaning":"changed"}',
        'no "extents"',
    ),
    ("extents as object", ours().replace("[]", "{}"), "should begin '\\['"),
    ("other size", ours(size=SIZE + 512), "device of 66048 bytes, this one has 65536"),
    ("size as text", ours(size="65536"), "device of '65536' bytes"),
    ("size float", ours(size=65536.0), "device of 65536.0 bytes"),
    ("no size", ours(size=None), "device of None bytes"),
    ("entry as number", ours("1"), "entry 1.*1 is not an extent"),
    ("entry as null", ours(entry() + ",null"), "entry 2.*None is not an extent"),
    ("no kind", ours(entry(kind=None)), "kind is None"),
    ("other kind", ours(entry(kind="hole")), "neither data nor zero"),
    ("kind as number", ours(entry(kind=1)), "kind is 1"),
    ("kind as array", ours(entry(kind=["data"])), "kind is \\['data'\\]"),
    ("no offset", ours('{"length":1,"kind":"data"}'), "offset is None"),
    ("negative offset", ours(entry(offset=-1)), "offset is -1"),
    ("negative length", ours(entry(length=-1)), "length is -1"),
    ("float", ours(entry(offset=512.0)), "offset is 512.0"),
    ("exponent", ours(entry()).replace("512", "1e400"), "length is inf"),
    ("NaN", ours(entry(length=NAN)), "length is nan"),
    ("true", ours(entry(length=True)), "length is True"),
    ("text", ours(entry(offset="0")), "offset is '0'"),
    ("hexadecimal", ours(entry()).replace("512", "0x10"), "begins no whole value"),
    ("8 EiB", ours(entry(offset=1 << 63)), "offset is 9223372036854775808"),
    ("huge", ours('{"offset":' + HUGE + ',"length":1,"kind":"data"}'), "offset is 9+\\.\\.\\.9+,"),
    (
        "past the end",
        ours(entry() + "," + entry(SIZE - 1, 2)),
        "entry 2.*2 bytes at 65535 pass.*65536",
    ),
    ("sum past int64", ours(entry(DEVICE_BYTES, DEVICE_BYTES)), "entry 1.*pass the device's end"),
    (
        "contradiction",
        ours(",".join([entry(0, 100), entry(10, 5), entry(60, 10, "zero")])),
        "entry 3.*contradicts entry 1 about the bytes at 60",
    ),
    ("contradiction at once", ours(entry() + "," + entry(kind="zero")), "entry 2.*entry 1"),
    # rbd.
    ("rbd, no exists", rbd((0, 9, "true"), (9, 9, None)), "rbd diff, entry 2.*exists"),
    ("rbd, exists 1", rbd((0, 9, 1)), "neither true nor false"),
    ("rbd, past the end", rbd((SIZE, 1, "true")), "rbd diff, entry 1.*pass the device's end"),
    ("rbd, contradiction", rbd((0, 9, True), (8, 9, False)), "entry 2.*contradicts entry 1"),
    ("rbd, half empty", "[ ] x", "should begin the end"),
    # nbdinfo.
    ("nbd, short", nbd((0, 512, 0, "data")), "device of 512 bytes, this one has 65536"),
    ("nbd, long", nbd((0, SIZE + 512, 0, "data")), "device of 66048 bytes"),
    ("nbd, gap", nbd((0, 9, 1, "dirty"), (10, SIZE - 10, 0, "clean")), "bytes from 9 to 10"),
    ("nbd, gap at the start", nbd((1, SIZE - 1, 1, "dirty")), "bytes from 0 to 1"),
    ("nbd, clean and dirty", nbd((0, SIZE, 0, "clean"), (0, 9, 1, "dirty")), "contradicts entry 1"),
    ("nbd, mixed", nbd((0, 9, 0, "data"), (9, SIZE - 9, 1, "dirty")), "entry 2.*'dirty'"),
    ("nbd, number and word differ", nbd((0, SIZE, 3, "data")), "'data' with type 3"),
    ("nbd, type true", nbd((0, SIZE, True, "dirty")), "no description or type"),
    ("nbd, only types", nbd((0, SIZE, 1, None)), "no description or type"),
    (
        "nbd, sum past int64 beside a good one",
        nbd((DEVICE_BYTES, DEVICE_BYTES, 0, "data"), (0, SIZE, 0, "data")),
        "device of 18446744",
    ),
    ("nbd, sum past int64", nbd((DEVICE_BYTES, DEVICE_BYTES, 0, "data")), "device of 18446744"),
    # qemu-img.
    ("qemu, zero as text", qemu((0, SIZE, "true", False)), "neither true nor false"),
    ("qemu, no data", qemu((0, SIZE, True, None)), "neither true nor false"),
    ("qemu, gap", qemu((0, 9, True, True), (99, SIZE - 99, True, True)), "bytes from 9 to 99"),
    # thin_delta.
    ("thin, bomb", BOMB + thin("&b;"), "DOCTYPE"),
    ("thin, external entity", '<!DOCTYPE a SYSTEM "file:///etc/passwd">' + thin(""), "DOCTYPE"),
    ("thin, undeclared entity", thin("&b;"), "not XML"),
    ("thin, cut off", thin("")[:-1], "cut off"),
    ("thin, trailing", thin("") + "x", "not XML"),
    ("thin, deep", "<superblock data_block_size='128'>" * 9, "<superblock> does not belong"),
    ("thin, html", "<html></html>", "<html> does not belong"),
    ("thin, no diff", '<superblock data_block_size="128"/>', "compares 0 pairs"),
    ("thin, two", thin('</diff><diff left="2" right="3">'), "compares 2 pairs"),
    ("thin, no chunk size", thin("", "x"), "data_block_size is 'x'"),
    ("thin, chunk of 0", thin("", 0), "no thin pool"),
    ("thin, odd chunk", thin("", 129), "no thin pool"),
    ("thin, huge chunk", thin("", HUGE), "data_block_size is '999"),
    ("thin, no begin", thin('<different length="1"/>'), "begin is None"),
    ("thin, negative", thin('<different begin="-1" length="1"/>'), "begin is '-1'"),
    ("thin, other digits", thin('<different begin="\u0661" length="1"/>'), "not a number"),
    ("thin, underscore", thin('<different begin="1_0" length="1"/>'), "not a number"),
    ("thin, nothing of it is there", thin('<same begin="1" length="1"/>'), "pass the device's end"),
    ("thin, two chunks past", thin('<different begin="0" length="2"/>'), "131072 bytes at 0 pass"),
    ("thin, far", thin(f'<different begin="{10**19 - 1}" length="1"/>'), "not a number of bytes"),
]


@pytest.mark.parametrize(
    ("text", "says"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED]
)
def test_list_is_refused_with_a_sentence(text: str, says: str) -> None:
    with pytest.raises(ExtentListError, match=says) as raised:
        parsed(text)
    assert raised.value.exit_status is ExitStatus.SOURCE
    assert "nothing was sent" in str(raised.value)
    assert len(str(raised.value)) < 500


def test_text_that_is_no_text_is_refused() -> None:
    for content in (b"\xff\xfe{\0", b"\x28\xb5\x2f\xfd", b"\0" * 5000, b"<\xff>", b"{\xff"):
        with pytest.raises(ExtentListError):
            parse_extent_list(content, SIZE)


@st.composite
def maps(draw: st.DrawFn) -> ExtentMap:
    """Return any map; touching extents of one kind are joined, as everywhere."""
    steps = st.tuples(st.integers(0, 1 << 40), st.integers(1, 1 << 40), st.sampled_from(Kind))
    rows, end = [], 0
    for gap, length, kind in draw(st.lists(steps, max_size=20)):
        rows.append((end + gap, length, kind))
        end += gap + length
    columns = np.array(rows, np.int64).reshape(-1, 3)
    size = end + draw(st.integers(0, 4096))
    kinds = columns[:, 2].astype(np.uint8)
    return ExtentMap.from_columns(columns[:, 0], columns[:, 1], kinds, size)


@given(maps(), st.sampled_from(Meaning))
def test_what_was_written_is_read_again(extents: ExtentMap, meaning: Meaning) -> None:
    text = "".join(written(extents, meaning))
    result = parse_extent_list(text.encode(), extents.size)
    assert (result.extents, result.meaning) == (extents, meaning)
    assert result.size == extents.size
    fields = json.loads(text)
    assert [row["offset"] for row in fields["extents"]] == extents.offsets.tolist()


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 12), st.booleans()), max_size=8))
def test_any_entries_mean_the_same_as_byte_by_byte(entries: list[tuple[int, int, bool]]) -> None:
    size = 48
    said: list[set[bool]] = [set() for _ in range(size + 12)]
    for offset, length, dirty in entries:
        for place in range(offset, offset + length):
            said[place].add(dirty)
    past = any(offset + length > size for offset, length, _ in entries)
    doubtful = past or any(len(each) > 1 for each in said)
    kinds = [Kind.DATA if each == {True} else Kind.ZERO for each in said]

    def check(text: str, *, refused: bool, zeros: bool) -> None:
        if refused:
            with pytest.raises(ExtentListError):
                parsed(text, size)
            return
        seen = {
            place: kind
            for start, length, kind in parsed(text, size)
            for place in range(start, start + length)
        }
        assert seen == {
            place: kinds[place]
            for place, each in enumerate(said)
            if each and (zeros or True in each)
        }

    check(rbd(*entries), refused=doubtful, zeros=True)
    states = {True: (1, "dirty"), False: (0, "clean")}
    bitmap = nbd(*[(offset, length, *states[dirty]) for offset, length, dirty in entries])
    gaps = not all(said[:size])
    if entries:
        check(bitmap, refused=doubtful or gaps, zeros=False)


def test_each_extent_has_its_own_line() -> None:
    extents = ExtentMap.from_columns(
        np.array([0, 8192]), np.array([512, 512]), np.array([DATA, ZERO], np.uint8), SIZE
    )
    assert "".join(written(extents, CHANGED)) == (
        '{"format":"blockstream-extents","version":1,"size":65536,"meaning":"changed","extents":[\n'
        '{"offset":0,"length":512,"kind":"data"},\n'
        '{"offset":8192,"length":512,"kind":"zero"}\n'
        "]}\n"
    )


MILLION = """
import re, sys
import numpy as np
from blockstream.extents import ExtentMap
from blockstream.formats.extent_lists import Meaning, parse_extent_list, written
from blockstream_protocol import Kind

COUNT, SIZE = 1_000_000, 1 << 41
if sys.argv[1] == "write":
    offsets = np.arange(COUNT, dtype=np.int64) * (1 << 20) + (1 << 39)
    extents = ExtentMap.from_columns(offsets, np.full(COUNT, 65536), Kind.DATA, SIZE)
    sys.stdout.writelines(written(extents, Meaning.CHANGED))
else:
    extents = parse_extent_list(sys.stdin.buffer.read(), SIZE).extents
# Not getrusage: its peak holds what the process had that forked us.
peak = int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) >> 10
assert len(extents) == COUNT and extents.total() == COUNT * 65536
print(peak, file=sys.stderr)
"""


def peak_mib(
    command: list[str], stdin: IO[bytes] | None = None, stdout: IO[bytes] | None = None
) -> int:
    done = subprocess.run(  # noqa: S603 - our own interpreter and text
        command, stdin=stdin, stdout=stdout, stderr=subprocess.PIPE, check=True
    )
    return int(done.stderr)


@pytest.mark.slow
def test_million_extents_are_written_and_read_within_memory(tmp_path: Path) -> None:
    path = tmp_path / "list"
    command = [sys.executable, "-c", MILLION]
    with path.open("wb") as sink:
        wrote = peak_mib([*command, "write"], stdout=sink)
    with path.open("rb") as origin:
        read = peak_mib([*command, "read"], stdin=origin)
    assert path.stat().st_size > 50 * MIB
    # The interpreter and numpy have 30 MiB, the text 51, the columns 17, the checks the rest.
    assert wrote < 100
    assert read < 150
