"""What the commands promise, kept by real processes on real files."""

import asyncio
import fcntl
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from contextlib import closing
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from blockstream.captures.interface import Captured
from blockstream.errors import BusyError
from blockstream.extents import ExtentMap
from blockstream.formats.extent_lists import ExtentList, Meaning
from blockstream.interfaces import Target
from blockstream.linux.streams import PIPE_BYTES
from blockstream.pipeline.samples import sampled_ranges
from blockstream.run import Run
from blockstream.sources.disk import DiskSource
from blockstream.targets.disk import DiskTarget
from blockstream.transfers.copy import copy
from blockstream.transfers.receive_options import ReceiveRequest
from blockstream.transfers.send import SendPlan, TransferOptions
from blockstream_protocol import FrameType, Kind
from tests.end_to_end.hosts import (
    COMMAND,
    ROOT,
    Ended,
    Host,
    Words,
    altered,
    content,
    count_messages,
    failing_at,
    wait_until,
)

SIZES = [0, 1, 512, 4096, 1_048_576, 1_234_567, 3_000_320]
COMMANDS = ["send", "recv", "status", "undo", "apply", "abort", "adopt", "confirm"]
COMMANDS += ["extents", "inspect"]


def test_installed_command_moves_a_disk_through_a_pipe(host: Host) -> None:
    disk, copy = host.disk("disk"), host.blank("copy", 300_000)
    environment = {
        **os.environ,
        "PYTHONPATH": f"{ROOT}:{ROOT / 'protocol'}",
        "BLOCKSTREAM_STATE_DIR": str(host.state_dir),
        # Without BLOCKSTREAM_TESTING it must not be looked at.
        "BLOCKSTREAM_FAILPOINT": "send.hello:1:kill",
    }
    with subprocess.Popen(  # noqa: S603  # ourselves
        [*COMMAND, "send", "-q", disk], stdout=subprocess.PIPE, env=environment
    ) as sender:
        received = subprocess.run(  # noqa: S603  # ourselves
            [*COMMAND, "recv", "-q", copy], stdin=sender.stdout, env=environment, check=False
        )
    assert (sender.returncode, received.returncode) == (0, 0)
    assert copy.read_bytes() == disk.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
def test_full_copy_of_any_size_arrives_and_is_recorded(host: Host, size: int) -> None:
    disk, copy = host.disk("disk", size), host.blank("copy", size)
    ended = host.pipe([disk, "--goal", "A"], [copy])
    assert ended.statuses == (0, 0)
    assert copy.read_bytes() == disk.read_bytes()
    assert host.holds(copy, "A")
    assert "committed: " in ended.recv.err
    assert "sent, not confirmed: the receiver's exit status decides" in ended.send.err


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
def test_stored_stream_makes_a_new_file_of_any_size(host: Host, size: int) -> None:
    stream = host.stream(host.disk("disk", size), "--goal", "A")
    ended = host.run("recv", "--create", host.folder / "copy", data=stream)
    assert ended.status == 0, ended.err
    assert (host.folder / "copy").read_bytes() == content(size, 1)
    again = host.run("recv", "--create", host.folder / "copy", data=stream)
    assert (again.status, "already committed" in again.err) == (0, True)


@pytest.mark.slow
@pytest.mark.parametrize("size", [4096, 300_000, 1_234_567])
def test_chain_of_increments_follows_the_disk(host: Host, size: int) -> None:
    disks = [host.disk("disk0", size)]
    copy = host.blank("copy", size)
    assert host.pipe([disks[0], "--goal", "0"], [copy]).statuses == (0, 0)
    for number in range(1, 5):
        disks.append(host.changed(f"disk{number}", disks[-1], seed=number))
    for number, (old, new) in enumerate(pairwise(disks)):
        changes = host.list_changes("changes", new, old)
        states = ["--base", str(number), "--goal", str(number + 1)]
        ended = host.pipe([new, *states, "--extents", changes], [copy])
        assert ended.statuses == (0, 0), ended
        assert copy.read_bytes() == new.read_bytes()
        assert f"{size // 1024}"[:1] in ended.send.err
    assert host.holds(copy, "4")


@pytest.mark.slow
@pytest.mark.parametrize(("old", "new"), [(0, 5000), (1000, 300_000), (1_000_001, 1_234_567)])
def test_disk_that_has_grown_is_followed_byte_by_byte(host: Host, old: int, new: int) -> None:
    before, copy = host.disk("before", old), host.blank("copy", new)
    after = host.folder / "after"
    with after.open("wb") as file:  # a hole from the old end to the new one
        file.write(before.read_bytes())
        file.truncate(new)
    with copy.open("r+b") as file:
        file.write(before.read_bytes() + b"x" * (new - old))
    host.adopt(copy, "A")
    changes = host.list_changes("changes", after, before)
    ended = host.pipe([after, "--base", "A", "--goal", "B", "--extents", changes], [copy])
    assert ended.statuses == (0, 0), ended
    assert copy.read_bytes() == after.read_bytes()


def increment(host: Host, size: int = 300_000) -> tuple[Path, Path, list[str | Path]]:
    """Bring a target to state A, and return it, the next disk, and what sends the increment."""
    old = host.disk("old", size)
    new, copy = host.changed("new", old), host.folder / "copy"
    copy.write_bytes(old.read_bytes())
    host.adopt(copy, "A")
    changes = host.list_changes("changes", new, old)
    return copy, new, [new, "--base", "A", "--goal", "B", "--extents", changes]


def test_increment_arrives_and_the_same_again_writes_nothing(host: Host) -> None:
    copy, new, words = increment(host)
    assert host.pipe(words, [copy]).statuses == (0, 0)
    assert copy.read_bytes() == new.read_bytes()
    before = copy.stat()
    again = host.pipe(words, [copy])
    assert again.statuses == (0, 0)
    assert "already committed" in again.recv.err
    assert copy.stat().st_mtime_ns == before.st_mtime_ns


