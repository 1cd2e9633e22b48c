"""Whatever is sent, pruned and compacted, in any order: every point that is shown comes back."""

import asyncio
import contextlib
import itertools
import os
import random
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blockstream.captures.interface import Captured
from blockstream.errors import (
    BusyError,
    InterruptedTransferError,
    NotFoundError,
    StoreDamagedError,
    StoreError,
)
from blockstream.extents import ExtentMap
from blockstream.formats.extent_lists import ExtentList, Meaning
from blockstream.formats.point import Kind as PointKind
from blockstream.formats.point import Point
from blockstream.linux.buffers import aligned_buffer
from blockstream.repository import prune as pruning
from blockstream.repository.alive import alive
from blockstream.repository.compaction import WORTH, Compacted, compact
from blockstream.repository.prune import Pruned, prune
from blockstream.repository.repository import Repository, StoredDisk, new_id
from blockstream.repository.restore import opened_point
from blockstream.repository.retention import parse_rules
from blockstream.repository.verify import verify_disk
from blockstream.run import Run
from blockstream.sources.disk import DiskSource
from blockstream.stores.folder import FolderObjects
from blockstream.transfers.save import save
from blockstream.transfers.send import TransferOptions
from blockstream_protocol import Kind

BLOCK = 4096
BLOCKS = 24


class Model:
    """A store, and what each of its points must hold."""

    def __init__(self, folder: Path, seed: int, store: Path | None = None) -> None:
        self.folder = folder
        self.rng = random.Random(seed)  # noqa: S311  # the same each time
        self.store = store or folder / "store"
        objects = FolderObjects(self.store)
        Repository.create(objects)
        self.disk: StoredDisk = Repository(objects).disk("vm")
        self.content = bytearray(self.rng.randbytes(BLOCK) * BLOCKS)
        self.points: dict[int, bytes] = {}

    def send(
        self, *, full: bool, count: int | None = None, blocks: Sequence[int] | None = None
    ) -> None:
        """Change some blocks, or so many, or these; save them, or all of the disk.

        Where it is left to us, the disk grows or shrinks as well, now and then.
        """
        if blocks is None:
            grown = self._resize() if count is None else []
            count = self.rng.randrange(0, 6) if count is None else count
            there = range(len(self.content) // BLOCK)
            blocks = sorted({*self.rng.sample(there, min(count, len(there))), *grown})
        for block in blocks:
            zero = self.rng.random() < 0.3
            piece = bytes(BLOCK) if zero else self.rng.randbytes(BLOCK)
            self.content[block * BLOCK : (block + 1) * BLOCK] = piece
        path = self.folder / "disk"
        path.write_bytes(self.content)
        last = self.disk.last()
        changes, base = None, ""
        if last is not None and not full:
            offsets = np.array(blocks, np.int64) * BLOCK
            found = ExtentMap.from_columns(
                offsets, np.full(len(blocks), BLOCK), Kind.DATA, len(self.content)
            )
            changes, base = (
                ExtentList(found, Meaning.CHANGED, "test", len(self.content)),
                last.state,
            )
        with closing(DiskSource(str(path))) as source:
            disk = Captured("disk", str(path), source, base=base, changes=changes)
            how = TransferOptions(self.folder / "state")
            point = asyncio.run(save([disk], how, [self.disk], Run()))[0].point
        self.points[point.seq] = bytes(self.content)

    def _resize(self) -> Sequence[int]:
        """Let the disk grow or shrink, now and then; return what it grew by, in blocks."""
        before, after = len(self.content) // BLOCK, self.rng.randrange(BLOCKS // 2, BLOCKS * 2)
        if self.rng.random() < 0.7:
            return []
        del self.content[after * BLOCK :]
        self.content += bytes(max(0, after - before) * BLOCK)
        return range(before, after)

    def compact(self, worth: float = WORTH, pack_bytes: int = 1 << 30) -> Compacted | None:
        before = self.disk.last()
        made = compact(self.disk, worth=worth, pack_bytes=pack_bytes)
        if made is not None and before is not None:
            self.points[made.point.seq] = self.points[before.seq]
        return made

    def prune(self, last: int, grace: float) -> None:
        keep = set(sorted(self.points)[-last:])
        prune(self.disk, parse_rules(f"last={last}"), grace=grace)
        self.points = {seq: state for seq, state in self.points.items() if seq in keep}

    def check(self) -> None:
        """Restore every point."""
        shown = list(self.disk.points())
        assert [point.seq for point in shown] == sorted(self.points)
        for point in shown:
            with closing(opened_point(self.disk, point)) as source:
                buffer = aligned_buffer(source.size)
                source.read_into([0], [source.size], buffer)
            assert buffer == self.points[point.seq], point.seq
        found = asyncio.run(verify_disk(self.disk, Run()))
        assert not found.damages
        assert set(self.points) <= set(found.whole)

    def keys(self, folder: str) -> list[str]:
        """Return what there is in a folder of the disk; all of it for none."""
        below = self.store / "bs1/disk/vm" / folder
        return sorted(str(p.relative_to(self.store)) for p in below.rglob("*") if p.is_file())


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("send"), st.just(0)),
        st.tuples(st.just("full"), st.just(0)),
        st.tuples(st.just("compact"), st.just(0)),
        st.tuples(st.just("hide"), st.integers(1, 4)),
        st.tuples(st.just("prune"), st.integers(1, 4)),
    ),
    max_size=12,
)


