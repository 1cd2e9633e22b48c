"""A session with another host ends committed, or says why, whatever becomes of its connections."""

import os
import shlex
import signal
import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

import pytest

from blockstream.linux.identity import lock_holder_of
from blockstream_protocol import MAGIC
from tests.devices import rigged
from tests.end_to_end.far_host import far_command, far_status
from tests.end_to_end.hosts import Ended, Host, Words, Zygote, altered, failing_at, wait_until
from tests.rotation import share
from tests.ssh_server import SshServer

MIB = 1 << 20


# From one end to the other.


@pytest.mark.slow
def test_whole_and_changes_are_committed_there_and_the_base_advances(
    host: Host, way: list[str]
) -> None:
    disk, copy = host.disk("disk", 3 * MIB), host.folder / "copy"
    ended = host.run("send", disk, f"lab:{copy}", "--create", "--goal", "A", *way)
    assert ended.status == 0, ended.err
    assert f"committed: lab:{copy} holds A" in ended.err
    assert copy.read_bytes() == disk.read_bytes()
    new = host.changed("new", disk)
    changes = host.list_changes("changes", new, disk)
    disk.write_bytes(new.read_bytes())
    words: list[str | Path] = ["--base", "last", "--goal", "B", "--extents", changes]
    ended = host.run("send", disk, f"lab:{copy}", *words, *way)
    assert ended.status == 0, ended.err
    assert copy.read_bytes() == new.read_bytes()
    assert far_status(host, copy)["id"] == "B"


@pytest.mark.slow
def test_what_the_receiver_knows_by_samples_alone_is_said_here(host: Host, way: list[str]) -> None:
    disk, copy = host.disk("disk"), host.folder / "copy"
    ended = host.run("send", disk, f"lab:{copy}", "--create", "--goal", "A", *way)
    assert ended.status == 0, ended.err
    new = host.changed("new", disk)
    changes = host.list_changes("changes", new, disk)
    words: list[str | Path] = [new, "--base", "A", "--goal", "B", "--extents", changes]
    copy.chmod(0o640)
    ended = host.run("send", *words, f"lab:{copy}", *way)
    assert ended.status == 0, ended.err
    assert f"{copy} was compared with its base by samples alone, because" in ended.err
    assert copy.read_bytes() == new.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("differs", [False, True])
def test_a_base_there_is_read_where_somebody_may_have_written(
    host: Host, way: list[str], *, differs: bool
) -> None:
    """Only digests travel; of a block of 64 KiB that is changed in part, the rest goes as well."""
    size = 3 * MIB + 4096
    disk, copy = host.disk("disk", size), host.folder / "copy"
    ended = host.run("send", disk, f"lab:{copy}", "--create", "--goal", "A", *way)
    assert ended.status == 0, ended.err
    new = host.folder / "new"
    content = bytearray(disk.read_bytes())
    content[MIB : MIB + 4096] = b"n" * 4096
    content[-512:] = b"e" * 512
    new.write_bytes(content)
    changes = host.list_changes("changes", new, disk)
    with copy.open("r+b") as file:
        file.seek(2 * MIB if differs else MIB + 8192)  # beside the change, in its block
        file.write(b"w" * 512)
    words: list[str | Path] = [new, "--base", "A", "--goal", "B", "--extents", changes]
    refused = host.run("send", *words, f"lab:{copy}", *way)
    assert refused.status == 10, refused.err
    assert "`send --check-base`" in refused.err
    ended = host.run("send", *words, f"lab:{copy}", "--check-base", *way)
    if differs:
        assert ended.status == 10, ended.err
        assert f"differs from the source at offset {2 * MIB}" in ended.err
    else:
        assert ended.status == 0, ended.err
        assert "held the base: all that was not sent was read" in ended.err
        assert copy.read_bytes() == new.read_bytes()


@pytest.mark.slow
def test_who_writes_between_the_look_at_the_base_and_the_increment_is_noticed(host: Host) -> None:
    """The target is not held from one connection to the next."""
    disk, copy = host.disk("disk", 3 * MIB), host.folder / "copy"
    command = ["--remote-command", far_command(host)]
    way = [*command, "--rsh", "sh -c {command}"]
    ended = host.run("send", disk, f"lab:{copy}", "--create", "--goal", "A", *way)
    assert ended.status == 0, ended.err
    new = host.changed("new", disk)
    changes = host.list_changes("changes", new, disk)
    between = host.folder / "between"
    between.write_text(
        f'#!/bin/sh\nif mkdir {between}.once 2>/dev/null; then exec sh -c "$1"; fi\n'
        f"printf w | dd of={copy} conv=notrunc bs=1 seek={2 * MIB + 77} 2>/dev/null\n"
        'exec sh -c "$1"\n'
    )
    between.chmod(0o755)
    words: list[str | Path] = [new, "--base", "A", "--goal", "B", "--extents", changes]
    way = [*command, "--rsh", f"{between} {{command}}", "--check-base"]
    ended = host.run("send", *words, f"lab:{copy}", *way)
    assert ended.status == 10, ended.err
    assert "was written since its last commit" in ended.err


