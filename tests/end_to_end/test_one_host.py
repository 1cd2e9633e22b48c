"""Two disks of one host: every way to apply, the last base, comparison and repair."""

import os
from pathlib import Path

import pytest

from tests.end_to_end.hosts import Host, Words, altered, failing_at
from tests.end_to_end.test_apply_modes import SIZE, based

pytestmark = pytest.mark.slow


def test_a_copy_on_one_host_can_be_undone(eager: Host) -> None:
    target, new, words = based(eager)
    before = target.read_bytes()
    ended = eager.run("send", *words, target, "--apply", "undo")
    assert ended.status == 0, ended.err
    assert target.read_bytes() == new.read_bytes()
    assert eager.run("undo", target).status == 0
    assert target.read_bytes() == before
    assert eager.holds(target, "A")


def test_a_staged_copy_touches_its_target_only_when_all_of_it_is_there(eager: Host) -> None:
    target, new, words = based(eager)
    before, when = target.read_bytes(), target.stat().st_mtime_ns
    again: Words = ["send", *words, target, "--apply", "stage"]
    dying = eager.run(*again, environment=failing_at("recv.after_record:3:kill"))
    assert dying.status == -9, dying
    assert (target.read_bytes(), target.stat().st_mtime_ns) == (before, when)
    assert eager.holds(target, "A")
    assert list(eager.state_dir.rglob("spool.bsx"))
    ended = eager.run(*again)
    assert ended.status == 0, ended.err
    assert "brought by an earlier run" in ended.err
    assert target.read_bytes() == new.read_bytes()
    assert eager.holds(target, "B")
    assert not list(eager.state_dir.rglob("spool.bsx"))


def test_a_staged_copy_that_was_complete_is_applied_by_the_same_command(eager: Host) -> None:
    target, new, words = based(eager)
    before = target.read_bytes()
    again: Words = ["send", *words, target, "--apply", "stage"]
    dying = eager.run(*again, environment=failing_at("recv.spool_complete:1:kill"))
    assert dying.status == -9, dying
    assert target.read_bytes() == before
    ended = eager.run(*again)
    assert ended.status == 0, ended.err
    assert target.read_bytes() == new.read_bytes()
    assert eager.holds(target, "B")


def test_another_source_begins_a_staged_copy_anew(eager: Host) -> None:
    target, _, words = based(eager)
    other = eager.disk("other", SIZE, 77)
    staged: Words = [target, "--apply", "stage"]
    dying = eager.run("send", *words, *staged, environment=failing_at("recv.after_record:3:kill"))
    assert dying.status == -9, dying
    ended = eager.run("send", other, *staged)
    assert ended.status == 0, ended.err
    assert target.read_bytes() == other.read_bytes()


def test_the_last_base_is_that_of_this_target(host: Host) -> None:
    disk = host.disk("disk")
    one, two = host.blank("one", 300_000), host.blank("two", 300_000)
    assert host.run("send", disk, one, "--goal", "A").status == 0
    assert host.run("send", disk, two, "--goal", "A").status == 0
    before = host.folder / "before"
    states = "A", "B", "C"
    for goal in states[1:]:
        before.write_bytes(disk.read_bytes())
        disk.write_bytes(altered(before.read_bytes(), ord(goal)))
        changes = host.list_changes(f"changes-{goal}", disk, before)
        words: Words = ["--base", "last", "--goal", goal, "--extents", changes]
        ended = host.run("send", disk, one, *words)
        assert ended.status == 0, ended.err
        assert one.read_bytes() == disk.read_bytes()
    # What was sent to one of them is no base of the other.
    plan = host.run("send", "-n", "--json", disk, two, *words[:2], "--goal", "D", *words[4:])
    assert plan.events[0]["base"] == "A"
    third = host.blank("third", 300_000)
    ended = host.run("send", disk, third, *words)
    assert ended.status == 17
    assert f"no transfer of {disk} to {third} was confirmed yet" in ended.err
    # Nor is anything that was sent to a disk the base over a pipe.
    assert host.run("send", "-n", disk, *words).status == 17


def test_a_copy_that_was_killed_when_it_was_committed_is_the_last_base(host: Host) -> None:
    disk, copy = host.disk("disk"), host.blank("copy", 300_000)
    words: Words = ["send", disk, copy, "--goal", "A"]
    assert host.run(*words, environment=failing_at("recv.after_clean:1:kill")).status == -9
    before = host.folder / "before"
    before.write_bytes(disk.read_bytes())
    disk.write_bytes(altered(before.read_bytes(), 3))
    changes = host.list_changes("changes", disk, before)
    ended = host.run("send", disk, copy, "--base", "last", "--goal", "B", "--extents", changes)
    assert ended.status == 0, ended.err
    assert copy.read_bytes() == disk.read_bytes()