@pytest.mark.slow
@pytest.mark.timeout(300)
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32), steps=STEPS)
def test_any_sequence_equals_the_model(
    tmp_path_factory: pytest.TempPathFactory, seed: int, steps: list[tuple[str, int]]
) -> None:
    model = Model(tmp_path_factory.mktemp("model"), seed)
    model.send(full=True)
    for what, count in steps:
        match what:
            case "send" | "full":
                model.send(full=what == "full")
            case "compact":
                model.compact()
            case "hide":
                model.prune(count, grace=1e9)
            case "prune":
                model.prune(count, grace=0)
    model.check()


def test_what_a_kept_point_needs_is_kept_until_it_needs_it_no_more(model: Model) -> None:
    packs = model.keys("pack")
    model.prune(1, grace=0)
    assert model.keys("pack") == packs
    assert len(model.keys("point")) == 5
    model.compact(worth=0)
    model.check()
    assert model.keys("pack") == packs  # no data has moved
    model.prune(1, grace=0)
    assert len(model.keys("point")) == 1
    assert len(model.keys("index")) == 1
    assert [key for key in model.keys("mark") if "verified" not in key] == []
    assert len(model.keys("mark")) == 1  # of the one that is left
    assert set(model.keys("pack")) <= set(packs)
    model.check()
    model.send(full=False)
    model.check()


def test_a_pruned_point_is_hidden_at_once_and_deleted_later(model: Model) -> None:
    model.send(full=True)
    before = model.keys("point")
    model.prune(1, grace=3600)
    assert model.keys("point") == before
    with pytest.raises(NotFoundError):
        model.disk.find("3")
    model.check()
    model.prune(1, grace=0)
    assert len(model.keys("point")) == len(model.keys("pack")) == 1
    model.check()


@pytest.mark.parametrize("days", [-400, 400])
def test_a_clock_that_is_wrong_deletes_nothing_early(
    model: Model, monkeypatch: pytest.MonkeyPatch, days: int
) -> None:
    """Neither what was hidden just now, nor what somebody is writing."""
    model.send(full=True)
    busy = new_id()
    model.disk.objects.put(f"bs1/disk/vm/pack/{busy}/0000.pack", b"x")
    before, real = model.keys("point"), time.time
    with monkeypatch.context() as patched:
        patched.setattr(time, "time", lambda: real() + days * 86_400)
        for _ in range(2):
            found = prune(model.disk, parse_rules("last=1"), grace=3600)
            assert (found.deleted, found.hidden) == ([], [1, 2, 3, 4, 5])
        assert model.keys("point") == before
        assert any(busy in key for key in model.keys("pack"))
        found = prune(model.disk, parse_rules("last=1"), grace=0)
        assert found.deleted == [5, 4, 3, 2, 1]


