"""Streams of other tools come onto a target by the rules of our own, or leave it as it was."""

import fcntl
import gzip
import hashlib
import json
import os
import random
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from blockstream.errors import ExitStatus
from tests.end_to_end.hosts import Ended, Host, failing_at, wait_until
from tests.foreign_streams import (
    Change,
    applied,
    bdsync,
    blocksync_fast,
    lvmsync,
    rbd_diff,
    sparsestream,
    thin_chunk,
    thin_end,
    thin_ranges,
    thin_send,
)
from tests.formats.foreign.test_readers import DISK, NOISE, OPEN_ENDED, SIZE, STREAMS

README = Path(__file__).parents[2] / "README.md"
PART: list[Change] = [(4096, NOISE[:4096]), (12_288, 4096), (20_480, NOISE[:8192])]
OPEN, OK = ExitStatus.STALE, ExitStatus.OK


@pytest.fixture
def target(host: Host) -> Path:
    """A disk of which nothing is known."""
    path = host.folder / "target"
    path.write_bytes(DISK)
    return path


def recv(host: Host, target: Path, stream: bytes, *words: str) -> Ended:
    return host.run("recv", target, *words, data=stream)


@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_is_recognised_and_applied(host: Host, target: Path, name: str) -> None:
    stream, wanted = STREAMS[name]
    if name in {"rbd", "rbd v2"}:
        host.adopt(target, "a")
    ended = recv(host, target, stream)
    assert ended.status == (OPEN if name in OPEN_ENDED else OK), ended.err
    assert target.read_bytes() == wanted
    status = host.status(target)
    assert status["state"] == "clean"
    assert str(status["id"]).startswith("unverified-") == (name in OPEN_ENDED)
    checked = "is that of its source" if name == "bdsync digest" else "not checked, because it does"
    assert checked in ended.err


def test_an_open_end_is_believed_checked_or_marked(host: Host, target: Path) -> None:
    stream = lvmsync(PART)
    ended = recv(host, target, stream, "--expect-bytes", "16385")
    assert ended.status == ExitStatus.INTERRUPTED
    assert "16384 bytes of data in 3 records" in ended.err
    assert target.read_bytes() == DISK
    assert recv(host, target, stream, "--expect-bytes", "16384").status == OK
    assert str(host.status(target)["id"]).startswith("lvmsync-")
    assert recv(host, target, stream, "--accept-open-end", "--goal", "tuesday").status == OK
    assert host.holds(target, "tuesday")
    ended = recv(host, target, stream, "--json")
    assert ended.status == OPEN
    assert ended.events[-1]["unchecked"] == ["that it is whole", "its base", "its bytes"]


def test_a_diff_goes_onto_its_base_only(host: Host, target: Path) -> None:
    stream = rbd_diff(PART, SIZE, "a", "b")
    assert recv(host, target, stream).status == ExitStatus.REFUSED
    host.adopt(target, "other")
    ended = recv(host, target, stream)
    assert ended.status == ExitStatus.REFUSED
    assert "'a'" in ended.err
    assert "'other'" in ended.err
    assert target.read_bytes() == DISK
    host.adopt(target, "a")
    assert recv(host, target, stream).status == OK
    assert host.holds(target, "b")
    assert target.read_bytes() == applied(DISK, PART)
    assert "already committed" in recv(host, target, stream).err


def test_what_names_no_base_goes_onto_the_one_that_is_named(host: Host, target: Path) -> None:
    host.adopt(target, "monday")
    stream = thin_send(PART)
    assert recv(host, target, stream, "--base", "sunday").status == ExitStatus.REFUSED
    assert target.read_bytes() == DISK
    with target.open("r+b") as file:
        file.write(b"behind our back")
    ended = recv(host, target, stream)
    assert ended.status == ExitStatus.REFUSED, ended.err


def test_a_target_of_another_size_is_refused(host: Host, target: Path) -> None:
    host.adopt(target, "a")
    for size in (SIZE + 4096, SIZE - 4096):
        ended = recv(host, target, rbd_diff(PART, size, "a", "b"))
        assert ended.status == ExitStatus.REFUSED, ended.err
    assert target.read_bytes() == DISK