def test_two_disks_of_one_host_are_compared(host: Host) -> None:
    disk, copy = host.disk("disk"), host.folder / "copy"
    copy.write_bytes(disk.read_bytes() + b"x" * 4096)
    ended = host.run("verify", disk, copy)
    assert ended.status == 0, ended.err
    assert "; what TARGET has beyond that, 4.0 KiB, was not looked at" in ended.err
    with copy.open("r+b") as file:
        file.seek(70_000)
        file.write(b"!")
    when = copy.stat().st_mtime_ns
    ended = host.run("verify", disk, copy)
    assert ended.status == 12
    assert "4096 bytes at offset 69632" in ended.err
    assert copy.stat().st_mtime_ns == when
    event = host.run("verify", "--json", disk, copy).events[0]
    assert (event["event"], event["differing"]) == ("compared", 4096)


def test_what_differs_on_one_host_is_repaired(host: Host) -> None:
    disk, copy = host.disk("disk"), host.folder / "copy"
    copy.write_bytes(altered(disk.read_bytes(), 5) + b"beyond the end")
    refused = host.run("verify", disk, copy, "--repair")
    assert refused.status == 10, refused.err
    assert "--force-larger takes it" in refused.err
    ended = host.run("verify", disk, copy, "--repair", "--force-larger")
    assert ended.status == 0, ended.err
    assert "repaired: " in ended.err
    assert copy.read_bytes() == disk.read_bytes() + b"beyond the end"
    assert "equal: " in host.run("verify", disk, copy, "--repair").err
    assert host.run("verify", disk, copy, "--force-larger").status == 2
    # What it holds since then is its last base, and nobody else's.
    changes = host.list_changes("changes", disk, disk)
    words: Words = ["--base", "last", "--goal", "B", "--extents", changes]
    assert host.run("send", disk, *words).status == 17
    ended = host.run("send", disk, copy, *words, "--force-larger")
    assert ended.status == 0, ended.err


@pytest.mark.parametrize("repair", [[], ["--repair"]])
def test_a_copy_that_is_too_small_is_not_equal(host: Host, repair: list[str]) -> None:
    disk, copy = host.disk("disk"), host.blank("copy", 200_000)
    ended = host.run("verify", disk, copy, *repair)
    assert ended.status == 10, ended.err
    assert "they cannot be equal" in ended.err
    assert copy.read_bytes() == bytes(200_000)


def test_a_disk_is_not_repaired_from_itself(host: Host) -> None:
    disk = host.disk("disk")
    link = host.folder / "link"
    os.link(disk, link)
    ended = host.run("verify", disk, link, "--repair")
    assert ended.status == 10, ended.err
    assert not (host.state_dir / "targets").exists()


def test_verify_on_one_host_needs_no_other(host: Host) -> None:
    disk = host.disk("disk")
    ended = host.run("verify", disk, disk, "--rsh", "ssh")
    assert ended.status == 2
    assert "needs another host" in ended.err


def test_the_newest_point_is_the_last_base_of_a_store(host: Host) -> None:
    disk, store = host.disk("disk"), f"dir:{host.folder}/store"
    assert host.run("store", "init", store).status == 0
    words: Words = ["send", disk, f"{store}/vm"]
    changes = host.folder / "changes"
    changes.write_bytes(host.run("extents", disk, "--since", disk).out)
    increment: Words = [*words, "--base", "last", "--goal", "B", "--extents", changes]
    ended = host.run(*increment)
    assert ended.status == 17
    assert "so there is no last base" in ended.err
    assert host.run(*words, "--goal", "A").status == 0
    before = Path(host.folder / "before")
    before.write_bytes(disk.read_bytes())
    disk.write_bytes(altered(before.read_bytes(), 3))
    host.list_changes("changes", disk, before)
    ended = host.run(*increment)
    assert ended.status == 0, ended.err
    plan = host.run(*increment[:-3], "C", "--extents", changes, "-n", "--json")
    assert plan.events[0]["base"] == "B"


def test_no_name_that_another_disk_was_given_is_taken_over(eager: Host) -> None:
    """The next increment onto that name was committed, and the target was no state of any disk."""
    monday, target = eager.disk("monday", SIZE, 7), eager.blank("target", SIZE)
    words: Words = ["send", monday, target, "--goal", "monday"]
    dying = eager.run(*words, environment=failing_at("recv.after_record:3:kill"))
    assert dying.status == -9, dying
    # All that is durable there is the same in both.
    tuesday = eager.folder / "tuesday"
    tuesday.write_bytes(monday.read_bytes()[:-4096] + bytes(4096))
    ended = eager.run("send", tuesday, target)
    assert ended.status == 0, ended.err
    assert target.read_bytes() == tuesday.read_bytes()
    assert not eager.holds(target, "monday")


@pytest.mark.parametrize("option", ["--base", "--goal", "--extents", "--resume"])
def test_a_variable_that_is_not_set_is_no_value(host: Host, option: str) -> None:
    """A state that a script had no name for was given one that nobody knew."""
    disk, copy = host.disk("disk"), host.folder / "copy"
    ended = host.run("send", option, "", disk, copy, "--create")
    assert (ended.status, copy.exists()) == (2, False), ended.err
    assert f"{option} is empty; nothing was done; is a variable not set?" in ended.err