def test_what_was_hidden_lately_keeps_what_it_needs(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden = model.disk.find("4")
    model.send(full=True)
    prune(model.disk, parse_rules("last=1"), grace=3600)
    marks = model.disk.marks()
    lately = {seq: when - (0 if seq == 4 else 7200) for seq, when in marks.items()}
    monkeypatch.setattr(StoredDisk, "marks", lambda _disk, _kind="": dict(lately))
    found = prune(model.disk, parse_rules("last=1"), grace=3600)
    assert found.deleted == [5]
    with closing(opened_point(model.disk, hidden)) as source:
        buffer = aligned_buffer(source.size)
        source.read_into([0], [source.size], buffer)
    assert buffer == model.points[4]


def test_what_is_locked_keeps_all_that_it_needs(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = model.disk.find("3")
    model.send(full=True)
    locked = {model.disk.point_key(3), model.disk.mark_key(2)}
    monkeypatch.setattr(FolderObjects, "locked", lambda _objects, key: key in locked)
    found = prune(model.disk, parse_rules("last=1"), grace=0)
    assert (found.deleted, found.locked, found.hidden) == ([5, 4], 1, [1, 2, 3])
    with closing(opened_point(model.disk, held)) as source:
        buffer = aligned_buffer(source.size)
        source.read_into([0], [source.size], buffer)
    assert buffer == model.points[3]
    locked.remove(model.disk.point_key(3))
    found = prune(model.disk, parse_rules("last=1"), grace=0)
    assert (found.deleted, found.locked) == ([3, 2, 1], 1)
    assert model.keys("mark") == [model.disk.mark_key(2)]
    locked.clear()
    assert prune(model.disk, parse_rules("last=1"), grace=0).hidden == []
    assert model.keys("mark") == []  # although its point went before
    assert len(model.keys("pack")) == len(model.keys("index")) == 1


@pytest.mark.parametrize("steps", range(0, 16, 3))
def test_who_is_stopped_goes_on_the_next_time(model: Model, steps: int) -> None:
    model.send(full=True)
    calls = itertools.count()

    def check() -> None:
        if next(calls) == steps:
            raise InterruptedTransferError("stopped by SIGTERM")

    rules = parse_rules("last=1")
    with contextlib.suppress(InterruptedTransferError):
        prune(model.disk, rules, grace=0, check=check)
    assert next(calls) > steps, "there are as many steps"
    model.prune(1, 0)
    assert model.keys("point") == ["bs1/disk/vm/point/0000000006.json"]
    model.check()


def test_a_dry_run_writes_nothing(model: Model) -> None:
    before = model.keys("")
    found = prune(model.disk, parse_rules("last=2"), grace=0, dry_run=True)
    assert found.kept == [4, 5]
    assert found.hidden == [1, 2, 3]
    assert model.keys("") == before


WEEK = 7 * 86_400


class Left:
    """What a run left that died, or that of one that is slow: no point names it."""

    def __init__(self, model: Model, *names: str) -> None:
        self.model = model
        self.id = new_id()
        self.keys = [f"{model.disk.folder}{name.format(self.id)}" for name in names]
        for key in self.keys:
            model.disk.objects.put(key, b"x")

    def age(self, seconds: float, count: int | None = None) -> None:
        """Let all of it, or so many objects, be that much older."""
        for key in self.keys[:count]:
            aged(self.model.store / key, seconds)

    def pass_time(self, seconds: float) -> None:
        """Let the store's clock go on since the prune before."""
        for path in (self.model.store / "bs1/disk/vm/mark").glob("*.unnamed.json"):
            aged(path, seconds)

    @property
    def there(self) -> bool:
        return any((self.model.store / key).exists() for key in self.keys)


def aged(path: Path, seconds: float) -> None:
    when = path.stat().st_mtime - seconds
    os.utime(path, (when, when))


def everything(model: Model) -> Pruned:
    """Prune nothing that is named."""
    return prune(model.disk, parse_rules("last=9"), grace=1e9)


def test_what_nobody_names_is_swept_once_it_is_old(model: Model) -> None:
    left = Left(model, "pack/{}/0000.pack", "index/{}.index", "pack/{}/alive")
    assert everything(model).doubtful == 0  # somebody may be at work
    left.age(WEEK + 3600)
    assert everything(model).doubtful == 3
    assert left.there  # the clock may have jumped
    left.pass_time(3500)
    assert everything(model).doubtful == 3
    left.pass_time(200)
    found = everything(model)
    assert (found.freed, found.doubtful) == (3, 0)
    assert not left.there
    assert [key for key in model.keys("mark") if "unnamed" in key] == []
    model.check()


def test_a_sign_of_life_between_two_looks_keeps_all_of_it(model: Model) -> None:
    """As when the store's clock jumped: what was written a second ago was old at once."""
    left = Left(model, "pack/{}/0000.pack", "pack/{}/alive")
    left.age(WEEK + 3600)
    assert everything(model).doubtful == 2
    left.pass_time(7200)
    with alive(model.disk, left.id):
        left.age(WEEK)
        assert everything(model).doubtful == 2  # looked at anew
        left.pass_time(10)
    assert everything(model).doubtful == 1
    assert left.there
    model.check()


def test_who_wrote_lately_is_still_at_work_however_long_ago_it_began(model: Model) -> None:
    names = ("pack/{}/0000.pack", "pack/{}/0001.pack")
    busy, dead = Left(model, *names), Left(model, *names)
    busy.age(2 * WEEK, 1)
    dead.age(2 * WEEK)
    everything(model)
    dead.pass_time(2 * 3600)
    everything(model)
    assert busy.there
    assert not dead.there


def test_what_a_map_needs_of_points_that_are_gone_is_not_doubted(model: Model) -> None:
    model.compact(worth=0)
    model.prune(1, grace=0)
    for path in (model.store / "bs1/disk/vm").rglob("*"):
        if path.is_file():
            aged(path, 3 * WEEK)
    for _ in range(2):
        found = everything(model)
        assert (found.doubtful, found.freed) == (0, 0)
        assert [key for key in model.keys("mark") if "unnamed" in key] == []
    model.check()


def test_a_run_that_wrote_nothing_is_no_lost_point(model: Model) -> None:
    left = Left(model, "pack/{}/alive")
    left.age(3600)
    assert model.disk.unnamed() == []
    model.disk.objects.put(f"{model.disk.folder}pack/{left.id}/0000.pack", b"x")
    assert model.disk.unnamed() == [left.id]
    with alive(model.disk, left.id):
        assert model.disk.unnamed() == []


@pytest.mark.parametrize("days", [-400, 400])
def test_whoever_is_at_work_is_seen_to_be_whatever_our_clock_says(
    model: Model, monkeypatch: pytest.MonkeyPatch, days: int
) -> None:
    left, real = Left(model, "pack/{}/0000.pack"), time.time
    monkeypatch.setattr(time, "time", lambda: real() + days * 86_400)
    with alive(model.disk, left.id):
        assert model.disk.unnamed() == []


def test_the_sign_of_a_point_that_was_committed_goes(model: Model) -> None:
    """A key that may not delete leaves it."""
    last = model.disk.find("last")
    model.disk.objects.put(model.disk.alive_key(last.id), b"7")
    everything(model)
    assert not any("alive" in key for key in model.keys("pack"))
    model.check()


@pytest.mark.parametrize("what", ["pack", "index"])
def test_nothing_is_committed_whose_packs_are_gone(
    model: Model, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """Whoever stood still for a week may have been taken for dead."""
    commit = StoredDisk.commit

    def late(disk: StoredDisk, point: Point) -> None:
        key = disk.folder + (f"pack/{point.packs[0].key}" if what == "pack" else point.index)
        disk.objects.delete(key)
        commit(disk, point)

    before = model.keys("")
    monkeypatch.setattr(StoredDisk, "commit", late)
    with pytest.raises(StoreError, match="is gone before point 6"):
        model.send(full=False, count=3)
    monkeypatch.setattr(StoredDisk, "commit", commit)
    assert model.keys("") == before
    model.check()


def test_no_mark_hides_or_deletes_the_newest_point(model: Model) -> None:
    """A copy of marks in a folder of their own hid it, and prune deleted it."""
    model.disk.mark(5)
    model.check()
    found = prune(model.disk, parse_rules("last=1"), grace=0)
    assert found.deleted == []
    assert model.disk.find("5") == model.disk.find("last")
    model.points = {5: model.points[5]}
    model.check()


@pytest.mark.parametrize("what", ["pack", "cut pack", "index", "empty index", "manifest"])
def test_the_newest_point_that_can_be_restored_is_kept(model: Model, what: str) -> None:
    """The rules kept only points that were damaged, and the last good one was deleted."""
    model.send(full=False, count=3)
    broken = model.disk.find("6")
    sound = 4 if what == "manifest" else 5
    if what == "manifest":
        key = model.disk.point_key(5)
    else:
        named = f"pack/{broken.packs[0].key}" if "pack" in what else broken.index
        key = model.disk.folder + named
    path, kept = model.store / key, model.store.parent / "kept"
    content = path.read_bytes()
    path.rename(kept)
    if what == "cut pack":
        path.write_bytes(content[:-1])
    elif what == "empty index":
        path.write_bytes(b"")
    for _ in range(2):
        found = prune(model.disk, parse_rules("last=1"), grace=0)
        assert (found.kept, list(found.damaged)) == ([sound, 6], [6])
    kept.rename(path)
    for seq in (sound, 6):
        with closing(opened_point(model.disk, model.disk.point(seq))) as source:
            buffer = aligned_buffer(source.size)
            source.read_into([0], [source.size], buffer)
        assert buffer == model.points[seq], seq


def test_an_index_that_takes_more_memory_than_there_is_is_damaged(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hole makes a file as large as its manifest says; the program ended with a traceback."""
    model.send(full=True, count=3)
    newest = model.disk.find("6")

    def too_large(*_: object) -> bytes:
        raise MemoryError

    monkeypatch.setattr(type(model.disk.objects), "read_whole", too_large)
    with pytest.raises(StoreDamagedError, match="larger than the memory"):
        model.disk.index(newest)


def test_where_nothing_can_be_restored_nothing_is_pruned(model: Model) -> None:
    first = model.disk.find("1")
    (model.store / f"{model.disk.folder}pack/{first.packs[0].key}").unlink()
    before = model.keys("")
    with pytest.raises(StoreDamagedError, match="no point of vm can be restored"):
        prune(model.disk, parse_rules("last=1"), grace=0)
    assert model.keys("") == before


STRAYS = {
    "point/@eaDir/0000000005.json": "point/@eaDir/",
    "point/0000000005 (copy).json": "point/0000000005 (copy).json",
    "point/.0000000005.json.Xy12": "point/.0000000005.json.Xy12",
    "mark/copy/0000000005.pruned.json": "mark/copy/",
    "mark/5.pruned.json": "mark/5.pruned.json",
    "pack/@eaDir/0000.pack": "pack/@eaDir/",
    "pack/@eaDir/more/0000.pack": "pack/@eaDir/",
    "index/sub/x.index": "index/sub/",
    "index/x (1).index": "index/x (1).index",
}


def test_what_is_none_of_ours_is_named_once_and_stays(model: Model) -> None:
    for name in STRAYS:
        path = model.store / "bs1/disk/vm" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"somebody else's")
        os.utime(path, (0, 0))
    wanted = sorted({f"bs1/disk/vm/{name}" for name in STRAYS.values()})
    found = prune(model.disk, parse_rules("last=1"), grace=0)
    assert found.strays == wanted
    disk = Repository(FolderObjects(model.store)).disk("vm")
    asyncio.run(verify_disk(disk, Run()))
    assert sorted(disk.strays) == wanted
    assert all((model.store / "bs1/disk/vm" / name).exists() for name in STRAYS)
    model.points = {5: model.points[5]}
    model.check()


@pytest.mark.root
def test_prune_follows_no_link(model: Model, tmp_path: Path) -> None:
    """As root, it deleted the files of another directory."""
    other = tmp_path / "other"
    (other / new_id()).mkdir(parents=True)
    precious = [other / "0000.pack", next(other.iterdir()) / "0000.pack"]
    for path in precious:
        path.write_bytes(b"precious")
        os.utime(path, (0, 0))
    folder = model.store / "bs1/disk/vm/pack"
    (folder / new_id()).symlink_to(other)
    everything(model)
    moved = folder.rename(folder.with_name("moved"))
    folder.symlink_to(other)
    for _ in range(2):
        with pytest.raises(StoreDamagedError, match="link"):
            everything(model)
    assert all(path.read_bytes() == b"precious" for path in precious)
    folder.unlink()
    moved.rename(folder)
    model.check()


def test_of_two_writers_one_is_told(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    other = Repository(model.disk.objects).disk("vm")
    commit = StoredDisk.commit

    def late(disk: StoredDisk, point: object) -> None:
        monkeypatch.setattr(StoredDisk, "commit", commit)
        assert compact(other, worth=0) is not None  # somebody else was faster
        commit(disk, point)  # type: ignore[arg-type]

    monkeypatch.setattr(StoredDisk, "commit", late)
    packs = model.keys("pack")
    with pytest.raises(BusyError, match="has committed point 6"):
        model.send(full=False)
    assert model.keys("pack") == packs  # ours are gone
    assert [point.kind for point in model.disk.points()][-1] is PointKind.SYNTHETIC


def test_a_point_that_comes_while_a_map_is_made_is_in_nobodys_way(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pruning, "_LONGEST_CHAIN", 3)
    commit = StoredDisk.commit

    def late(disk: StoredDisk, point: object) -> None:
        monkeypatch.setattr(StoredDisk, "commit", commit)
        model.send(full=True)  # somebody else was faster
        commit(disk, point)  # type: ignore[arg-type]

    monkeypatch.setattr(StoredDisk, "commit", late)
    model.prune(1, grace=0)
    model.points[6] = bytes(model.content)
    model.check()