def test_a_disk_is_made_where_the_stream_says_how_large(host: Host) -> None:
    copy = host.folder / "copy"
    ended = host.run("recv", "--create", copy, data=thin_send(PART))
    assert ended.status == ExitStatus.USAGE
    assert not copy.exists()
    assert host.run("recv", "--create", copy, data=rbd_diff(PART, SIZE, goal="a")).status == OK
    assert copy.read_bytes() == applied(bytes(SIZE), PART)
    assert host.holds(copy, "a")


@pytest.mark.parametrize(
    "pack", [bytes, gzip.compress, zstandard.compress], ids=["plain", "gzip", "zstd"]
)
def test_an_image_is_copied_packed_or_plain(host: Host, target: Path, pack: type[bytes]) -> None:
    image = bytes(510) + b"\x55\xaa" + NOISE[512:]
    ended = recv(host, target, pack(image), "--goal", "a")
    assert ended.status == OK, ended.err
    assert target.read_bytes() == image
    copy = host.folder / "copy"
    # A pipe that was cut leaves a shorter disk, and nothing tells.
    status = host.run("recv", "--create", copy, data=pack(image)).status
    assert status == (OPEN if pack is bytes else OK)


def pzstd(data: bytes) -> bytes:
    """Pack as pzstd does: before each frame one that is skipped, with its length."""
    parts = []
    for start in range(0, len(data), 300_000):
        frame = zstandard.compress(data[start : start + 300_000])
        length = len(frame).to_bytes(4, "little")
        parts.append(b"\x50\x2a\x4d\x18\x04\0\0\0" + length + frame)
    return b"".join(parts)


