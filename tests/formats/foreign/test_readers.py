"""Each reader takes what its tool writes, whole and in any pieces, and nothing else."""

import gzip
import hashlib
import os
import random
import struct
from collections.abc import Callable

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from blockstream.errors import BlockstreamError, ExitStatus, IntegrityError, SourceError
from blockstream.formats.foreign import raw
from blockstream.formats.foreign.names import READ, WRITTEN
from blockstream.formats.foreign.table import FORMATS, HEAD_BYTES, chosen, recognised
from tests.foreign_streams import (
    MAGIC_1_0,
    Change,
    applied,
    bdsync,
    blocksync_fast,
    brought_onto,
    intake,
    lvmsync,
    packed_sparsestream,
    rbd_diff,
    rbd_image,
    read,
    sparsestream,
    thin_chunk,
    thin_end,
    thin_ranges,
    thin_send,
)

SIZE = 40_960
NOISE = random.Random(1).randbytes(SIZE)  # noqa: S311  # the same each time
DISK = random.Random(2).randbytes(SIZE)  # noqa: S311
CHANGES: list[Change] = [
    (0, NOISE[:4096]),
    (8192, 4096),
    (12_288, NOISE[12_288:20_480]),
    (36_864, NOISE[36_864:]),
]
BLOCKS: list[tuple[int, bytes]] = [(0, NOISE[:4096]), (36_864, NOISE[36_864:])]
SPARSE: list[Change] = [(0, NOISE[:8192]), (8192, 8192), (16_384, NOISE[16_384:])]
STREAMS: dict[str, tuple[bytes, bytes]] = {
    "lvmsync": (lvmsync(CHANGES), applied(DISK, CHANGES)),
    "lvmsync CRLF": (lvmsync(CHANGES, b"lvmsync PROTO[3]\r\n"), applied(DISK, CHANGES)),
    "lvmsync many": (
        lvmsync([(at, NOISE[at : at + 512]) for at in range(0, SIZE, 512)]),
        NOISE,
    ),
    "thin-send": (thin_send(CHANGES), applied(DISK, CHANGES)),
    "thin-send-1.0": (thin_ranges(CHANGES, MAGIC_1_0), applied(DISK, CHANGES)),
    "rbd": (rbd_diff(CHANGES, SIZE, "a", "b"), applied(DISK, CHANGES)),
    "rbd v2": (rbd_diff(CHANGES, SIZE, "a", "b", version=2), applied(DISK, CHANGES)),
    "rbd from nothing": (rbd_diff(CHANGES, SIZE), applied(bytes(SIZE), CHANGES)),
    "rbd-image": (
        rbd_image(
            [
                rbd_diff(SPARSE, SIZE, goal="a", version=2),
                rbd_diff([], 8192, "a", "b", version=2),
                rbd_diff(CHANGES, SIZE, "b", version=2),
            ]
        ),
        applied(applied(bytes(SIZE), [(0, NOISE[:8192])]), CHANGES),
    ),
    "bdsync": (bdsync(CHANGES, SIZE), applied(DISK, CHANGES)),
    "bdsync digest": (
        bdsync(CHANGES, SIZE, digest=hashlib.sha256(applied(DISK, CHANGES)).digest()),
        applied(DISK, CHANGES),
    ),
    "bdsync big": (bdsync(CHANGES, SIZE, order=">"), applied(DISK, CHANGES)),
    "blocksync-fast": (blocksync_fast(BLOCKS, SIZE, 4096), applied(DISK, list(BLOCKS))),
    "sparsestream": (sparsestream(SPARSE, SIZE), applied(bytes(SIZE), SPARSE)),
    "sparsestream packed": (packed_sparsestream(SPARSE, SIZE), applied(bytes(SIZE), SPARSE)),
    "sparsestream incremental": (
        sparsestream([(4096, NOISE[:512])], SIZE, incremental=True),
        applied(DISK, [(4096, NOISE[:512])]),
    ),
}
OPEN_ENDED = {"lvmsync", "lvmsync CRLF", "lvmsync many", "thin-send-1.0", "blocksync-fast"}


