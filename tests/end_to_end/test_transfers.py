"""Any capture goes to any destination: points into another store, sets into one, what differs."""

import json
from pathlib import Path

import pytest

from tests.end_to_end.hosts import Ended, Host, Words, failing_at
from tests.end_to_end.test_stores import ok

MIB = 1 << 20


@pytest.fixture
def store(host: Host) -> str:
    place = f"dir:{host.folder}/store"
    ok(host.run("store", "init", place))
    return place


@pytest.fixture
def other(host: Host) -> str:
    place = f"dir:{host.folder}/other"
    ok(host.run("store", "init", place))
    return place


def points(host: Host, place: str) -> list[dict[str, object]]:
    return ok(host.run("points", place, "--json")).results


def restored(host: Host, place: str) -> bytes:
    back = host.folder / "back"
    back.unlink(missing_ok=True)
    ok(host.run("restore", place, back, "--create"))
    return back.read_bytes()


def pair(host: Host) -> list[Path]:
    return [host.disk(name, size) for name, size in (("root", 2 * MIB), ("data", 3 * MIB))]


# Sets.


def test_several_disks_are_saved_as_one_set(host: Host, store: str) -> None:
    disks = pair(host)
    ended = ok(host.run("send", *disks, f"{store}/"))
    for disk in disks:
        assert f"saved: {store}/{disk.name}@1" in ended.err
        assert restored(host, f"{store}/{disk.name}") == disk.read_bytes()


@pytest.mark.parametrize("visible", [0, 1])
@pytest.mark.slow
def test_of_a_set_nothing_is_visible_before_all_is_stored(
    host: Host, store: str, visible: int
) -> None:
    disks = pair(host)
    point = ("store.before_commit", "store.after_commit")[visible]
    ended = host.run("send", *disks, store, environment=failing_at(f"{point}:1:kill"))
    assert ended.status == -9
    packs = [path for path in Path(store.removeprefix("dir:")).rglob("*") if path.is_file()]
    assert any("data" in str(path) for path in packs)  # the second one was stored, too
    shown = [host.run("points", f"{store}/{disk.name}", "--json").results for disk in disks]
    assert [len(each) for each in shown] == [visible, 0]
    ok(host.run("send", *disks, store))
    for disk in disks:
        assert restored(host, f"{store}/{disk.name}") == disk.read_bytes()


def test_a_set_of_which_one_cannot_be_saved_is_not(host: Host, store: str) -> None:
    disks = pair(host)
    broken = host.folder / "vm.vmdk"
    broken.write_text("# Disk DescriptorFile\nversion=1\n")
    ended = host.run("send", *disks, f"vmdk:{broken}", store)
    assert ended.status == 14, ended.err
    for disk in disks:
        assert not host.run("points", f"{store}/{disk.name}", "--json").results


@pytest.mark.slow
@pytest.mark.parametrize("bad", ["small", "missing", "large"])
def test_a_set_is_refused_before_any_of_it_is_written(host: Host, way: list[str], bad: str) -> None:
    """The others were half-written when one of them was refused, and `nothing was written`."""
    disks, there = pair(host), host.folder / "there"
    there.mkdir()
    copies = [there / disk.name for disk in disks]
    ok(host.run("send", disks[0], f"lab:{copies[0]}", "--create", "--goal", "A", *way))
    before = copies[0].read_bytes()
    if bad != "missing":
        copies[1].write_bytes(bytes(MIB if bad == "small" else 4 * MIB))
    for disk in disks:
        disk.write_bytes(bytes(disk.stat().st_size - 4096) + b"newer".ljust(4096))
    ended = host.run("send", *disks, f"lab:{there}/", *way)
    assert ended.status in {10, 17}, ended.err
    assert copies[0].read_bytes() == before
    listed = host.list_changes("listed", disks[0], copies[0])
    onto = ("--base", "A", "--extents", listed)
    ok(host.run("send", disks[0], f"lab:{copies[0]}", *onto, *way))
    copies[1].unlink(missing_ok=True)
    ok(host.run("send", disks[1], f"lab:{copies[1]}", "--create", *way))
    ok(host.run("send", *disks, f"lab:{there}/", *way))
    assert [path.read_bytes() for path in copies] == [path.read_bytes() for path in disks]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["root", "sub/root", "{store}"], "two of them are called root"),
        (["root", "data", "{store}", "--base", "a"], "for one disk at a time"),
        (["root", "data", "{store}", "--compare"], "one disk at a time"),
        (["{store}/vm", "data", "{store}"], "restore points are sent one by one"),
        (["root", "sub/root", "lab:/there/"], "two SOURCEs would go to lab:/there/root"),
        (["root", "root", "lab:"], "two SOURCEs would go to lab:"),
        (["root", "lab:/x", "{store}"], "is on another host"),
        (["root", "vsphere://me@h/DC/vm/x", "{store}"], "is a machine of VMware"),
        (["root", "{store}/vm@3"], "is a point, which nobody writes"),
        (["{store}/vm", "lab:"], "a restore point has no path that it could have there"),
        (["lab:/x", "lab:"], "one of SOURCE and TARGET has to be on this host"),
        (["root", "--compare"], "--compare reads a TARGET, and there is none"),
    ],
)
def test_what_makes_no_set_is_refused(host: Host, store: str, words: list[str], said: str) -> None:
    pair(host)
    (host.folder / "sub").mkdir()
    (host.folder / "sub" / "root").write_bytes(bytes(MIB))
    given = [word.format(store=store) for word in words]
    given = [str(host.folder / word) if (host.folder / word).is_file() else word for word in given]
    ended = host.run("send", *given)
    assert ended.status == 2, ended.err
    assert said in ended.err