@pytest.mark.slow
def test_a_disk_is_fetched(host: Host, way: list[str]) -> None:
    disk, copy = host.disk("disk", 3 * MIB), host.folder / "copy"
    ended = host.run("send", f"lab:{disk}", copy, "--create", "--goal", "A", *way)
    assert ended.status == 0, ended.err
    assert copy.read_bytes() == disk.read_bytes()
    assert host.holds(copy, "A")


@pytest.mark.slow
def test_what_the_source_of_a_fetch_has_to_say_is_passed_on(host: Host, way: list[str]) -> None:
    disk, copy = host.disk("disk", MIB), host.folder / "copy"
    disk.write_bytes(b"QFI\xfb" + disk.read_bytes()[4:])
    ended = host.run("send", f"lab:{disk}", copy, "--create", *way)
    assert ended.status == 0, ended.err
    assert f"blockstream: note: lab: {disk} is a qcow2 image" in ended.err
    # Where it fails, the reason is said, and not what was noted before.
    ended = host.run("send", f"lab:{disk}", copy, "--base", "x", "--goal", "y", *way)
    assert ended.status != 0
    assert "qcow2" not in ended.err
    assert "an increment needs to know" in ended.err


@pytest.mark.slow
def test_each_who_fetches_has_a_last_base_of_its_own(host: Host, way: list[str]) -> None:
    disk, before = host.disk("disk"), host.folder / "before"
    copies = [host.folder / "one", host.folder / "two"]
    for copy in copies:
        ended = host.run("send", f"lab:{disk}", copy, "--create", "--goal", "A", *way)
        assert ended.status == 0, ended.err
    before.write_bytes(disk.read_bytes())
    # The second one misses B, which would be no base of its.
    for goal, copy in zip(("B", "C"), copies, strict=True):
        disk.write_bytes(altered(disk.read_bytes(), ord(goal)))
        changes = host.list_changes(f"changes-{goal}", disk, before)
        words: Words = ["--base", "last", "--goal", goal, "--extents", changes]
        ended = host.run("send", f"lab:{disk}", copy, *words, *way)
        assert ended.status == 0, ended.err
        assert copy.read_bytes() == disk.read_bytes()


@pytest.mark.slow
def test_what_the_receiver_refuses_is_said_here_in_its_words(host: Host, way: list[str]) -> None:
    disk, small = host.disk("disk"), host.blank("small", 4096)
    ended = host.run("send", disk, f"lab:{small}", *way)
    assert ended.status == 10
    assert "lab: the source has 300000 bytes, the target only 4096; nothing was" in ended.err
    assert "make it at least as large as the source" in ended.err
    assert "connecting again" not in ended.err


@pytest.mark.slow
def test_a_target_that_is_not_there_is_said_here(host: Host, way: list[str]) -> None:
    ended = host.run("send", host.disk("disk"), f"lab:{host.folder}/none", *way)
    assert ended.status == 10
    assert f"lab: {host.folder}/none does not exist; nothing was written" in ended.err


@pytest.mark.slow
def test_a_program_that_is_not_there_ends_it_at_once(host: Host, way: list[str]) -> None:
    missing = [*way, "--remote-command", "/none/blockstream"]
    ended = host.run("send", host.disk("disk"), f"lab:{host.folder}/copy", *missing)
    assert ended.status == 17
    assert "blockstream was not found on lab" in ended.err
    assert "/none/blockstream" in ended.err  # the shell's own words


@pytest.mark.slow
def test_a_path_is_one_word_for_the_other_hosts_shell(host: Host, way: list[str]) -> None:
    disk, copy = host.disk("disk"), host.folder / "a 'copy'; touch pwned; $(id); --force-base"
    ended = host.run("send", disk, f"lab:{copy}", "--create", *way)
    assert ended.status == 0, ended.err
    assert copy.read_bytes() == disk.read_bytes()


@pytest.mark.slow
def test_a_transfer_whose_both_ends_were_killed_is_continued_by_the_same_command(
    eager: Host, way: list[str]
) -> None:
    disk, copy = eager.disk("disk", 5 * MIB), eager.folder / "copy"
    words: list[str | Path] = ["send", disk, f"lab:{copy}", "--create", "--json", *way]
    words[words.index("--remote-command") + 1] = far_command(eager)
    killed = eager.run(*words, environment=failing_at("send.checkpoint:3:kill"))
    assert killed.status < 0
    wait_until(lambda: far_status(eager, copy)["state"] == "dirty")
    ended = eager.run(*words)
    assert ended.status == 0, ended.err
    assert copy.read_bytes() == disk.read_bytes()
    committed = next(e for e in ended.events if e["event"] == "sent")
    counts = committed["counts"]
    assert isinstance(counts, dict)
    assert counts["covered"] == 5 * MIB
    assert counts["wire"] < 5 * MIB  # what was durable did not travel again
    assert counts["durable"] == 5 * MIB


