"""A disk that was saved comes back as it was, at any of its points; what is damaged is named."""

import json
import os
import random
import shutil
import signal
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from blockstream.formats.point import Pack, Point
from blockstream.interfaces import Objects
from blockstream.locations.store import open_objects
from blockstream.repository.repository import FOLDERS
from tests.end_to_end.hosts import Ended, Host, Words, wait_until
from tests.rotation import share
from tests.s3_proxy import Answer, Fault, Rule, proxy
from tests.s3_servers import S3Server

SEND = ("send", "{disk}", "{store}/vm", "--base", "c", "--goal", "d", "--extents", "{listed}")
PRUNE = ("store", "prune", "{store}", "--keep", "last=1", "--grace", "0")
BLOCK = 4096
SIZE = 3 << 20


@pytest.fixture
def store(host: Host, tmp_path: Path) -> str:
    place = f"dir:{tmp_path}/store"
    assert host.run("store", "init", place).status == 0
    return place


@pytest.fixture
def encrypted(host: Host, tmp_path: Path) -> str:
    place, identity = f"dir:{tmp_path}/store", tmp_path / "identity"
    recipient = ok(host.run("store", "key", "new", identity)).out.decode().strip()
    assert identity.stat().st_mode & 0o777 == 0o600
    said = ok(host.run("store", "init", place, "--encrypt-to", recipient)).err
    assert "Whoever loses every identity that opens it has lost what it holds" in said
    host.environment["BLOCKSTREAM_IDENTITY"] = str(identity)
    return place


@pytest.fixture(params=["store", "encrypted"])
def either(request: pytest.FixtureRequest) -> str:
    """A folder, encrypted or not."""
    return str(request.getfixturevalue(request.param))


@pytest.fixture(
    params=[
        "folder",
        "encrypted",
        pytest.param("radosgw", marks=[pytest.mark.slow, pytest.mark.needs("radosgw")]),
        pytest.param("localstack", marks=pytest.mark.slow),
    ]
)
def anywhere(host: Host, tmp_path: Path, request: pytest.FixtureRequest) -> str:
    """A store of each kind."""
    if request.param == "folder":
        return str(request.getfixturevalue("store"))
    if request.param == "encrypted":
        return str(request.getfixturevalue("encrypted"))
    server = request.getfixturevalue(request.param)
    host.environment |= server.environment
    place = f"s3://contracts/{tmp_path.parent.name}/{tmp_path.name}"
    ok(host.run("store", "init", place))
    return place


def ok(ended: Ended) -> Ended:
    assert ended.status == 0, ended.err
    return ended