# What differs, where nobody tracked.


def test_what_did_not_change_is_not_stored_twice(host: Host, store: str) -> None:
    disk = host.disk("disk", 4 * MIB)
    ok(host.run("send", disk, f"{store}/vm"))
    content = bytearray(disk.read_bytes())
    for at in (100, 2 * MIB, 4 * MIB - 5):
        content[at : at + 5] = b"newer"
    disk.write_bytes(content)
    ended = ok(host.run("send", disk, f"{store}/vm", "--compare"))
    assert "12.0 KiB changed of" in ended.err
    assert [each["type"] for each in points(host, f"{store}/vm")] == ["full", "increment"]
    assert restored(host, f"{store}/vm") == disk.read_bytes()
    disk.write_bytes(content + bytes(MIB) + b"grown".ljust(4096))
    ok(host.run("send", disk, f"{store}/vm", "--compare"))
    assert restored(host, f"{store}/vm") == disk.read_bytes()
    assert [each["type"] for each in points(host, f"{store}/vm")][2:] == ["increment"]


def test_where_nothing_is_stored_yet_all_is(host: Host, store: str) -> None:
    disk = host.disk("disk", MIB)
    ok(host.run("send", disk, f"{store}/vm", "--compare"))
    assert [each["type"] for each in points(host, f"{store}/vm")] == ["full"]
    assert restored(host, f"{store}/vm") == disk.read_bytes()


def test_what_differs_here_is_sent_here(host: Host) -> None:
    disk, copy = host.disk("disk", 2 * MIB), host.folder / "copy"
    ok(host.run("send", disk, copy, "--create"))
    content = bytearray(disk.read_bytes())
    content[MIB : MIB + 3] = b"new"
    disk.write_bytes(content)
    with copy.open("r+b") as file:
        file.write(b"somebody wrote here")
    ended = ok(host.run("send", disk, copy, "--compare"))
    assert copy.read_bytes() == disk.read_bytes()
    assert "8.0 KiB changed of" in ended.err


# Points.


def three_points(host: Host, store: str) -> tuple[Path, list[bytes]]:
    """Save a disk three times; return it, and what it held."""
    disk, held = host.disk("disk", 2 * MIB), list[bytes]()
    for number in range(3):
        content = bytearray(disk.read_bytes())
        content[number * 4096 : number * 4096 + 3] = b"new"
        disk.write_bytes(content)
        ok(host.run("send", disk, f"{store}/vm", *(["--compare"] if number else [])))
        held.append(disk.read_bytes())
    return disk, held


def test_a_point_goes_into_another_store_and_later_ones_as_increments(
    host: Host, store: str, other: str
) -> None:
    disk, held = three_points(host, store)
    ok(host.run("send", f"{store}/vm@1", f"{other}/vm"))
    ended = ok(host.run("send", f"{store}/vm", f"{other}/vm"))
    assert "8.0 KiB changed of" in ended.err
    there, here = points(host, f"{other}/vm"), points(host, f"{store}/vm")
    assert [each["type"] for each in there] == ["full", "increment"]
    # It is the same state of the same moment, wherever it lies.
    assert [each["state"] for each in there] == [here[0]["state"], here[2]["state"]]
    assert [each["moment"] for each in there] == [here[0]["moment"], here[2]["moment"]]
    assert restored(host, f"{other}/vm@1") == held[0]
    assert restored(host, f"{other}/vm") == held[2] == disk.read_bytes()
    ended = ok(host.run("send", f"{store}/vm", f"{other}/vm"))
    assert "the destination holds this very state" in ended.err
    assert len(points(host, f"{other}/vm")) == 2


def test_a_point_that_does_not_come_from_what_is_there_is_sent_whole(
    host: Host, store: str, other: str
) -> None:
    _, held = three_points(host, store)
    ok(host.run("send", host.disk("another", MIB), f"{other}/vm"))
    ended = ok(host.run("send", f"{store}/vm@2", f"{other}/vm"))
    assert "all of its 2.0 MiB, because nothing says that it goes onto" in ended.err
    assert restored(host, f"{other}/vm") == held[1]
    # Nothing leads from a newer point to an older one.
    ended = ok(host.run("send", f"{store}/vm@1", f"{other}/vm"))
    assert restored(host, f"{other}/vm") == held[0]