@pytest.mark.parametrize("piped", [False, True])
def test_a_goal_that_somebody_wrote_to_since_is_not_there(host: Host, piped: bool) -> None:
    """It was "already committed", with other bytes."""
    copy, new, words = increment(host)

    def send(*options: str | Path) -> tuple[int, str]:
        if piped:
            ended = host.run("recv", *options, copy, data=host.stream(*words))
        else:
            ended = host.run("send", *words, copy, *options)
        return ended.status, ended.err

    assert send()[0] == 0
    with copy.open("r+b") as file:
        file.seek(-5000, os.SEEK_END)
        file.write(b"written by somebody")
    status, said = send()
    assert (status, "was written since its last commit" in said) == (10, True)
    if not piped:
        ended = host.run("send", *words, copy, "-n")
        assert (ended.status, "was written since" in ended.err) == (10, True), ended.err
    full: Words = [new, "--goal", "B"]
    ended = host.run("send", *full, copy)
    assert (ended.status, "already" in ended.err) == (0, False), ended.err
    assert copy.read_bytes() == new.read_bytes()
    ended = host.run("send", *full, copy)
    assert (ended.status, "already" in ended.err) == (0, True), ended.err


@pytest.mark.slow
@pytest.mark.parametrize("touched", [False, True])
@pytest.mark.parametrize("full", [False, True])
def test_a_half_written_target_that_somebody_wrote_to_is_not_gone_on_with(
    host: Host, full: bool, touched: bool
) -> None:
    """What was durable counted as being there, and with the rest it was committed."""
    size = 8 << 20
    copy, new, _ = increment(host, size)
    words: list[str | Path] = [new, "--compress", "none"]
    states = ["--goal", "B"] if full else ["--base", "A", "--goal", "B"]
    if not full:
        words += ["--extents", host.list_everything("all", size)]
    stream = host.stream(*words, *states, "--bwlimit", "2M")  # long enough for a checkpoint
    cut = host.run("recv", copy, data=stream[:-100_000])
    assert (cut.status, host.status(copy)["state"]) == (11, "dirty"), cut.err
    if touched:
        with copy.open("r+b") as file:
            file.write(b"written by somebody")
    before = copy.read_bytes()
    token = re.search(r"bsr1-[\w-]+", cut.err)
    assert token is not None, cut.err
    ended = host.run("recv", copy, data=host.stream(*words, "--resume", token[0]))
    if touched:
        said = "was written since the transfer to it was interrupted"
        assert (ended.status, said in ended.err) == (10, True), ended.err
        assert copy.read_bytes() == before
        assert host.run("abort", copy).status == 0
        ended = host.run("send", new, copy, "--goal", "B")
    assert ended.status == 0, ended.err
    assert copy.read_bytes() == new.read_bytes()


def test_full_copy_goes_onto_what_was_adopted_as_its_goal(host: Host) -> None:
    disk, copy = host.disk("disk"), host.blank("copy", 300_000)
    host.adopt(copy, "A")
    ended = host.run("send", disk, copy, "--goal", "A")
    assert ended.status == 0, ended.err
    assert copy.read_bytes() == disk.read_bytes()


def test_increment_from_another_base_is_refused_and_nothing_changes(host: Host) -> None:
    copy, new, words = increment(host)
    assert host.run("adopt", copy, "--id", "other").status == 0
    before = copy.read_bytes()
    ended = host.run("recv", copy, data=host.stream(*words))
    assert ended.status == 10
    assert "starts from base 'A', but the target holds 'other'" in ended.err
    assert copy.read_bytes() == before
    assert host.holds(copy, "other")
    forced = host.run("recv", "--force-base", copy, data=host.stream(*words))
    assert forced.status == 0
    assert copy.read_bytes() == new.read_bytes()
    assert host.holds(copy, "B")


def test_target_that_was_adopted_as_the_goal_is_refused(host: Host) -> None:
    copy, _, words = increment(host)
    assert host.run("adopt", copy, "--id", "B").status == 0
    before = copy.read_bytes()
    ended = host.run("recv", copy, data=host.stream(*words))
    assert (ended.status, "was adopted as 'B'" in ended.err) == (10, True)
    assert copy.read_bytes() == before


@pytest.mark.slow
def test_goal_with_another_content_is_refused(host: Host) -> None:
    disk, copy = host.disk("disk"), host.blank("copy", 300_000)
    assert host.pipe([disk, "--goal", "A"], [copy]).statuses == (0, 0)
    before = copy.read_bytes()
    other = host.stream(host.disk("other", seed=2), "--goal", "A")
    ended = host.run("recv", copy, data=other)
    assert (ended.status, "with another content" in ended.err) == (10, True)
    assert copy.read_bytes() == before
    assert host.holds(copy, "A")


@pytest.mark.slow
def test_target_that_was_written_behind_our_back_is_refused(host: Host) -> None:
    copy, _, words = increment(host)
    with copy.open("r+b") as file:
        file.write(b"mounted and written")
    before = copy.read_bytes()
    ended = host.run("recv", copy, data=host.stream(*words))
    assert (ended.status, "was written since its last commit" in ended.err) == (10, True)
    assert "send a full copy; or `send --check-base`, which reads all of it" in ended.err
    assert copy.read_bytes() == before


def unsampled(size: int) -> int:
    """Return the offset of a block that no sample has."""
    ranges = sorted(sampled_ranges(size))
    ends = itertools.accumulate((offset + length for offset, length in ranges), max)
    gaps = zip(ends, (offset for offset, _ in ranges[1:]), strict=False)
    return next(end for end, start in gaps if end + 4096 <= start)


LARGE = 24 << 20


def large_increment(host: Host) -> tuple[Path, list[str | Path]]:
    """Copy a disk, and change a block of it at its begin; return the copy, and what to send."""
    disk, copy = host.disk("disk", LARGE), host.folder / "copy"
    assert host.run("send", disk, copy, "--create", "--goal", "A").status == 0
    new = host.folder / "new"
    new.write_bytes(b"n" * 4096 + disk.read_bytes()[4096:])
    changes = host.list_changes("changes", new, disk)
    return copy, [new, "--base", "A", "--goal", "B", "--extents", changes]