@pytest.mark.slow
def test_what_is_there_already_is_committed_whoever_brought_it(host: Host, way: list[str]) -> None:
    disk, copy = host.disk("disk"), host.folder / "copy"
    words: list[str | Path] = ["send", disk, f"lab:{copy}", "--create", *way]
    assert host.run(*words, "--goal", "A").status == 0
    elsewhere = {"BLOCKSTREAM_STATE_DIR": str(host.folder / "elsewhere")}
    words.remove("--create")
    ended = host.run(*words, "--goal", "A", environment=elsewhere)
    assert ended.status == 0, ended.err
    changes = host.list_changes("changes", host.changed("new", disk), disk)
    again: Words = [*words, "--base", "last", "--extents", changes]
    ended = host.run(*again, environment=elsewhere)
    assert ended.status == 0, ended.err


@pytest.mark.slow
def test_no_name_that_another_disk_was_given_is_taken_over_there(
    eager: Host, way: list[str]
) -> None:
    disk, copy = eager.disk("disk", 5 * MIB), eager.blank("copy", 5 * MIB)
    words: list[str | Path] = ["send", disk, f"lab:{copy}", *way]
    words[words.index("--remote-command") + 1] = far_command(eager)
    killed = eager.run(*words, "--goal", "monday", environment=failing_at("send.checkpoint:3:kill"))
    assert killed.status < 0
    wait_until(lambda: far_status(eager, copy)["state"] == "dirty")
    disk.write_bytes(disk.read_bytes()[:-4096] + bytes(4096))
    ended = eager.run(*words)
    assert ended.status == 0, ended.err
    assert copy.read_bytes() == disk.read_bytes()
    assert far_status(eager, copy)["id"] != "monday"


@pytest.mark.slow
def test_a_stopped_sender_says_how_much_is_durable_there(eager: Host, way: list[str]) -> None:
    disk, copy = eager.disk("disk", 8 * MIB), eager.folder / "copy"
    words: list[str | Path] = ["send", disk, f"lab:{copy}", "--create", "--bwlimit", "1M", *way]
    words[words.index("--remote-command") + 1] = far_command(eager)
    sender = eager.start(words)
    wait_until(lambda: copy.exists() and far_status(eager, copy)["state"] == "dirty")
    sender.signal(signal.SIGINT)
    ended = sender.wait()
    assert ended.status == 11
    assert f"stopped by SIGINT; lab:{copy} is unfinished" in ended.err
    assert "bytes are durable there; the same command continues" in ended.err


@pytest.mark.slow
def test_a_rehearsal_asks_the_target_and_changes_nothing(host: Host, way: list[str]) -> None:
    disk, copy = host.disk("disk"), host.blank("copy", 300_000)
    ended = host.run("send", "-n", disk, f"lab:{copy}", "--goal", "A", *way)
    assert ended.status == 0, ended.err
    assert f"lab:{copy} would take a full copy to A; nothing was written" in ended.err
    made = host.folder / "made"
    ended = host.run("send", "-n", disk, f"lab:{made}", "--create", *way)
    assert ended.status == 0, ended.err
    assert not made.exists()
    changes = host.list_everything("list", 300_000)
    ended = host.run("send", "-n", disk, f"lab:{copy}", "--base", "B", "--extents", changes, *way)
    assert ended.status == 10
    assert "lab: the increment starts from base 'B', but nothing is known" in ended.err
    assert copy.read_bytes() == bytes(300_000)
    assert far_status(host, copy)["state"] in {"unknown", "unheard of"}


# Connections that break.


@pytest.mark.slow
def test_it_connects_again_by_itself_and_goes_on(
    eager: Host, breaking: Callable[..., list[str]]
) -> None:
    disk, copy = eager.disk("disk", 5 * MIB), eager.folder / "copy"
    cuts = [{"to": MIB}, {"to": 500}, {"to": MIB + 400_000}]
    way = breaking(*cuts, far=far_command(eager))
    ended = eager.run("send", disk, f"lab:{copy}", "--create", "--compress", "none", *way)
    assert ended.status == 0, ended.err
    assert ended.err.count("connecting again") == 3
    assert copy.read_bytes() == disk.read_bytes()


@pytest.mark.slow
def test_a_fetch_connects_again_by_itself(eager: Host, breaking: Callable[..., list[str]]) -> None:
    disk, copy = eager.disk("disk", 5 * MIB), eager.folder / "copy"
    way = breaking({"from": MIB}, {"from": 2 * MIB}, far=far_command(eager))
    ended = eager.run("send", f"lab:{disk}", copy, "--create", "--compress", "none", *way)
    assert ended.status == 0, ended.err
    assert ended.err.count("connecting again") == 2
    assert "--resume" not in ended.err
    assert copy.read_bytes() == disk.read_bytes()