# Where a stream without an end mark may end, and nothing tells.
BOUNDARIES = {
    "lvmsync": {len(lvmsync(CHANGES[:count])) for count in range(4)},
    "lvmsync CRLF": {len(lvmsync(CHANGES[:count])) + 1 for count in range(4)},
    "lvmsync many": {17 + 524 * count for count in range(SIZE // 512)},
    "thin-send-1.0": {len(thin_ranges(CHANGES[:count])) for count in range(1, 4)},
    "blocksync-fast": {len(blocksync_fast(BLOCKS[:count], SIZE, 4096)) for count in range(2)},
}


def status_of(stream: bytes, size: int | None = SIZE) -> ExitStatus:
    """Return how a stream ends: 0 if it is taken."""
    try:
        read(stream, size)
    except BlockstreamError as error:
        return error.exit_status
    return ExitStatus.OK


@pytest.mark.parametrize("pipe", [False, True], ids=["file", "pipe"])
@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_makes_what_the_model_says(name: str, pipe: bool) -> None:
    stream, wanted = STREAMS[name]
    assert brought_onto(DISK, stream, SIZE, pipe=pipe) == wanted


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress], ids=["gzip", "zstd"])
def test_a_packed_stream_is_unpacked(pack: Callable[[bytes], bytes]) -> None:
    stream, wanted = STREAMS["rbd"]
    halves = pack(stream[:9000]) + pack(stream[9000:])  # as several members
    assert brought_onto(DISK, halves) == wanted
    assert brought_onto(DISK, halves, pipe=True) == wanted
    for cut in (20, len(pack(stream[:9000])) - 4, len(halves) - 1):
        assert status_of(halves[:cut]) in {ExitStatus.INTERRUPTED, ExitStatus.INTEGRITY}


@pytest.mark.slow
@pytest.mark.parametrize("name", STREAMS)
def test_a_cut_is_noticed_wherever_it_is_unless_the_format_has_no_end(name: str) -> None:
    stream = STREAMS[name][0]
    accepted = []
    # Every place in the first and last bytes, and some between.
    places = {*range(1, 700), *range(700, len(stream), 97), *range(len(stream) - 100, len(stream))}
    for cut in sorted(place for place in places if place < len(stream)):
        status = status_of(stream[:cut])
        if status == ExitStatus.OK:
            accepted.append(cut)
        else:
            assert status in {ExitStatus.INTERRUPTED, ExitStatus.INTEGRITY}, cut
    assert set(accepted) <= BOUNDARIES.get(name, set())


@pytest.mark.parametrize("name", sorted(set(STREAMS) - OPEN_ENDED))
@pytest.mark.parametrize("tail", [b"x", bytes(32)], ids=["text", "zeros"])
def test_bytes_after_the_end_are_refused(name: str, tail: bytes) -> None:
    assert status_of(STREAMS[name][0] + tail) == ExitStatus.INTEGRITY