def test_a_point_is_sent_wherever_disks_are(host: Host, store: str) -> None:
    _, held = three_points(host, store)
    copy, piped = host.folder / "copy", host.folder / "piped"
    ok(host.run("send", f"{store}/vm@2", copy, "--create"))
    assert copy.read_bytes() == held[1]
    stream = ok(host.run("send", f"{store}/vm@1")).out
    ok(host.run("recv", "--create", piped, data=stream))
    assert piped.read_bytes() == held[0]
    state = json.loads(ok(host.run("status", piped, "--json")).out)
    assert state["id"] == points(host, f"{store}/vm")[0]["state"]


def refused(host: Host, *words: str | Path) -> Ended:
    given: Words = list(words)
    ended = host.run("send", *given)
    assert ended.status == 2, ended.err
    return ended


def test_a_point_says_itself_what_it_is(host: Host, store: str) -> None:
    three_points(host, store)
    copy = host.folder / "copy"
    for option in ("--base", "--goal", "--extents", "--since"):
        assert option in refused(host, f"{store}/vm", copy, option, "x").err
    for option in ("--quiesced", "--rotate", "--delta"):
        refused(host, f"{store}/vm", copy, option)


def test_states_of_one_name_are_not_taken_for_one(host: Host, store: str, other: str) -> None:
    """A copy was silently another disk: names are given by people."""
    one, two = host.disk("one", MIB, seed=1), host.disk("two", MIB, seed=2)
    ok(host.run("send", one, f"{store}/vm", "--goal", "monday"))
    ok(host.run("send", two, f"{other}/vm", "--goal", "monday"))
    ended = host.run("send", f"{store}/vm", f"{other}/vm")
    assert ended.status == 10, ended.err
    assert "is state 'monday' already, with another content" in ended.err
    content = bytearray(one.read_bytes())
    content[:5] = b"newer"
    one.write_bytes(content)
    ok(host.run("send", one, f"{store}/vm", "--goal", "tuesday", "--compare"))
    ended = ok(host.run("send", f"{store}/vm", f"{other}/vm"))
    assert "because nothing says that it goes onto 'monday'" in ended.err
    assert restored(host, f"{other}/vm") == one.read_bytes()


def test_a_copy_that_was_compacted_is_gone_on_with(host: Host, store: str, other: str) -> None:
    disk, _ = three_points(host, store)
    for point in ("@1", "@2"):
        ok(host.run("send", f"{store}/vm{point}", f"{other}/vm"))
    ok(host.run("store", "compact", f"{other}/vm"))
    ended = ok(host.run("send", f"{store}/vm", f"{other}/vm"))
    assert "because" not in ended.err
    assert restored(host, f"{other}/vm") == disk.read_bytes()
    moments = [each["moment"] for each in points(host, f"{other}/vm")]
    assert None not in moments


def test_a_comparison_with_itself_is_one(host: Host, store: str) -> None:
    _, _ = three_points(host, store)
    ended = ok(host.run("send", "--compare", f"{store}/vm", f"{store}/vm"))
    assert "holds this very state, with this content" in ended.err
    assert len(points(host, f"{store}/vm")) == 3


def test_a_set_has_one_name_if_that_is_wished(host: Host, store: str) -> None:
    disks = pair(host)
    ok(host.run("send", *disks, store, "--goal", "night"))
    for disk in disks:
        assert points(host, f"{store}/{disk.name}")[0]["state"] == "night"


def test_why_all_would_be_sent_is_said_beforehand(host: Host, store: str, other: str) -> None:
    three_points(host, store)
    ok(host.run("send", host.disk("another", MIB), f"{other}/vm"))
    ended = ok(host.run("send", "-n", f"{store}/vm", f"{other}/vm"))
    assert "all of its 2.0 MiB, because nothing says" in ended.err
    assert len(points(host, f"{other}/vm")) == 1


# What goes wrong at three in the morning.


@pytest.mark.parametrize("time", ["2026-13-41", "2026-12-45", "2026-02-30", "2026-11-20T25:00"])
def test_a_time_that_is_in_no_calendar_is_no_point(host: Host, store: str, time: str) -> None:
    """The newest point was written over the target in its place."""
    three_points(host, store)
    back = host.folder / "back"
    ended = host.run("restore", f"{store}/vm@{time}", back, "--create")
    assert ended.status == 2, ended.err
    assert "is no time" in ended.err
    assert not back.exists()


def test_where_a_store_was_no_other_one_is_made_unasked(host: Host, store: str) -> None:
    disk = host.disk("disk", MIB)
    ok(host.run("send", disk, f"{store}/vm"))
    folder = Path(store.removeprefix("dir:"))
    folder.rename(host.folder / "unmounted")
    folder.mkdir()
    for words in (["points", f"{store}/vm"], ["send", str(disk), f"{store}/vm"]):
        ended = host.run(*words)
        assert ended.status == 17, ended.err
        assert "is what it lies on mounted?" in ended.err
    ended = host.run("store", "init", store)
    assert ended.status == 10, ended.err
    ok(host.run("store", "init", store, "--anew"))
    ok(host.run("send", disk, f"{store}/vm"))


def test_a_disk_without_bytes_is_no_quiet_success(host: Host, store: str) -> None:
    empty = host.folder / "empty"
    empty.touch()
    ended = ok(host.run("send", empty, f"{store}/vm"))
    assert "has no bytes" in ended.err