@pytest.mark.slow
def test_only_cuts_without_progress_between_them_count(
    eager: Host, breaking: Callable[..., list[str]]
) -> None:
    disk, copy = eager.disk("disk", 9 * MIB), eager.folder / "copy"
    way = breaking({"to": 2_200_000}, {"to": 2_200_000}, far=far_command(eager))
    # Slowly, so that answers are back before the cut.
    words = ["--create", "--compress", "none", "--retry", "1", "--bwlimit", "4M"]
    ended = eager.run("send", disk, f"lab:{copy}", *words, *way)
    assert ended.status == 0, ended.err
    assert ended.err.count("connecting again in 1 s") == 2
    assert copy.read_bytes() == disk.read_bytes()


@pytest.mark.slow
def test_a_lost_committed_is_asked_for_again_and_nothing_is_written_twice(
    host: Host, breaking: Callable[..., list[str]]
) -> None:
    disk, copy = host.disk("disk"), host.folder / "copy"
    whole = far_command(host)
    # What comes back up to the first ACK is known from a session that is not cut.
    log = host.folder / "back"
    tee = ["--rsh", f"sh -c '{{command}} | tee {log}'", "--remote-command", whole]
    assert host.run("send", disk, f"lab:{host.folder}/other", "--create", *tee).status == 0
    before = log.stat().st_size - 40  # in the middle of COMMITTED
    ended = host.run("send", disk, f"lab:{copy}", "--create", *breaking({"from": before}))
    assert ended.status == 0, ended.err
    assert ended.err.count("connecting again") == 1
    assert copy.read_bytes() == disk.read_bytes()


@pytest.mark.slow
def test_without_retries_a_cut_is_the_end(host: Host, breaking: Callable[..., list[str]]) -> None:
    disk, copy = host.disk("disk", 9 * MIB), host.folder / "copy"
    words = ["--create", "--compress", "none", "--retry", "0"]
    ended = host.run("send", disk, f"lab:{copy}", *words, *breaking({"to": MIB}))
    assert ended.status == 11
    assert "the connection to lab was lost" in ended.err


@pytest.mark.slow
def test_a_source_that_changed_meanwhile_is_sent_from_its_beginning(
    eager: Host, breaking: Callable[..., list[str]]
) -> None:
    disk, copy = eager.disk("disk", 4 * MIB), eager.folder / "copy"
    words: list[str | Path] = ["send", disk, f"lab:{copy}", "--create", "--compress", "none"]
    cut = eager.run(*words, "--retry", "0", *breaking({"to": 2 * MIB}, far=far_command(eager)))
    assert cut.status in {11, 15}  # END may have been on its way
    disk.write_bytes(b"changed" + disk.read_bytes()[7:])
    ended = eager.run(*words, *breaking(far=far_command(eager)))
    assert ended.status == 0, ended.err
    assert copy.read_bytes() == disk.read_bytes()


@pytest.mark.slow
def test_bytes_one_at_a_time_are_enough(host: Host, breaking: Callable[..., list[str]]) -> None:
    disk, copy = host.disk("disk", 20_000), host.folder / "copy"
    ended = host.run("send", disk, f"lab:{copy}", "--create", *breaking({"piece": 1}))
    assert ended.status == 0, ended.err
    assert copy.read_bytes() == disk.read_bytes()


class Wire:
    """Two ends of a session, with a limit on what each lets through."""

    def __init__(self, host: Host, disk: Path, copy: Path) -> None:
        self._host, self._disk, self._copy = host, disk, copy

    def run(self, to: int | None = None, back: int | None = None) -> tuple[Ended, Ended]:
        """Run both; cut after so many bytes; return how sender and receiver ended."""
        to_far, far_in = os.pipe(), os.pipe()
        from_far, near_in = os.pipe(), os.pipe()
        far = self._host.start(
            ["recv", "--session", self._copy], stdin=far_in[0], stdout=from_far[1]
        )
        near = self._host.start(
            ["send", "--session", self._disk], stdin=near_in[0], stdout=to_far[1]
        )
        for fd in (far_in[0], from_far[1], near_in[0], to_far[1]):
            os.close(fd)
        pumps = [
            threading.Thread(target=_pump, args=ends, daemon=True)
            for ends in ((to_far[0], far_in[1], to), (from_far[0], near_in[1], back))
        ]
        for pump in pumps:
            pump.start()
        ended = near.wait(), far.wait()
        for pump in pumps:
            pump.join()
        return ended


def _pump(reading: int, writing: int, limit: int | None) -> None:
    """Move at most `limit` bytes, and then let neither side see the other any more."""
    left = limit
    with suppress(OSError):
        while left is None or left > 0:
            data = os.read(reading, 65_536 if left is None else min(left, 65_536))
            if not data:
                break
            left = None if left is None else left - len(data)
            os.write(writing, data)
    os.close(reading)
    os.close(writing)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("direction", ["to", "back"])
