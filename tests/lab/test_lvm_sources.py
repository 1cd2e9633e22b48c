"""Snapshots of real LVM as sources: what is sent is what the snapshot holds, and nothing stays."""

import json
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.lab.conftest import figure
from tests.lab.guest import Done, Guest, Running

MIB = 1 << 20
CYCLES = int(os.environ.get("LAB_CYCLES", "3"))


def make_thick(lab: Guest, name: str = "vm", mib: int = 32, *options: str) -> None:
    more = " ".join(options)
    lab.run(f"lvcreate -qq -y -Wn -Zn -n {name} -L {mib}M {more} vg")


def make_thin(lab: Guest, name: str = "vm", mib: int = 32, chunk: str = "64k") -> None:
    lab.run(
        f"lvs vg/pool >/dev/null 2>&1 || "
        f"lvcreate -qq -y -Zn -c {chunk} -L 200M --poolmetadatasize 4M --thinpool pool vg"
    )
    lab.run(f"lvcreate -qq -y -Wn -V {mib}M --thinpool pool -n {name} vg")


def scribble(
    lab: Guest, device: str, seed: int, count: int, size: int = 4096, mib: int = 32
) -> None:
    """Write random blocks at random places, past the page cache."""
    rng = random.Random(seed)  # noqa: S311  # the same each time
    blocks = sorted({rng.randrange(mib * MIB // size) for _ in range(count)})
    script = (
        "import os, mmap, random, json, sys\n"
        f"fd = os.open({device!r}, os.O_WRONLY | os.O_DIRECT)\n"
        f"page = mmap.mmap(-1, {size})\n"
        f"rng = random.Random({seed})\n"
        f"for block in {blocks}:\n"
        f"    page[:] = rng.randbytes({size})\n"
        f"    os.pwrite(fd, page, block * {size})\n"
        "os.fsync(fd)\n"
    )
    lab.run("python3 -", data=script.encode())


def digest(lab: Guest, path: str) -> str:
    direct = "iflag=direct" if path.startswith("/dev/") else ""
    return lab.run(f"dd if={path} {direct} bs=1M status=none | sha256sum").split()[0]


def uuid(lab: Guest, name: str) -> str:
    return lab.run(f"lvs --noheadings -o lv_uuid vg/{name}").strip()


def names(lab: Guest) -> set[str]:
    return set(lab.run("lvs --noheadings -o lv_name vg").split())


def state(lab: Guest, target: str) -> dict[str, object]:
    done = lab.blockstream("status", "--json", target)
    assert done.status == 0, done.err
    found: dict[str, object] = json.loads(done.out.splitlines()[0])
    return found


def ok(done: Done) -> Done:
    assert done.status == 0, done.err
    return done


MAKERS: dict[str, Callable[..., None]] = {"thick": make_thick, "thin": make_thin}


@pytest.mark.parametrize("kind", ["thick", "thin"])
def test_a_volume_that_is_written_is_sent_from_a_snapshot_that_does_not_stay(
    lab: Guest, kind: str
) -> None:
    MAKERS[kind](lab)
    scribble(lab, "/dev/vg/vm", 1, 300)
    before = names(lab)
    done = ok(lab.blockstream("send", "/dev/vg/vm", "/root/copy", "--create"))
    assert digest(lab, "/root/copy") == digest(lab, "/dev/vg/vm")
    assert names(lab) == before
    assert "in use" not in done.err


@pytest.mark.parametrize("kind", ["thick", "thin"])
@pytest.mark.parametrize("quiesced", [False, True])
def test_what_changed_since_a_snapshot_is_sent(lab: Guest, kind: str, quiesced: bool) -> None:
    MAKERS[kind](lab)
    scribble(lab, "/dev/vg/vm", 1, 300)
    snapshot(lab, kind, "first")
    ok(lab.blockstream("send", "vg/first", "/root/copy", "--create"))
    assert state(lab, "/root/copy")["id"] == uuid(lab, "first")
    scribble(lab, "/dev/vg/vm", 2, 100)
    words = ["--quiesced"] if quiesced else []
    before = names(lab)
    done = ok(
        lab.blockstream("send", "/dev/vg/vm", "/root/copy", "--since", "first", "--json", *words)
    )
    committed = [json.loads(line) for line in done.err.splitlines()][-2]
    assert committed["counts"]["covered"] <= 100 * (4096 if kind == "thick" else 65536)
    assert digest(lab, "/root/copy") == digest(lab, "/dev/vg/vm")
    assert names(lab) == before


def snapshot(lab: Guest, kind: str, name: str, store: str = "16M") -> None:
    how = f"-c 4k -L {store}" if kind == "thick" else "-kn -ay"
    lab.run(f"lvcreate -qq -y -s -pr {how} -n {name} vg/vm")


# What thin_recv does with a stream of thin_send: see formats/foreign/thin_send.py.
THIN_RECEIVER = """
import fcntl, os, struct, sys
disk = os.open("/dev/vg/twin", os.O_WRONLY)
while True:
    offset, length, command = struct.unpack(">8xQQI", sys.stdin.buffer.read(28))
    if command == 0:
        os.pwrite(disk, sys.stdin.buffer.read(length), offset)
    elif command == 1:
        fcntl.ioctl(disk, 0x1277, struct.pack("QQ", offset, length))  # BLKDISCARD
    elif command == 3:
        break
os.fsync(disk)
"""


@pytest.mark.parametrize("known", [False, True])
def test_changes_in_another_tools_stream_make_a_thin_twin_equal(lab: Guest, known: bool) -> None:
    make_thin(lab)
    lab.run("lvcreate -qq -y -Wn -V 32M --thinpool pool -n twin vg")
    # Nothing of it is zeros, so that whatever is left of it shows.
    lab.run(
        "tr '\\0' x </dev/zero | head -c 32M | dd of=/dev/vg/vm bs=1M oflag=direct "
        "iflag=fullblock status=none"
    )
    lab.run("dd if=/dev/vg/vm of=/dev/vg/twin bs=1M oflag=direct status=none")
    snapshot(lab, "thin", "first")
    scribble(lab, "/dev/vg/vm", 2, 40)
    zeros = "dd if=/dev/zero of=/dev/vg/vm bs=4k oflag=direct conv=notrunc status=none"
    lab.run(f"{zeros} seek=33 count=70; {zeros} seek=1000 count=3")
    lab.run("cat >/root/receiver.py", data=THIN_RECEIVER.encode())
    words = "--format thin-send --pool-chunk 64K" if known else "--format thin-send"
    lab.run(f"blockstream send /dev/vg/vm --since first {words} >/root/stream")
    lab.run("python3 /root/receiver.py </root/stream; blockdev --flushbufs /dev/vg/twin")
    assert digest(lab, "/dev/vg/twin") == digest(lab, "/dev/vg/vm")
    lab.run("lvremove -qq -y vg/twin")


@pytest.mark.parametrize("chunk", ["4k", "64k", "512k"])
def test_every_size_of_chunk_is_understood(lab: Guest, chunk: str) -> None:
    make_thick(lab)
    scribble(lab, "/dev/vg/vm", 1, 100)
    lab.run(f"lvcreate -qq -y -s -pr -c {chunk} -L 40M -n first vg/vm")
    ok(lab.blockstream("send", "vg/first", "/root/copy", "--create"))
    scribble(lab, "/dev/vg/vm", 2, 60)
    found = json.loads(lab.blockstream("extents", "/dev/vg/vm", "--since", "first").out)
    allocated, metadata = snapshot_status(lab, "first")
    size = int(chunk[:-1]) << 10
    assert sum(e["length"] for e in found["extents"]) == (allocated - metadata) * 512
    assert all(e["offset"] % size == 0 for e in found["extents"])
    ok(lab.blockstream("send", "/dev/vg/vm", "/root/copy", "--since", "first"))
    assert digest(lab, "/root/copy") == digest(lab, "/dev/vg/vm")


def snapshot_status(lab: Guest, name: str) -> tuple[int, int]:
    words = lab.run(f"dmsetup status vg-{name}").split()
    return int(words[3].split("/")[0]), int(words[4])


def test_several_areas_of_a_table_are_read(lab: Guest) -> None:
    make_thick(lab)
    snapshot(lab, "thick", "first", "24M")
    ok(lab.blockstream("send", "vg/first", "/root/copy", "--create"))
    scribble(lab, "/dev/vg/vm", 2, 1500)
    ok(lab.blockstream("send", "/dev/vg/vm", "/root/copy", "--since", "first", "--quiesced"))
    assert digest(lab, "/root/copy") == digest(lab, "/dev/vg/vm")


def test_a_snapshot_that_overflowed_is_refused(lab: Guest) -> None:
    make_thick(lab)
    snapshot(lab, "thick", "first", "4M")
    scribble(lab, "/dev/vg/vm", 2, 2000)
    done = lab.blockstream(
        "send", "/dev/vg/vm", "/root/copy", "--since", "first", "--quiesced", "--create"
    )
    assert done.status == 14, done.err
    assert "not valid any more" in done.err
    assert lab.blockstream("extents", "/dev/vg/vm", "--since", "first").status == 14


def test_a_snapshot_that_overflows_while_it_is_sent_ends_without_end(lab: Guest) -> None:
    make_thick(lab)
    scribble(lab, "/dev/vg/vm", 1, 2000)
    before = names(lab)
    words = ["send", "/dev/vg/vm", "/root/copy", "--create", "--snapshot-size", "4M"]
    sending = stopped_at(lab, "recv.before_write", *words)
    scribble(lab, "/dev/vg/vm", 2, 2000)
    sending.signal("CONT")
    done = sending.wait()
    assert done.status == 14, done.err
    assert names(lab) == before
    assert state(lab, "/root/copy")["state"] != "clean"


@pytest.mark.parametrize("kind", ["thick", "thin"])
def test_a_killed_send_leaves_what_the_same_command_goes_on_with(lab: Guest, kind: str) -> None:
    MAKERS[kind](lab)
    scribble(lab, "/dev/vg/vm", 1, 2000)
    before = names(lab)
    words = ["send", "/dev/vg/vm", "/root/copy", "--create"]
    sending = stopped_at(lab, "send.before_intent", *words)
    (kept,) = names(lab) - before
    held = digest(lab, f"/dev/vg/{kept}")
    scribble(lab, "/dev/vg/vm", 2, 50)
    sending.signal("KILL")
    assert sending.wait().status == -9
    assert names(lab) == before | {kept}
    ok(lab.blockstream(*words))
    assert digest(lab, "/root/copy") == held
    assert names(lab) == before


def test_a_token_finds_the_snapshot_that_was_kept(lab: Guest) -> None:
    make_thick(lab)
    scribble(lab, "/dev/vg/vm", 1, 2000)
    before = names(lab)
    lab.run("truncate -s 32M /root/copy")
    limited = "blockstream send --compress none /dev/vg/vm | head -c 2500000"
    lab.run(f"{limited} | blockstream recv /root/copy; true")
    (kept,) = names(lab) - before
    held = digest(lab, f"/dev/vg/{kept}")
    scribble(lab, "/dev/vg/vm", 2, 50)
    token = state(lab, "/root/copy")["token"]
    lab.run(f"blockstream send --resume {token} /dev/vg/vm | blockstream recv /root/copy")
    assert digest(lab, "/root/copy") == held
    assert names(lab) == before


def test_a_reservation_that_a_killed_run_held_is_given_back_by_the_next(lab: Guest) -> None:
    make_thin(lab)
    snapshot(lab, "thin", "first")
    ok(lab.blockstream("send", "vg/first", "/root/copy", "--create"))
    scribble(lab, "/dev/vg/vm", 2, 50)
    slow = "#!/bin/sh\nkill -KILL $PPID\n"
    lab.run(
        "mkdir -p /root/bin && cat >/root/bin/thin_delta && chmod +x /root/bin/*",
        data=slow.encode(),
    )
    words = ["send", "/dev/vg/vm", "/root/copy", "--since", "first", "--quiesced"]
    path = lab.run("printf %s /root/bin:$PATH")
    assert lab.blockstream(*words, PATH=path).status == -9
    assert held_root(lab) != "-"
    ok(lab.blockstream(*words))
    assert held_root(lab) == "-"
    assert digest(lab, "/root/copy") == digest(lab, "/dev/vg/vm")


def test_a_reservation_of_somebody_else_is_left_alone(lab: Guest) -> None:
    make_thin(lab)
    snapshot(lab, "thin", "first")
    lab.run("dmsetup message vg-pool-tpool 0 reserve_metadata_snap")
    done = lab.blockstream("extents", "/dev/vg/vm", "--since", "first")
    assert done.status == 10, done.err
    assert "reserved by somebody else" in done.err
    assert held_root(lab) != "-"


def held_root(lab: Guest) -> str:
    return lab.run("dmsetup status vg-pool-tpool").split()[6]


@pytest.mark.parametrize("kind", ["thick", "thin"])
def test_rotation_keeps_one_snapshot_and_turns_it_over_when_committed(
    lab: Guest, kind: str
) -> None:
    MAKERS[kind](lab)
    words = ["send", "/dev/vg/vm", "/root/copy", "--since", "last", "--rotate"]
    done = lab.blockstream(*words[:-1], "--create")
    assert done.status == 17, done.err
    before = names(lab)
    kept: set[str] = set()
    for round_ in range(4):
        scribble(lab, "/dev/vg/vm", round_, 60)
        done = ok(lab.blockstream(*words, "--json", *(["--create"] if not round_ else [])))
        counts = json.loads(done.err.splitlines()[-2])["counts"]
        assert round_ == 0 or counts["covered"] <= 60 * 65536
        assert len(names(lab) - before) == 1
        assert names(lab) - before != kept
        kept = names(lab) - before
        assert digest(lab, "/root/copy") == digest(lab, f"/dev/vg/{next(iter(kept))}")
        assert state(lab, "/root/copy")["id"] == uuid(lab, next(iter(kept)))


@pytest.mark.parametrize("kind", ["thick", "thin"])
def test_a_snapshot_that_cannot_be_removed_is_named_and_leads_nobody_back(
    lab: Guest, kind: str
) -> None:
    MAKERS[kind](lab)
    words = ["send", "/dev/vg/vm", "/root/copy", "--since", "last", "--rotate"]
    before = names(lab)
    ok(lab.blockstream(*words, "--create"))
    (held,) = names(lab) - before
    lab.run(f"lvchange -y -ay -K vg/{held}")
    lab.run(f"setsid sleep 600 </dev/vg/{held} >/dev/null 2>&1 & echo $! >/root/holder")
    try:
        for round_ in range(2):
            scribble(lab, "/dev/vg/vm", round_, 60)
            done = lab.blockstream(*words)
            assert done.status == 21, done.err
            assert f"snapshot vg/{held} stays" in done.err
            newest = names(lab) - before - {held}
            assert len(newest) == 1
            assert digest(lab, "/root/copy") == digest(lab, "/dev/vg/vm")
            assert state(lab, "/root/copy")["id"] == uuid(lab, next(iter(newest)))
    finally:
        lab.run("kill $(cat /root/holder)")
    ok(lab.blockstream(*words))
    assert len(names(lab) - before) == 1
    assert digest(lab, "/root/copy") == digest(lab, "/dev/vg/vm")


@pytest.mark.timeout(120 + 30 * CYCLES)
@pytest.mark.parametrize("kind", ["thick", "thin"])
def test_every_cycle_equals_its_snapshot_while_somebody_writes(lab: Guest, kind: str) -> None:
    MAKERS[kind](lab)
    lab.run("cat >/root/writer.py", data=(Path(__file__).parent / "writer.py").read_bytes())
    lab.run("setsid python3 /root/writer.py /dev/vg/vm /root/log 50 >/dev/null 2>&1 </dev/null &")
    try:
        words = ["send", "/dev/vg/vm", "/root/copy", "--since", "last", "--rotate"]
        before = names(lab)
        for cycle in range(CYCLES):
            ok(lab.blockstream(*words, *(["--create"] if not cycle else [])))
            (kept,) = names(lab) - before
            assert digest(lab, "/root/copy") == digest(lab, f"/dev/vg/{kept}")
        assert digest(lab, "/root/copy") != digest(lab, "/dev/vg/vm")
        figure("cycles", kind=kind, cycles=CYCLES)
    finally:
        lab.run("pkill -KILL -f [w]riter.py; sleep 0.2")


def test_discarded_chunks_of_a_thin_volume_travel_as_zeros(lab: Guest) -> None:
    make_thin(lab)
    scribble(lab, "/dev/vg/vm", 1, 200, 65536)
    snapshot(lab, "thin", "first")
    ok(lab.blockstream("send", "vg/first", "/root/copy", "--create"))
    lab.run("blkdiscard -o 4M -l 8M /dev/vg/vm")
    done = ok(lab.blockstream("send", "/dev/vg/vm", "/root/copy", "--since", "first", "--json"))
    counts = json.loads(done.err.splitlines()[-2])["counts"]
    assert counts["zeros"] >= counts["covered"] > 0
    assert counts["data"] == 0
    assert digest(lab, "/root/copy") == digest(lab, "/dev/vg/vm")


def test_chunks_that_were_discarded_over_an_external_origin_show_it_again(lab: Guest) -> None:
    """They went over as zeros, with status 0."""
    make_thick(lab, "golden")
    scribble(lab, "/dev/vg/golden", 3, 400, 65536)
    lab.run("lvchange -qq -an vg/golden && lvchange -qq -pr vg/golden")
    lab.run("lvcreate -qq -y -Zn -c 64k -L 100M --poolmetadatasize 4M --thinpool pool vg")
    lab.run("lvcreate -qq -y -s --thinpool vg/pool -n vm vg/golden && lvchange -qq -ay -K vg/vm")
    scribble(lab, "/dev/vg/vm", 1, 200, 65536)
    snapshot(lab, "thin", "first")
    ok(lab.blockstream("send", "vg/first", "/root/copy", "--create"))
    lab.run("cp --sparse=always /root/copy /root/other")
    lab.run("blkdiscard -o 4M -l 8M /dev/vg/vm")
    listed = ok(lab.blockstream("extents", "/dev/vg/vm", "--since", "first")).out
    assert '"zero": true' not in listed.replace("'", '"')
    ok(lab.blockstream("send", "/dev/vg/vm", "/root/copy", "--since", "first"))
    shown = digest(lab, "/dev/vg/vm")
    assert digest(lab, "/root/copy") == shown
    # A list that thin_delta wrote into a file does not say what the chunks show.
    lab.run(
        "dmsetup message vg-pool-tpool 0 reserve_metadata_snap; thin_delta -m --snap1 "
        "$(lvs --noheadings -o thin_id vg/first) --snap2 $(lvs --noheadings -o thin_id vg/vm) "
        "/dev/mapper/vg-pool_tmeta >/root/delta; s=$?; "
        "dmsetup message vg-pool-tpool 0 release_metadata_snap; exit $s"
    )
    ok(lab.blockstream("adopt", "/root/other", "--id", "first"))
    words = ("--base", "first", "--goal", "now", "--extents", "/root/delta")
    ok(lab.blockstream("send", "/dev/vg/vm", "/root/other", *words))
    assert digest(lab, "/root/other") == shown
    lab.run("rm /root/other /root/delta")


@pytest.mark.parametrize("kind", ["thick", "thin"])
def test_a_kept_snapshot_from_before_the_base_is_not_its_goal(lab: Guest, kind: str) -> None:
    """The target equalled nothing, with status 0."""
    MAKERS[kind](lab)
    scribble(lab, "/dev/vg/vm", 1, 200)
    before = names(lab)
    sending = stopped_at(lab, "send.before_intent", "send", "/dev/vg/vm", "/root/copy", "--create")
    (kept,) = names(lab) - before
    sending.signal("KILL")
    sending.wait()
    scribble(lab, "/dev/vg/vm", 2, 200)
    lab.run("sleep 1")
    snapshot(lab, kind, "later")
    ok(lab.blockstream("send", "vg/later", "/root/copy"))
    scribble(lab, "/dev/vg/vm", 3, 20)
    done = ok(lab.blockstream("send", "/dev/vg/vm", "/root/copy", "--since", "later"))
    assert f"vg/{kept}, which an earlier run left, is older than vg/later: not used" in done.err
    assert digest(lab, "/root/copy") == digest(lab, "/dev/vg/vm")
    assert names(lab) == before | {"later"}


def test_who_goes_on_with_a_kept_snapshot_is_told_how_old_it_is(lab: Guest) -> None:
    make_thick(lab)
    before = names(lab)
    words = ["send", "/dev/vg/vm", "/root/copy", "--create"]
    sending = stopped_at(lab, "send.before_intent", *words)
    (kept,) = names(lab) - before
    sending.signal("KILL")
    sending.wait()
    done = ok(lab.blockstream(*words))
    assert f"this goes on with vg/{kept}, which an earlier run made " in done.err
    assert "what was written to vg/vm since is not sent" in done.err


def test_a_kept_snapshot_that_overflowed_is_dropped_and_all_is_sent(lab: Guest) -> None:
    """The same command failed for ever."""
    make_thick(lab)
    before = names(lab)
    words = ["send", "/dev/vg/vm", "/root/copy", "--since", "last", "--rotate"]
    ok(lab.blockstream(*words, "--create", "--snapshot-size", "4M"))
    (kept,) = names(lab) - before
    lost = uuid(lab, kept)
    scribble(lab, "/dev/vg/vm", 2, 2000)
    refused = lab.blockstream(*words, "--on-lost-base", "fail")
    assert refused.status == 14, refused.err
    assert f"vg/{kept}, which was kept for the next time, has overflowed" in refused.err
    assert names(lab) == before | {kept}
    done = ok(lab.blockstream(*words, "--on-lost-base", "full"))
    assert f"vg/{kept}, which was kept for the next time, has overflowed, and was rem" in done.err
    assert "all of its 32.0 MiB, because" in done.err
    assert digest(lab, "/root/copy") == digest(lab, "/dev/vg/vm")
    (new,) = names(lab) - before
    assert uuid(lab, new) != lost
    scribble(lab, "/dev/vg/vm", 3, 20)
    done = ok(lab.blockstream(*words))
    assert "overflowed" not in done.err
    assert digest(lab, "/root/copy") == digest(lab, "/dev/vg/vm")
    wrong = lab.blockstream("send", "/dev/vg/vm", "/root/copy", "--on-lost-base", "full")
    assert wrong.status == 2, wrong.err


@pytest.mark.parametrize("kind", ["thick", "thin"])
def test_names_with_dashes_are_names(lab: Guest, kind: str) -> None:
    MAKERS[kind](lab, "my-vm--disk-1")
    lab.run(
        f"lvcreate -qq -y -s -pr {'-c 4k -L 8M' if kind == 'thick' else '-kn -ay'} "
        "-n a-snap- vg/my-vm--disk-1"
    )
    ok(lab.blockstream("send", "vg/a-snap-", "/root/copy", "--create"))
    scribble(lab, "/dev/vg/my-vm--disk-1", 2, 50)
    words = ["/dev/mapper/vg-my--vm----disk--1", "/root/copy", "--since", "/dev/vg/a-snap-"]
    ok(lab.blockstream("send", *words))
    assert digest(lab, "/root/copy") == digest(lab, "/dev/vg/my-vm--disk-1")


@pytest.mark.parametrize(
    "options", [("-i", "2"), ("--type", "mirror", "-m", "1"), ("--type", "raid1", "-m", "1")]
)
def test_striped_and_mirrored_volumes_are_sent(lab: Guest, options: tuple[str, ...]) -> None:
    make_thick(lab, "vm", 32, *options, "--nosync" if "-m" in options else "")
    lab.run("blkdiscard -z /dev/vg/vm")  # legs that were never written may differ
    scribble(lab, "/dev/vg/vm", 1, 300)
    snapshot(lab, "thick", "first")
    ok(lab.blockstream("send", "vg/first", "/root/copy", "--create"))
    scribble(lab, "/dev/vg/vm", 2, 100)
    ok(lab.blockstream("send", "/dev/vg/vm", "/root/copy", "--since", "first"))
    assert digest(lab, "/root/copy") == digest(lab, "/dev/vg/vm")


@pytest.mark.parametrize("kind", ["thick", "thin"])
def test_what_is_not_active_is_activated_and_put_back(lab: Guest, kind: str) -> None:
    MAKERS[kind](lab)
    scribble(lab, "/dev/vg/vm", 1, 100)
    snapshot(lab, kind, "first")
    held = digest(lab, "/dev/vg/vm")
    lab.run("lvchange -qq -an vg/first" if kind == "thin" else "lvchange -qq -an vg/vm")
    ok(lab.blockstream("send", "vg/first", "/root/copy", "--create"))
    active = lab.run("lvs --noheadings -o lv_active vg/first").split()
    assert active == []
    assert digest(lab, "/root/copy") == held


def test_a_merge_is_noticed(lab: Guest) -> None:
    make_thick(lab)
    snapshot(lab, "thick", "first", "24M")
    scribble(lab, "/dev/vg/vm", 1, 1500)
    lab.run("exec 3</dev/vg/vm; lvconvert -qq --merge vg/first")  # begins at the next activation
    done = lab.blockstream("send", "/dev/vg/vm", "/root/copy", "--since", "first", "--create")
    assert done.status in {10, 14, 17}, done.err
    assert "merge" in done.err or "no volume" in done.err


def test_without_room_for_a_snapshot_it_is_said_what_to_do(lab: Guest) -> None:
    make_thick(lab, "vm", 32)
    lab.run("lvcreate -qq -y -Wn -Zn -n full -l 100%FREE vg")
    done = lab.blockstream("send", "/dev/vg/vm", "/root/copy", "--create")
    assert done.status == 14, done.err
    assert "needs room in vg" in done.err
    assert "--quiesced" in done.err
    ok(lab.blockstream("send", "/dev/vg/vm", "/root/copy", "--create", "--quiesced"))
    assert digest(lab, "/root/copy") == digest(lab, "/dev/vg/vm")


def stopped_at(lab: Guest, point: str, *words: str) -> Running:
    """Start a command that stops itself at a point, and wait until it has."""
    running = lab.start_blockstream(*words, BLOCKSTREAM_FAILPOINT=f"{point}:1:stop")
    running.wait_for_stop()
    return running


@pytest.mark.parametrize("kind", ["thick", "thin"])
def test_snapshots_of_others_that_can_be_written_are_sources_and_bases(
    lab: Guest, kind: str
) -> None:
    MAKERS[kind](lab)
    scribble(lab, "/dev/vg/vm", 1, 300)
    lab.run(f"lvcreate -qq -y -s {'-L 16M' if kind == 'thick' else '-kn'} -n other vg/vm")
    before = names(lab)
    done = lab.blockstream("send", "vg/other", "/root/copy", "--create")
    if kind == "thick":
        assert done.status == 10, done.err
        assert "of which LVM makes no snapshot; nothing was sent; give --quiesced" in done.err
        done = lab.blockstream("send", "vg/other", "/root/copy", "--create", "--quiesced")
    ok(done)
    assert digest(lab, "/root/copy") == digest(lab, "/dev/vg/other")
    # What was sent was a snapshot of it, or it as it was, under a name of its own.
    ok(lab.blockstream("adopt", "/root/copy", "--id", uuid(lab, "other"), "--force-base"))
    # Both are written from now on.
    scribble(lab, "/dev/vg/vm", 2, 50)
    scribble(lab, "/dev/vg/other", 3, 50)
    ok(lab.blockstream("send", "vg/vm", "/root/copy", "--since", "other"))
    assert digest(lab, "/root/copy") == digest(lab, "/dev/vg/vm")
    assert names(lab) == before


@pytest.mark.parametrize("kind", ["thick", "thin"])
def test_what_the_target_holds_stays_until_it_holds_something_newer(lab: Guest, kind: str) -> None:
    """A plain send removed the base of the next rotation, and was killed before it had another."""
    MAKERS[kind](lab)
    words = ["send", "vg/vm", "/root/copy"]
    ok(lab.blockstream(*words, "--create", "--rotate", "--since", "last"))
    kept = names(lab)
    scribble(lab, "/dev/vg/vm", 2, 20)
    died = lab.blockstream(*words, BLOCKSTREAM_FAILPOINT="recv.ready:1:kill")
    assert died.status == -9, died.err
    assert kept < names(lab)
    done = ok(lab.blockstream(*words, "--rotate", "--since", "last", "--json"))
    committed = [json.loads(line) for line in done.err.splitlines()][-2]
    assert committed["counts"]["covered"] < 8 * MIB
    assert digest(lab, "/root/copy") == digest(lab, "/dev/vg/vm")
    assert len(names(lab)) == len(kept)


@pytest.mark.parametrize("way", ["data", "zeros"])
def test_a_pool_that_does_not_zero_its_chunks_shows_nothing_old(lab: Guest, way: str) -> None:
    """Of a chunk that was written in part the rest showed what had lain there before."""
    lab.run(
        "lvcreate -qq -y -Wn -Zn -n old -L 240M vg; tr '\\0' x </dev/zero | "
        "dd of=/dev/vg/old bs=1M iflag=fullblock oflag=direct status=none 2>/dev/null; "
        "lvremove -qq -f vg/old"
    )
    make_thin(lab, "target")
    make_thick(lab)
    lab.run("blkdiscard -z /dev/vg/vm; blkdiscard /dev/vg/target")
    snapshot(lab, "thick", "first")
    ok(lab.blockstream("send", "vg/first", "/dev/vg/target"))
    if way == "data":
        scribble(lab, "/dev/vg/vm", 2, 100)
        words = ["send", "vg/vm", "/dev/vg/target", "--since", "first", "--quiesced"]
    else:
        rows = [{"offset": at, "length": 4096, "kind": "zero"} for at in (4096, MIB)]
        head = {"format": "blockstream-extents", "version": 1, "size": 32 * MIB}
        changed = head | {"meaning": "changed", "extents": rows}
        lab.run("cat >/root/list", data=json.dumps(changed).encode())
        words = ["send", "vg/vm", "/dev/vg/target", "--quiesced", "--extents", "/root/list"]
        words += ["--base", uuid(lab, "first"), "--goal", "next"]
    ok(lab.blockstream(*words))
    assert digest(lab, "/dev/vg/target") == digest(lab, "/dev/vg/vm")