def changed(disk: Path, rng: random.Random) -> str:
    """Change some blocks of a disk; return the list of changes, as rbd gives it."""
    content = bytearray(disk.read_bytes())
    blocks = sorted(rng.sample(range(len(content) // BLOCK), rng.randrange(0, 40)))
    for block in blocks:
        zero = rng.random() < 0.3
        piece = bytes(BLOCK) if zero else rng.randbytes(BLOCK)
        content[block * BLOCK : (block + 1) * BLOCK] = piece
    disk.write_bytes(content)
    return json.dumps([change(block * BLOCK) for block in blocks])


def change(offset: int) -> dict[str, object]:
    return {"offset": offset, "length": BLOCK, "exists": "true"}


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_every_point_of_a_disk_comes_back(host: Host, anywhere: str, tmp_path: Path) -> None:
    store = anywhere
    rng = random.Random(1)  # noqa: S311
    disk = tmp_path / "disk"
    disk.write_bytes(rng.randbytes(SIZE // 2) + bytes(SIZE // 2))
    states = [disk.read_bytes()]
    ok(host.run("send", disk, f"{store}/vm", "--goal", "state0"))
    for number in range(1, 12):
        listed = tmp_path / "changes.json"
        listed.write_text(changed(disk, rng))
        states.append(disk.read_bytes())
        words = ["--base", f"state{number - 1}", "--extents", str(listed)]
        if number == 7:
            words = []  # a full copy in between
        ok(host.run("send", disk, f"{store}/vm", "--goal", f"state{number}", *words))
    shown = ok(host.run("points", f"{store}/vm")).out.decode()
    assert shown.count("never") == 12
    assert shown.count("increment") == 10
    assert shown.count("full") == 2
    for number, state in enumerate(states):
        copy = tmp_path / f"copy{number}"
        point = rng.choice([str(number + 1), f"state{number}"])
        ok(host.run("restore", f"{store}/vm@{point}", copy, "--create"))
        assert copy.read_bytes() == state, number
        assert f"state{number}" in ok(host.run("status", copy)).out.decode()
    assert ok(host.run("points", store)).out.decode().split() == [f"{store}/vm"]


def test_the_packs_of_a_point_are_its_stream(host: Host, store: str, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(random.Random(2).randbytes(SIZE))  # noqa: S311
    ok(host.run("send", disk, f"{store}/vm"))
    packs = sorted((tmp_path / "store").rglob("*.pack"))
    stream = b"".join(pack.read_bytes() for pack in packs)
    copy = tmp_path / "copy"
    ok(host.run("recv", copy, "--create", data=stream))
    assert copy.read_bytes() == disk.read_bytes()


def test_an_increment_goes_onto_the_newest_point_only(
    host: Host, store: str, tmp_path: Path
) -> None:
    disk, listed = tmp_path / "disk", tmp_path / "changes.json"
    disk.write_bytes(bytes(SIZE))
    listed.write_text("[]")
    words = ("send", disk, f"{store}/vm", "--extents", listed)
    refused = host.run(*words, "--base", "a", "--goal", "b")
    assert refused.status == 10
    assert "holds no point of vm last, and not the base 'a'" in refused.err
    ok(host.run("send", disk, f"{store}/vm", "--goal", "a"))
    ok(host.run(*words, "--base", "a", "--goal", "b"))
    refused = host.run(*words, "--base", "a", "--goal", "c")
    assert refused.status == 10
    assert "holds state 'b' of vm last" in refused.err
    assert len(list((tmp_path / "store").rglob("*.json"))) == 3


def test_a_disk_that_grew_is_sent_with_what_it_grew_by(
    host: Host, store: str, tmp_path: Path
) -> None:
    disk, listed = tmp_path / "disk", tmp_path / "changes.json"
    disk.write_bytes(bytes(SIZE))
    ok(host.run("send", disk, f"{store}/vm", "--goal", "a"))
    with disk.open("ab") as file:
        file.write(b"x" * BLOCK)
    listed.write_text("[]")
    words = ("send", disk, f"{store}/vm", "--base", "a", "--goal", "b", "--extents", listed)
    refused = host.run(*words)
    assert refused.status == 10
    assert "has grown" in refused.err
    listed.write_text(json.dumps([change(SIZE)]))
    ok(host.run(*words))
    ok(host.run("restore", f"{store}/vm", tmp_path / "copy", "--create"))
    assert (tmp_path / "copy").read_bytes() == disk.read_bytes()


@pytest.mark.timeout(200)
@pytest.mark.parametrize("point", ["send.first_data", "store.before_seal", "store.after_seal"])
def test_a_send_that_was_killed_is_invisible(
    host: Host, anywhere: str, tmp_path: Path, point: str
) -> None:
    store = anywhere
    disk = tmp_path / "disk"
    disk.write_bytes(random.Random(3).randbytes(SIZE))  # noqa: S311
    killed = host.run(
        "send", disk, f"{store}/vm", environment={"BLOCKSTREAM_FAILPOINT": f"{point}:1:kill"}
    )
    assert killed.status == -9
    assert "no point" in host.run("points", f"{store}/vm").err
    ok(host.run("send", disk, f"{store}/vm"))
    copy = tmp_path / "copy"
    ok(host.run("restore", f"{store}/vm", copy, "--create"))
    assert copy.read_bytes() == disk.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("point", ["repair.before_finish", "repair.after_finish"])
def test_a_repair_that_was_killed_is_done_again(
    host: Host, either: str, tmp_path: Path, point: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = host.disk("disk", SIZE)
    ok(host.run("send", disk, f"{either}/vm"))
    with closing(opened_raw(host, either, monkeypatch)) as objects:
        (pack,) = [info.key for info in objects.listed("bs1/disk/vm/pack/", 2)]
        (index,) = [info.key for info in objects.listed("bs1/disk/vm/index/")]
        before = objects.read_whole(pack, 1 << 30)
        damaged(objects, pack, "altered")
        damaged(objects, index, "missing")  # each pack has its part of it
        line = ("store", "repair", f"{either}/vm", "--from", disk)
        killed = host.run(*line, environment={"BLOCKSTREAM_FAILPOINT": f"{point}:1:kill"})
        assert killed.status == -9, killed.err
        assert len(objects.read_whole(pack, 1 << 30)) == len(before)
        said = ok(host.run(*line)).err
        assert ("made anew from" in said) == (point == "repair.before_finish")
    ok(host.run("store", "verify", either))
    ok(host.run("restore", f"{either}/vm", tmp_path / "copy", "--create"))
    assert (tmp_path / "copy").read_bytes() == disk.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "point"),
    [
        (SEND, "store.before_seal:1"),
        (SEND, "store.before_index:1"),
        (SEND, "store.before_commit:1"),
        (SEND, "store.after_commit:1"),
        (("store", "compact", "{store}"), "compact.before_commit:1"),
        (("store", "compact", "{store}"), "compact.after_commit:1"),
        (PRUNE, "prune.after_mark:1"),
        (PRUNE, "prune.after_mark:2"),
        (PRUNE, "prune.after_manifest:1"),
        (PRUNE, "prune.before_sweep:1"),
        (("restore", "{store}/vm", "{copy}", "--create"), "recv.after_write:1"),
        (("restore", "{store}/vm", "{copy}", "--create"), "recv.before_clean:1"),
    ],
)
def test_a_store_outlives_whoever_dies_at_work_on_it(
    host: Host, store: str, tmp_path: Path, words: tuple[str, ...], point: str
) -> None:
    rng = random.Random(7)  # noqa: S311
    disk, listed, copy = (tmp_path / name for name in ("disk", "changes.json", "copy"))
    disk.write_bytes(rng.randbytes(SIZE // 4))
    ok(host.run("send", disk, f"{store}/vm", "--goal", "a"))
    for base, goal in ("ab", "bc"):
        listed.write_text(changed(disk, rng))
        more = ("--base", base, "--goal", goal, "--extents", listed)
        ok(host.run("send", disk, f"{store}/vm", *more))
    if words == PRUNE:  # of what nothing needs
        ok(host.run("send", disk, f"{store}/vm", "--goal", "d"))
    before = disk.read_bytes()
    if words == SEND:
        listed.write_text(changed(disk, rng))
    places = {"store": store, "disk": disk, "copy": copy, "listed": listed}
    line = [word.format(**places) for word in words]
    environment = {"BLOCKSTREAM_FAILPOINT": f"{point}:kill"}
    killed = host.run(*line, environment=environment)
    assert killed.status == -9, killed.err
    ok(host.run("store", "verify", store))
    again = host.run(*line if words[0] != "restore" else line[:-1])
    committed = point.startswith("store.after_commit")
    assert again.status == 0, again.err
    assert ("already saved: " in again.err) == committed
    if committed:  # the same name for something else
        content = bytearray(disk.read_bytes())
        (entry, *_) = json.loads(listed.read_text())
        content[entry["offset"]] ^= 1
        kept = disk.read_bytes()
        disk.write_bytes(content)
        other = host.run(*line)
        assert other.status == 10, other.err
        assert "is state 'd' already, with another content" in other.err
        disk.write_bytes(kept)
    ok(host.run("store", "verify", store))
    if words[0] != "restore":
        ok(host.run("restore", f"{store}/vm", copy, "--create"))
    assert copy.read_bytes() == (disk.read_bytes() if words == SEND else before)


@pytest.mark.slow
@pytest.mark.timeout(200)
@pytest.mark.parametrize("anywhere", ["folder", "encrypted", "localstack"], indirect=True)
def test_of_two_that_send_at_once_one_is_told(
    host: Host, anywhere: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk, other, listed = tmp_path / "disk", tmp_path / "other", tmp_path / "changes.json"
    disk.write_bytes(bytes(SIZE))
    ok(host.run("send", disk, f"{anywhere}/vm", "--goal", "a"))
    for path, byte in ((disk, b"x"), (other, b"y")):
        path.write_bytes(byte * BLOCK + bytes(SIZE - BLOCK))
    listed.write_text(json.dumps([change(0)]))
    words: list[str | Path] = [f"{anywhere}/vm", "--base", "a", "--extents", listed, "--goal"]
    late = host.start(["send", disk, *words, "b"], environment=stopping("store.before_commit"))
    wait_until(late.stopped, 60)
    ok(host.run("send", other, *words, "c"))
    late.signal(signal.SIGCONT)
    told = late.wait()
    assert told.status == 10, told.err
    assert "another blockstream has committed point 2 of vm meanwhile; nothing of ours" in told.err
    with closing(opened_raw(host, anywhere, monkeypatch)) as objects:
        assert len(list(objects.listed("bs1/disk/vm/pack/", 2))) == 2  # nor is it in the way
    ok(host.run("store", "verify", anywhere))
    again = host.run("send", disk, *words, "b")
    assert (again.status, "holds state 'c' of vm last" in again.err) == (10, True), again.err
    ok(host.run("restore", f"{anywhere}/vm", tmp_path / "copy", "--create"))
    assert (tmp_path / "copy").read_bytes() == other.read_bytes()


def stopping(point: str) -> dict[str, str]:
    return {"BLOCKSTREAM_FAILPOINT": f"{point}:1:stop"}


THIRDS = [number << 20 for number in range(15) if number % 3]


def in_many_packs(host: Host, store: str, tmp_path: Path) -> None:
    """Save a disk in packs of three frames each, and then two thirds of each anew; then all."""
    host.limits = {"PACK_BYTES": 7 << 19}
    disk, listed, rng = tmp_path / "disk", tmp_path / "changes.json", random.Random(8)  # noqa: S311
    content = bytearray(rng.randbytes(15 << 20))
    disk.write_bytes(content)
    ok(host.run("send", disk, f"{store}/vm", "--goal", "a"))
    for start in THIRDS:
        content[start : start + (1 << 20)] = rng.randbytes(1 << 20)
    disk.write_bytes(content)
    changes = [{"offset": start, "length": 1 << 20, "exists": "true"} for start in THIRDS]
    listed.write_text(json.dumps(changes))
    words = ("--base", "a", "--goal", "b", "--extents", listed)
    ok(host.run("send", disk, f"{store}/vm", *words))


def outlived(
    host: Host, store: str, tmp_path: Path, line: list[str | Path], point: str, after: int
) -> None:
    """Kill a command; nothing half is visible, and the same again does the rest."""
    before = ok(host.run("points", f"{store}/vm")).out
    killed = host.run(*line, environment={"BLOCKSTREAM_FAILPOINT": f"{point}:kill"})
    assert killed.status == -9, (point, killed.err)
    shown = ok(host.run("points", f"{store}/vm")).out
    if "after_commit" not in point and "prune" not in point:
        assert shown == before, point
    ok(host.run("store", "verify", store))
    again = host.run(*line)
    assert again.status == 0, (point, again.err)
    ok(host.run("store", "verify", store))
    shown = ok(host.run("points", f"{store}/vm", "--json")).out
    assert len(shown.splitlines()) == after, point
    copy = tmp_path / "copy"
    ok(host.run("restore", f"{store}/vm", copy, "--create"))
    assert copy.read_bytes() == (tmp_path / "disk").read_bytes(), point
    copy.unlink()


@pytest.mark.slow
@pytest.mark.timeout(200)
@pytest.mark.parametrize(
    ("command", "points", "after"),
    [
        ("send", "send.first_data:4 store.before_seal:2 store.after_seal:5", 3),
        ("compact", "compact.after_pack:1 compact.after_pack:2", 3),
        ("prune", "prune.after_manifest:1 prune.after_object:1 prune.after_object:5", 1),
    ],
)
def test_many_packs_outlive_whoever_dies_at_work_on_them(
    host: Host, store: str, tmp_path: Path, command: str, points: str, after: int
) -> None:
    in_many_packs(host, store, tmp_path)
    line: list[str | Path] = ["send", tmp_path / "disk", f"{store}/vm", "--goal", "c"]
    if command == "compact":
        line = ["store", "compact", store]
    if command == "prune":
        ok(host.run(*line))
        line = [word.format(store=store) for word in PRUNE]
    root, spare = tmp_path / "store", tmp_path / "spare"
    shutil.copytree(root, spare)
    for point in points.split():
        outlived(host, store, tmp_path, line, point, after)
        if command == "prune":
            assert len(list(root.rglob("*.pack"))) >= 5
        shutil.rmtree(root)
        shutil.copytree(spare, root)
        ok(host.run("store", "trust", store))  # older than it was


@pytest.mark.slow
@pytest.mark.timeout(200)
@pytest.mark.parametrize(
    ("anywhere", "point"),
    [
        ("encrypted", "compact.after_pack:2"),
        ("localstack", "store.after_seal:2"),
    ],
    indirect=["anywhere"],
)
def test_many_packs_outlive_it_anywhere(
    host: Host, anywhere: str, tmp_path: Path, point: str
) -> None:
    in_many_packs(host, anywhere, tmp_path)
    line: list[str | Path] = ["send", tmp_path / "disk", f"{anywhere}/vm", "--goal", "c"]
    if point.startswith("compact"):
        line = ["store", "compact", anywhere]
    outlived(host, anywhere, tmp_path, line, point, 3)


def test_what_was_saved_is_known_after_a_compaction_as_well(
    host: Host, either: str, tmp_path: Path
) -> None:
    """The newest point was another one by then: "g is state g already, with another content"."""
    disk, listed = tmp_path / "disk", tmp_path / "changes"
    saved(host, either, disk, 2)
    disk.write_bytes(disk.read_bytes()[:BLOCK] + bytes(BLOCK) + disk.read_bytes()[2 * BLOCK :])
    listed.write_text(json.dumps([change(BLOCK)]))
    last = json.loads(ok(host.run("points", f"{either}/vm", "--json")).out.splitlines()[-1])
    words = ("send", disk, f"{either}/vm", "--base", last["state"], "--goal", "g")
    ok(host.run(*words, "--extents", listed))
    ok(host.run("store", "compact", f"{either}/vm"))
    again = ok(host.run(*words, "--extents", listed))
    assert "already saved" in again.err
    disk.write_bytes(b"x" + disk.read_bytes()[1:])
    other = host.run(*words, "--extents", listed)
    assert other.status == 10, other.err
    assert "with another content" in other.err


def mostly_overwritten(host: Host, store: str, disk: Path, listed: Path) -> None:
    """Save a disk, and then two thirds of it anew: 8 MiB of the first pack are needed yet."""
    rng = random.Random(8)  # noqa: S311
    disk.write_bytes(rng.randbytes(24 << 20))
    ok(host.run("send", disk, f"{store}/vm", "--goal", "a"))
    for base, goal in ("ab", "bc"):
        with disk.open("r+b") as file:
            file.write(rng.randbytes(16 << 20))
        listed.write_text(json.dumps([{"offset": 0, "length": 16 << 20, "exists": "true"}]))
        ok(
            host.run(
                "send", disk, f"{store}/vm", "--base", base, "--goal", goal, "--extents", listed
            )
        )


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_what_little_is_needed_of_is_given_up(host: Host, anywhere: str, tmp_path: Path) -> None:
    store, disk, listed = anywhere, tmp_path / "disk", tmp_path / "changes.json"
    mostly_overwritten(host, store, disk, listed)
    said = ok(host.run("store", "compact", store)).err
    assert "vm: point 4 is c, and needs no other; 8.0 MiB of 1 pack copied within the store" in said
    assert "needs no other\n" in ok(host.run("store", "compact", store)).err
    pruned = ok(host.run(*(word.format(store=store) for word in PRUNE))).err
    assert "deleted #1 to #3, 40.0 MiB" in pruned
    ok(host.run("store", "verify", store))
    ok(host.run("restore", f"{store}/vm", tmp_path / "copy", "--create"))
    assert (tmp_path / "copy").read_bytes() == disk.read_bytes()
    listed.write_text(json.dumps([change(BLOCK)]))
    words = ("--base", "c", "--goal", "d", "--extents", listed)
    ok(host.run("send", disk, f"{store}/vm", *words))


@pytest.mark.slow
@pytest.mark.timeout(200)
@pytest.mark.parametrize("point", share(["after_pack", "before_commit", "after_commit"]))
def test_a_compaction_that_was_killed_is_done_again(
    host: Host, anywhere: str, tmp_path: Path, point: str
) -> None:
    store, disk = anywhere, tmp_path / "disk"
    mostly_overwritten(host, store, disk, tmp_path / "changes.json")
    failpoint = {"BLOCKSTREAM_FAILPOINT": f"compact.{point}:1:kill"}
    killed = host.run("store", "compact", store, environment=failpoint)
    assert killed.status == -9, killed.err
    shown = ok(host.run("points", f"{store}/vm")).out.decode()
    assert shown.count("synthetic") == (1 if point == "after_commit" else 0)
    again = ok(host.run("store", "compact", store)).err
    assert ("8.0 MiB" in again) == (point != "after_commit")
    ok(host.run(*(word.format(store=store) for word in PRUNE)))
    ok(host.run("store", "verify", store))
    ok(host.run("restore", f"{store}/vm", tmp_path / "copy", "--create"))
    assert (tmp_path / "copy").read_bytes() == disk.read_bytes()


@pytest.mark.slow
@pytest.mark.timeout(100)
def test_whatever_is_damaged_is_named(host: Host, either: str, tmp_path: Path) -> None:
    """Each object cut, altered, removed, or exchanged for that of another disk."""
    store = either
    rng = random.Random(4)  # noqa: S311
    for name in ("vm", "other"):
        disk = tmp_path / name
        disk.write_bytes(rng.randbytes(SIZE // 4))
        ok(host.run("send", disk, f"{store}/{name}", "--goal", "a"))
        listed = tmp_path / "changes.json"
        listed.write_text(json.dumps([change(BLOCK)]))
        words = ("--base", "a", "--goal", "b", "--extents", listed)
        ok(host.run("send", disk, f"{store}/{name}", *words))
    ok(host.run("store", "verify", store))
    root = tmp_path / "store" / "bs1" / "disk" / "vm"
    # Of marks, the names alone count.
    ours, theirs = (
        sorted(path for path in folder.rglob("*.*") if path.is_file() and "mark" not in path.parts)
        for folder in (root, root.parent / "other")
    )
    for number, path in enumerate(ours):
        good = path.read_bytes()
        flipped = bytearray(good)
        flipped[len(good) // 2] ^= 1
        swapped = [each for each in theirs if each.suffix == path.suffix][number % 2].read_bytes()
        for what, bad in (
            ("cut", good[: len(good) // 2]),
            ("altered", bytes(flipped)),
            ("removed", None),
            ("swapped", swapped),
        ):
            if bad is None:
                path.unlink()
            else:
                path.write_bytes(bad)
            copy = tmp_path / "copy"
            ended = host.run("restore", f"{store}/vm@b", copy, "--create")
            copy.unlink(missing_ok=True)
            checked = host.run("store", "verify", f"{store}/vm")
            assert checked.status == 12, (what, path)
            assert path.name in checked.err
            missing = what == "removed" and path.name.endswith("2.json")
            assert ended.status == (17 if missing else 12), (what, path, ended.err)
            if not missing:
                assert path.name in ended.err or "pack" in ended.err or "point" in ended.err
        path.write_bytes(good)
    ok(host.run("restore", f"{store}/vm@b", tmp_path / "copy", "--create"))
    sample = ok(host.run("store", "verify", store, "--percent", "1")).err
    assert "a sample of 1 %; points in which it found no damage: #1 to #2" in sample
    sound = ok(host.run("store", "verify", store)).err
    assert sound.count("points that can be restored: #1 to #2") == 2
    assert "never" not in ok(host.run("points", f"{store}/vm")).out.decode()


@pytest.mark.slow
@pytest.mark.timeout(100)
def test_whatever_is_damaged_of_the_store_itself_is_named(
    host: Host, either: str, tmp_path: Path
) -> None:
    """What says that it is a store, and its keys; a mark hides or shows, whatever is in it."""
    disk, root = host.disk("disk", SIZE // 4), tmp_path / "store"
    ok(host.run("send", disk, f"{either}/vm"))
    ok(host.run("store", "verify", either))
    header, copy = root / "bs1" / "store.json", tmp_path / "copy"
    keys = (
        list((root / "bs1" / "key").rglob("*.json")) if "IDENTITY" in str(host.environment) else []
    )
    assert len(keys) == (1 if host.environment else 0)
    for path in (header, *keys):
        good = path.read_bytes()
        flipped = good.replace(b"20", b"21", 1)
        other = keys[0].read_bytes() if path is header and keys else header.read_bytes() + b"\n"
        for bad in (good[: len(good) // 2], flipped, other, None):
            path.unlink() if bad is None else path.write_bytes(bad)
            for words in (
                ("restore", f"{either}/vm", copy, "--create"),
                ("store", "verify", either),
                ("send", disk, f"{either}/vm"),
            ):
                named = host.run(*words)
                assert named.status == 12, (path, bad, named.err)
                assert (path.name if path is header else "bs1/key/") in named.err
                assert "nothing was done" in named.err
        if path is header:
            ok(host.run("store", "init", either))
            ok(host.run("store", "verify", either))
        path.write_bytes(good)
    (mark,) = (root / "bs1" / "disk" / "vm" / "mark").iterdir()
    for bad in (b"", b"{}", header.read_bytes()):
        mark.write_bytes(bad)
        ok(host.run("store", "verify", either))
        ok(host.run("points", f"{either}/vm"))
    ok(host.run("restore", f"{either}/vm", copy, "--create"))
    assert copy.read_bytes() == disk.read_bytes()


@pytest.mark.slow
def test_what_is_damaged_is_replaced_by_its_twin(host: Host, store: str, tmp_path: Path) -> None:
    rng = random.Random(5)  # noqa: S311
    disk, listed = tmp_path / "disk", tmp_path / "changes.json"
    disk.write_bytes(rng.randbytes(SIZE // 4))
    ok(host.run("send", disk, f"{store}/vm", "--goal", "a"))
    for base, goal in ("ab", "bc"):
        listed.write_text(changed(disk, rng))
        words = ("--base", base, "--goal", goal, "--extents", listed)
        ok(host.run("send", disk, f"{store}/vm", *words))
    root, copy = tmp_path / "store", tmp_path / "twin"
    shutil.copytree(root, copy)
    objects = sorted(path for path in root.rglob("*.*") if path.parent.name != "bs1")
    twin = f"dir:{copy}"
    assert "was replaced" not in ok(host.run("store", "repair", store, "--from", twin)).err
    for number, path in enumerate(objects):
        good = path.read_bytes()
        bad = bytearray(good)
        bad[len(bad) // 2] ^= 1
        path.write_bytes(bad) if number % 2 else path.unlink()
        key = path.relative_to(root)
        if path.name != "0000000003.json" or number % 2:  # the last point is not missed by anybody
            said = ok(host.run("store", "repair", f"{store}/vm", "--from", twin)).err
            assert f"{key} was replaced" in said
            assert path.read_bytes() == good
        path.write_bytes(good)
    # A pack of the twin of which nothing there says what it is, is held against what we know.
    pack = next(path for path in objects if path.suffix == ".pack")
    theirs, good = copy / pack.relative_to(root), pack.read_bytes()
    spare = shutil.copytree(copy / "bs1/disk/vm/point", tmp_path / "points")
    shutil.rmtree(copy / "bs1/disk/vm/point")
    theirs.write_bytes(good[:300] + bytes(len(good) - 300))
    pack.unlink()
    kept = host.run("store", "repair", store, "--from", twin)
    assert kept.status == 12
    assert "was replaced" not in kept.err
    theirs.write_bytes(good)
    assert "was replaced" in ok(host.run("store", "repair", store, "--from", twin)).err
    shutil.copytree(spare, copy / "bs1/disk/vm/point")
    # A twin that is damaged as well is not taken.
    for folder in (root, copy):
        (folder / objects[-1].relative_to(root)).write_bytes(b"{}")
    kept = host.run("store", "repair", store, "--from", twin)
    assert kept.status == 12
    assert "damaged; see" in kept.err


def opened_raw(host: Host, store: str, monkeypatch: pytest.MonkeyPatch) -> Objects:
    """Return a store's objects as they lie there."""
    for name, value in host.environment.items():
        monkeypatch.setenv(name, value)
    return open_objects(store)


def damaged(objects: Objects, key: str, how: str) -> None:
    data = bytearray(objects.read_whole(key, 1 << 30))
    match how:
        case "missing":
            objects.delete(key)
            return
        case "cut":
            del data[len(data) // 2 :]
        case "altered":
            data[len(data) // 2] ^= 1
        case "zeroed":
            data[100 : len(data) - 50] = bytes(len(data) - 150)
        case "its end":
            data[-1] ^= 1
        case "longer":
            data += bytes(7)
    objects.put(key, bytes(data))


@pytest.mark.slow
@pytest.mark.timeout(200)
@pytest.mark.parametrize("anywhere", ["folder", "encrypted", "localstack"], indirect=True)
def test_damaged_frames_are_made_anew_from_a_disk(
    host: Host, anywhere: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, disk, listed = anywhere, host.disk("disk", SIZE), tmp_path / "changes.json"
    ok(host.run("send", disk, f"{store}/vm", "--goal", "a", "--compress", "zstd:7"))
    first = Path(shutil.copy(disk, tmp_path / "first"))
    content = bytearray(disk.read_bytes())
    content[:BLOCK] = random.Random(9).randbytes(BLOCK)  # noqa: S311
    disk.write_bytes(content)
    listed.write_text(json.dumps([change(0)]))
    words = ("--base", "a", "--goal", "b", "--extents", listed)
    ok(host.run("send", disk, f"{store}/vm", *words))
    repair = ("store", "repair", f"{store}/vm", "--from")
    with closing(opened_raw(host, store, monkeypatch)) as objects:
        packs = [info.key for info in objects.listed("bs1/disk/vm/pack/", 2)]
        ways = ("missing", "cut", "altered", "zeroed", "its end", "longer")
        for how in ways if store.startswith("dir:") else ways[:1]:
            damaged(objects, packs[0], how)
            assert host.run("store", "verify", store).status == 12, how
            if how == "missing":
                # What was overwritten since is not on this disk; all else is.
                partly = host.run(*repair, disk)
                assert partly.status == 12, partly.err
                assert f"made anew from {disk}: 2 frames; of 1 more it holds" in partly.err
                assert f"{packs[0]} is no stream for `recv` any more" in partly.err
                assert "points that can be restored: none; that cannot: #1 to #2" in partly.err
            healed = ok(host.run(*repair, first)).err
            assert f"{packs[0]} was replaced" in healed, how
            assert "points that can be restored: #1 to #2\n" in healed
        damaged(objects, packs[1], "missing")
        assert "of 1 more it holds something else" in host.run(*repair, first).err
        assert objects.info(packs[1]) is None
        ok(host.run(*repair, disk))
        assert "made anew" not in ok(host.run(*repair, disk)).err
    for point, state in (("a", first.read_bytes()), ("b", bytes(content))):
        copy = tmp_path / f"copy-{point}"
        ok(host.run("restore", f"{store}/vm@{point}", copy, "--create"))
        assert copy.read_bytes() == state
    wrong = host.run("store", "repair", store, "--from", first)
    assert (wrong.status, "a disk heals one STORE/DISK" in wrong.err) == (2, True), wrong.err


@pytest.mark.slow
def test_a_link_in_the_place_of_a_pack_is_named_and_made_anew(
    host: Host, store: str, tmp_path: Path
) -> None:
    """It is not followed, although it leads to the same bytes."""
    disk = host.disk("disk", SIZE)
    ok(host.run("send", disk, f"{store}/vm"))
    (pack,) = (tmp_path / "store").rglob("*.pack")
    moved = pack.rename(tmp_path / "moved")
    pack.symlink_to(moved)
    before = moved.read_bytes()
    checked = host.run("store", "verify", store)
    assert checked.status == 12, checked.err
    assert f"{pack.name}: it is a link" in checked.err
    assert f"{pack.name} is nothing of blockstream's: it is left alone" in checked.err
    assert "points that can be restored: none; that cannot: #1" in checked.err
    ok(host.run("store", "repair", f"{store}/vm", "--from", disk))
    ok(host.run("restore", f"{store}/vm", tmp_path / "copy", "--create"))
    assert (tmp_path / "copy").read_bytes() == disk.read_bytes()
    assert (moved.read_bytes(), pack.is_symlink()) == (before, False)


def test_the_last_base_is_one_of_the_same_disk(host: Host, store: str, tmp_path: Path) -> None:
    """Whatever was saved last under that name was the base, also of another disk."""
    disk, other = host.disk("disk", SIZE), host.disk("other", SIZE)
    ok(host.run("send", disk, f"{store}/vm", "--goal", "a"))
    listed = host.list_everything("listed", SIZE)
    increment = ("--base", "last", "--extents", listed, "--goal", "b")
    refused = host.run("send", other, f"{store}/vm", *increment)
    assert refused.status == 10, refused.err
    assert f"was saved from {disk} of " in refused.err
    assert f", and not from {other} of " in refused.err
    twin = f"dir:{tmp_path}/twin"
    ok(host.run("store", "init", twin))
    ok(host.run("send", f"{store}/vm@last", f"{twin}/vm"))
    ok(host.run("send", disk, f"{twin}/vm", *increment))  # it was saved from there, all the same
    ok(host.run("send", disk, f"{store}/vm", *increment))
    named = ("--base", "b", "--extents", listed, "--goal", "c")
    ok(host.run("send", other, f"{store}/vm", *named))


@pytest.mark.parametrize("goal", ["last", "7"])
def test_a_state_that_no_point_could_be_named_by_is_refused(
    host: Host, store: str, goal: str
) -> None:
    refused = host.run("send", host.disk("disk"), f"{store}/vm", "--goal", goal)
    assert refused.status == 10, refused.err
    assert "because `last` and numbers name points by their order" in refused.err


def test_where_there_is_no_store_both_readings_are_named(host: Host, tmp_path: Path) -> None:
    place = f"dir:{tmp_path}/nothing/here"
    ended = host.run("points", place)
    assert ended.status == 17
    assert f"neither dir:{tmp_path}/nothing nor {place} is a store" in ended.err


def test_a_restore_can_be_undone(host: Host, store: str) -> None:
    disk = host.disk("disk", SIZE)
    ok(host.run("send", disk, f"{store}/vm"))
    target = host.disk("target", SIZE, seed=9)
    before = target.read_bytes()
    ok(host.run("restore", f"{store}/vm", target, "--apply", "undo"))
    assert target.read_bytes() == disk.read_bytes()
    ok(host.run("undo", target))
    assert target.read_bytes() == before


def test_what_was_found_damaged_is_remembered(host: Host, store: str, tmp_path: Path) -> None:
    """The rules kept the newest point, which could not be restored, and hid the good ones."""
    disk = host.disk("disk", SIZE)
    saved(host, store, disk, 3)
    before = disk.read_bytes()
    newest = max((tmp_path / "store").rglob("*.pack"), key=lambda path: path.parent.name)
    content = bytearray(newest.read_bytes())
    content[len(content) // 3] ^= 1
    newest.write_bytes(content)
    assert host.run("store", "verify", store, "--newest").status == 12
    listed = host.run("points", f"{store}/vm")
    assert listed.status == 12, listed.err
    assert "1 point cannot be restored as a whole" in listed.err
    assert listed.out.decode().count("! found damaged on 20") == 1
    as_json = host.run("points", f"{store}/vm", "--json").out.splitlines()
    times = [json.loads(line)["damaged"] is not None for line in as_json[:3]]
    assert times == [False, False, True]
    for _ in range(2):
        pruned = host.run(*(word.replace("{store}", store) for word in PRUNE))
        assert pruned.status == 12, pruned.err
        assert "vm: kept #2 to #3; " in pruned.err
        assert "`store verify` found point 3 damaged on 20" in pruned.err
    back = host.run("restore", f"{store}/vm", tmp_path / "back", "--create")
    assert back.status == 12
    assert f"without known damage is {store}/vm@2" in back.err
    onto = ok(host.run("send", disk, f"{store}/vm", "--compare")).err
    assert "point 3 of vm, onto which this goes, was found damaged on 20" in onto
    doubtful = host.run("points", f"{store}/vm")
    assert "2 points cannot be restored as a whole" in doubtful.err
    ok(host.run("store", "repair", f"{store}/vm", "--from", disk))
    ok(host.run("points", f"{store}/vm"))
    ok(host.run("restore", f"{store}/vm", tmp_path / "copy", "--create"))
    assert (tmp_path / "copy").read_bytes() == before
    assert "kept #4; " in ok(host.run(*(word.replace("{store}", store) for word in PRUNE))).err


def test_a_disk_that_a_store_does_not_have_is_said(host: Host, store: str, tmp_path: Path) -> None:
    disk = host.disk("disk", SIZE)
    ok(host.run("send", disk, f"{store}/vm"))
    for words in (
        ("verify",),
        ("prune", "--keep", "last=1"),
        ("compact",),
        ("repair", "--from", disk),
        ("repair", "--from", store),
    ):
        ended = host.run("store", words[0], f"{store}/vn", *words[1:])
        assert ended.status == 17, (words, ended.err)
        assert "has no point of vn; nothing was done" in ended.err


@pytest.mark.slow
def test_a_damaged_disk_is_in_no_others_way(host: Host, store: str, tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        for content in (b"x", b"y"):
            (tmp_path / "disk").write_bytes(content * BLOCK)
            ok(host.run("send", tmp_path / "disk", f"{store}/{name}"))
    (tmp_path / "store/bs1/disk/b/point/0000000002.json").write_bytes(b"{}")
    for words in (PRUNE, ("store", "compact", "{store}")):
        ended = host.run(*(word.format(store=store) for word in words))
        assert ended.status == 18, ended.err
        assert "b: dir:" in ended.err
        assert "it is no manifest" in ended.err
        assert f"{store}: b failed, see the lines above; the rest is done" in ended.err
        assert "c: " in ended.err
    for name, count in (("a", 1), ("b", 2), ("c", 1)):
        assert len(list((tmp_path / f"store/bs1/disk/{name}/point").iterdir())) == count
    assert host.run("store", "compact", f"{store}/b").status == 12


def test_a_point_that_needs_nothing_of_what_is_damaged_is_whole(
    host: Host, store: str, tmp_path: Path
) -> None:
    disk, listed = tmp_path / "disk", tmp_path / "changes.json"
    disk.write_bytes(b"x" * BLOCK)
    ok(host.run("send", disk, f"{store}/vm", "--goal", "a", "--compress", "none"))
    disk.write_bytes(b"y" * BLOCK)
    listed.write_text(json.dumps([change(0)]))  # all of it
    words = ("--base", "a", "--goal", "b", "--extents", listed, "--compress", "none")
    ok(host.run("send", disk, f"{store}/vm", *words))
    first = min((tmp_path / "store").rglob("*.pack"))
    first.write_bytes(first.read_bytes().replace(b"x" * 100, b"z" * 100))
    checked = host.run("store", "verify", store)
    assert checked.status == 12
    assert "4.0 KiB of the disk at offset 0" in checked.err
    assert "can be restored: #2; that cannot: #1" in checked.err
    assert host.run("store", "verify", "--newest", store).status == 12  # it reads the chain
    ok(host.run("restore", f"{store}/vm", tmp_path / "copy", "--create"))
    assert (tmp_path / "copy").read_bytes() == disk.read_bytes()


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_bytes_that_were_altered_on_their_way_are_never_written(
    host: Host, localstack: S3Server, tmp_path: Path
) -> None:
    disk, copy = tmp_path / "disk", tmp_path / "copy"
    disk.write_bytes(random.Random(6).randbytes(SIZE))  # noqa: S311
    with proxy(localstack.url) as between:
        host.environment |= localstack.environment | {"AWS_ENDPOINT_URL": between.url}
        store = f"s3://contracts/{tmp_path.name}-altered"
        ok(host.run("store", "init", store))
        ok(host.run("send", disk, f"{store}/vm"))
        between.rules.append(Rule("GET", ".pack", Fault.WRONG_BYTES))
        refused = host.run("restore", f"{store}/vm", copy, "--create")
        assert refused.status == 12, refused.err
        assert "the frame at offset" in refused.err
        ok(host.run("restore", f"{store}/vm", copy))
    assert copy.read_bytes() == disk.read_bytes()


def test_an_audit_finds_what_the_list_of_changes_missed(
    host: Host, store: str, tmp_path: Path
) -> None:
    disk, listed = tmp_path / "disk", tmp_path / "changes.json"
    content = bytearray(random.Random(8).randbytes(SIZE))  # noqa: S311
    disk.write_bytes(content)
    ok(host.run("send", disk, f"{store}/vm", "--goal", "a", "--audit", "2"))
    listed.write_text(json.dumps([change(0)]))
    words = ("send", disk, f"{store}/vm", "--extents", listed, "--audit", "1")
    honest = ok(host.run(*words, "--base", "a", "--goal", "b"))
    assert "audited: 3.0 MiB that were called unchanged are" in honest.err
    content[BLOCK * 9] ^= 1
    disk.write_bytes(content)
    caught = host.run(*words, "--base", "b", "--goal", "c")
    assert caught.status == 19, caught.err
    assert (
        f"@3 is right, but the list of changes had missed 4.0 KiB, first at offset {BLOCK * 9}"
        in caught.err
    )
    ok(host.run("restore", f"{store}/vm", tmp_path / "copy", "--create"))
    assert (tmp_path / "copy").read_bytes() == content
    assert "had missed 4.0 KiB of it" in ok(host.run("points", f"{store}/vm")).out.decode()
    ok(host.run("store", "verify", store))
    assert host.run("send", disk, tmp_path / "copy", "--audit", "1").status == 2


def test_programs_are_told_what_was_saved_and_what_there_is(
    host: Host, store: str, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(b"x" * SIZE)
    sent = ok(host.run("send", disk, f"{store}/vm", "--goal", "a", "--json")).events
    (saved,) = [each for each in sent if each["event"] == "saved"]
    (point,) = ok(host.run("points", f"{store}/vm", "--json")).results
    for each in (saved, point):
        assert (each["type"], each["seq"], each["state"]) == ("full", 1, "a")
    (named,) = ok(host.run("points", store, "--json")).results
    assert named == {"event": "disk", "name": "vm", "place": f"{store}/vm"}


def test_what_is_no_store_is_said(host: Host, tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(bytes(BLOCK))
    place = f"dir:{tmp_path}/none/vm"
    for words in (
        ["send", str(tmp_path / "disk"), place],
        ["points", place],
        ["restore", place, "x"],
    ):
        ended = host.run(*words)
        assert ended.status == 17, ended.err
        assert f"blockstream store init dir:{tmp_path}/none" in ended.err


def test_a_rehearsal_says_what_it_would_cost_and_stores_nothing(
    host: Host, store: str, tmp_path: Path
) -> None:
    disk, listed = tmp_path / "disk", tmp_path / "changes.json"
    disk.write_bytes(random.Random(1).randbytes(SIZE))  # noqa: S311
    said = ok(host.run("send", "-n", disk, f"{store}/vm")).err
    assert "3.0 MiB at most would be stored, with about 4 requests" in said
    listed.write_text("[]")
    words = ("send", "-n", disk, f"{store}/vm", "--base", "a", "--goal", "b", "--extents", listed)
    assert "holds no point of vm last" in host.run(*words).err
    ok(host.run("send", disk, f"{store}/vm", "--goal", "a"))
    assert "0 B at most would be stored, with about 2 requests" in ok(host.run(*words)).err
    assert len(list((tmp_path / "store").rglob("*.json"))) == 2


def sizes(objects: Objects) -> dict[str, int]:
    """Return the size of all there is of a disk."""
    return {
        info.key: info.size
        for what, (depth, _) in FOLDERS.items()
        for info in objects.listed(f"bs1/disk/vm/{what}/", depth)
    }


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_a_rehearsal_foresees_requests_and_bytes(
    host: Host, localstack: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of a disk in several packs, of scattered blocks, of zeros, and of nothing."""
    host.environment |= localstack.environment
    host.limits = {"PACK_BYTES": 20 << 20}
    store, disk, listed = f"s3://contracts/{tmp_path.name}-costs", tmp_path / "disk", tmp_path / "l"
    rng = random.Random(12)  # noqa: S311
    disk.write_bytes(rng.randbytes(50 << 20))
    ok(host.run("store", "init", store))
    blocks = sorted(rng.sample(range((50 << 20) // BLOCK), 3000))
    zeros = [change(0) | {"exists": "false"}]
    scattered = [change(block * BLOCK) for block in blocks]
    cases: list[tuple[str, list[dict[str, object]] | None]]
    cases = [("-a", None), ("ab", scattered), ("bc", zeros), ("cd", [])]
    with closing(opened_raw(host, store, monkeypatch)) as objects, proxy(localstack.url) as between:
        for states, changes in cases:
            words: list[str | Path] = [
                "send",
                disk,
                f"{store}/vm",
                "--goal",
                states[1],
                "--compress",
                "none",
            ]
            if changes is not None:
                listed.write_text(json.dumps(changes))
                words += ["--base", states[0], "--extents", listed]
            (said,) = [
                each
                for each in ok(host.run(*words, "-n", "--json")).events
                if each["event"] == "would-store"
            ]
            before = sizes(objects)
            between.requests.clear()
            ok(host.run(*words, "--endpoint-url", between.url))
            writing = [each for each in between.requests if each[0] in {"PUT", "POST"}]
            after = sizes(objects)
            stored = sum(size for key, size in after.items() if key not in before)
            assert said["requests"] == len(writing), (states, writing)
            assert 0.95 * (stored - 2000) < int(str(said["bytes"])) < 1.05 * stored + 2000, states


def test_a_writer_may_not_delete(host: Host) -> None:
    texts = {}
    for role in ("writer", "reader", "pruner"):
        texts[role] = ok(
            host.run("store", "policy", "s3://bucket/pre", "--role", role)
        ).out.decode()
        assert json.loads(texts[role])["Version"] == "2012-10-17"
        assert "arn:aws:s3:::bucket/pre/bs1/*" in texts[role]
    assert "Delete" not in texts["writer"] + texts["reader"]
    assert "Put" not in texts["reader"]
    assert "s3:DeleteObject" in texts["pruner"]
    assert host.run("store", "policy", "dir:/x").status == 2


def test_what_is_not_there_is_said_with_what_is(host: Host, store: str, tmp_path: Path) -> None:
    assert f"{store} has no disk yet" in ok(host.run("points", store)).err
    unknown = host.run("restore", f"{store}/vm", tmp_path / "copy", "--create")
    assert unknown.status == 17
    assert f"no point of vm; nothing was done; `blockstream points {store}`" in unknown.err
    one = host.run("points", f"{store}/vm@7")
    assert (one.status, "leave @7 out" in one.err) == (2, True)
    forgotten = host.run("restore", store, tmp_path / "copy", "--create")
    assert (forgotten.status, f"{store} is a store, and no disk in one" in forgotten.err) == (
        17,
        True,
    )
    assert f"name one, as {store}/NAME; its disks: none yet" in forgotten.err
    deep = host.run("send", "/dev/null", f"{store}/a/b")
    assert (
        deep.status,
        f"lies in the store {store}: a disk there is {store}/NAME" in deep.err,
    ) == (
        17,
        True,
    )
    assert "store init" not in forgotten.err + deep.err
    typo = host.run("points", f"{store}/typo")
    assert (typo.status, f"{store}/typo has no point" in typo.err) == (17, True)


@pytest.mark.slow
def test_the_trouble_of_one_disk_is_in_no_others_way(
    host: Host, localstack: S3Server, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(os.urandom(1 << 20))
    store = f"s3://contracts/{tmp_path.name}"
    with proxy(localstack.url) as between:
        host.environment |= localstack.environment | {"AWS_ENDPOINT_URL": between.url}
        ok(host.run("store", "init", store))
        for name in ("a", "b"):
            for goal in ("one", "two"):
                ok(host.run("send", disk, f"{store}/{name}", "--goal", goal))
        archived = Rule("GET", "disk/a/pack", Answer(403, "InvalidObjectState"), times=10**6)
        between.rules.append(archived)
        checked = host.run("store", "verify", store)
        assert checked.status == 18, checked.err
        assert "is archived" in checked.err
        assert "b: " in checked.err
        assert "points that can be restored: #1 to #2" in checked.err
        repaired = host.run("store", "repair", store, "--from", store)
        assert repaired.status == 18, repaired.err
        assert "b: " in repaired.err
        between.rules[:] = [Rule("GET", "uploads", Answer(403, "AccessDenied"), times=10**6)]
        pruned = ok(host.run("store", "prune", store, "--keep", "last=1", "--grace", "0"))
        assert pruned.err.count("uploads of runs that died were not looked for: ") == 2
        assert pruned.err.count("deleted #1") == 2


def test_a_store_is_made_once(host: Host, store: str) -> None:
    again = host.run("store", "init", store)
    assert again.status == 10
    assert "is a store already" in again.err


def test_times_mean_the_newest_point_that_is_not_younger(
    host: Host, store: str, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(BLOCK))
    ok(host.run("send", disk, f"{store}/vm", "--goal", "a"))
    ok(host.run("restore", f"{store}/vm@2999-01-01", tmp_path / "copy", "--create"))
    early = host.run("restore", f"{store}/vm@1999-01-01T10:00", tmp_path / "copy2", "--create")
    assert early.status == 17
    assert "has no point 1999-01-01T10:00 of vm" in early.err


def saved(host: Host, store: str, disk: Path, count: int) -> list[bytes]:
    """Save so many states of a disk; return them."""
    states = []
    for number in range(count):
        states.append(random.Random(number).randbytes(SIZE))  # noqa: S311  # the same each time
        disk.write_bytes(states[-1])
        ok(host.run("send", disk, f"{store}/vm", "--goal", f"s{number}"))
    return states


@pytest.mark.slow
def test_a_newest_manifest_that_is_lost_is_said(host: Host, either: str, tmp_path: Path) -> None:
    """What it named is there yet; a host that never saw it says so, too."""
    store, disk, copy = either, tmp_path / "disk", tmp_path / "copy"
    states = saved(host, store, disk, 2)
    manifest = tmp_path / "store/bs1/disk/vm/point/0000000002.json"
    kept = manifest.rename(tmp_path / "kept")
    for fresh in (False, True):
        more = ("--state-dir", tmp_path / "fresh") if fresh else ()
        environment = {"BLOCKSTREAM_STATE_DIR": str(tmp_path / "fresh")} if fresh else {}
        shown = host.run("points", f"{store}/vm", environment=environment)
        assert shown.status == 19, shown.err
        assert b"s0" in shown.out
        assert "newer points may be missing" in shown.err
        assert "has data newer than its newest point, of 1 run" in shown.err
        assert ("this host has seen its point 2" in shown.err) is not fresh
        ended = host.run("restore", f"{store}/vm", copy, "--create", *more, environment=environment)
        assert ended.status == 19, ended.err
        assert copy.read_bytes() == states[0]
        copy.unlink()
        ended = host.run("restore", f"{store}/vm@1", copy, "--create", environment=environment)
        assert ended.status == (0 if fresh else 19), ended.err  # that one was asked for
        copy.unlink()
        checked = host.run("store", "verify", store, environment=environment)
        assert checked.status == 12, checked.err
        assert "is newer than the newest point, and has no manifest" in checked.err
    kept.rename(manifest)
    ok(host.run("points", f"{store}/vm"))
    ok(host.run("store", "verify", store))


def test_a_point_in_the_middle_that_is_lost_is_said(
    host: Host, either: str, tmp_path: Path
) -> None:
    """What nobody could restore was listed with status 0."""
    saved(host, either, tmp_path / "disk", 1)
    for number in (1, 2):
        old = tmp_path / ("disk" if number == 1 else "disk-1")
        new = host.changed(f"disk-{number}", old, number)
        changes = host.list_changes(f"changes-{number}", new, old)
        words: Words = ["--base", f"s{number - 1}", "--goal", f"s{number}", "--extents", changes]
        ok(host.run("send", new, f"{either}/vm", *words))
    manifest = tmp_path / "store/bs1/disk/vm/point/0000000002.json"
    kept = manifest.rename(tmp_path / "kept")
    shown = host.run("points", f"{either}/vm")
    assert shown.status == 19, shown.err
    assert (
        "point 3, and what goes onto it, cannot be restored: the manifest of point 2" in shown.err
    )
    assert b"s0" in shown.out
    kept.rename(manifest)
    ok(host.run("points", f"{either}/vm"))


def test_a_pack_that_is_gone_is_one_line(host: Host, either: str, tmp_path: Path) -> None:
    """It was one for each frame: a million of them for a disk of 1 TiB."""
    saved(host, either, tmp_path / "disk", 1)
    (pack,) = (tmp_path / "store").rglob("*.pack")
    pack.unlink()
    checked = host.run("store", "verify", either)
    assert checked.status == 12, checked.err
    assert checked.err.count("point 1 of vm") == 1, checked.err
    assert "0000.pack\n  3.0 MiB of the disk at offset 0\n" in checked.err


def test_whoever_is_at_work_is_not_taken_for_a_lost_point(
    host: Host, store: str, tmp_path: Path
) -> None:
    disk = host.disk("disk", SIZE)
    ok(host.run("send", disk, f"{store}/vm"))
    disk.write_bytes(b"x" * SIZE)
    words: list[str | Path] = ["send", disk, f"{store}/vm"]
    stopped = host.start(words, environment=stopping("store.before_commit"))
    wait_until(lambda: len(list((tmp_path / "store").rglob("*.index"))) == 2)
    ok(host.run("points", f"{store}/vm"))
    ok(host.run("store", "verify", store))
    stopped.signal(signal.SIGKILL)
    stopped.wait()


@pytest.mark.slow
def test_a_store_that_was_rolled_back_is_read_with_a_warning_and_not_written(
    host: Host, either: str, tmp_path: Path
) -> None:
    store, disk, root, old = either, tmp_path / "disk", tmp_path / "store", tmp_path / "old"
    saved(host, store, disk, 1)
    shutil.copytree(root, old)
    disk.write_bytes(b"newer" * 1000)
    ok(host.run("send", disk, f"{store}/vm"))
    shutil.rmtree(root)
    old.rename(root)
    before = sorted(path for path in root.rglob("*") if path.is_file())
    refusal = "store was rolled back, or replaced; nothing was done; put back what is missing"
    for words in (
        ("send", disk, f"{store}/vm"),
        ("send", "-n", disk, f"{store}/vm"),
        ("store", "prune", store, "--keep", "last=1"),
        ("store", "prune", f"{store}/vm", "--keep", "last=1"),
        ("store", "compact", store),
    ):
        ended = host.run(*words)
        assert ended.status == 10, (words, ended.err)
        assert refusal in ended.err, words
    for reading in (
        ("points", f"{store}/vm"),
        ("restore", f"{store}/vm@1", tmp_path / "copy", "--create"),
        ("store", "verify", store),
    ):
        ended = host.run(*reading)
        assert ended.status == 19, (reading, ended.err)
        assert "this host has seen its point 2" in ended.err
    after = sorted(path for path in root.rglob("*") if path.is_file())
    assert [path for path in after if "verified" not in path.name] == before
    said = ok(host.run("store", "trust", store)).err
    assert "is trusted here" in said
    ok(host.run("points", f"{store}/vm"))
    ok(host.run("send", disk, f"{store}/vm"))


def test_another_history_is_no_newer_one(host: Host, store: str, tmp_path: Path) -> None:
    """Somebody rolled it back, and has saved as many points since."""
    disk, root, old = tmp_path / "disk", tmp_path / "store", tmp_path / "old"
    saved(host, store, disk, 1)
    shutil.copytree(root, old)
    for content in (b"x", b"y"):
        disk.write_bytes(content * 4096)
        ok(host.run("send", disk, f"{store}/vm"))
    shutil.rmtree(root)
    old.rename(root)
    for number in range(3):
        disk.write_bytes(b"%d" % number * 4096)
        elsewhere = {"BLOCKSTREAM_STATE_DIR": str(tmp_path / "elsewhere")}
        ok(host.run("send", disk, f"{store}/vm", environment=elsewhere))
    ended = host.run("points", f"{store}/vm")
    assert ended.status == 19
    assert "point 3 of" in ended.err
    assert "is another one than this host has seen" in ended.err


@pytest.mark.slow
def test_stores_take_turns_in_one_place(host: Host, store: str, tmp_path: Path) -> None:
    """As USB disks do: a new one is trusted when it is made, or once."""
    disk, root = tmp_path / "disk", tmp_path / "store"
    saved(host, store, disk, 3)
    root.rename(tmp_path / "first")
    ok(host.run("store", "init", store, "--anew"))
    saved(host, store, disk, 1)
    root.rename(tmp_path / "second")
    for name in ("first", "second", "first"):
        (tmp_path / name).rename(root)
        ok(host.run("points", f"{store}/vm"))
        ok(host.run("send", disk, f"{store}/vm"))
        root.rename(tmp_path / name)
    elsewhere = {"BLOCKSTREAM_STATE_DIR": str(tmp_path / "elsewhere")}
    ok(host.run("store", "init", store, environment=elsewhere))
    ended = host.run("send", disk, f"{store}/vm")
    assert ended.status == 10
    assert "is another store than those that this host has used" in ended.err
    ok(host.run("store", "trust", store))
    ok(host.run("send", disk, f"{store}/vm"))


def test_strays_are_named_once_and_left_alone(host: Host, store: str, tmp_path: Path) -> None:
    """A copy of marks in a folder of their own hid the newest point, and prune deleted it."""
    disk = tmp_path / "disk"
    states = saved(host, store, disk, 2)
    below = tmp_path / "store/bs1/disk"
    planted = {
        below / "vm/mark/@eaDir/0000000002.pruned.json": "bs1/disk/vm/mark/@eaDir/",
        below / "vm/point/0000000002.json (copy)": "bs1/disk/vm/point/0000000002.json (copy)",
        below / "vm/pack/@eaDir/x.pack": "bs1/disk/vm/pack/@eaDir/",
    }
    for path in planted:
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_bytes(b"{}")
    (below / "lost+found").mkdir()
    (below / "@eaDir").mkdir()
    (below / "link").symlink_to(tmp_path)
    for words in (
        ("points", f"{store}/vm"),
        ("store", "verify", store),
        ("store", "prune", store, "--keep", "last=1", "--grace", "0"),
    ):
        said = ok(host.run(*words)).err
        for key in planted.values():
            assert said.count(f"{key} is nothing of blockstream's: it is left alone") == 1, words
    listed = ok(host.run("points", store))
    assert listed.out.decode().split() == [f"{store}/vm"]
    assert "bs1/disk/@eaDir/ is nothing of blockstream's" in listed.err
    assert "bs1/disk/link is nothing of blockstream's" in listed.err
    assert all(path.exists() for path in planted)
    ok(host.run("restore", f"{store}/vm", tmp_path / "copy", "--create"))
    assert (tmp_path / "copy").read_bytes() == states[1]


def test_a_mark_that_nobody_with_the_key_made_is_none(
    host: Host, encrypted: str, tmp_path: Path
) -> None:
    saved(host, encrypted, tmp_path / "disk", 2)
    mark = tmp_path / "store/bs1/disk/vm/mark/0000000001.pruned.json"
    mark.parent.mkdir(exist_ok=True)
    mark.write_bytes(b'{"at": 0}')
    assert len(ok(host.run("points", f"{encrypted}/vm", "--json")).out.splitlines()) == 2
    words = (word.format(store=encrypted) for word in PRUNE)
    assert "deleted #1," in ok(host.run(*words)).err  # by the rule
    assert not mark.exists()


@pytest.mark.slow
def test_what_a_manifest_names_lies_in_the_store(host: Host, store: str, tmp_path: Path) -> None:
    """Its `index` was `../../..`: `store repair` overwrote a file."""
    disk, other = host.disk("disk", SIZE), tmp_path / "other"
    copy: tuple[str | Path, ...] = ("restore", f"{store}/vm", tmp_path / "copy", "--create")
    ok(host.run("send", disk, f"{store}/vm"))
    shutil.copytree(tmp_path / "store", other)
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    manifest = tmp_path / "store/bs1/disk/vm/point/0000000001.json"
    point = Point.decode(manifest.read_bytes())
    for changes in (
        {"index": "../../../../victim"},
        {"packs": (Pack("../../../../../victim", 8),)},
    ):
        manifest.write_bytes(replace(point, **changes, check="").encode())
        for words in (
            ("store", "verify", store),
            ("store", "repair", store, "--from", f"dir:{other}"),
            ("store", "repair", f"{store}/vm", "--from", disk),
            ("store", "prune", store, "--keep", "last=1"),
            copy,
        ):
            ended = host.run(*words)
            assert ended.status in {0, 12}, (words, ended.err)
        assert victim.read_bytes() == b"precious"


def test_older_points_are_restored_although_the_newest_manifest_is_damaged(
    host: Host, either: str, tmp_path: Path
) -> None:
    states = saved(host, either, tmp_path / "disk", 2)
    first, _ = ok(host.run("points", f"{either}/vm", "--json")).results
    (tmp_path / "store/bs1/disk/vm/point/0000000002.json").write_bytes(b"junk")
    ended = host.run("restore", f"{either}/vm@1", tmp_path / "copy", "--create")
    assert ended.status == 19, ended.err
    assert "the newest manifest cannot be read" in ended.err
    assert (tmp_path / "copy").read_bytes() == states[0]
    ended = host.run("restore", f"{either}/vm@{first['state']}", tmp_path / "named", "--create")
    assert ended.status == 19, ended.err
    assert (tmp_path / "named").read_bytes() == states[0]
    for word in ("vm", "vm@2036-01-01", "vm@nothing"):
        assert host.run("restore", f"{either}/{word}", tmp_path / "other", "--create").status == 12


def test_a_disk_that_lost_all_its_manifests_is_not_overlooked(
    host: Host, store: str, tmp_path: Path
) -> None:
    saved(host, store, tmp_path / "disk", 2)
    for path in (tmp_path / "store/bs1/disk/vm/point").iterdir():
        path.unlink()
    fresh = {"BLOCKSTREAM_STATE_DIR": str(tmp_path / "fresh")}
    for environment in ({}, fresh):
        checked = host.run("store", "verify", store, environment=environment)
        assert checked.status == 12, checked.err
        assert checked.err.count("has no manifest") == 2
        assert f"{store}/vm" in ok(host.run("points", store, environment=fresh)).out.decode()
        assert host.run("points", f"{store}/vm", environment=environment).status == 19


@pytest.mark.parametrize("link", [False, True])
def test_a_disk_that_is_gone_is_missed(
    host: Host, store: str, tmp_path: Path, *, link: bool
) -> None:
    saved(host, store, tmp_path / "disk", 1)
    ok(host.run("send", tmp_path / "disk", f"{store}/other"))
    folder = tmp_path / "store/bs1/disk/vm"
    moved = folder.rename(tmp_path / "moved")
    if link:
        folder.symlink_to(moved)
    for words in (
        ("store", "verify", store),
        ("points", store),
        ("store", "prune", store, "--keep", "last=1"),
    ):
        ended = host.run(*words)
        assert ended.status == 19, (words, ended.err)
        assert f"{store}/vm is gone, which this host has seen" in ended.err
        assert ("bs1/disk/vm is nothing of blockstream's" in ended.err) is link


@pytest.mark.slow
def test_a_lost_newest_manifest_comes_back_from_a_copy(
    host: Host, either: str, tmp_path: Path
) -> None:
    states = saved(host, either, tmp_path / "disk", 2)
    shutil.copytree(tmp_path / "store", tmp_path / "copy")
    manifest = tmp_path / "store/bs1/disk/vm/point/0000000002.json"
    manifest.unlink()
    empty = tmp_path / "empty"
    ok(host.run("store", "init", f"dir:{empty}"))
    if "BLOCKSTREAM_IDENTITY" not in host.environment:
        stays = host.run("store", "repair", either, "--from", f"dir:{empty}")
        assert stays.status == 12, stays.err
    ended = ok(host.run("store", "repair", either, "--from", f"dir:{tmp_path}/copy"))
    assert "point/0000000002.json was replaced" in ended.err
    ok(host.run("store", "verify", either))
    ok(host.run("restore", f"{either}/vm", tmp_path / "disk2", "--create"))
    assert (tmp_path / "disk2").read_bytes() == states[1]


@pytest.mark.parametrize("kind", ["link", "folder"])
def test_what_has_the_name_of_the_next_point_is_named_before_anything_travels(
    host: Host, store: str, tmp_path: Path, kind: str
) -> None:
    disk = tmp_path / "disk"
    saved(host, store, disk, 1)
    stray = tmp_path / "store/bs1/disk/vm/point/0000000002.json"
    stray.symlink_to("/etc/hostname") if kind == "link" else stray.mkdir()
    before = sorted((tmp_path / "store").rglob("*.pack"))
    ended = host.run("send", disk, f"{store}/vm")
    assert ended.status == 10, ended.err
    assert "has the name of the next point; nothing was sent" in ended.err
    assert sorted((tmp_path / "store").rglob("*.pack")) == before


def test_a_store_is_made_without_a_state_directory(host: Host, tmp_path: Path) -> None:
    nowhere = {"BLOCKSTREAM_STATE_DIR": "/dev/null/x"}
    ok(host.run("store", "init", f"dir:{tmp_path}/s", environment=nowhere))
    assert (tmp_path / "s").stat().st_mode & 0o777 == 0o700
    host.disk("disk", SIZE)
    ok(host.run("send", host.folder / "disk", f"dir:{tmp_path}/s/vm"))
    for words in (("points", f"dir:{tmp_path}/s/vm"), ("store", "verify", f"dir:{tmp_path}/s")):
        ok(host.run(*words, environment=nowhere))


def test_words_of_others_move_no_cursor(host: Host, store: str, tmp_path: Path) -> None:
    saved(host, store, tmp_path / "disk", 1)
    stray = tmp_path / "store/bs1/disk/vm/point/\x1b[31m\u202e"
    stray.write_bytes(b"x")
    said = ok(host.run("points", f"{store}/vm")).err
    assert "\\x1b[31m\\u202e is nothing of blockstream's" in said
    assert "\x1b" not in said


def test_a_store_in_place_of_a_disk_of_another_is_refused(
    host: Host, store: str, tmp_path: Path
) -> None:
    """It hid the disk: `store verify` and `prune` meant the empty store within."""
    saved(host, store, tmp_path / "disk", 1)
    ended = host.run("store", "init", f"{store}/vm")
    assert (ended.status, "is the name of a disk" in ended.err) == (10, True)
    assert host.run("points", f"{store}/vm").status == 0
    ok(host.run("store", "init", f"{store}-2"))


def test_nothing_goes_onto_a_chain_that_is_broken(host: Host, store: str, tmp_path: Path) -> None:
    """It was saved, and no restore could read it."""
    disk = tmp_path / "disk"
    saved(host, store, disk, 1)
    changes = host.list_everything("all", SIZE)
    words: Words = ["send", disk, f"{store}/vm", "--extents", changes]
    ok(host.run(*words, "--base", "s0", "--goal", "s1"))
    manifest = tmp_path / "store/bs1/disk/vm/point/0000000001.json"
    kept = manifest.rename(tmp_path / "kept")
    ended = host.run(*words, "--base", "s1", "--goal", "s2")
    assert (ended.status, "nothing was sent; send a full copy" in ended.err) == (12, True)
    ok(host.run("send", disk, f"{store}/vm", "--goal", "s2"))
    ok(host.run("restore", f"{store}/vm", tmp_path / "copy", "--create"))
    kept.rename(manifest)
    ok(host.run("restore", f"{store}/vm@s1", tmp_path / "older", "--create"))


def test_a_disk_without_a_sound_newest_point_is_pruned_with_the_damage_said(
    host: Host, store: str, tmp_path: Path
) -> None:
    states = saved(host, store, tmp_path / "disk", 3)
    newest = max((tmp_path / "store/bs1/disk/vm/pack").iterdir())
    shutil.rmtree(newest)
    words = ("store", "prune", store, "--keep", "last=1", "--grace", "0")
    for more in (["-n"], [], ["--json"]):
        ended = host.run(*words, *more)
        assert (ended.status, "point 3 of vm cannot be restored" in ended.err) == (12, True)
    ended = host.run("restore", f"{store}/vm@2", tmp_path / "copy", "--create")
    assert ended.status == 0, ended.err
    assert (tmp_path / "copy").read_bytes() == states[1]
    assert host.run("restore", f"{store}/vm@1", tmp_path / "gone", "--create").status == 17


def test_times_that_no_clock_gave_are_shown_as_such(host: Host, store: str, tmp_path: Path) -> None:
    """They ended `points` with a traceback."""
    saved(host, store, tmp_path / "disk", 1)
    folder = tmp_path / "store/bs1/disk/vm/pack/ffffffffffff-0123456789abcdef"
    folder.mkdir()
    (folder / "0000.pack").write_bytes(b"x")
    for words in (
        ("points", f"{store}/vm"),
        ("restore", f"{store}/vm", tmp_path / "copy", "--create"),
    ):
        ended = host.run(*words)
        assert (ended.status, "begun at an impossible time" in ended.err) == (19, True), ended.err


def test_a_number_after_which_none_has_a_name_is_refused(
    host: Host, store: str, tmp_path: Path
) -> None:
    """The point after it was saved, and never listed."""
    saved(host, store, tmp_path / "disk", 1)
    folder = tmp_path / "store/bs1/disk/vm/point"
    point = Point.decode((folder / "0000000001.json").read_bytes())
    last = replace(point, seq=9_999_999_999, check="")
    (folder / "9999999999.json").write_bytes(last.encode())
    ended = host.run("send", tmp_path / "disk", f"{store}/vm", "--goal", "next")
    assert (ended.status, "after which no other has a name" in ended.err) == (10, True)


def test_a_stray_name_makes_no_line_of_its_own(host: Host, store: str, tmp_path: Path) -> None:
    saved(host, store, tmp_path / "disk", 1)
    (tmp_path / "store/bs1/disk/vm/point/\nvm: 4.0 MiB read").touch()
    ended = ok(host.run("points", f"{store}/vm"))
    assert "\nvm: 4.0 MiB" not in ended.err
    assert "\\nvm: 4.0 MiB read is nothing of blockstream's" in ended.err


def test_a_program_hears_nothing_but_events(host: Host, store: str, tmp_path: Path) -> None:
    """What was said of strays, of an empty store and of one disk of many was plain text."""
    for words in (("store", "verify"), ("store", "prune", "--keep", "last=1"), ("points",)):
        host.run(*words, store, "--json").end  # noqa: B018  # every line is looked at
        assert all(each["event"] == "said" for each in host.run(*words, store, "--json").events)
    ok(host.run("send", host.disk("disk", SIZE), f"{store}/vm"))
    (tmp_path / "store" / "bs1" / "disk" / "stray").write_text("x")
    checked = ok(host.run("store", "verify", store, "--json"))
    assert {each["event"] for each in checked.events} == {"said", "checked"}