def test_a_session_cut_anywhere_ends_and_the_next_one_finishes_it(
    quick: Host, direction: str
) -> None:
    disk, copy = quick.disk("disk", 9_000), quick.blank("copy", 9_000)
    wire = Wire(quick, disk, copy)
    for cut in share(range(0, 1_600, 5)):
        near, far = wire.run(**{direction: cut})
        assert near.status in {0, 11, 15}, near.err
        assert far.status in {0, 11}, far.err
        near, far = wire.run()
        assert (near.status, far.status) == (0, 0), (cut, near.err, far.err)
        assert copy.read_bytes() == disk.read_bytes()
        copy.unlink()
        quick.blank("copy", 9_000)


@pytest.mark.slow
@pytest.mark.root
@pytest.mark.needs("nbdkit:python", "nbdfuse")
@pytest.mark.parametrize("pings", [True, False])
def test_a_flush_may_take_longer_than_a_peer_may_be_silent(
    zygote: Zygote, tmp_path: Path, pings: bool
) -> None:
    patience = {"IDLE_SECONDS": 2.0, "PING_SECONDS": 0.2 if pings else 60.0}
    with closing(Host(tmp_path, zygote, limits=patience)) as host:
        disk, blank = host.disk("disk", MIB), host.blank("t", MIB)
        with rigged(tmp_path, blank) as rig:
            rig.order(slow=4)
            near, far = Wire(host, disk, Path(rig.devices["t"])).run()
            assert rig.hits() > 0
            if pings:
                assert (near.status, far.status) == (0, 0), (near.err, far.err)
                assert rig.image("t").read_bytes() == disk.read_bytes()
            else:
                assert near.status in {11, 15}
                assert "the receiver was silent for 2 s" in near.err


# Several sessions.


@pytest.mark.slow
def test_a_receiver_takes_one_session_after_the_other(host: Host) -> None:
    disk, copy = host.disk("disk", 3 * MIB), host.blank("copy", 3 * MIB)
    answers, far_out = os.pipe()
    far_in, stream = os.pipe()
    far = host.start(["recv", "--session", "--standing", copy], stdin=far_in, stdout=far_out)
    os.close(far_in)
    os.close(far_out)
    for number in range(20):
        content = bytearray(disk.read_bytes())
        content[number * 100 : number * 100 + 9] = b"%09d" % number
        disk.write_bytes(content)
        near = host.start(["send", "--session", disk], stdin=answers, stdout=stream).wait()
        assert near.status == 0, near.err
        assert copy.read_bytes() == disk.read_bytes()
    os.close(stream)
    ended = far.wait()
    os.close(answers)
    assert (ended.status, ended.err) == (0, "")


def test_a_receiver_whose_next_session_is_cut_says_so(host: Host) -> None:
    copy = host.blank("copy", MIB)
    ended = host.run("recv", "--session", "--standing", copy, data=b"")
    assert (ended.status, ended.err) == (0, "")
    ended = host.run("recv", "--session", "--standing", copy, data=MAGIC[:-1])
    assert (ended.status, "ends inside a frame" in ended.err) == (11, True), ended.err
    assert host.run("recv", "--standing", copy, data=b"").status == 2


# Several connections.


@pytest.mark.slow
@pytest.mark.parametrize("streams", ["2", "3", "7"])
def test_one_disk_goes_over_several_connections(host: Host, way: list[str], streams: str) -> None:
    disk, copy = host.disk("disk", 9 * MIB), host.folder / "copy"
    words = ["--create", "--streams", streams]
    ended = host.run("send", disk, f"lab:{copy}", *words, *way)
    assert ended.status == 0, ended.err
    assert copy.read_bytes() == disk.read_bytes()
    back = host.folder / "back"
    ended = host.run("send", f"lab:{disk}", back, *words, *way)
    assert ended.status == 0, ended.err
    assert back.read_bytes() == disk.read_bytes()


@pytest.mark.slow
def test_one_lost_connection_of_several_loses_nothing(
    eager: Host, breaking: Callable[..., list[str]]
) -> None:
    disk, copy = eager.disk("disk", 9 * MIB), eager.folder / "copy"
    words = ["--create", "--streams", "3", "--compress", "none"]
    way = breaking({"to": 300_000}, {}, {}, far=far_command(eager))
    ended = eager.run("send", disk, f"lab:{copy}", *words, *way)
    assert ended.status == 0, ended.err
    assert ended.err.count("connecting again") == 1
    assert copy.read_bytes() == disk.read_bytes()


@pytest.mark.slow
def test_auto_is_one_connection_on_a_short_way(
    host: Host, server: SshServer, tmp_path: Path
) -> None:
    disk, copy = host.disk("disk"), host.folder / "copy"
    options = ["--ssh-config", str(server.config), "--remote-command", far_command(host)]
    ended = host.run("send", disk, f"lab:{copy}", "--create", "--streams", "auto", *options)
    assert ended.status == 0, ended.err


# Several disks.