@pytest.mark.slow
def test_a_single_block_written_behind_our_back_is_refused(host: Host) -> None:
    """Samples miss it: 22 of 24 were accepted."""
    copy, words = large_increment(host)
    with copy.open("r+b") as file:
        file.seek(unsampled(LARGE))
        file.write(b"w" * 512)
    before = copy.read_bytes()
    ended = host.run("send", *words, copy)
    assert ended.status == 10, ended.err
    assert "its file was written at another time than ours" in ended.err
    checked = host.run("send", *words, copy, "--check-base")
    assert checked.status == 10, checked.err
    assert f"differs from the source at offset {unsampled(LARGE)}" in checked.err
    assert copy.read_bytes() == before


@pytest.mark.slow
def test_a_target_that_is_the_base_all_the_same_is_taken_after_a_look_at_all_of_it(
    host: Host,
) -> None:
    """What the increment writes may differ."""
    copy, words = large_increment(host)
    with copy.open("r+b") as file:
        file.write(b"half" * 100)
        file.seek(unsampled(LARGE))
        same = file.read(512)
        file.seek(unsampled(LARGE))
        file.write(same)
    assert host.run("send", *words, copy).status == 10
    ended = host.run("send", *words, copy, "--check-base")
    assert ended.status == 0, ended.err
    assert f"{copy} held the base: all that was not sent was read, and was equal" in ended.err
    assert copy.read_bytes() == Path(words[0]).read_bytes()


def test_nothing_comes_between_the_look_at_the_base_and_the_increment(tmp_path: Path) -> None:
    """Another send did, and its content was called that of the base."""
    source, target = tmp_path / "source", tmp_path / "target"
    for path in (source, target):
        path.write_bytes(b"x" * 8192)
    seen: list[str] = []

    def check(_what: SendPlan, _target: Target) -> None:
        with pytest.raises(BusyError) as caught:
            DiskTarget(str(target))
        seen.append(str(caught.value))

    size = 8192
    extents = ExtentMap.from_columns(np.array([0]), np.array([4096]), Kind.DATA, size)
    changes = ExtentList(extents, Meaning.CHANGED, "test", size)
    where = ReceiveRequest(str(target), tmp_path / "s")
    with closing(DiskSource(str(source))) as disk:
        what = Captured("a", str(source), disk, "b", base="a", changes=changes)
        asyncio.run(copy(what, TransferOptions(tmp_path / "s"), where, Run(), check))
    assert len(seen) == 1


@pytest.mark.slow
@pytest.mark.parametrize("written", [False, True])
def test_where_only_samples_can_tell_that_is_said(host: Host, *, written: bool) -> None:
    copy, words = large_increment(host)
    copy.chmod(0o640)
    if written:
        with copy.open("r+b") as file:
            file.seek(LARGE - 512)
            file.write(b"w")
    ended = host.run("send", *words, copy)
    if written:
        assert ended.status == 10, ended.err
        return
    assert ended.status == 0, ended.err
    assert (
        f"{copy} was compared with its base by samples alone, because its file was renamed, or "
        "given to somebody else; --check-base reads all of it"
    ) in ended.err
    assert copy.read_bytes() == Path(words[0]).read_bytes()


def test_a_base_that_nobody_touched_is_not_doubted(host: Host) -> None:
    copy, words = large_increment(host)
    ended = host.run("send", *words, copy)
    assert ended.status == 0, ended.err
    assert "by samples alone" not in ended.err


def test_check_base_is_for_an_increment_onto_a_disk_that_is_there(host: Host) -> None:
    copy, words = large_increment(host)
    for wrong in (
        [words[0], copy, "--check-base"],
        [*words, "--check-base"],
        [*words, copy, "--check-base", "-n"],
        [*words, copy, "--check-base", "--create"],
        [*words, f"dir:{host.folder}/vm", "--check-base"],
        [*words, "lab::vm", "--check-base"],
    ):
        ended = host.run("send", *wrong)
        assert ended.status == 2, (wrong, ended.err)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda copy: os.truncate(copy, 100_000), "it has 100000 bytes now"),
        (lambda copy: copy.rename(copy.with_name("kept")), "is no name of it any more"),
        (lambda copy: copy.with_name("other").hardlink_to(copy), "has 2 names now"),
    ],
    ids=["truncated", "renamed", "linked"],
)
def test_a_target_that_is_changed_in_mid_write_is_not_committed(
    host: Host, change: Callable[[Path], object], said: str
) -> None:
    """It ended with 0, and was "already committed" ever after."""
    disk, copy = host.disk("disk"), host.blank("copy", 300_000)
    stopped = host.start(
        ["send", disk, copy, "--goal", "A"],
        environment=failing_at("recv.after_write:1:stop"),
    )
    wait_until(stopped.stopped)
    change(copy)
    stopped.signal(signal.SIGCONT)
    ended = stopped.wait()
    assert (ended.status, said in ended.err) == (13, True), ended.err
    assert "is not what was written" in ended.err
    if copy.exists():
        assert not host.holds(copy, "A")
        if copy.stat().st_size == 300_000:
            again = host.run("send", disk, copy)
            assert again.status == 0, again.err
            assert copy.read_bytes() == disk.read_bytes()


@pytest.mark.slow
def test_full_copy_goes_onto_a_clean_target(host: Host) -> None:
    copy, _, _ = increment(host)
    disk = host.disk("disk", seed=9)
    assert host.pipe([disk, "--goal", "C"], [copy]).statuses == (0, 0)
    assert copy.read_bytes() == disk.read_bytes()
    assert host.holds(copy, "C")


def test_larger_target_needs_a_word_and_its_tail_is_not_touched(host: Host) -> None:
    disk, copy = host.disk("disk"), host.folder / "copy"
    copy.write_bytes(b"t" * 400_000)
    stream = host.stream(disk)
    refused = host.run("recv", copy, data=stream)
    assert (refused.status, "400000 bytes" in refused.err) == (10, True)
    assert copy.read_bytes() == b"t" * 400_000
    forced = host.run("recv", "--force-larger", copy, data=stream)
    assert forced.status == 0, forced.err
    assert copy.read_bytes() == disk.read_bytes() + b"t" * 100_000
    assert "97.7 KiB of" in forced.err


