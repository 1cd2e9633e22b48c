"""Volumes move between two hosts while somebody writes: every record that was durable is there."""

import json
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.conftest import figure
from tests.lab.guest import Done, Guest
from tests.lab.test_lvm_sources import MAKERS, digest, make_thick, make_thin, names, scribble

WRITER = (Path(__file__).parent / "writer.py").read_bytes()
BLOCK = 4096
RUNS = int(os.environ.get("LAB_RUNS", "1"))
# A process that waits for the disk stops only when what it wrote is there.
STOP = (
    "pid=$(pgrep -f [w]riter.py) && kill -STOP $pid && "
    "until grep -q '^State:.T' /proc/$pid/status; do sleep 0.05; done"
)
# Long limits: an emulated processor takes seconds for what a real one does in tenths, and on a busy
# machine the rounds do not get shorter.
HOOKS = (
    *("--max-downtime", "60", "--on-no-converge", "go"),
    *("--pause", STOP),
    *("--start", "touch /root/started"),
    *("--roll-back", "pkill -CONT -f [w]riter.py; touch /root/back"),
)
WAY = ("--rsh", "ssh", "--remote-command", "blockstream-warm", "--max-downtime", "60")


@pytest.fixture
def writer(src: Guest) -> Iterator[Guest]:
    """Let a program write to vg/vm of the first host, at a fixed rate."""
    src.run("cat >/root/writer.py; rm -f /root/back /root/log", data=WRITER)
    yield src
    src.ssh("pkill -KILL -f [w]riter.py")


def begin(src: Guest, rate: int = 30) -> None:
    src.run(
        f"setsid python3 /root/writer.py /dev/vg/vm /root/log {rate} >/root/writer.err 2>&1 "
        "</dev/null & until [ -s /root/log ]; do sleep 0.05; done"
    )