@pytest.mark.slow
def test_a_set_of_disks_is_committed_together(host: Host, way: list[str]) -> None:
    disks = [host.disk(f"disk{number}", (number + 1) * MIB, number) for number in range(3)]
    there = host.folder / "there"
    there.mkdir()
    ended = host.run("send", *disks, f"lab:{there}/", "--create", "--json", *way)
    assert ended.status == 0, ended.err
    assert sum(event["event"] == "sent" for event in ended.events) == 3
    for disk in disks:
        assert (there / disk.name).read_bytes() == disk.read_bytes()
        assert far_status(host, there / disk.name)["state"] == "clean"


@pytest.mark.slow
def test_if_one_disk_of_a_set_cannot_go_none_is_committed(host: Host, way: list[str]) -> None:
    disks = [host.disk(f"disk{number}", MIB, number) for number in range(3)]
    there = host.folder / "there"
    there.mkdir()
    for number, disk in enumerate(disks):
        (there / disk.name).write_bytes(bytes(MIB if number != 1 else MIB // 2))
    ended = host.run("send", *disks, f"lab:{there}/", *way)
    assert ended.status == 10
    assert "the source has 1048576 bytes, the target only 524288" in ended.err
    for disk in disks[::2]:
        assert far_status(host, there / disk.name)["state"] != "clean"
    (there / "disk1").write_bytes(bytes(MIB))
    ended = host.run("send", *disks, f"lab:{there}/", *way)
    assert ended.status == 0, ended.err
    for disk in disks:
        assert (there / disk.name).read_bytes() == disk.read_bytes()


@pytest.mark.slow
def test_a_disk_of_a_set_that_loses_its_connection_is_waited_for(
    eager: Host, breaking: Callable[..., list[str]]
) -> None:
    disks = [eager.disk(f"disk{number}", 9 * MIB, number) for number in range(2)]
    there = eager.folder / "there"
    there.mkdir()
    way = breaking({"to": 2 * MIB}, far=far_command(eager))
    words = ["--create", "--compress", "none"]
    ended = eager.run("send", *disks, f"lab:{there}/", *words, *way)
    assert ended.status == 0, ended.err
    assert ended.err.count("connecting again") == 1
    for disk in disks:
        assert (there / disk.name).read_bytes() == disk.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("killed", [signal.SIGKILL, signal.SIGCONT])
def test_a_set_of_which_only_a_part_was_committed_is_told_so(
    host: Host, killed: signal.Signals
) -> None:
    disks = [host.disk(f"disk{number}", MIB, number) for number in range(2)]
    there, early, late = (host.folder / name for name in ("there", "early", "late"))
    there.mkdir()
    stopping = "export BLOCKSTREAM_TESTING=1 BLOCKSTREAM_FAILPOINT=recv.before_clean:1:stop"
    script = host.folder / "far"
    script.write_text(
        f'#!/bin/sh\ncase "$*" in\n*disk1*) mkdir {late}.once && {stopping} && echo $$ > {late};;\n'
        f'*) {far_command(host)} "$@"; echo $? > {early}; exit;;\n'
        f'esac\nexec {far_command(host)} "$@"\n'
    )
    script.chmod(0o755)
    way = ["--rsh", "sh -c {command}", "--remote-command", str(script), "--retry", "0"]
    words: list[str | Path] = ["send", *disks, f"lab:{there}/", "--create", *way]
    sender = host.start(words)
    wait_until(lambda: late.exists() and late.read_text().endswith("\n"))
    late_one = int(late.read_text())
    wait_until(lambda: state_of(late_one) == "T")
    wait_until(early.exists)
    time.sleep(0.3)  # what it said last is on its way
    os.kill(late_one, killed)
    ended = sender.wait()
    if killed is signal.SIGCONT:
        assert ended.status == 0, ended.err
        return
    assert ended.status == 18, ended.err
    assert f"{disks[0]} had been committed by then" in ended.err
    assert far_status(host, there / "disk0")["state"] == "clean"
    assert far_status(host, there / "disk1")["state"] == "dirty"
    ended = host.run(*words, "--json")
    assert ended.status == 0, ended.err
    for disk in disks:
        assert (there / disk.name).read_bytes() == disk.read_bytes()
        assert far_status(host, there / disk.name)["state"] == "clean"
    for event in ended.events:  # nothing travelled twice
        assert event["event"] != "sent" or event["counts"]["wire"] < MIB // 8


def state_of(pid: int) -> str:
    """Return the kernel's letter for what a process does."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


# Compared by digests.


def spoilt(path: Path, *offsets: int) -> None:
    """Write to a disk behind everybody's back."""
    with path.open("r+b") as file:
        for offset in offsets:
            file.seek(offset)
            file.write(b"somebody else")


@pytest.mark.slow
@pytest.mark.parametrize("size", [0, 1, 65_536, 3 * MIB, 3 * MIB + 70_001])
def test_equal_disks_are_equal_and_others_are_not(host: Host, way: list[str], size: int) -> None:
    disk, copy = host.disk("disk", size), host.folder / "copy"
    copy.write_bytes(disk.read_bytes())
    ended = host.run("verify", disk, f"lab:{copy}", *way)
    assert ended.status == 0, ended.err
    assert f"equal: lab:{copy} holds" in ended.err
    if size < MIB:
        return
    spoilt(copy, 5, size - 1)
    before = copy.read_bytes()[:size]
    copy.write_bytes(before)
    ended = host.run("verify", disk, f"lab:{copy}", *way)
    assert ended.status == 12
    assert "65536 bytes at offset 0; " in ended.err
    last = (size - 1) // 65_536 * 65_536
    assert f"{size - last} bytes at offset {last}; nothing was written; --repair" in ended.err
    assert copy.read_bytes() == before


@pytest.mark.slow
@pytest.mark.parametrize("words", [["verify", "--repair"], ["send", "--compare"]])
def test_only_what_differs_travels(host: Host, way: list[str], words: list[str]) -> None:
    disk, copy = host.disk("disk", 8 * MIB), host.folder / "copy"
    copy.write_bytes(disk.read_bytes())
    spoilt(copy, 100, 5 * MIB)
    ended = host.run(words[0], disk, f"lab:{copy}", "--json", *words[1:], *way)
    assert ended.status == 0, ended.err
    assert copy.read_bytes() == disk.read_bytes()
    assert far_status(host, copy)["state"] == "clean"
    if words[0] == "send":
        counts = next(e for e in ended.events if e["event"] == "sent")["counts"]
        assert isinstance(counts, dict)
        assert counts["covered"] == 2 * 65_536
        notes = [e["message"] for e in ended.events if e["event"] == "warning"]
        assert any("comparing first" in str(note) for note in notes)


@pytest.mark.slow
def test_a_source_that_is_written_after_it_was_compared_is_not_committed(
    host: Host, breaking: Callable[..., list[str]]
) -> None:
    disk, copy = host.disk("disk", 3 * MIB), host.folder / "copy"
    copy.write_bytes(disk.read_bytes())
    spoilt(copy, 100)
    # Between the comparison and the transfer, where the way to the other host is made again.
    write = f"printf x | dd of={disk} bs=1 seek=2000000 conv=notrunc status=none"
    far = f"{far_command(host)}"
    script = host.folder / "far"
    script.write_text(f'#!/bin/sh\ncase "$1" in recv) {write};; esac\nexec {far} "$@"\n')
    script.chmod(0o755)
    ended = host.run("send", disk, f"lab:{copy}", "--compare", *breaking(far=str(script)))
    assert ended.status == 14, ended.err
    assert "was written while it was read" in ended.err
    assert far_status(host, copy)["state"] == "dirty"


@pytest.mark.slow
def test_a_half_written_disk_is_compared_and_made_whole(
    eager: Host, breaking: Callable[..., list[str]]
) -> None:
    disk, copy = eager.disk("disk", 9 * MIB), eager.folder / "copy"
    far = far_command(eager)
    words = ["--create", "--compress", "none", "--retry", "0"]
    cut = eager.run("send", disk, f"lab:{copy}", *words, *breaking({"to": 2 * MIB}, far=far))
    assert cut.status == 11
    ended = eager.run("send", disk, f"lab:{copy}", "--compare", *breaking(far=far))
    assert ended.status == 0, ended.err
    assert copy.read_bytes() == disk.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("cut", [0, 10, 100, 5_000])
def test_digests_that_were_cut_say_nothing(
    host: Host, breaking: Callable[..., list[str]], cut: int
) -> None:
    disk, copy = host.disk("disk", 32 * MIB), host.folder / "copy"
    copy.write_bytes(disk.read_bytes())
    ended = host.run("verify", disk, f"lab:{copy}", *breaking({"from": cut}))
    assert ended.status == 11
    assert "equal" not in ended.err


@pytest.mark.slow
def test_what_cannot_be_compared_is_said(host: Host, way: list[str]) -> None:
    disk, small = host.disk("disk"), host.blank("small", 4096)
    ended = host.run("verify", disk, f"lab:{small}", *way)
    assert ended.status == 10
    assert "they cannot be equal" in ended.err
    ended = host.run("verify", disk, f"lab:{host.folder}/none", *way)
    assert ended.status == 17
    assert f"lab: {host.folder}/none does not exist" in ended.err


# Words.


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["lab:/a", "lab:/b"], "one of SOURCE and TARGET has to be on this host"),
        (["lab:/a"], "a SOURCE of another host needs a TARGET here"),
        (["ssh://lab", "x"], "is not ssh://"),
        (["disk", "ssh://-oProxyCommand/y"], "names no host"),
        (["disk", "copy", "--rsh", "ssh"], "needs another host"),
        (["disk", "lab:/x", "--rsh", "ssh", "--host-keys", "accept-new"], "for our own ssh"),
        (["disk", "lab:/x", "--require-receipt"], "has no effect here"),
        (["disk", "lab:/x", "--rsh", "'"], "is no command"),
        (["disk", "disk", "lab:/x"], "several SOURCEs go to HOST:, HOST:/FOLDER/ or a store"),
        (["disk", "disk", "lab:"], "two SOURCEs would go to lab:"),
        (["disk", "lab:/x", "--streams", "17"], "--streams is auto, or 1 to 16"),
    ],
)
def test_what_makes_no_sense_is_said(host: Host, words: Words, said: str) -> None:
    host.disk("disk")
    ended = host.run("send", *[host.folder / w if w == "disk" else w for w in words])
    assert ended.status == 2, ended.err
    assert said in ended.err