# What is wrong with it, the stream, and our exit status.
FAULTS: dict[str, tuple[bytes, ExitStatus]] = {
    "lvmsync: 5 bytes of a header": (lvmsync([]) + bytes(5), ExitStatus.INTERRUPTED),
    "lvmsync: nothing but its banner": (lvmsync([]), ExitStatus.OK),
    "lvmsync: an empty record": (lvmsync([(0, b""), (4096, b"x" * 512)]), ExitStatus.OK),
    "lvmsync: past the end": (lvmsync([(SIZE, bytes(512))]), ExitStatus.REFUSED),
    "lvmsync: zeros past the end": (
        lvmsync([(SIZE - 512, bytes(2048)), (0, b"x" * 512)]),
        ExitStatus.REFUSED,
    ),
    "lvmsync: at the largest offset": (lvmsync([(2**64 - 1, bytes(512))]), ExitStatus.INTEGRITY),
    "lvmsync: garbage as a header": (lvmsync([]) + b"\xff" * 12, ExitStatus.INTEGRITY),
    "lvmsync: PROTO[2]": (lvmsync([], b"lvmsync PROTO[2]\n"), ExitStatus.REFUSED),
    "thin: empty but sound": (thin_send([]), ExitStatus.OK),
    "thin: no beginning": (thin_ranges(CHANGES), ExitStatus.INTEGRITY),
    "thin: two beginnings": (thin_chunk(0, 0, 2) * 2, ExitStatus.INTEGRITY),
    "thin: another magic inside": (
        thin_chunk(0, 0, 2) + thin_ranges(CHANGES, MAGIC_1_0),
        ExitStatus.INTEGRITY,
    ),
    "thin: zeroed counters": (thin_chunk(0, 0, 2) + thin_end(0, 0, 0), ExitStatus.INTEGRITY),
    "thin: an unknown command": (
        thin_chunk(0, 0, 2) + thin_chunk(0, 0, 0x10000000) + thin_end(3, 0, 0),
        ExitStatus.INTEGRITY,
    ),
    "thin: an optional chunk, stale counters": (
        thin_chunk(0, 0, 2) + thin_chunk(0, 1, 0x80000000) + b"x" + thin_end(2, 0, 0),
        ExitStatus.INTEGRITY,
    ),
    "thin: an optional chunk of 527 bytes": (
        thin_chunk(0, 0, 2) + thin_chunk(0, 527, 0x80000333) + bytes(527) + thin_end(3, 0, 0),
        ExitStatus.OK,
    ),
    "thin: past the end": (thin_send([(SIZE - 512, 1024)]), ExitStatus.REFUSED),
    "thin 1.0: one unmap": (thin_chunk(0, 512, 1, MAGIC_1_0), ExitStatus.OK),
    "thin 1.0: a beginning": (thin_chunk(0, 0, 2, MAGIC_1_0), ExitStatus.INTEGRITY),
    "thin: older": (bytes.fromhex("E85BC5636CC72A05") + bytes(20), ExitStatus.REFUSED),
    "rbd: no end": (rbd_diff(CHANGES, SIZE)[:-1], ExitStatus.INTERRUPTED),
    "rbd: no size": (b"rbd diff v1\ne", ExitStatus.INTEGRITY),
    "rbd: data before the size": (
        b"rbd diff v1\nz" + struct.pack("<QQ", 0, 512) + b"e",
        ExitStatus.INTEGRITY,
    ),
    "rbd: an unknown record": (b"rbd diff v1\nx" + bytes(16) + b"e", ExitStatus.INTEGRITY),
    "rbd v2: an unknown record": (
        b"rbd diff v2\nx" + struct.pack("<Q", 3) + b"abc" + rbd_diff([], SIZE, version=2)[12:],
        ExitStatus.OK,
    ),
    "rbd: past the end": (rbd_diff([(SIZE - 512, 1024)], SIZE), ExitStatus.INTEGRITY),
    "rbd: descending": (rbd_diff([(4096, 512), (0, 512)], SIZE), ExitStatus.INTEGRITY),
    "rbd: overlapping": (rbd_diff([(0, 1024), (512, 512)], SIZE), ExitStatus.INTEGRITY),
    "rbd: a name too long": (rbd_diff([], SIZE, base="a" * 4097), ExitStatus.INTEGRITY),
    "rbd: a base after data": (
        rbd_diff([(0, 512)], SIZE)[:-1] + b"f" + struct.pack("<I", 1) + b"ae",
        ExitStatus.INTEGRITY,
    ),
    "rbd image: a diff that does not follow": (
        rbd_image([rbd_diff([], SIZE, goal="a"), rbd_diff(CHANGES, SIZE, "b")]),
        ExitStatus.INTEGRITY,
    ),
    "rbd image: a diff that begins anew": (
        rbd_image([rbd_diff(CHANGES, SIZE, goal="a"), rbd_diff([], SIZE)]),
        ExitStatus.INTEGRITY,
    ),
    "rbd image: no diffs": (rbd_image([]), ExitStatus.INTEGRITY),
    "bdsync: past the end": (bdsync([(SIZE - 1, b"xx")], SIZE), ExitStatus.INTEGRITY),
    "bdsync: descending": (bdsync([(4096, b"x"), (0, b"x")], SIZE), ExitStatus.INTEGRITY),
    "bdsync: another version": (b"BDSYNC 0.2\n" + bytes(40), ExitStatus.REFUSED),
    "blocksync-fast: descending": (
        blocksync_fast(list(reversed(BLOCKS)), SIZE, 4096),
        ExitStatus.INTEGRITY,
    ),
    "blocksync-fast: sizes that disagree": (
        blocksync_fast([], SIZE, 4096)[:40] + bytes(8) + bytes(464),
        ExitStatus.INTEGRITY,
    ),
    "blocksync-fast: another version": (
        blocksync_fast([], SIZE, 4096).replace(b"1.07", b"1.06"),
        ExitStatus.REFUSED,
    ),
    "blocksync-fast: a digest file": (b"!BSF#DIGEST".ljust(512, b"\0"), ExitStatus.REFUSED),
    "sparsestream: packed with another method": (
        sparsestream(SPARSE, SIZE, compressed=2, compressionMethod="xz"),
        ExitStatus.REFUSED,
    ),
    "sparsestream: no lz4 in it": (sparsestream(SPARSE, SIZE, compressed=2), ExitStatus.INTEGRITY),
    "sparsestream: a part that unpacks to more": (
        packed_sparsestream(SPARSE, SIZE).replace(
            b"data 0000000000000000 0000000000002000", b"data 0000000000000000 0000000000001fff"
        ),
        ExitStatus.INTEGRITY,
    ),
    "sparsestream: another sum": (sparsestream(SPARSE, SIZE, dataSize=1), ExitStatus.INTEGRITY),
    "sparsestream: another sum in an older one": (
        sparsestream(SPARSE, SIZE).replace(b'"dataSize": 32768', b'"data-size":32769'),
        ExitStatus.INTEGRITY,
    ),
    "packed twice": (gzip.compress(zstandard.compress(thin_send([]))), ExitStatus.REFUSED),
    "zstd: a window that is too large": (
        b"\x28\xb5\x2f\xfd" + bytes([0, 18 << 3 | 1]) + b"\x01\0\0",
        ExitStatus.REFUSED,
    ),
    "zstd: bytes after its end": (
        zstandard.compress(thin_send([])) + b"garbage",
        ExitStatus.INTEGRITY,
    ),
    "sparsestream: no size": (
        sparsestream([], SIZE, virtualSize="many"),
        ExitStatus.INTEGRITY,
    ),
    "sparsestream: descending": (
        sparsestream([(4096, 512), (0, 512)], SIZE),
        ExitStatus.INTEGRITY,
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_is_wrong_has_its_own_exit_status(name: str) -> None:
    stream, wanted = FAULTS[name]
    assert status_of(stream) == wanted


LOOKS_LIKE: dict[str, bytes] = {
    "zfs": bytes(8) + (0x2F5BACBAC).to_bytes(8, "little") + bytes(300),
    "zfs ": bytes(8) + (0x2F5BACBAC).to_bytes(8, "big") + bytes(300),
    "VMDK": b"KDMV" + bytes(508),
    "VMDK ": b"COWD" + bytes(508),
    "descriptor": b"# Disk DescriptorFile\n",
    "seSparse": bytes.fromhex("BEBAFECA00000000") + bytes(504),
    "qcow2": b"QFI\xfb" + bytes(100),
    "lz4": b"\x04\x22\x4d\x18" + bytes(100),
    "another version of lvmsync": b"lvmsync PROTO[1]\n",
    "older thin_send": bytes.fromhex("E85BC5636CC72A05") + bytes(20),
    "tar": b"a" * 257 + b"ustar" + bytes(300),
    "btrfs": b"btrfs-stream\0" + bytes(100),
    "list of extents": b'{"format":"blockstream-extents","version":1,"size":4096',
}


@pytest.mark.parametrize("word", LOOKS_LIKE)
def test_anything_else_gets_a_sentence_that_says_what_it_looks_like(word: str) -> None:
    with pytest.raises(BlockstreamError, match=word.strip()) as caught:
        read(LOOKS_LIKE[word])
    assert caught.value.exit_status == ExitStatus.REFUSED
    assert "nothing was written" in str(caught.value)


@pytest.mark.parametrize(
    ("begin", "shown"),
    [(b"Last login: Mon\n", "'Last login: Mon '"), (b"\1\2\xff", "01 02 ff"), (bytes(99), "zeros")],
)
def test_what_looks_like_nothing_is_shown(begin: bytes, shown: str) -> None:
    with pytest.raises(IntegrityError, match=f"begins with {shown}; nothing was written"):
        read(begin)


def test_the_short_payload_of_a_snapback_ends_where_the_disk_does() -> None:
    odd = SIZE + 100
    changes: list[tuple[int, bytes]] = [(SIZE, b"z" * 100), (0, NOISE[:4096])]
    # The header gives the full length, and it need not be the last record.
    stream = b"lvmsync PROTO[3]\n" + struct.pack(">QI", SIZE, 4096) + b"z" * 100
    stream += struct.pack(">QI", 0, 4096) + NOISE[:4096]
    disk = DISK + bytes(100)
    assert brought_onto(disk, stream, odd) == applied(disk, list(changes))


def test_an_export_leads_to_the_image_and_not_to_its_last_snapshot() -> None:
    snapshot = rbd_diff(SPARSE, SIZE, goal="a", version=2)
    assert read(rbd_image([snapshot])).goal == "a"
    assert read(rbd_image([snapshot, rbd_diff([], SIZE, "a", version=2)])).goal == ""


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("size", [65_536, 1 << 30, 1 << 38])
def test_the_name_in_a_patch_tells_its_byte_order_where_its_size_does_not(
    order: str, size: int
) -> None:
    found = read(bdsync(CHANGES, size, order=order))
    assert (found.size, found.data) == (size, 20_480)


def test_an_increment_of_virtnbdbackup_belongs_onto_its_parent() -> None:
    facts = {"incremental": True, "parentCheckpoint": "virtnbdbackup.0"}
    found = read(sparsestream([], SIZE, **facts, checkpointName="virtnbdbackup.1"))
    assert (found.base, found.goal) == ("virtnbdbackup.0", "virtnbdbackup.1")


def test_a_file_that_is_written_meanwhile_is_refused() -> None:
    stream = lvmsync(CHANGES)
    with intake(stream, pipe=False) as made:
        how = recognised(made.head(HEAD_BYTES))
        os.pwrite(made.fd, stream, len(stream))
        with pytest.raises(SourceError, match="written while"):
            made.run(how, SIZE)


def test_only_thin_send_1_0_says_nothing_where_nothing_has_changed() -> None:
    assert chosen(b"", "thin-send-1.0").name == "thin-send-1.0"
    for name in ("", "thin-send", "lvmsync", "raw"):
        with pytest.raises(BlockstreamError, match="empty"):
            chosen(b"", name)


@pytest.mark.slow
def test_two_hundred_thousand_records_of_other_lengths_each_are_read_at_once() -> None:
    # Each look at a window costs as much as hundreds of them: they would take minutes.
    changes: list[Change] = [(at * 4, bytes(1 + at % 3)) for at in range(200_000)]
    assert read(lvmsync(changes)).records == 200_000


def test_the_first_preimage_wins_in_a_snapback_and_the_last_record_in_a_dump() -> None:
    first, second = NOISE[:4096], NOISE[4096:8192]
    stream = lvmsync([(4096, first), (8192, first), (4096, second)])
    assert brought_onto(DISK, stream, SIZE)[4096:8192] == second
    assert brought_onto(DISK, stream, SIZE, first_wins=True)[4096:8192] == first


def test_a_raw_image_is_told_by_what_only_disks_have() -> None:
    image = bytes(510) + b"\x55\xaa" + NOISE
    assert recognised(image[:4096]) is raw.FORMAT
    assert brought_onto(b"", image) == image
    assert brought_onto(b"", image, pipe=True) == image
    with pytest.raises(BlockstreamError, match="--format raw"):
        read(NOISE)
    assert brought_onto(b"", NOISE, how=raw.FORMAT) == NOISE


def test_names_for_options_are_those_of_the_table() -> None:
    assert set(READ) == {each.name for each in FORMATS}
    assert set(WRITTEN) == {each.name for each in FORMATS if each.write}


ranges = st.lists(
    st.tuples(
        st.integers(0, 79).map(lambda at: at * 512),
        st.integers(1, 16).map(lambda count: count * 512),
        st.booleans(),
    ),
    max_size=12,
)


@pytest.mark.slow
@given(ranges, st.booleans(), st.booleans())
@settings(max_examples=100, deadline=None)
def test_records_in_any_order_make_what_the_model_says(
    found: list[tuple[int, int, bool]], thin: bool, pipe: bool
) -> None:
    changes: list[Change] = []
    for number, (offset, length, zero) in enumerate(found):
        length = min(length, SIZE - offset)
        changes.append((offset, length if zero else bytes([number + 1]) * length))
    stream = thin_send(changes) if thin else lvmsync(changes)
    pipe = pipe and len(stream) <= 65_536
    assert brought_onto(DISK, stream, SIZE, pipe=pipe) == applied(DISK, changes)