def last_records(src: Guest) -> dict[int, int]:
    """Return the number of the last record that was noted of each block."""
    log = bytes.fromhex(src.run("od -An -v -tx1 /root/log").replace(" ", "").replace("\n", ""))
    return {
        block: number for number, block in struct.iter_unpack("<QQ", log[: len(log) // 16 * 16])
    }


def wrong_records(src: Guest, dst: Guest) -> list[list[int]]:
    """Return what of the other host's volume does not hold what was written last.

    The record after the last one that was noted may be there, too: its writer was stopped between
    the write and the note.

    Returns:
        Block, the number that was noted, and the one that is there; 0 for no record.
    """
    script = (
        "import hashlib, json, os, struct, sys\n"
        "wrong = []\n"
        "disk = open('/dev/vg/vm', 'rb')\n"
        "records = json.loads(sys.stdin.read())\n"
        "for block, number in records.items():\n"
        "    disk.seek(int(block) * 4096)\n"
        "    record = disk.read(48)\n"
        "    there, where = struct.unpack_from('<QQ', record)\n"
        "    if where != int(block) or record[16:] != hashlib.sha256(record[:16]).digest():\n"
        "        there = 0\n"
        "    if there not in {number, max(records.values()) + 1}:\n"
        "        wrong.append([int(block), number, there])\n"
        "print(json.dumps(wrong))\n"
    )
    dst.run("cat >/root/check.py", data=script.encode())
    records = last_records(src)
    assert records
    found: list[list[int]] = json.loads(
        dst.run("python3 /root/check.py", data=json.dumps(records).encode())
    )
    return found


def migrate(src: Guest, *words: str, **environment: str) -> Done:
    places = ["vg/vm", "dst:vg/vm", "--snapshot-size", "64M"]
    return src.blockstream("migrate", *places, "--json", *WAY, *words, **environment)


def report(done: Done) -> dict[str, object]:
    assert done.status == 0, done.err
    events = [json.loads(line) for line in done.err.splitlines()]
    return next(event for event in events if event["event"] == "migrated")


@pytest.mark.parametrize("run", range(RUNS))
@pytest.mark.parametrize("kind", ["thick", "thin"])
def test_a_running_writer_moves_and_nothing_is_lost(
    writer: Guest, dst: Guest, kind: str, run: int
) -> None:
    src = writer
    MAKERS[kind](src)
    create = ["--create"]
    if kind == "thin":
        make_thin(dst, "other", 4)
        create += ["--pool", "pool"]
    scribble(src, "/dev/vg/vm", 1, 500)
    before = names(src)
    begin(src)
    done = migrate(src, *create, *HOOKS)
    values = report(done)
    assert dst.run("ls /root/started && rm /root/started")
    assert wrong_records(src, dst) == []
    assert digest(dst, "/dev/vg/vm") == digest(src, "/dev/vg/vm")
    assert names(src) == before
    assert len(values["rounds"]) >= 3  # type: ignore[arg-type]
    assert 0 < values["downtime"] < 120  # type: ignore[operator]
    figure("migrate", kind=kind, rounds=len(values["rounds"]), downtime=values["downtime"])  # type: ignore[arg-type]


def test_without_the_last_delta_records_would_be_lost(writer: Guest, dst: Guest) -> None:
    src = writer
    make_thick(src)
    begin(src, 50)
    done = migrate(src, "--create", *HOOKS, "--start", "exit 7")
    assert done.status == 11, done.err
    src.run("sleep 2; pkill -STOP -f [w]riter.py")
    assert wrong_records(src, dst) != []


def test_a_start_that_fails_brings_the_guest_back_and_the_same_command_goes_on(
    writer: Guest, dst: Guest
) -> None:
    src = writer
    make_thick(src)
    before = names(src)
    begin(src)
    done = migrate(src, "--create", *HOOKS, "--start", "echo no memory >&2; exit 7")
    assert done.status == 11, done.err
    assert "--start failed on dst with status 7: no memory" in done.err
    assert src.run("ls /root/back")
    records = len(src.run("cat /root/log"))
    src.run("sleep 1")
    assert len(src.run("cat /root/log")) > records  # it writes again
    assert "dst:/dev/vg/vm, which was made for this" in done.err
    assert "`blockstream migrate --abort vg/vm` removes it" in done.err
    values = report(migrate(src, *HOOKS))
    assert wrong_records(src, dst) == []
    assert digest(dst, "/dev/vg/vm") == digest(src, "/dev/vg/vm")
    assert names(src) == before
    assert dst.run("lvs --noheadings -o lv_tags vg").split() == []
    assert src.run("lvs --noheadings -o lv_tags vg").split() == []
    # It went on from the snapshot of the first run, although a last pass lay between.
    assert values["rounds"][0]["covered"] < 16 << 20  # type: ignore[index]


def test_all_that_is_wrong_is_said_at_once_and_nothing_is_done(src: Guest, dst: Guest) -> None:
    make_thick(src, "vm", 32)
    make_thick(src, "other", 64)
    make_thick(dst, "vm", 16)
    words = ["migrate", "vg/vm", "vg/other", "vg/none", "dst:vg", "--quiesced", "--rsh", "ssh"]
    done = src.blockstream(*words)
    assert done.status == 10, done.err
    for text in (
        "vg/none is no logical volume of this host",
        "dst: vg/vm has 16777216 bytes, the source 33554432",
        "dst: vg/other does not exist; --create makes it",
        "nothing was done",
    ):
        assert text in done.err
    assert names(src) == {"vm", "other"}
    assert names(dst) == {"vm"}


@pytest.mark.parametrize("point", ["send.first_data", "send.before_intent", "send.after_end"])
def test_a_run_that_was_killed_is_gone_on_with(writer: Guest, dst: Guest, point: str) -> None:
    src = writer
    make_thin(src)
    make_thin(dst, "other", 4)
    scribble(src, "/dev/vg/vm", 1, 300)
    before = names(src)
    begin(src)
    words = ["--create", "--pool", "pool", *HOOKS]
    died = migrate(src, *words, BLOCKSTREAM_FAILPOINT=f"{point}:2:kill")
    assert died.status == -9, died.err
    done = src.blockstream("migrate", "--resume", "vg/vm", "--json")
    report(done)
    assert wrong_records(src, dst) == []
    assert digest(dst, "/dev/vg/vm") == digest(src, "/dev/vg/vm")
    assert names(src) == before


def test_a_guest_that_writes_too_fast_is_said_to_and_runs_on(writer: Guest, dst: Guest) -> None:
    src = writer
    make_thick(src)
    before = names(src)
    begin(src, 500)
    words = ["--create", *HOOKS, "--max-downtime", "1.05", "--on-no-converge", "stop"]
    words += ["--bwlimit", "1M"]
    done = migrate(src, *words)
    assert done.status == 10, done.err
    assert "does not converge: the guest changes" in done.err
    assert src.ssh("ls /root/back").status != 0  # it was never paused
    # What stays is named, and does not stay for ever.
    (kept,) = names(src) - before
    assert f"there stay vg/{kept} and dst:/dev/vg/vm, which was made for this" in done.err
    assert src.blockstream("migrate", "--abort", "vg/vm").status == 0
    assert names(src) == before
    assert names(dst) == set()


def test_a_line_that_is_cut_in_the_pause_does_not_keep_the_guest_still(
    writer: Guest, dst: Guest
) -> None:
    """It stood still for 103 to 111 s where 5 were allowed."""
    src = writer
    make_thick(src)
    before = names(src)
    begin(src)
    noted = "cut -d' ' -f1 /proc/uptime >/root/"
    cut = f"{STOP}; {noted}paused; ip link set eth1 down"
    awake = f"pkill -CONT -f [w]riter.py; {noted}back"
    words = ["--create", *HOOKS, "--max-downtime", "10", "--pause", cut, "--roll-back", awake]
    try:
        done = migrate(src, *words)
        assert done.status == 11, done.err
        assert "the guest is woken" in done.err
        assert (
            "the last pass did not end within the 10 s that the guest may stand still" in done.err
        )
        paused, back = (float(src.run(f"cat /root/{each}")) for each in ("paused", "back"))
        assert 9 < back - paused < 60
    finally:
        src.run("ip link set eth1 up")
    report(migrate(src, "--create", *HOOKS))
    assert wrong_records(src, dst) == []
    assert names(src) == before


def test_a_pause_that_is_slow_ends_with_the_run_that_was_killed(writer: Guest, dst: Guest) -> None:
    """It went on alone, and stopped a guest that nobody was left to wake."""
    src = writer
    make_thick(src)
    begin(src)
    slow = f"touch /root/slow; (sleep 3601; {STOP}; touch /root/stopped) & wait"
    running = src.start_blockstream(
        *("migrate", "vg/vm", "dst:vg/vm", "--create", *HOOKS, "--pause", slow),
        *("--rsh", "ssh", "--remote-command", "blockstream-warm"),
    )
    src.run("until [ -e /root/slow ]; do sleep 0.05; done")
    running.signal("KILL")
    assert running.wait().status == -9
    src.run("while pgrep -xf 'sleep 3601'; do sleep 0.1; done")
    src.run("[ ! -e /root/stopped ] && rm /root/slow")
    assert src.blockstream("migrate", "--abort", "vg/vm").status == 0
    assert names(dst) == set()


def test_what_an_earlier_place_has_is_removed_in_the_end(src: Guest, dst: Guest) -> None:
    make_thick(src)
    died = migrate(src, "--create", "--quiesced", BLOCKSTREAM_FAILPOINT="send.after_end:1:kill")
    assert died.status == -9, died.err
    assert names(dst) == {"vm"}
    done = src.blockstream(
        "migrate", "vg/vm", "dst:vg/other", "--create", "--quiesced", "--json", *WAY
    )
    report(done)
    assert "an earlier migration of vg/vm to dst:/dev/vg/vm was not finished" in done.err
    assert names(src) == {"vm"}
    assert names(dst) == {"other"}
    for host in (src, dst):
        assert host.run("lvs --noheadings -o lv_tags vg").split() == []


def test_what_is_left_is_found_without_a_note(src: Guest, dst: Guest) -> None:
    make_thick(src)
    for name in ("vm", "other"):
        died = src.blockstream(
            *("migrate", "vg/vm", f"root@dst:vg/{name}", "--create", "--quiesced", "--rsh", "ssh"),
            BLOCKSTREAM_FAILPOINT="send.after_end:1:kill",
        )
        assert died.status == -9, died.err
        src.run("rm -r /var/lib/blockstream")
    assert names(dst) == {"vm", "other"}
    assert src.blockstream("migrate", "--resume", "vg/vm").status == 17
    done = src.blockstream("migrate", "--abort", "vg/vm", "--rsh", "ssh")
    assert done.status == 0, done.err
    assert names(src) == {"vm"}
    assert names(dst) == set()
    assert src.run("lvs --noheadings -o lv_tags vg").split() == []
    assert src.blockstream("migrate", "--abort", "vg/vm", "--rsh", "ssh").status == 17


def test_a_volume_is_not_sent_while_it_moves_nor_moved_while_it_is_sent(
    src: Guest, dst: Guest
) -> None:
    make_thick(src)
    words = ["migrate", "vg/vm", "dst:vg/vm", "--create", "--quiesced", "--rsh", "ssh"]
    moving = src.start_blockstream(*words, BLOCKSTREAM_FAILPOINT="send.hello:1:stop")
    moving.wait_for_stop()
    done = src.blockstream("send", "vg/vm", "/root/copy", "--create")
    assert done.status == 10, done.err
    assert "another blockstream moves vg/vm now" in done.err
    moving.signal("KILL")
    moving.wait()
    sending = src.start_blockstream(
        *("send", "vg/vm", "/root/copy", "--create"), BLOCKSTREAM_FAILPOINT="recv.ready:1:stop"
    )
    sending.wait_for_stop()
    other = src.start_blockstream("send", "vg/vm", "/root/copy2", "--create")
    assert other.wait().status == 0  # to another target, at the same time
    done = src.blockstream(*words)
    assert done.status == 10, done.err
    assert "another blockstream sends or moves vg/vm now" in done.err
    sending.signal("KILL")
    sending.wait()
    assert src.blockstream("migrate", "--abort", "vg/vm").status == 0


def test_a_volume_that_is_renamed_on_its_way_is_named(src: Guest, dst: Guest) -> None:
    make_thin(src)
    words = [*("migrate", "vg/vm", "dst:vg/vm", "--create", "--quiesced"), *WAY]
    running = src.start_blockstream(*words, BLOCKSTREAM_FAILPOINT="send.after_end:1:stop")
    running.wait_for_stop()
    src.run("lvrename vg vm new")
    running.signal("CONT")
    done = running.wait()
    assert done.status == 10, done.err
    assert "vg/vm is called vg/new now: somebody renamed it" in done.err
    src.run("lvrename vg new vm")
    report(src.blockstream(*words, "--json"))
    assert digest(dst, "/dev/vg/vm") == digest(src, "/dev/vg/vm")
    assert names(src) == {"vm", "pool"}


@pytest.mark.parametrize("kind", ["thick", "thin"])
def test_a_snapshot_that_somebody_else_removes_is_named(src: Guest, dst: Guest, kind: str) -> None:
    MAKERS[kind](src)
    words = [*("migrate", "vg/vm", "dst:vg/vm", "--create"), *WAY]
    hooks = [*("--on-no-converge", "go", "--roll-back", "true"), "--pause"]
    take = "lvremove -qq -f $(lvs --noheadings -o lv_full_name -S 'lv_name=~^blockstream' vg)"
    done = src.blockstream(*words, *hooks, take)
    assert done.status == 17, done.err
    assert "is not there any more: somebody removed it" in done.err
    report(src.blockstream(*words, "--quiesced", "--json"))
    assert digest(dst, "/dev/vg/vm") == digest(src, "/dev/vg/vm")
    assert names(src) & {"vm", "pool"} == names(src)


def test_of_a_chunk_only_what_was_written_goes_over(src: Guest, dst: Guest) -> None:
    """Chunks of 64 KiB went over whole in the pause, for 4 KiB each that had been written."""
    make_thin(src)
    make_thin(dst, "unused", 4)
    scribble(src, "/dev/vg/vm", 1, 3000)
    words = ["migrate", "vg/vm", "dst:vg/vm", "--create", "--pool", "pool", "--quiesced", *WAY]
    # In the first round of changes, so that what comes now goes over in the last pass.
    running = src.start_blockstream(*words, "--json", BLOCKSTREAM_FAILPOINT="send.hello:2:stop")
    running.wait_for_stop()
    scribble(src, "/dev/vg/vm", 2, 200)
    running.signal("CONT")
    values = report(running.wait())
    assert digest(dst, "/dev/vg/vm") == digest(src, "/dev/vg/vm")
    assert 0 < values["rounds"][-1]["covered"] <= 200 * 4096  # type: ignore[index]


def test_abort_wakes_the_guest_and_cleans_both_hosts(writer: Guest, dst: Guest) -> None:
    src = writer
    make_thick(src)
    before = names(src)
    begin(src)
    died = migrate(src, "--create", *HOOKS, "--pause", f"{STOP}; kill -KILL $PPID")
    assert died.status == -9, died.err
    done = src.blockstream("migrate", "--abort", "vg/vm")
    assert done.status == 0, done.err
    assert src.run("ls /root/back")
    assert names(src) == before
    assert names(dst) == set()
    assert src.blockstream("migrate", "--abort", "vg/vm").status == 17


def test_a_volume_that_was_there_is_neither_overwritten_by_create_nor_removed(
    src: Guest, dst: Guest
) -> None:
    make_thick(src)
    make_thick(dst)
    done = migrate(src, "--create", "--quiesced")
    assert done.status == 10, done.err
    assert "dst: vg/vm exists already; without --create it is overwritten" in done.err
    died = migrate(src, "--quiesced", BLOCKSTREAM_FAILPOINT="send.before_intent:1:kill")
    assert died.status == -9, died.err
    assert src.blockstream("migrate", "--abort", "vg/vm").status == 0
    assert names(dst) == {"vm"}
    assert names(src) == {"vm"}


def test_several_volumes_move_and_both_sides_are_compared(src: Guest, dst: Guest) -> None:
    for number, name in enumerate(("root", "data")):
        make_thick(src, name, 16)
        scribble(src, f"/dev/vg/{name}", number, 100, mib=16)
    words = ["migrate", "vg/root", "vg/data", "dst:vg", "--create", "--quiesced", "--verify"]
    report(src.blockstream(*words, "--json", *WAY))
    for name in ("root", "data"):
        assert digest(dst, f"/dev/vg/{name}") == digest(src, f"/dev/vg/{name}")
    assert names(src) == names(dst) == {"root", "data"}
    assert dst.run("lvs --noheadings -o lv_tags vg").split() == []


def test_a_guest_is_woken_although_the_other_host_is_gone(writer: Guest, dst: Guest) -> None:
    src = writer
    make_thick(src)
    begin(src)
    dying = ["--pause", f"{STOP}; kill -KILL $PPID"]
    assert migrate(src, "--create", *HOOKS, *dying).status == -9
    src.run("ip link set eth1 down")
    try:
        done = src.blockstream("migrate", "--abort", "vg/vm")
        assert done.status == 21, done.err
        assert "the guest runs here, but something of ours is left" in done.err
        assert src.run("ls /root/back")
        assert names(src) == {"vm"}
    finally:
        src.run("ip link set eth1 up")
    assert src.blockstream("migrate", "--abort", "vg/vm").status == 0
    assert names(dst) == set()


def test_a_guest_that_cannot_be_woken_is_said_to_stand_still(writer: Guest, dst: Guest) -> None:
    src = writer
    make_thick(src)
    begin(src)
    words = ["--start", "exit 7", "--roll-back", "test -e /root/mended && touch /root/back"]
    done = migrate(src, "--create", *HOOKS, *words)
    assert done.status == 11, done.err
    assert "THE GUEST STANDS STILL" in done.err
    src.run("touch /root/mended")
    assert src.blockstream("migrate", "--abort", "vg/vm").status == 0
    assert src.run("ls /root/back; rm /root/mended")
    assert names(dst) == set()


def test_a_snapshot_that_overflows_is_begun_again_with_more_room(src: Guest, dst: Guest) -> None:
    make_thick(src)
    scribble(src, "/dev/vg/vm", 1, 300)
    words = ["migrate", "vg/vm", "dst:vg/vm", "--create", "--quiesced", "--snapshot-size", "4M"]
    running = src.start_blockstream(
        *words, *WAY, "--json", BLOCKSTREAM_FAILPOINT="send.hello:2:stop"
    )
    running.wait_for_stop()  # in the first delta, with the snapshot that it is counted from
    scribble(src, "/dev/vg/vm", 2, 1500, mib=8)
    running.signal("CONT")
    done = running.wait()
    values = report(done)
    assert "begins again with twice the room" in done.err
    assert digest(dst, "/dev/vg/vm") == digest(src, "/dev/vg/vm")
    assert names(src) == {"vm"}
    first = values["rounds"][0]  # type: ignore[index]
    assert first["covered"] <= 8 << 20  # only what differed


def test_the_old_host_is_brought_up_to_date_from_the_new_one(src: Guest, dst: Guest) -> None:
    make_thick(src)
    scribble(src, "/dev/vg/vm", 1, 1000)
    report(migrate(src, "--create", "--quiesced"))
    scribble(dst, "/dev/vg/vm", 2, 20)
    words = ["migrate", "vg/vm", "src:vg/vm", "--revert", "--quiesced", "--json"]
    values = report(dst.blockstream(*words, *WAY))
    assert digest(dst, "/dev/vg/vm") == digest(src, "/dev/vg/vm")
    assert values["rounds"][0]["covered"] <= 20 * 65536  # type: ignore[index]
    assert names(src) == names(dst) == {"vm"}