def test_a_receiver_waits_for_whoever_holds_its_target(host: Host) -> None:
    disk, copy = host.disk("disk"), host.blank("copy", 300_000)
    stream = host.stream(disk, "--goal", "A")
    first = host.start(["recv", copy], stdin=(pipe := os.pipe())[0])
    os.close(pipe[0])
    os.write(pipe[1], stream[:100])
    with copy.open() as file:
        wait_until(lambda: lock_holder_of(file.fileno()))
    assert host.run("recv", copy, data=stream).status == 10
    second_end = os.pipe()
    second = host.start(["recv", copy, "--lock-wait", "20"], stdin=second_end[0])
    os.close(second_end[0])
    os.close(pipe[1])
    assert first.wait().status == 11
    os.write(second_end[1], stream)
    os.close(second_end[1])
    assert second.wait().status == 0


# Peers that mean harm.


@pytest.mark.slow
@pytest.mark.parametrize(
    "far",
    [
        "cat /dev/zero",
        "yes 'not a stream'",
        "head -c 100000000 /dev/urandom",
        r"printf '\211BSX\r\n\032\n'; cat /dev/zero",
        r"printf '\211BSX\r\n\032\n'; yes",
        "head -c 60; cat",  # our own words, given back in part
    ],
)
@pytest.mark.parametrize("fetch", [False, True])
def test_a_far_program_that_sends_nonsense_is_refused_in_little_memory(
    host: Host, far: str, fetch: bool
) -> None:
    if fetch and "head -c 60" in far:
        return  # nobody would speak first
    disk, copy = host.disk("disk", 3 * MIB), host.blank("copy", 3 * MIB)
    rsh = ["--rsh", shlex.join(["sh", "-c", far, "{command}"]), "--retry", "0"]
    places: list[str | Path] = [f"lab:{disk}", copy] if fetch else [disk, f"lab:{copy}"]
    ended = host.run("send", *places, *rsh)
    assert ended.status in {11, 12}, ended.err
    assert copy.read_bytes() == bytes(3 * MIB)
    assert ended.peak < 120 << 10
    assert "Traceback" not in ended.err


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["send", "fetch", "compare", "verify"])
@pytest.mark.parametrize(
    ("noise", "cause"),
    [
        ("Welcome to the lab, have fun", "a login script there prints"),
        ("This account is currently not available.", "lets nobody run a command"),
        ("[sudo] password for root: ", "sudo asks for a password there"),
    ],
)
def test_what_is_said_there_before_we_speak_is_shown_with_its_cause(
    host: Host, noise: str, cause: str, verb: str
) -> None:
    """It was shown in hex, as a stream that begins with 57 65 6c 63."""
    disk, copy = host.disk("disk", MIB), host.blank("copy", MIB)
    far = f'echo {shlex.quote(noise)}; exec {far_command(host)} "$@"'
    script = host.folder / "far"
    script.write_text(f"#!/bin/sh\n{far}\n")
    script.chmod(0o755)
    way = ["--rsh", "sh -c {command}", "--remote-command", str(script), "--retry", "0"]
    forms: dict[str, list[str | Path]] = {
        "send": ["send", disk, f"lab:{copy}"],
        "fetch": ["send", f"lab:{disk}", copy],
        "compare": ["send", "--compare", disk, f"lab:{copy}"],
        "verify": ["verify", disk, f"lab:{copy}"],
    }
    ended = host.run(*forms[verb], *way)
    assert ended.status == 11, ended.err
    assert noise.strip()[:20] in ended.err
    assert cause in ended.err
    assert copy.read_bytes() == bytes(MIB)


def test_only_ssh_itself_says_that_it_is_not_let_in(host: Host) -> None:
    """A program there that could not read a file had said "Permission denied"."""
    disk, copy = host.disk("disk", MIB), host.blank("copy", MIB)
    for status, wanted in ((255, 16), (1, 11), (77, 11)):
        far = ["sh", "-c", f"echo 'x: Permission denied' >&2; exit {status}", "{command}"]
        ended = host.run("send", disk, f"lab:{copy}", "--rsh", shlex.join(far), "--retry", "0")
        assert ended.status == wanted, ended.err
        assert "Permission denied" in ended.err