def test_smaller_target_is_refused(host: Host) -> None:
    stream = host.stream(host.disk("disk"))
    copy = host.blank("copy", 299_999)
    ended = host.run("recv", "--force-larger", copy, data=stream)
    assert (ended.status, "the target only 299999" in ended.err) == (10, True)
    assert not any(copy.read_bytes())


# Local copies.


def test_local_copy_and_local_increment(host: Host) -> None:
    old = host.disk("old", 1_234_567)
    new, copy = host.changed("new", old), host.folder / "copy"
    first = host.run("send", old, copy, "--create", "--goal", "A")
    assert first.status == 0, first.err
    assert copy.read_bytes() == old.read_bytes()
    changes = host.list_changes("changes", new, old)
    words: Words = ["send", new, copy, "--base", "A", "--goal", "B", "--extents", changes]
    assert host.run(*words).status == 0
    assert copy.read_bytes() == new.read_bytes()
    again = host.run(*words)
    assert (again.status, "already committed" in again.err) == (0, True)


def test_a_refused_local_copy_says_what_was_not_done_and_what_to_do(host: Host) -> None:
    disk, small = host.disk("disk"), host.blank("small", 4096)
    ended = host.run("send", disk, small)
    assert ended.status == 10
    assert f"nothing was written to {small}; make it at least as large" in ended.err


def test_all_targets_are_named_by_what_means_the_same_everywhere(host: Host) -> None:
    copies = [host.blank(name, 300_000) for name in ("copied", "received", "adopted")]
    near = [os.path.relpath(copy) for copy in copies]
    assert host.run("send", host.disk("disk"), near[0]).status == 0
    assert host.run("recv", near[1], data=host.stream(host.disk("disk"))).status == 0
    assert host.run("adopt", near[2], "--id", "A").status == 0
    named = [str(status["target"]) for status in host.run("status", "--json").results]
    assert all(Path(name).is_absolute() for name in named), named
    assert {Path(name).resolve() for name in named} == {copy.resolve() for copy in copies}


def test_a_slip_in_a_target_makes_no_file_here(host: Host) -> None:
    words: Words = ["send", host.disk("disk"), "lab:copy.img", "--create"]
    ended = host.run(*words)
    assert ended.status == 2
    assert "nothing was done; write HOST:/PATH" in ended.err
    assert not Path("lab:copy.img").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "point", ["recv.after_record:1", "recv.after_write:2", "recv.after_clean:1"]
)
@pytest.mark.parametrize("goal", [["--goal", "A"], []], ids=["named", "random"])
def test_killed_local_copy_continues_with_the_same_command(
    eager: Host, point: str, goal: list[str]
) -> None:
    disk, copy = eager.disk("disk", 4 << 20), eager.folder / "copy"
    words: Words = ["send", disk, copy, *goal]
    killed = eager.run(*words, "--create", environment={"BLOCKSTREAM_FAILPOINT": f"{point}:kill"})
    assert killed.status == -signal.SIGKILL
    create = [] if point.startswith("recv.after_clean") and not goal else ["--create"]
    again = eager.run(*words, *create)
    assert again.status == 0, again.err
    assert copy.read_bytes() == disk.read_bytes()


# Cuts and resumption.


def token_in(ended: Ended) -> str:
    """Return the token that a failed `recv` printed."""
    (line,) = [line for line in ended.err.splitlines() if "--resume" in line]
    return line.split()[1]


@pytest.mark.slow
@pytest.mark.parametrize("apply", ["direct", "undo", "stage"])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.3, 0.5, 0.77, 0.999])
def test_cut_stream_continues_with_the_token_and_repeats_nothing(
    eager: Host, share: float, apply: str
) -> None:
    disk, copy = eager.disk("disk", 6 << 20), eager.folder / "copy"
    copy.write_bytes(content(6 << 20, 5))
    before = copy.read_bytes()
    stream = eager.stream(disk, "--goal", "A")
    words: Words = ["recv", copy, "--apply", apply]
    part = stream[: max(300, int(len(stream) * share))]
    cut = eager.cut(copy, ["--apply", apply], part)
    assert cut.status == 11
    assert apply != "stage" or copy.read_bytes() == before
    if share == 0.0:
        assert copy.read_bytes() == before
        assert host_knows_nothing(eager, copy)
        rest = stream
    else:
        token = token_in(cut)
        assert eager.status(copy)["token"] == token
        rest = eager.stream(disk, "--resume", token)
        durable = count_messages(part, FrameType.CHECKPOINT)
        left = count_messages(stream, FrameType.EXTENTS) - durable
        assert count_messages(rest, FrameType.EXTENTS) == left
    ended = eager.run(*words, data=rest)
    assert ended.status == 0, ended.err
    assert copy.read_bytes() == disk.read_bytes()
    assert eager.holds(copy, "A")


def host_knows_nothing(host: Host, target: Path) -> bool:
    """Tell whether no transfer to a target is recorded."""
    return host.run("status", target).status == 17