@pytest.mark.slow
@pytest.mark.parametrize(
    "pack", [gzip.compress, zstandard.compress, pzstd], ids=["gzip", "zstd", "pzstd"]
)
def test_a_stream_of_ours_is_unpacked_like_any_other(
    host: Host, pack: Callable[[bytes], bytes]
) -> None:
    """It was "no stream that is known here"; of pzstd, no stream was."""
    disk, target = host.folder / "disk", host.folder / "target"
    disk.write_bytes(os.urandom(5 << 20))
    target.write_bytes(bytes(5 << 20))
    sent = host.run("send", disk, "--goal", "packed", "--compress", "none").out
    assert host.run("inspect", data=pack(sent)).status == OK
    copy = host.folder / "copy"
    made = host.run("recv", "--create", copy, data=pack(sent))
    assert made.status == OK, made.err
    assert copy.read_bytes() == disk.read_bytes()
    assert host.holds(copy, "packed")
    again = host.run("convert", "--to", "bsx", data=pack(sent))
    assert again.status == OK, again.err
    assert host.run("inspect", data=again.out).status == OK
    # What is cut says how to go on, and is gone on with from what is packed as well.
    cut = host.run("recv", target, data=pack(sent)[: len(pack(sent)) // 2])
    assert cut.status == ExitStatus.INTERRUPTED, cut.err
    assert "--resume bsr1-" in cut.err
    token = cut.err[cut.err.index("bsr1-") :].split()[0]
    rest = host.run("send", disk, "--resume", token, "--compress", "none").out
    assert host.run("recv", target, data=pack(rest)).status == OK
    assert target.read_bytes() == disk.read_bytes()


def test_a_packed_stream_of_ours_that_is_damaged_is_said_so(host: Host, target: Path) -> None:
    disk = host.folder / "disk"
    disk.write_bytes(NOISE.ljust(SIZE, b"\0")[:SIZE])
    packed = bytearray(gzip.compress(host.run("send", disk, "--compress", "none").out))
    packed[len(packed) // 2] ^= 0xFF
    ended = host.run("recv", target, data=bytes(packed))
    assert ended.status == ExitStatus.INTEGRITY, ended.err
    assert "Traceback" not in ended.err
    assert host.status(target)["state"] == "dirty"


@pytest.mark.parametrize(
    ("begin", "what"),
    [
        (b"\x89BSX\r\n\x1a\n", "a stream of ours"),
        (b"QFI\xfb\0\0\0\3", "a qcow2 image"),
        (b"KDMV\1\0\0\0", "a VMDK"),
        (b"\xef\xbb\xbf# Disk DescriptorFile\n", "the descriptor of a VMDK"),
        (b"vhdxfile", "a VHDX"),
        (b"rbd diff v1\n", "a diff of rbd"),
        (b"box.ovf".ljust(257, b"\0") + b"ustar", "an OVA"),
    ],
)
def test_what_begins_like_something_else_is_no_raw_image_unless_forced(
    host: Host, target: Path, begin: bytes, what: str
) -> None:
    """A backup of ours was written onto a disk as it was, with status 19."""
    before = target.read_bytes()
    image = begin.ljust(SIZE, b"x")
    ended = recv(host, target, image, "--format", "raw")
    assert ended.status == ExitStatus.REFUSED, ended.err
    assert f"this begins as {what} does" in ended.err
    assert target.read_bytes() == before
    forced = recv(host, target, image, "--format", "raw", "--force-raw")
    assert forced.status in {OK, OPEN}, forced.err
    assert target.read_bytes() == image


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_a_vhd_of_fixed_size_is_named(host: Host, target: Path, pack: type[bytes]) -> None:
    image = (bytes(510) + b"\x55\xaa").ljust(SIZE - 512, b"x") + b"conectix".ljust(512, b"\0")
    ended = recv(host, target, pack(image), "--goal", "a")
    assert "ends as a VHD of fixed size does: its last 512 bytes are none of the disk" in ended.err


def test_what_was_overwritten_can_be_brought_back(host: Host, target: Path) -> None:
    assert recv(host, target, thin_send(PART), "--apply", "undo").status == OK
    assert target.read_bytes() != DISK
    assert host.run("undo", target).status == OK
    assert target.read_bytes() == DISK


def test_a_snapback_leads_back_although_a_chunk_occurs_twice(host: Host, target: Path) -> None:
    first = [(4096, DISK[4096:8192]), (8192, DISK[8192:12_288])]
    snapback = lvmsync([*first, (4096, NOISE[:4096])])
    target.write_bytes(applied(DISK, [(4096, NOISE[4096:12_288])]))
    words = ("--snapback", "--accept-open-end")
    assert recv(host, target, snapback, *words).status == OK
    assert target.read_bytes() == DISK
    assert recv(host, target, thin_send(PART), "--snapback").status == ExitStatus.USAGE


@pytest.mark.parametrize("again", ["the same", "another"])
def test_a_killed_receiver_goes_on_with_the_same_command(
    host: Host, target: Path, again: str
) -> None:
    stream = lvmsync(PART)
    words = ("recv", target, "--accept-open-end")
    killing = failing_at("recv.after_write:1:kill")
    assert host.run(*words, data=stream, environment=killing).status < 0
    assert host.status(target)["state"] == "dirty"
    changes = PART if again == "the same" else [(at, b"z" * 8192) for at in (4096, 12_288, 20_480)]
    ended = host.run(*words, data=lvmsync(changes))
    assert ended.status == OK, ended.err
    assert target.read_bytes() == applied(DISK, changes)


@pytest.mark.slow
def test_who_is_stopped_in_the_middle_is_told_and_counts_on(eager: Host) -> None:
    size = 12 << 20
    target = eager.blank("target", size)
    stream = lvmsync([(0, b"a" * size)])
    words = ("recv", target, "--accept-open-end", "--json")
    stopping = failing_at("recv.after_record:3:stop")
    reading = os.memfd_create("stream")
    try:
        os.write(reading, stream)
        os.lseek(reading, 0, os.SEEK_SET)
        process = eager.start(words, stdin=reading, environment=stopping)
        wait_until(process.stopped)
        process.signal(signal.SIGTERM)
        process.signal(signal.SIGCONT)
        ended = process.wait()
    finally:
        os.close(reading)
    assert ended.status == ExitStatus.INTERRUPTED
    assert "half-written; the same command again goes on" in ended.err
    ended = eager.run(*words, data=stream)
    assert ended.status == OK, ended.err
    committed = next(each for each in ended.events if each["event"] == "committed")
    counts = committed["counts"]
    assert isinstance(counts, dict)
    assert (counts["covered"], counts["data"]) == (size, size)
    assert target.read_bytes() == b"a" * size


@pytest.mark.slow
@pytest.mark.parametrize("goal", ["", "monday"])
def test_another_stream_of_the_same_ranges_begins_anew(eager: Host, goal: str) -> None:
    size = 12 << 20
    target = eager.blank("target", size)
    changes: list[Change] = [(0, b"a" * size)]
    named = ("--goal", goal) if goal else ()
    words = ("recv", target, "--accept-open-end", *named)
    killing = failing_at("recv.after_record:3:kill")
    assert eager.run(*words, data=lvmsync(changes), environment=killing).status < 0
    assert eager.durable(target)
    changes = [(0, b"b" * size)]
    ended = eager.run(*words, data=lvmsync(changes))
    assert ended.status == OK, ended.err
    assert target.read_bytes() == applied(bytes(size), changes)
    assert str(eager.status(target)["id"]).startswith(goal or "lvmsync-")


def test_the_same_command_again_finds_its_goal(host: Host, target: Path) -> None:
    words = ("--goal", "monday", "--accept-open-end")
    assert recv(host, target, lvmsync(PART), *words).status == OK
    again = recv(host, target, lvmsync(PART), *words)
    assert (again.status, "already committed" in again.err) == (OK, True), again.err
    other = recv(host, target, lvmsync([(4096, 512)]), *words)
    assert other.status == ExitStatus.REFUSED
    assert "nothing was written; give this state another name" in other.err
    assert target.read_bytes() == applied(DISK, PART)


def test_what_packed_a_dump_does_not_tell_that_it_is_whole(host: Host, target: Path) -> None:
    for pack in (gzip.compress, zstandard.compress):
        ended = recv(host, target, pack(lvmsync(PART)))
        assert ended.status == OPEN, ended.err
        assert "that it is whole" in ended.err
        assert str(host.status(target)["id"]).startswith("unverified-lvmsync-")
    assert host.run("inspect", data=gzip.compress(lvmsync(PART))).status == OPEN


def test_nothing_can_be_what_is_expected(host: Host, target: Path) -> None:
    ended = recv(host, target, lvmsync(PART), "--expect-bytes", "0")
    assert ended.status == ExitStatus.INTERRUPTED
    assert target.read_bytes() == DISK
    assert recv(host, target, lvmsync([]), "--expect-bytes", "0").status == OK
    assert recv(host, target, b"", "--format", "thin-send-1.0").status == OPEN
    assert target.read_bytes() == DISK


def test_a_disk_that_does_not_fit_is_refused_before_the_rest_of_it_comes(
    host: Host, target: Path
) -> None:
    for stream, words in (
        (bytes(2 << 20), ("--format", "raw")),
        (rbd_diff([(0, NOISE)], SIZE + 512)[:-1], ()),
        (gzip.compress(3 * NOISE), ("--format", "raw")),
    ):
        reading, writing = os.pipe()
        try:
            os.write(writing, stream[:60_000])
            process = host.start(["recv", target, *words], stdin=reading)
            ended = process.wait()  # although the stream has not ended
        finally:
            os.close(reading)
            os.close(writing)
        assert ended.status == ExitStatus.REFUSED
        assert "make it at least as large" in ended.err
    assert target.read_bytes() == DISK


def test_what_cannot_be_is_said_before_the_stream_comes(host: Host, target: Path) -> None:
    begun = lvmsync(PART)[:-1]
    for words in (
        ("recv", target, "--goal", " monday"),
        ("recv", target, "--base", "été"),
        ("recv", "--create", host.folder / "copy"),
        ("convert", "--goal", "été"),
        ("merge", "-", "--base", "x "),
    ):
        ended = host.run(*words, data=begun)
        assert ended.status == ExitStatus.USAGE, ended.err
    assert target.read_bytes() == DISK


def test_a_base_that_cannot_be_called_so_here_is_named_by_people(host: Host, target: Path) -> None:
    host.adopt(target, "summer")
    stream = rbd_diff(PART, SIZE, "été", "b")
    ended = recv(host, target, stream)
    assert ended.status == ExitStatus.REFUSED
    assert "--base" in ended.err
    assert recv(host, target, stream, "--base", "summer").status == OK
    assert host.holds(target, "b")


def test_an_increment_of_virtnbdbackup_goes_onto_its_parent_only(host: Host, target: Path) -> None:
    facts = {"incremental": True, "parentCheckpoint": "v.0", "checkpointName": "v.1"}
    stream = sparsestream([(0, NOISE[:512])], SIZE, **facts)
    host.adopt(target, "v.3")
    assert recv(host, target, stream).status == ExitStatus.REFUSED
    assert target.read_bytes() == DISK
    target = host.disk("parent", SIZE)
    host.adopt(target, "v.0")
    ended = recv(host, target, stream)
    assert ended.status == OK, ended.err
    assert "does not tell: its bytes" in ended.err


def test_an_inspection_keeps_nothing_and_ends_as_the_receiver_would(host: Host) -> None:
    host.environment["BLOCKSTREAM_STATE_DIR"] = "/proc/nowhere"
    assert host.run("inspect", data=thin_send(PART)).status == OK
    ended = host.run("inspect", data=lvmsync(PART))
    assert ended.status == OPEN
    assert b"can be read to its end" in ended.out
    packed = gzip.compress(STREAMS["sparsestream packed"][0])
    assert host.run("inspect", data=packed).status == OK


def test_a_rehearsal_writes_nothing(host: Host, target: Path) -> None:
    host.adopt(target, "a")
    ended = recv(host, target, rbd_diff(PART, SIZE, "a", "b"), "-n")
    assert ended.status == OK, ended.err
    assert "would take" in ended.err
    assert host.holds(target, "a")
    assert recv(host, target, rbd_diff(PART, SIZE, "x", "b"), "-n").status == ExitStatus.REFUSED


def test_an_option_without_effect_is_an_error(host: Host, target: Path) -> None:
    ours = host.stream(host.disk("disk", SIZE))
    for words in (
        ["--goal", "a"],
        ["--expect-bytes", "1"],
        ["--accept-open-end"],
        ["--format", "lvmsync"],
    ):
        ended = recv(host, target, ours, *words)
        assert ended.status == ExitStatus.USAGE
        assert words[0] in ended.err
    for command in ("convert", "merge", "inspect"):
        ended = host.run(command, "-", "--format", "rbd", data=ours)
        assert (ended.status, ended.out) == (ExitStatus.USAGE, b"")
        assert "--format" in ended.err
    disk = host.folder / "disk"
    ended = host.run("send", disk, "--format", "rbd", "--compress", "zstd")
    assert ended.status == ExitStatus.USAGE
    assert host.run("send", disk, target, "--format", "rbd").status == ExitStatus.USAGE
    assert target.read_bytes() == DISK


@pytest.mark.parametrize("kind", ["lvmsync", "thin-send", "rbd"])
def test_what_we_write_for_others_says_first_what_it_does_not_carry(host: Host, kind: str) -> None:
    old = host.disk("old", SIZE)
    new, target = host.changed("new", old), host.folder / "target"
    changes = host.list_changes("changes", new, old)
    words = ("send", new, "--base", "A", "--goal", "B", "--extents", changes)
    ended = host.run(*words, "--format", kind)
    assert ended.status == OK, ended.err
    assert "does not carry" in ended.err.splitlines()[0]
    made = host.run("convert", "--to", kind, data=host.stream(*words[1:]))
    assert made.status == OK, made.err
    assert made.out == ended.out
    target.write_bytes(old.read_bytes())
    host.adopt(target, "A")
    assert recv(host, target, ended.out, "--accept-open-end").status == OK
    assert target.read_bytes() == new.read_bytes()


def test_zeros_are_unmapped_where_the_pool_is_known(host: Host) -> None:
    diff = host.folder / "diff"
    chunk = 65_536
    diff.write_bytes(rbd_diff([(512, 2 * chunk)], 4 * chunk, "a", "b"))
    words = ("convert", "--to", "thin-send", diff)
    plain, known = host.run(*words), host.run(*words, "--pool-chunk", "64K")
    assert (plain.status, known.status) == (OK, OK)
    assert "zeros" in plain.err
    assert "zeros, other" not in known.err
    assert len(plain.out) - len(known.out) == chunk - 2 * 28
    for wrong in (
        ("convert", "--to", "thin-send", diff, "--pool-chunk", "96K"),
        ("convert", "--to", "thin-send", diff, "--pool-chunk", "2G"),
        ("convert", "--to", "rbd", diff, "--pool-chunk", "64K"),
        ("convert", diff, "--pool-chunk", "64K"),
        ("send", diff, "--pool-chunk", "64K"),
        ("send", diff, "--format", "rbd", "--pool-chunk", "64K"),
        ("send", diff, "--format", "rbd", "-n"),
    ):
        ended = host.run(*wrong)
        assert (ended.status, ended.out) == (ExitStatus.USAGE, b""), wrong


BIG = random.Random(3).randbytes(5 << 19)  # noqa: S311  # more than two windows of a digest
BIG_CHANGES: list[Change] = [
    (0, 512),
    ((1 << 20) - 512, NOISE[:1024]),
    ((1 << 20) + 8192, (1 << 20) + 4096),
    (len(BIG) - 4096, NOISE[:4096]),
]


@pytest.mark.parametrize("point", ["recv.spool_complete:1", "recv.before_write:1"])
def test_a_staged_stream_is_applied_without_its_sender(
    host: Host, target: Path, point: str
) -> None:
    host.adopt(target, "a")
    stream = rbd_diff(PART, SIZE, "a", "b")
    failing = failing_at(f"{point}:kill")
    ended = host.run("recv", target, "--apply", "stage", data=stream, environment=failing)
    assert ended.status == -signal.SIGKILL
    if point.startswith("recv.spool"):
        assert target.read_bytes() == DISK
        applied_now = host.run("apply", target)
        assert applied_now.status == OK, applied_now.err
    else:
        ended = recv(host, target, stream, "--apply", "stage")
        assert ended.status == OK, ended.err
    assert target.read_bytes() == applied(DISK, PART)
    assert host.holds(target, "b")


def test_what_cannot_be_staged_says_why(host: Host, target: Path) -> None:
    host.adopt(target, "x")
    ended = recv(host, target, rbd_diff(PART, SIZE, "a", "b"), "--apply", "stage")
    assert ended.status == ExitStatus.REFUSED, ended.err
    assert "'a'" in ended.err
    assert target.read_bytes() == DISK


def test_a_foreign_stream_waits_for_whoever_holds_its_target(host: Host, target: Path) -> None:
    stream = rbd_diff(PART, SIZE, "", "b")
    with target.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        held = recv(host, target, stream)
        assert held.status == ExitStatus.REFUSED
        assert target.read_bytes() == DISK
        reading, writing = os.pipe()
        process = host.start(["recv", target, "--lock-wait", "20"], stdin=reading)
        os.close(reading)
        os.write(writing, stream)
        os.close(writing)
    ended = process.wait()
    assert ended.status == OK, ended.err
    assert host.holds(target, "b")


def _patch(disk: bytes, digest: str = "sha256") -> bytes:
    value = hashlib.new(digest, applied(disk, BIG_CHANGES)).digest()
    records: list[Change] = []
    for offset, what in BIG_CHANGES:
        data = bytes(what) if isinstance(what, int) else what
        records += [(offset + at, data[at : at + 32_768]) for at in range(0, len(data), 32_768)]
    return bdsync(records, len(disk), digest=value)


def test_a_digest_of_the_whole_disk_is_compared_before_anything_is_written(host: Host) -> None:
    target = host.folder / "big"
    target.write_bytes(BIG)
    ended = recv(host, target, _patch(BIG))
    assert ended.status == OK, ended.err
    assert "the sha256 of the whole disk is that of its source" in ended.err
    assert target.read_bytes() == applied(BIG, BIG_CHANGES)
    again = recv(host, target, _patch(BIG))
    assert again.status == OK, again.err


def test_a_patch_for_another_disk_is_refused(host: Host) -> None:
    target, patch = host.folder / "big", _patch(BIG)
    other = BIG[:-5000] + b"x" + BIG[-4999:]
    for disk, stream in ((other, patch), (BIG, patch.replace(NOISE[:1024], NOISE[1:1025]))):
        target.write_bytes(disk)
        for words in ((), ("-n",)):
            ended = recv(host, target, stream, *words)
            assert ended.status == ExitStatus.REFUSED, ended.err
            assert "another disk" in ended.err
            assert target.read_bytes() == disk
    ended = recv(host, target, patch, "--force-base")
    assert ended.status == OK, ended.err
    assert "was not compared, because of --force-base" in ended.err
    target.write_bytes(other)
    foreign = patch.replace(b"\x06sha256", b"\x06sha999")
    ended = recv(host, target, foreign, "--force-base")
    assert ended.status == OK
    fresh = host.folder / "fresh"
    fresh.write_bytes(other)
    ended = recv(host, fresh, foreign)
    assert ended.status == ExitStatus.STALE, ended.err
    assert "was not compared, which this host does not know" in ended.err
    assert "its only check, the sha999 of the whole disk, is not known here" in ended.err
    shown = host.run("inspect", data=patch)
    assert "sha256 of the whole disk: " in shown.out.decode()


def test_a_chain_is_merged_and_inspected(host: Host, target: Path) -> None:
    paths = []
    chain: list[list[Change]] = [PART, [(8192, 8192)], [(0, NOISE[:512])]]
    for number, changes in enumerate(chain):
        path = host.folder / f"{number}.rbd"
        path.write_bytes(rbd_diff(changes, SIZE, f"s{number}", f"s{number + 1}"))
        paths.append(path)
    ended = host.run("merge", *paths)
    assert ended.status == OK, ended.err
    host.adopt(target, "s0")
    assert recv(host, target, ended.out).status == OK
    assert host.holds(target, "s3")
    assert target.read_bytes() == applied(DISK, [*PART, (8192, 8192), (0, NOISE[:512])])
    shown = host.run("inspect", paths[0], "--json")
    assert shown.status == OK
    found = json.loads(shown.out)
    assert (found["format"], found["base"], found["goal"]) == ("rbd", "s0", "s1")
    assert (found["data"], found["zeros"], found["details"]["records"]) == (12_288, 4096, 2)
    cut = host.run("inspect", data=paths[0].read_bytes()[:-1])
    assert cut.status == ExitStatus.INTERRUPTED
    assert b"NOT SOUND" in cut.out
    assert host.run("merge", paths[0], paths[2]).status == ExitStatus.REFUSED
    assert host.run("merge", "-", "-").status == ExitStatus.USAGE


def _flipped(stream: bytes) -> bytes:
    return stream.replace(NOISE[:100], bytes([NOISE[0] ^ 1]) + NOISE[1:100])


def _cut(stream: bytes, count: int) -> bytes:
    return stream[:-count]


# Each fault: the streams in which we met it, and how the tool's own receiver ended (measured, see
# the README). A file that the model cannot tell from a whole one ends with 19, and is marked.
PEERS = ("lvmsync 3.3.2", "thin_recv 1.1.3", "bdsync", "blocksync-fast 1.07", "rbd 16.2.15")
_BLOCKS = [(0, NOISE[:4096]), (8192, NOISE[8192:12_288])]
_RBD = rbd_diff(PART, SIZE, "a", "b")
FAULTS: dict[str, tuple[tuple[bytes | None, str, int], ...]] = {
    "cut at a record": (
        (_cut(lvmsync(PART), 8204), "0", 19),
        (_cut(thin_send(PART), 52), "10", 11),
        (_cut(bdsync(PART, SIZE), 12), "2", 11),
        (_cut(blocksync_fast(_BLOCKS, SIZE, 4096), 4104), "0", 19),
        (_cut(_RBD, 1), "33", 11),
    ),
    "cut inside a payload": (
        (_cut(lvmsync(PART), 100), "0", 11),
        (_cut(thin_send(PART), 152), "10", 11),
        (_cut(bdsync(PART, SIZE), 112), "2, partly written", 11),
        (_cut(blocksync_fast(_BLOCKS, SIZE, 4096), 100), "0", 11),
        (_cut(_RBD, 101), "33", 11),
    ),
    "one bit flipped": (
        (_flipped(lvmsync(PART)), "0", 19),
        (_flipped(thin_send(PART)), "0", 0),
        (_flipped(bdsync(PART, SIZE)), "0", 0),
        (_flipped(blocksync_fast(_BLOCKS, SIZE, 4096)), "0", 19),
        (None, "", 0),
    ),
    "empty input": ((b"", "1", 11), (b"", "0", 11), (b"", "2", 11), (None, "", 0), (b"", "33", 11)),
    "unknown record": (
        (None, "", 0),
        (thin_chunk(0, 0, 2) + thin_chunk(0, 0, 9) + thin_end(3, 0, 0), "10", 12),
        (None, "", 0),
        (None, "", 0),
        (_cut(_RBD, 1) + b"x" + bytes(16) + b"e", "95", 12),
    ),
    "bytes after the end": (
        (lvmsync(PART) + b"\xff" * 12, "read as a header", 12),
        (thin_send(PART) + b"trailing", "10", 12),
        (None, "", 0),
        (None, "", 0),
        (_RBD + b"trailing", "0", 12),
    ),
    "a write past the end": (
        (lvmsync([*PART, (SIZE, bytes(512))]), "file grows", 10),
        (None, "", 0),
        (bdsync([*PART, (SIZE, bytes(512))], SIZE), "clipped, or 3", 12),
        (None, "", 0),
        (rbd_diff([*PART, (SIZE, 512)], SIZE, "a", "b"), "SIGABRT", 12),
    ),
    "another base": (
        (None, "", 0),
        (None, "", 0),
        (None, "", 0),
        (None, "", 0),
        (rbd_diff(PART, SIZE, "x", "b"), "22", 10),
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_that_was_measured_on_others_has_its_exit_status_here(
    host: Host, target: Path, fault: str
) -> None:
    for stream, _, wanted in FAULTS[fault]:
        if stream is None:
            continue
        target.write_bytes(DISK)
        host.adopt(target, "a")
        ended = recv(host, target, stream)
        assert ended.status == wanted, ended.err
        if wanted == OK:
            assert "not checked" in ended.err
            assert "its bytes" in ended.err
        elif wanted == OPEN:
            assert str(host.status(target)["id"]).startswith("unverified-")
        else:
            assert target.read_bytes() == DISK
            assert host.holds(target, "a")


def test_the_readme_shows_this_table() -> None:
    lines = [f"| fault in the stream | {' | '.join(PEERS)} |", "|---|---|---|---|---|---|"]
    for fault, row in FAULTS.items():
        cells = [f"{peer} / **{ours}**" if stream is not None else "" for stream, peer, ours in row]
        lines.append(f"| {fault} | {' | '.join(cells)} |")
    assert "\n".join(lines) in README.read_text(), "\n".join(lines)


def test_a_format_that_was_said_is_checked(host: Host, target: Path) -> None:
    older = thin_chunk(0, 512, 1, bytes.fromhex("CA7F00D5DE7EC7ED"))
    ended = recv(host, target, older, "--format", "thin-send")
    assert ended.status == ExitStatus.REFUSED
    assert "thin_send 1.0, not thin-send" in ended.err
    noise = recv(host, target, b"n" * 5000, "--format", "lvmsync")
    assert noise.status == ExitStatus.INTEGRITY
    for kind in ("lvmsync", "raw"):
        assert recv(host, target, b"", "--format", kind).status == ExitStatus.INTERRUPTED
    assert target.read_bytes() == DISK


def test_what_is_made_of_an_open_end_says_so(host: Host) -> None:
    words = ("convert", "--base", "a", "--size", str(SIZE))
    ended = host.run(*words, data=lvmsync(PART))
    assert ended.status == OPEN
    assert "standard input has no end mark" in ended.err
    believed = host.run(*words, "--goal", "b", "--accept-open-end", data=lvmsync(PART))
    assert believed.status == OK
    assert host.run("inspect", data=believed.out).status == OK
    assert host.run("convert", data=lvmsync(PART)).status == ExitStatus.USAGE
    spoken = host.run(*words, "--goal", "b", "--json", "--to", "rbd", data=lvmsync(PART))
    assert [each["event"] for each in spoken.events] == ["warning", "made"]
    assert (spoken.events[1]["base"], spoken.events[1]["goal"]) == ("a", "b")


def test_a_chunk_of_thin_send_1_0_ends_where_it_ends(host: Host, target: Path) -> None:
    magic = bytes.fromhex("CA7F00D5DE7EC7ED")
    ended = recv(host, target, thin_ranges(PART, magic), "--accept-open-end")
    assert ended.status == OK, ended.err
    assert target.read_bytes() == applied(DISK, PART)


WAITING = {
    "recv": ("recv", "target"),
    "convert": ("convert", "-"),
    "merge": ("merge", "-"),
    "inspect": ("inspect", "-"),
    "inspect of ours": ("inspect", "-"),
    "convert of ours": ("convert", "-"),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", WAITING)
def test_who_waits_for_a_stream_is_told_and_can_be_stopped(
    host: Host, target: Path, case: str
) -> None:
    stream = rbd_diff([(0, NOISE)], SIZE, "", "b")
    if case.endswith("ours"):
        stream = host.run("convert", "--compress", "none", data=stream).out
    reading, writing = os.pipe()
    words = [target if word == "target" else word for word in WAITING[case]]
    process = host.start([*words, "--json"], stdin=reading)
    os.close(reading)
    with os.fdopen(writing, "wb") as pipe:
        pipe.write(stream[:-1])
        pipe.flush()
        wait_until(lambda: f'"seen": {len(stream) - 1}' in process.said())
        process.signal(signal.SIGTERM)
        ended = process.wait()
    assert ended.status == ExitStatus.INTERRUPTED
    assert "stopped by SIGTERM" in ended.err
    assert ended.out == b""
    assert target.read_bytes() == DISK
