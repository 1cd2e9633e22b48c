"""Staged, a target is at its base or at its goal; with an undo log it can always go back."""

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.end_to_end.hosts import Ended, Host, Words, altered, content, failing_at, wait_until

SIZE = 3 << 20


@pytest.fixture
def small_disk(eager: Host) -> Iterator[Path]:
    """A state directory with room for little more than the journals."""
    eager.state_dir.mkdir()
    mount: Words = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", eager.state_dir]
    subprocess.run(mount, check=True)  # noqa: S603
    yield eager.state_dir
    subprocess.run(["umount", eager.state_dir], check=True)  # noqa: S603, S607


def based(host: Host, size: int = SIZE) -> tuple[Path, Path, list[str | Path]]:
    """Make a target at A, and the words that send an increment of several frames to B."""
    old = host.disk("old", size)
    new, target = host.folder / "new", host.folder / "target"
    changed = bytearray(altered(old.read_bytes(), 2))
    changed[: 5 * size // 6] = content(5 * size // 6, 11)
    new.write_bytes(changed)
    target.write_bytes(old.read_bytes())
    host.adopt(target, "A")
    changes = host.list_changes("changes", new, old)
    return target, new, [new, "--base", "A", "--goal", "B", "--extents", changes]


def killed(host: Host, send: Words, recv: Words, failpoint: str) -> Ended:
    """Run `send | recv`, killing the receiver."""
    ended = host.pipe(send, recv, recv_environment=failing_at(f"{failpoint}:kill")).recv
    assert ended.status == -9, ended
    return ended


# Stage.


@pytest.mark.slow
def test_staged_target_is_untouched_while_the_spool_fills(eager: Host) -> None:
    target, new, words = based(eager)
    before, when = target.read_bytes(), target.stat().st_mtime_ns
    stream = eager.stream(*words)
    reading, writing = os.pipe()
    receiver = eager.start(["recv", target, "--apply", "stage"], stdin=reading)
    os.close(reading)
    os.write(writing, stream[: len(stream) * 3 // 4])
    wait_until(lambda: eager.durable(target) > 0)
    assert (target.read_bytes(), target.stat().st_mtime_ns) == (before, when)
    assert eager.status(target)["state"] == "clean"
    os.write(writing, stream[len(stream) * 3 // 4 :])
    os.close(writing)
    assert receiver.wait().status == 0
    assert target.read_bytes() == new.read_bytes()
    assert not list(eager.state_dir.rglob("spool.bsx"))


@pytest.mark.slow
def test_damage_late_in_a_staged_stream_leaves_the_target_at_its_base(eager: Host) -> None:
    target, _, words = based(eager)
    before = target.read_bytes()
    stream = bytearray(eager.stream(*words))
    stream[-300] ^= 1
    ended = eager.run("recv", target, "--apply", "stage", data=bytes(stream))
    assert ended.status == 12, ended.err
    assert "still at its base" in ended.err
    assert target.read_bytes() == before
    assert eager.holds(target, "A")


@pytest.mark.slow
@pytest.mark.parametrize(
    "point", ["recv.spool_complete:1", "recv.mid_write:1", "recv.before_clean:2"]
)
def test_whole_spool_is_applied_without_the_sender(eager: Host, point: str) -> None:
    target, new, words = based(eager)
    killed(eager, words, [target, "--apply", "stage"], point)
    status = eager.run("status", target)
    assert b"blockstream apply" in status.out
    assert b"--resume" not in status.out
    ended = eager.run("apply", target)
    assert ended.status == 0, ended.err
    assert target.read_bytes() == new.read_bytes()
    assert eager.holds(target, "B")
    assert eager.run("apply", target).status == 17


@pytest.mark.slow
def test_whole_spool_keeps_what_was_allowed_when_it_came(eager: Host) -> None:
    disk, target = eager.disk("disk"), eager.folder / "target"
    target.write_bytes(b"t" * 400_000)
    words: Words = [target, "--apply", "stage", "--force-larger", "--verify"]
    killed(eager, [disk, "--goal", "A"], words, "recv.spool_complete:1")
    assert eager.run("apply", target).status == 0
    assert target.read_bytes() == disk.read_bytes() + b"t" * 100_000


@pytest.mark.slow
def test_whole_spool_onto_a_forced_base_is_applied(eager: Host) -> None:
    target, new, words = based(eager)
    eager.adopt(target, "other")
    forced: Words = [target, "--apply", "stage", "--force-base"]
    killed(eager, words, forced, "recv.spool_complete:1")
    assert eager.run("apply", target).status == 0
    assert target.read_bytes() == new.read_bytes()


@pytest.mark.slow
def test_whole_spool_that_does_not_fit_any_more_is_refused_until_it_is_dropped(
    eager: Host,
) -> None:
    target, _, words = based(eager)
    killed(eager, words, [target, "--apply", "stage"], "recv.spool_complete:1")
    with target.open("r+b") as file:
        file.write(b"mounted and written")
    before = target.read_bytes()
    for ended in (eager.run("apply", target), eager.pipe(words, [target]).recv):
        assert (ended.status, "blockstream abort" in ended.err) == (10, True), ended
    assert target.read_bytes() == before
    assert eager.run("abort", target).status == 0
    assert eager.run("apply", target).status == 17


@pytest.mark.slow
def test_state_that_is_adopted_forgets_spool_and_undo_log(eager: Host) -> None:
    target, _, words = based(eager)
    killed(eager, words, [target, "--apply", "stage"], "recv.spool_complete:1")
    assert eager.run("adopt", target, "--id", "X").status == 0
    assert eager.run("apply", target).status == 17
    assert eager.run("undo", target).status == 17


@pytest.mark.slow
def test_direct_transfer_forgets_an_unfinished_spool(eager: Host) -> None:
    target, new, words = based(eager)
    stream = eager.stream(*words)
    half = eager.cut(target, ["--apply", "stage"], stream[: len(stream) * 3 // 4])
    assert (half.status, eager.durable(target) > 0) == (11, True)
    cut = eager.cut(target, [], stream[: len(stream) * 3 // 4])
    assert "half-written" in cut.err
    assert eager.run("recv", target, data=stream).status == 0
    assert target.read_bytes() == new.read_bytes()
    assert eager.status(target)["token"] == ""


@pytest.mark.slow
def test_half_written_target_takes_the_whole_stream_through_the_spool(eager: Host) -> None:
    target, new, words = based(eager)
    stream = eager.stream(*words)
    assert eager.cut(target, [], stream[: len(stream) * 3 // 4]).status == 11
    token = str(eager.status(target)["token"])
    rest = eager.stream(new, "--resume", token, *words[5:])
    refused = eager.run("recv", target, "--apply", "stage", data=rest)
    assert (refused.status, "durable up to 0 frames" in refused.err) == (10, True)
    ended = eager.run("recv", target, "--apply", "stage", data=stream)
    assert ended.status == 0, ended.err
    assert target.read_bytes() == new.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("point", ["recv.plan_written:1", "recv.plan_written:2"])
def test_spool_that_is_begun_anew_is_not_taken_for_the_old_one(eager: Host, point: str) -> None:
    target, new, words = based(eager)
    stream = eager.stream(*words)
    part = stream[: len(stream) * 3 // 4]
    assert eager.cut(target, ["--apply", "stage"], part).status == 11
    old_rest = eager.stream(new, "--resume", str(eager.status(target)["token"]), *words[5:])
    # The same from the start, killed while its first record is written.
    process = eager.run(
        "recv",
        target,
        "--apply",
        "stage",
        data=stream,
        environment=failing_at(f"{point}:kill"),
    )
    assert process.status == -9
    refused = eager.run("recv", target, "--apply", "stage", data=old_rest)
    assert refused.status in {0, 10}, refused
    ended = eager.run("recv", target, "--apply", "stage", data=stream)
    assert ended.status == 0, ended.err
    assert target.read_bytes() == new.read_bytes()


@pytest.mark.root
@pytest.mark.slow
@pytest.mark.usefixtures("small_disk")
@pytest.mark.parametrize(("apply", "words"), [("stage", "the spool"), ("undo", "cannot be kept")])
def test_full_disk_behind_spool_or_undo_log_leaves_the_target_untouched(
    eager: Host, apply: str, words: str
) -> None:
    target, _, send = based(eager)
    target.write_bytes(os.urandom(SIZE))
    eager.adopt(target, "A")
    before = target.read_bytes()
    Path(send[0]).write_bytes(os.urandom(SIZE))
    ended = eager.run("recv", target, "--apply", apply, data=eager.stream(*send))
    assert ended.status == 10, ended.err
    for part in (words, "No space left on device", "make room"):
        assert part in ended.err
    assert target.read_bytes() == before
    assert not list(eager.state_dir.rglob("*.new"))
    if apply == "stage":
        assert eager.run("abort", target).status == 0
    assert eager.holds(target, "A")


# Undo.


@pytest.mark.slow
def test_undo_after_a_commit_and_again_forward(eager: Host) -> None:
    target, new, words = based(eager)
    before = target.read_bytes()
    assert eager.pipe(words, [target, "--apply", "undo"]).statuses == (0, 0)
    assert target.read_bytes() == new.read_bytes()
    assert eager.status(target)["undo"] is True
    ended = eager.run("undo", target)
    assert (ended.status, "holds A again" in ended.err) == (0, True)
    assert target.read_bytes() == before
    assert eager.holds(target, "A")
    assert eager.run("undo", target).status == 17
    assert eager.pipe(words, [target]).statuses == (0, 0)
    assert target.read_bytes() == new.read_bytes()


def test_undo_under_what_somebody_wrote_says_what_to_do(eager: Host) -> None:
    target, _, words = based(eager)
    assert eager.pipe(words, [target, "--apply", "undo"]).statuses == (0, 0)
    with target.open("r+b") as file:
        file.write(b"written by somebody")
    before = target.read_bytes()
    ended = eager.run("undo", target)
    assert (ended.status, "send a full copy of A" in ended.err) == (10, True), ended.err
    assert target.read_bytes() == before


@pytest.mark.slow
@pytest.mark.parametrize("size", [1_234_567, 4096, 300_032])
def test_undo_of_disks_of_any_size(eager: Host, size: int) -> None:
    target, _, words = based(eager, size)
    before = target.read_bytes()
    assert eager.pipe(words, [target, "--apply", "undo"]).statuses == (0, 0)
    assert eager.run("undo", target).status == 0
    assert target.read_bytes() == before


@pytest.mark.slow
@pytest.mark.parametrize(
    "point",
    [
        "recv.undo_saved:1",
        "recv.journal_unsynced:1",
        "recv.after_record:1",
        "recv.mid_write:1",
        "recv.after_write:2",
        "recv.before_clean:1",
        "recv.after_clean:1",
    ],
)
def test_undo_after_a_kill_at_any_point(eager: Host, point: str) -> None:
    target, _, words = based(eager)
    before = target.read_bytes()
    killed(eager, words, [target, "--apply", "undo"], point)
    ended = eager.run("undo", target)
    assert ended.status == 0, ended.err
    assert target.read_bytes() == before
    assert eager.holds(target, "A")
    assert eager.run("undo", target).status == 17


@pytest.mark.slow
@pytest.mark.parametrize(
    "point", ["recv.after_record:1", "recv.after_write:1", "recv.after_clean:1"]
)
def test_undo_that_was_killed_is_done_again(eager: Host, point: str) -> None:
    target, _, words = based(eager)
    before = target.read_bytes()
    assert eager.pipe(words, [target, "--apply", "undo"]).statuses == (0, 0)
    died = eager.run("undo", target, environment=failing_at(f"{point}:kill"))
    assert died.status == -9
    assert eager.run("undo", target).status == 0
    assert target.read_bytes() == before
    assert eager.holds(target, "A")


@pytest.mark.slow
def test_transfer_that_takes_the_place_of_another_is_undone_to_the_base_of_both(
    eager: Host,
) -> None:
    target, new, words = based(eager)
    before = target.read_bytes()
    killed(eager, words, [target, "--apply", "undo"], "recv.after_write:1")
    newer = eager.folder / "newer"
    newer.write_bytes(content(1 << 20, 5) + new.read_bytes()[1 << 20 :])
    everything = eager.list_everything("everything", SIZE)
    again: Words = [newer, "--base", "A", "--goal", "C", "--extents", everything]
    ended = eager.pipe(again, [target, "--apply", "undo"])
    assert ended.statuses == (0, 0), ended
    assert target.read_bytes() == newer.read_bytes()
    assert eager.run("undo", target).status == 0
    assert target.read_bytes() == before
    assert eager.holds(target, "A")


@pytest.mark.slow
def test_half_written_target_without_an_undo_log_gets_none(eager: Host) -> None:
    target, new, words = based(eager)
    killed(eager, words, [target], "recv.after_write:1")
    ended = eager.pipe(words, [target, "--apply", "undo"])
    assert ended.recv.status == 10, ended
    assert "nothing was kept of what it held" in ended.recv.err
    full = eager.pipe([new, "--goal", "C"], [target, "--apply", "undo"])
    assert full.recv.status == 10, full
    assert eager.status(target)["state"] == "dirty"
    assert eager.pipe(words, [target]).statuses == (0, 0)
    assert target.read_bytes() == new.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("die", [True, False], ids=["killed", "committed"])
def test_undo_of_a_full_copy_onto_an_unknown_target(eager: Host, die: bool) -> None:
    disk, target = eager.disk("disk", SIZE), eager.folder / "target"
    before = content(SIZE, 33)
    target.write_bytes(before)
    words: Words = [disk, "--goal", "A"]
    if die:
        killed(eager, words, [target, "--apply", "undo"], "recv.after_write:2")
    else:
        assert eager.pipe(words, [target, "--apply", "undo"]).statuses == (0, 0)
    assert eager.run("undo", target).status == 0
    assert target.read_bytes() == before


@pytest.mark.parametrize("apply", ["direct", "undo"])
@pytest.mark.parametrize("die", [False, True], ids=["cut", "killed"])
def test_undo_log_outlives_a_transfer_that_wrote_nothing(
    eager: Host, apply: str, die: bool
) -> None:
    """It was gone, or led nowhere, although the target still held what it leads back from."""
    target, new, words = based(eager)
    before = target.read_bytes()
    assert eager.pipe(words, [target, "--apply", "undo"]).statuses == (0, 0)
    stream = eager.stream(eager.disk("other", SIZE, seed=5), "--goal", "C")
    cut = eager.run(
        "recv",
        target,
        "--apply",
        apply,
        data=stream if die else stream[:5000],
        environment=failing_at("recv.undo_saved:1:kill") if die else None,
    )
    assert cut.status == (-9 if die else 11), cut.err
    assert target.read_bytes() == new.read_bytes()
    status = eager.status(target)
    assert (status["state"], status["undo"]) == ("clean", True)
    undone = eager.run("undo", target)
    assert undone.status == 0, undone.err
    assert target.read_bytes() == before


@pytest.mark.slow
def test_undo_log_of_an_earlier_transfer_is_gone_after_one_that_keeps_none(eager: Host) -> None:
    disk, target = eager.disk("disk", SIZE), eager.folder / "target"
    target.write_bytes(content(SIZE, 33))
    other = eager.disk("other", SIZE, seed=4)
    for apply in ("direct", "stage"):
        assert eager.pipe([disk], [target, "--apply", "undo"]).statuses == (0, 0)
        assert eager.pipe([other], [target, "--apply", apply]).statuses == (0, 0)
        assert eager.run("undo", target).status == 17
    assert eager.pipe([disk], [target, "--apply", "undo"]).statuses == (0, 0)
    assert eager.run("send", other, target).status == 0
    assert eager.run("undo", target).status == 17
    assert target.read_bytes() == other.read_bytes()


@pytest.mark.slow
def test_same_transfer_continued_without_undo_can_still_be_undone(eager: Host) -> None:
    target, _, words = based(eager)
    before = target.read_bytes()
    killed(eager, words, [target, "--apply", "undo"], "recv.after_write:1")
    assert eager.pipe(words, [target]).statuses == (0, 0)
    assert eager.run("undo", target).status == 0
    assert target.read_bytes() == before


# Somebody takes away what we keep.


def kept(host: Host, name: str) -> Path:
    (found,) = host.state_dir.rglob(name)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("cut", [False, True])
def test_a_spool_that_is_gone_is_begun_anew(eager: Host, *, cut: bool) -> None:
    target, new, words = based(eager)
    killed(eager, words, [target, "--apply", "stage"], "recv.after_record:2")
    spool = kept(eager, "spool.bsx")
    spool.write_bytes(b"") if cut else spool.unlink()
    ended = eager.run("recv", target, "--apply", "stage", data=eager.stream(*words))
    assert ended.status == 0, ended.err
    assert target.read_bytes() == new.read_bytes()


@pytest.mark.slow
def test_a_whole_spool_that_is_gone_is_said(eager: Host) -> None:
    target, new, words = based(eager)
    before = target.read_bytes()
    killed(eager, words, [target, "--apply", "stage"], "recv.spool_complete:1")
    kept(eager, "spool.bsx").unlink()
    ended = eager.run("apply", target)
    assert (ended.status, "no complete stream waits" in ended.err) == (17, True), ended.err
    assert target.read_bytes() == before
    assert eager.run("recv", target, data=eager.stream(*words)).status == 0
    assert target.read_bytes() == new.read_bytes()


@pytest.mark.slow
def test_a_lost_undo_log_is_never_success(eager: Host) -> None:
    target, new, words = based(eager)
    stopped = eager.start_pipe(
        words, [target, "--apply", "undo"], recv_environment=failing_at("recv.after_write:1:stop")
    )[1]
    wait_until(stopped.stopped)
    kept(eager, "undo.bsx").unlink()
    stopped.signal(signal.SIGCONT)
    ended = stopped.wait()
    assert ended.status == 19, ended.err
    assert "is committed, but cannot be undone: somebody has taken away" in ended.err
    assert target.read_bytes() == new.read_bytes()
    undone = eager.run("undo", target)
    assert (undone.status, "there is no undo log" in undone.err) == (17, True), undone.err
    assert target.read_bytes() == new.read_bytes()


@pytest.mark.root
def test_a_state_directory_of_somebody_else_is_refused(eager: Host) -> None:
    """He could put links there, which we would write through."""
    target, _, words = based(eager)
    other = eager.folder / "other"
    other.mkdir()
    os.chown(other, 65534, 65534)
    stream = eager.stream(*words)
    for line in (
        ("recv", target, "--state-dir", other),
        ("status", target, "--state-dir", other),
    ):
        ended = eager.run(*line, data=stream)
        assert ended.status == 10, ended.err
        assert "belongs to somebody else, the user of number 65534" in ended.err
    environment = {"BLOCKSTREAM_STATE_DIR": str(other)}
    ended = eager.run("points", f"dir:{eager.folder}/s", environment=environment)
    assert ended.status == 10, ended.err
    assert list(other.iterdir()) == []