def cut_half_way(host: Host, *words: str | Path) -> tuple[Path, Path, bytes, Ended]:
    """Cut a full copy in the middle."""
    disk, copy = host.disk("disk", 4 << 20), host.blank("copy", 4 << 20)
    stream = host.stream(disk, "--goal", "A")
    cut = host.cut(copy, words, stream[: len(stream) // 2])
    assert (cut.status, host.durable(copy)) == (11, 1)
    return disk, copy, stream, cut


def test_a_half_written_disk_is_no_source_without_a_word(eager: Host) -> None:
    _, copy, _, _ = cut_half_way(eager)
    ended = eager.run("send", copy, "-n")
    assert f"{copy} is half-written: a transfer to it, to A, has begun and not ended" in ended.err


def test_cut_stream_leaves_a_token_that_continues_it(eager: Host) -> None:
    disk, copy, _, cut = cut_half_way(eager)
    assert "is half-written" in cut.err
    ended = eager.pipe([disk, "--resume", token_in(cut)], [copy])
    assert ended.statuses == (0, 0)
    assert copy.read_bytes() == disk.read_bytes()


@pytest.mark.parametrize("apply", ["direct", "undo", "stage"])
def test_stream_cut_before_its_first_frame_costs_nothing(eager: Host, apply: str) -> None:
    """The target was called half-written, so that only the same increment could go onto it."""
    old = eager.disk("old", 4 << 20)
    target = eager.blank("target", 4 << 20)
    assert eager.pipe([old, "--goal", "A"], [target]).statuses == (0, 0)
    new = eager.changed("new", old)
    everything = eager.list_everything("everything", 4 << 20)
    stream = eager.stream(new, "--base", "A", "--goal", "B", "--extents", everything)
    cut = eager.run("recv", target, "--apply", apply, data=stream[:5000])
    assert cut.status == 11, cut.err
    assert "half-written" not in cut.err
    assert eager.status(target)["state"] == "clean"
    assert eager.holds(target, "A")
    changes = eager.list_changes("changes", new, old)
    words: Words = [new, "--base", "A", "--goal", "C", "--extents", changes]
    assert eager.pipe(words, [target]).statuses == (0, 0)
    assert target.read_bytes() == new.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("apply", ["direct", "undo", "stage"])
def test_cut_stream_may_also_come_again_from_the_start(eager: Host, apply: str) -> None:
    disk, copy, stream, _ = cut_half_way(eager, "--apply", apply)
    ended = eager.run("recv", copy, "--apply", apply, data=stream)
    assert ended.status == 0, ended.err
    assert copy.read_bytes() == disk.read_bytes()


def test_continuation_of_a_changed_source_is_refused_by_the_sender(eager: Host) -> None:
    disk, copy, _, cut = cut_half_way(eager)
    with disk.open("r+b") as file:
        file.write(b"changed")
    ended = eager.pipe([disk, "--resume", token_in(cut)], [copy])
    assert ended.statuses == (14, 11)
    assert "the source is not what it was" in ended.send.err
    assert eager.status(copy)["state"] == "dirty"


@pytest.mark.slow
def test_token_of_another_transfer_sends_nothing(eager: Host) -> None:
    _, _, _, cut = cut_half_way(eager)
    ended = eager.run("send", eager.disk("other", 5 << 20), "--resume", token_in(cut))
    assert (ended.status, ended.out) == (2, b"")
    assert "belongs to another transfer" in ended.err


@pytest.mark.slow
def test_token_on_a_target_that_is_elsewhere_is_refused(eager: Host) -> None:
    disk, _, _, cut = cut_half_way(eager)
    other = eager.blank("other", 4 << 20)
    ended = eager.run("recv", other, data=eager.stream(disk, "--resume", token_in(cut)))
    assert (ended.status, "here it is durable up to 0 frames" in ended.err) == (10, True)
    assert not any(other.read_bytes())


@pytest.mark.slow
@pytest.mark.parametrize("word", ["bsr1-", "nonsense", "bsr1-e30", "bsr1-" + "A" * 100_000])
def test_word_that_is_no_token_is_a_usage_error(host: Host, word: str) -> None:
    ended = host.run("send", host.disk("disk"), "--resume", word)
    assert (ended.status, ended.out) == (2, b"")
    assert "not a resume token" in ended.err


@pytest.mark.slow
def test_new_transfer_of_the_same_base_takes_the_place_of_an_unfinished_one(eager: Host) -> None:
    old = eager.disk("old", 4 << 20)
    copy = eager.folder / "copy"
    copy.write_bytes(old.read_bytes())
    eager.adopt(copy, "A")
    new, newer = eager.changed("new", old), eager.changed("newer", old, seed=8)
    changes = eager.list_changes("changes", new, old)
    some = eager.stream(new, "--base", "A", "--goal", "B", "--extents", changes)
    assert eager.run("recv", copy, data=some[: len(some) - 60]).status == 11
    narrow = eager.list_changes("narrow", newer, old)
    refused = eager.run(
        "recv", copy, data=eager.stream(newer, "--base", "A", "--goal", "C", "--extents", narrow)
    )
    assert (refused.status, "does not cover" in refused.err) == (10, True)
    everything = eager.list_everything("everything", 4 << 20)
    words: Words = [newer, "--base", "A", "--goal", "C", "--extents", everything]
    assert eager.pipe(words, [copy]).statuses == (0, 0)
    assert copy.read_bytes() == newer.read_bytes()
    assert eager.holds(copy, "C")


@pytest.mark.slow
def test_aborted_transfer_leaves_an_unknown_target(eager: Host) -> None:
    disk, copy, stream, cut = cut_half_way(eager)
    ended = eager.run("abort", copy)
    assert (ended.status, "UNKNOWN" in ended.err) == (0, True)
    assert eager.status(copy)["state"] == "unknown"
    rest = eager.stream(disk, "--resume", token_in(cut))
    assert eager.run("recv", copy, data=rest).status == 10
    assert eager.run("abort", copy).status == 17
    assert eager.run("recv", copy, data=stream).status == 0
    assert copy.read_bytes() == disk.read_bytes()


@pytest.mark.slow
def test_half_written_target_is_not_adopted(eager: Host) -> None:
    _, copy, _, _ = cut_half_way(eager)
    ended = eager.run("adopt", copy, "--id", "X")
    assert (ended.status, "half-written" in ended.err) == (10, True)
    assert eager.status(copy)["state"] == "dirty"
    assert eager.run("adopt", copy, "--id", "X", "--force-base").status == 0
    assert eager.holds(copy, "X")


# Stored streams.


def test_stored_stream_is_shown_and_verified(host: Host) -> None:
    _, _, words = increment(host)
    (host.folder / "d.bsx").write_bytes(host.stream(*words))
    shown = host.run("inspect", host.folder / "d.bsx")
    assert shown.status == 0
    text = shown.out.decode()
    for part in ("increment from A", "goal      B", "300000 bytes", "whole and sound"):
        assert part in text
    piped = host.run("inspect", "--json", data=(host.folder / "d.bsx").read_bytes())
    (event,) = piped.results
    assert (event["event"], event["problem"]) == ("stream", None)


@pytest.mark.slow
def test_damaged_stored_stream_is_shown_with_what_is_wrong(host: Host) -> None:
    _, _, words = increment(host)
    stream = host.stream(*words)
    for data, status in ((stream[:-10], 11), (stream + b"x", 12), (b"", 11), (b"x" * 99, 12)):
        ended = host.run("inspect", data=data)
        assert ended.status == status, ended
        assert b"whole and sound" not in ended.out


# Receipts.


def exchange(host: Host, send: list[str | Path], copy: Path) -> tuple[Ended, Ended, Ended]:
    """Run `send ... | recv --receipt - | confirm -`."""
    (r1, w1), (r2, w2) = os.pipe(), os.pipe()
    confirm = host.start(["confirm", "-"], stdin=r2)
    recv = host.start(["recv", "--receipt", "-", copy], stdin=r1, stdout=w2)
    send_process = host.start(["send", *send], stdout=w1)
    for fd in (r1, w1, r2, w2):
        os.close(fd)
    return send_process.wait(), recv.wait(), confirm.wait()


def test_receipt_comes_back_while_send_waits_and_the_base_advances(host: Host) -> None:
    old = host.disk("old")
    copy = host.blank("copy", 300_000)
    assert host.run("send", old, "--base", "last", "--extents", "/dev/null").status == 17
    began = time.monotonic()
    ended = exchange(host, [old, "--goal", "A", "--require-receipt"], copy)
    assert [one.status for one in ended] == [0, 0, 0], ended
    assert time.monotonic() - began < 10
    assert "confirmed: the receiver committed it" in ended[0].err
    before = host.folder / "before"
    before.write_bytes(old.read_bytes())
    old.write_bytes(altered(before.read_bytes(), 3))
    changes = host.list_changes("changes", old, before)
    words: Words = [old, "--base", "last", "--goal", "B", "--extents", changes]
    assert host.pipe(words, [copy]).statuses == (0, 0)
    assert copy.read_bytes() == old.read_bytes()
    # Not confirmed, so the base stays.
    plan = host.run("send", "-n", "--json", *words[:3], "--goal", "C", "--extents", changes)
    assert plan.events[0]["base"] == "A"


@pytest.mark.slow
def test_silence_instead_of_a_receipt_is_an_unknown_outcome(host: Host) -> None:
    disk, copy = host.disk("disk"), host.blank("copy", 300_000)
    words: Words = [disk, "--goal", "A", "--require-receipt", "--receipt-wait", "0.3"]
    ended = host.pipe(words, [copy])
    assert ended.statuses == (15, 0)
    assert "no receipt came within" in ended.send.err
    assert host.run("send", disk, "--receipt-wait", "1").status == 2


@pytest.mark.slow
def test_receipts_that_say_something_else_are_refused(host: Host) -> None:
    disk, copy = host.disk("disk"), host.blank("copy", 300_000)
    path = host.folder / "receipt"
    assert host.pipe([disk, "--goal", "A"], ["--receipt", path, copy]).statuses == (0, 0)
    receipt = json.loads(path.read_text())
    bad = json.dumps(receipt | {"chain": "0" * 64}).encode()
    cases = [
        (b"", 15, "no receipt came"),
        (b"nonsense", 2, "not a receipt"),
        (b"\xff\xfe", 2, ""),
        (bad, 10, "another content"),
        (json.dumps(receipt | {"transfer": "0" * 64}).encode(), 17, "was sent from here"),
    ]
    for data, status, words in cases:
        ended = host.run("confirm", "-", data=data)
        assert (ended.status, words in ended.err) == (status, True), ended
    assert host.run("confirm", path).status == 0
    assert host.run("confirm", host.folder / "missing").status == 2


@pytest.mark.slow
def test_receipt_that_cannot_be_written_is_told_apart_from_a_failure(host: Host) -> None:
    disk, copy = host.disk("disk"), host.blank("copy", 300_000)
    ended = host.pipe([disk, "--goal", "A"], ["--receipt", host.folder / "no" / "where", copy])
    assert ended.recv.status == 19
    assert "the target is committed, but the receipt" in ended.recv.err
    assert host.holds(copy, "A")


# Dry runs, events, progress, signals.


def test_dry_runs_tell_and_write_nothing(host: Host) -> None:
    copy, _, words = increment(host)
    before = copy.read_bytes()
    plan = host.run("send", "-n", *words)
    assert (plan.status, plan.out) == (0, b"")
    assert "would send the changes from A to B" in plan.err
    ended = host.run("recv", "-n", copy, data=host.stream(*words))
    assert (ended.status, "nothing was written" in ended.err) == (0, True)
    assert copy.read_bytes() == before
    assert host.holds(copy, "A")
    assert host.run("adopt", copy, "--id", "X").status == 0
    assert host.run("recv", "-n", copy, data=host.stream(*words)).status == 10


def test_json_is_one_object_a_line_with_the_documented_keys(host: Host) -> None:
    copy, _, words = increment(host)
    ended = host.pipe([*words, "--json"], [copy, "--json"])
    sent, committed = ended.send.events[-1], ended.recv.events[-1]
    assert {"event", "goal", "transfer", "chain", "confirmed", "counts", "seconds"} <= sent.keys()
    assert sent["event"] == "sent"
    assert {"event", "goal", "written", "untouched_tail", "counts"} <= committed.keys()
    assert (committed["event"], committed["written"]) == ("committed", True)
    (delivery,) = ended.send.end["deliveries"]
    assert (delivery["state"], delivery["base"], delivery["committed_at"]) == ("B", "A", None)
    (delivery,) = ended.recv.end["deliveries"]
    assert (delivery["target"], delivery["state"]) == (str(copy), "B")
    assert delivery["committed_at"] is not None
    refused = host.run("recv", "--json", copy, data=b"").end
    assert (refused["status"], refused["error"]) == (11, "ConnectionLostError")
    assert refused["message"].startswith(refused["what"])
    usage = host.run("recv", "--json", copy, "--apply", "nonsense").end
    assert (usage["status"], usage["error"], usage["version"]) == (2, "UsageError", 1)
    (status,) = host.run("status", "--json", copy).results
    assert (status["event"], status["state"], status["id"]) == ("status", "clean", "B")


@pytest.mark.slow
def test_progress_comes_on_a_descriptor_and_on_a_signal(host: Host) -> None:
    disk = host.disk("disk", 3 << 20)
    reading, writing = os.pipe()
    sink = os.open(os.devnull, os.O_WRONLY)
    words: Words = ["send", disk, "--compress", "none", "--bwlimit", "1M", "--progress", "7"]
    process = host.start(words, stdout=sink, extra={7: writing})
    os.close(writing)
    os.close(sink)
    with os.fdopen(reading) as progress:
        first = progress.readline()
        process.signal(signal.SIGUSR1)
        wait_until(lambda: "send: " in process.said())
        lines = [first, *progress]
    assert process.wait().status == 0
    shares = [int(line.removesuffix("/100\n")) for line in lines]
    assert shares == sorted(set(shares))
    assert shares[-1] == 100
    assert "on the wire" in process.said()


@pytest.mark.slow
def test_reader_of_progress_may_leave(host: Host) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    words: Words = ["send", host.disk("disk", 3 << 20), "--bwlimit", "2M", "--progress", "7"]
    process = host.start(words, extra={7: writing})
    os.close(writing)
    assert process.wait().status == 0


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopped_sender_leaves_a_resumable_target(eager: Host, number: signal.Signals) -> None:
    disk, copy = eager.disk("disk", 4 << 20), eager.blank("copy", 4 << 20)
    sender, receiver = eager.start_pipe([disk, "--goal", "A", "--bwlimit", "2M"], [copy])
    wait_until(lambda: copy.read_bytes()[:4096] == disk.read_bytes()[:4096])
    sender.signal(number)
    sent, received = sender.wait(), receiver.wait()
    assert (sent.status, received.status) == (11, 11)
    assert f"stopped by {number.name}" in sent.err
    rest = eager.pipe([disk, "--resume", token_in(received)], [copy])
    assert rest.statuses == (0, 0)
    assert copy.read_bytes() == disk.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("stopped", ["both", "the sender"])
def test_what_was_sent_before_a_stop_is_durable(host: Host, stopped: str) -> None:
    host.limits = {"CHECKPOINT_SECONDS": 1000.0}
    disk, copy = host.folder / "disk", host.blank("copy", 20 << 20)
    disk.write_bytes(os.urandom(20 << 20))
    # So slowly that a frame takes longer than anybody would wait: the last one goes faster.
    sender, receiver = host.start_pipe([disk, "--goal", "A", "--bwlimit", "250k"], [copy])
    wait_until(lambda: copy.read_bytes()[: 1 << 20] == disk.read_bytes()[: 1 << 20])
    sender.signal(signal.SIGINT)
    if stopped == "both":
        receiver.signal(signal.SIGINT)
    sent, received = sender.wait(), receiver.wait()
    assert (sent.status, received.status) == (11, 11)
    assert host.durable(copy) >= 1, received.err
    rest = host.pipe([disk, "--resume", token_in(received)], [copy])
    assert rest.statuses == (0, 0)
    assert copy.read_bytes() == disk.read_bytes()


@pytest.mark.slow
def test_a_stopped_receiver_waits_a_moment_for_a_checkpoint_that_never_comes(host: Host) -> None:
    disk, copy = host.disk("disk", 4 << 20), host.blank("copy", 4 << 20)
    host.limits = {"CHECKPOINT_SECONDS": 1000.0}
    stream = host.stream(disk, "--goal", "A")
    reading, writing = os.pipe()
    receiver = host.start(["recv", copy], stdin=reading)
    os.close(reading)
    os.write(writing, stream[: len(stream) // 2])
    wait_until(lambda: copy.read_bytes()[: 1 << 20] == disk.read_bytes()[: 1 << 20])
    receiver.signal(signal.SIGINT)
    ended = receiver.wait()  # although the pipe stays open
    os.close(writing)
    assert ended.status == 11
    assert "stopped by SIGINT" in ended.err
    assert host.durable(copy) == 0


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("apply", ["direct", "stage"])
def test_stopped_receiver_can_be_resumed(eager: Host, number: signal.Signals, apply: str) -> None:
    disk, copy = eager.disk("disk", 4 << 20), eager.blank("copy", 4 << 20)
    stream = eager.stream(disk, "--goal", "A")
    reading, writing = os.pipe()
    receiver = eager.start(["recv", copy, "--apply", apply], stdin=reading)
    os.close(reading)
    os.write(writing, stream[: len(stream) // 2])
    known = eager.state_dir / "targets"
    wait_until(lambda: any(known.glob("*/journal")) and eager.durable(copy) == 1)
    receiver.signal(number)
    ended = receiver.wait()
    os.close(writing)
    assert ended.status == 11
    assert f"stopped by {number.name}" in ended.err
    rest = eager.stream(disk, "--resume", token_in(ended))
    assert len(rest) < len(stream)
    assert eager.run("recv", copy, "--apply", apply, data=rest).status == 0
    assert copy.read_bytes() == disk.read_bytes()


def receiver_has_recorded(host: Host, copy: Path) -> bool:
    """Tell whether something is durable."""
    ended = host.run("status", "--json", copy)
    return ended.status == 0 and bool(ended.results[0]["token"])


@pytest.mark.slow
def test_status_answers_while_a_transfer_runs(eager: Host) -> None:
    disk, copy = eager.disk("disk", 4 << 20), eager.blank("copy", 4 << 20)
    sender, receiver = eager.start_pipe([disk, "--goal", "A", "--bwlimit", "1M"], [copy])
    wait_until(lambda: receiver_has_recorded(eager, copy))
    assert eager.status(copy)["state"] == "dirty"
    everything = eager.run("status")
    assert (everything.status, b"DIRTY" in everything.out) == (0, True)
    sender.signal(signal.SIGTERM)
    assert (sender.wait().status, receiver.wait().status) == (11, 11)


@pytest.mark.slow
@pytest.mark.parametrize("words", [["recv", "copy"], ["recv", "copy", "--apply", "stage"]])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_receiver_that_waits_for_its_first_byte_can_be_stopped(
    host: Host, words: list[str], number: signal.Signals
) -> None:
    copy = host.blank("copy", 1000)
    reading, writing = os.pipe()
    process = host.start([words[0], copy, *words[2:]], stdin=reading)
    os.close(reading)
    wait_until(lambda: (host.state_dir / "targets").is_dir() and process.state() == "S")
    process.signal(number)
    ended = process.wait()
    os.close(writing)
    assert (ended.status, "stopped by" in ended.err) == (11, True)
    assert not any(copy.read_bytes())


@pytest.mark.slow
def test_one_signal_ends_a_sender_in_front_of_a_full_pipe(host: Host) -> None:
    reading, writing = os.pipe()
    process = host.start(["send", host.disk("disk", 8 << 20)], stdout=writing)
    os.close(writing)
    wait_until(lambda: pipe_is_full(reading))
    process.signal(signal.SIGTERM)
    assert process.wait().status == 11
    os.close(reading)


def pipe_is_full(fd: int) -> bool:
    """Tell whether a pipe holds as many bytes as go into it."""
    waiting = int.from_bytes(fcntl.ioctl(fd, termios.FIONREAD, bytes(4)), "little")
    return waiting >= PIPE_BYTES - 65_536


@pytest.mark.slow
def test_limit_holds_in_every_second(host: Host) -> None:
    arrivals = list_arrivals(host, ["--bwlimit", "2M"], 6 << 20)
    rate, last = 2 << 20, arrivals[-1][0]
    # Never faster, however late we are to look. How fast it is otherwise, a machine that has other
    # things to do does not tell.
    assert last > 0.9 * (6 << 20) / rate
    for start, _ in arrivals:
        carried = sum(count for when, count in arrivals if start <= when < start + 1)
        assert carried < rate * 1.1 + PIPE_BYTES, (start, carried)


def list_arrivals(host: Host, words: list[str], size: int) -> list[tuple[float, int]]:
    """Send noise and return when how many bytes came."""
    disk = host.folder / "noise"
    disk.write_bytes(os.urandom(size))
    reading, writing = os.pipe()
    process = host.start(["send", "-q", disk, *words], stdout=writing)
    os.close(writing)
    arrivals = []
    while part := os.read(reading, 1 << 20):
        arrivals.append((time.monotonic(), len(part)))
    os.close(reading)
    assert process.wait().status == 0
    first = arrivals[0][0]
    return [(when - first, count) for when, count in arrivals]


@pytest.mark.slow
def test_limit_in_a_file_may_change_meanwhile(host: Host) -> None:
    rate = host.folder / "rate"
    rate.write_text("300k")
    disk = host.folder / "noise"
    disk.write_bytes(os.urandom(4 << 20))
    process = host.start(["send", disk, "--bwlimit", f"@{rate}", "--json"])
    wait_until(lambda: '"progress"' in process.said())
    rate.write_text("")
    time.sleep(1)  # it looks more often than that
    assert process.state() in {"S", "R"}  # an emptied file is one that is being written anew
    rate.write_text("nonsense")
    wait_until(lambda: "the limit stays as it was" in process.said())
    began = time.monotonic()
    rate.write_text("none")
    assert process.wait().status == 0
    assert time.monotonic() - began < 5  # it would take 12 s at 300k


# Words.


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_each_command_has_an_example(host: Host, name: str) -> None:
    ended = host.run(name, "--help")
    assert ended.status == 0
    text = ended.out.decode()
    assert "Example" in text
    assert f"blockstream {name}" in text


USAGE = [
    ["send"],
    ["send", "disk", "--base", "A"],
    ["send", "disk", "--base", "A", "--goal", "A", "--extents", "list"],
    ["send", "disk", "--goal", " A"],
    ["send", "disk", "--compress", "lzma"],
    ["send", "disk", "--bwlimit", "fast"],
    ["send", "disk", "--bwlimit", "@missing"],
    ["send", "disk", "--create"],
    ["send", "disk", "--progress", "77"],
    ["send", "disk", "copy", "--bwlimit", "1M"],
    ["send", "disk", "copy", "--compress", "none"],
    ["send", "disk", "--extents", "missing"],
    ["recv"],
    ["recv", "copy", "--apply", "later"],
    ["adopt", "copy", "--id", ""],
    ["nonsense"],
]


@pytest.mark.slow
@pytest.mark.parametrize("words", USAGE, ids=" ".join)
def test_command_line_without_sense_is_status_2_and_does_nothing(
    host: Host, words: list[str]
) -> None:
    disk, copy = host.disk("disk"), host.disk("copy", seed=4)
    before = copy.read_bytes()
    known = {"disk": disk, "copy": copy}
    ended = host.run(*[known.get(word, word) for word in words])
    assert (ended.status, ended.out) == (2, b""), ended
    assert ended.err
    assert copy.read_bytes() == before


@pytest.mark.slow
def test_allocation_map_is_no_increment_and_a_list_of_changes_no_full_copy(host: Host) -> None:
    old = host.disk("old")
    allocated = host.folder / "allocated"
    allocated.write_bytes(host.run("extents", old).out)
    changes = host.list_changes("changes", host.changed("new", old), old)
    as_increment = host.run("send", old, "--base", "A", "--extents", allocated)
    assert (as_increment.status, "not what changed" in as_increment.err) == (2, True)
    as_full = host.run("send", old, "--extents", changes)
    assert (as_full.status, "--base must name" in as_full.err) == (2, True)
    full = host.run("send", old, "--extents", allocated)
    assert full.status == 0


@pytest.mark.slow
def test_things_that_are_not_there_are_status_17(host: Host) -> None:
    copy = host.blank("copy", 1000)
    cases: list[Words] = [
        ["send", host.folder / "missing"],
        ["extents", host.folder / "missing"],
        ["inspect", host.folder / "missing"],
        ["status", copy],
        ["status", host.folder / "missing"],
        ["undo", copy],
        ["apply", copy],
        ["abort", copy],
    ]
    for words in cases:
        ended = host.run(*words)
        assert ended.status == 17, (words, ended)
        assert ended.err.startswith("blockstream: ")


def test_a_receiver_starts_without_what_takes_long_to_load() -> None:
    heavy = "{'numpy', 'rich', 'asyncssh', 'aiobotocore', 'pyVmomi', 'uvloop'}"
    script = f"import sys, blockstream.cli.recv_cmd; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)  # noqa: S603
    assert done.stdout == b"set()\n"
