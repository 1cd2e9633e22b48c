"""What the newest point needs little of is given up, and what it needs comes back as it was."""

import asyncio
import itertools
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from blockstream.errors import (
    BusyError,
    InterruptedTransferError,
    OutcomeUnknownError,
    StoreDamagedError,
    StoreError,
)
from blockstream.extents import ExtentMap
from blockstream.formats.point import Kind
from blockstream.formats.point_index import PointIndex
from blockstream.interfaces import Objects
from blockstream.pipeline.packs import TRAILER, TRAILER_MAGIC, frames_end
from blockstream.repository.compaction import compact
from blockstream.repository.repository import Repository, StoredDisk
from blockstream.repository.verify import verify_disk
from blockstream.run import Run
from blockstream.stores.folder import FolderObjects, FolderUpload
from blockstream_protocol import HEAD_BYTES
from tests.repository.test_prune import BLOCK, BLOCKS, Model

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("send"), st.integers(0, 20)),
        st.tuples(st.just("full"), st.integers(0, 20)),
        st.tuples(st.just("compact"), st.sampled_from([0, 50, 75, 100])),
        st.tuples(st.just("prune"), st.integers(1, 4)),
    ),
    max_size=12,
)


@pytest.fixture(autouse=True, scope="module")
def small_frames() -> Iterator[None]:
    """Frames of one block, for a disk so small would be one frame."""
    with mock.patch.object(ExtentMap.pieces, "__defaults__", (BLOCK, 4)):
        yield


@pytest.fixture
def model(tmp_path: Path) -> Model:
    """A full copy of which little is left."""
    made = Model(tmp_path, 1)
    made.send(full=True, count=BLOCKS)
    made.send(full=False, count=BLOCKS - 6)
    made.send(full=False, count=4)
    return made


def test_who_is_stopped_takes_back_what_was_copied(model: Model) -> None:
    before, calls = sorted(model.disk.owned()), itertools.count()

    def check() -> None:
        if next(calls) == 3:
            raise InterruptedTransferError("stopped by SIGTERM")

    with pytest.raises(InterruptedTransferError):
        compact(model.disk, worth=1, pack_bytes=1, check=check)
    assert next(calls) > 3
    assert sorted(model.disk.owned()) == before
    model.check()


def frame_bytes(disk: StoredDisk) -> dict[str, int]:
    """Return the bytes that the newest point needs of each of its packs."""
    point = disk.find("last")
    index = disk.index(point)
    found = {pack.key: 0 for pack in point.packs}
    for pack, wire in zip(index.frames.pack.tolist(), index.frames.wire.tolist(), strict=True):
        found[point.packs[pack].key] += wire + HEAD_BYTES
    return found


@pytest.mark.slow
@pytest.mark.timeout(300)
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32), steps=STEPS, pack_bytes=st.sampled_from([1, 20_000, 1 << 30]))
def test_any_sequence_equals_the_model(
    tmp_path_factory: pytest.TempPathFactory,
    seed: int,
    steps: list[tuple[str, int]],
    pack_bytes: int,
) -> None:
    model = Model(tmp_path_factory.mktemp("model"), seed)
    model.send(full=True)
    for what, count in steps:
        match what:
            case "send" | "full":
                model.send(full=what == "full", count=count)
            case "compact":
                model.compact(count / 100, pack_bytes)
            case "prune":
                model.prune(count, grace=0)
    model.check()
    model.compact(0.5, pack_bytes)
    model.prune(1, grace=0)
    model.check()
    assert model.compact(0.5, pack_bytes) is None
    point = model.disk.find("last")
    assert model.keys("pack") == sorted(
        model.disk.pack_key(point, number) for number in range(len(point.packs))
    )
    needed = frame_bytes(model.disk)
    for pack in [] if point.kind is Kind.FULL else point.packs:
        end = frames_end(model.disk.objects, f"bs1/disk/vm/pack/{pack.key}", pack.size)
        assert 2 * needed[pack.key] >= end


def test_what_little_is_needed_of_is_given_up(model: Model) -> None:
    packs = model.keys("pack")
    before = model.disk.find("last")
    made = model.compact()
    assert made is not None
    assert made.rewritten == 1
    assert made.point.state == before.state
    (own,) = made.point.own_packs
    assert made.point.packs[-1] == own
    assert made.copied == frame_bytes(model.disk)[own.key] < 6 * BLOCK + 1000  # and no gaps
    assert len(model.keys("pack")) == len(packs) + 1
    model.check()
    freed = model.disk.chain(before)[0].packs[0]
    model.prune(1, grace=0)
    assert len(model.keys("pack")) == len(packs)
    assert not any(freed.key in key for key in model.keys("pack"))
    assert freed.size > 2 * own.size
    model.check()
    model.send(full=False)
    model.check()


def test_a_map_alone_moves_nothing(model: Model) -> None:
    packs = model.keys("pack")
    made = model.compact(worth=0)
    assert made is not None
    assert made.copied == made.rewritten == 0
    assert model.keys("pack") == packs
    made = model.compact()  # it needs no other point, but much of what it names is in its way
    assert made is not None
    assert made.rewritten == 1
    assert model.compact() is None
    model.check()


def test_what_was_copied_is_not_copied_again_before_something_changes(tmp_path: Path) -> None:
    """Also where a map of many small frames takes as much room as they do."""
    model = Model(tmp_path, 1)
    model.content[:] = bytes(len(model.content))
    model.send(full=True, blocks=[20])
    model.send(full=False, blocks=range(1, 21))
    made = model.compact()
    assert made is not None
    (own,) = made.point.own_packs
    assert len(made.point.packs) == 2
    assert 2 * frame_bytes(model.disk)[own.key] < own.size
    assert model.compact() is None


def test_neighbours_are_copied_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the map has the frames of a pack in another order than they lie in."""
    model = Model(tmp_path, 2)
    for full, blocks in ((True, range(24)), (False, range(4, 16)), (False, range(16, 22))):
        model.send(full=full, blocks=blocks)
    model.send(full=False, blocks=range(16, 20))
    made = model.compact()
    assert made is not None
    assert made.rewritten == 2  # the first, and the third; their frames lie in one pack now
    model.send(full=False, blocks=[1])
    calls: list[tuple[str, int, int]] = []
    copy = FolderUpload.copy

    def noted(upload: FolderUpload, key: str, offset: int, length: int) -> None:
        calls.append((key, offset, length))
        copy(upload, key, offset, length)

    monkeypatch.setattr(FolderUpload, "copy", noted)
    made = model.compact(worth=1)
    assert made is not None
    assert len({key for key, _, _ in calls}) == made.rewritten == 4
    assert len(calls) > made.rewritten  # one was overwritten
    for (key, offset, length), (other, start, _) in itertools.pairwise(calls):
        assert key != other or start > offset + length
    assert len(list(itertools.groupby(key for key, _, _ in calls))) == made.rewritten
    model.check()


def test_what_nothing_is_needed_of_is_not_named(model: Model) -> None:
    model.send(full=False, count=BLOCKS)
    newest = model.disk.find("last")
    made = model.compact(worth=0)
    assert made is not None
    assert made.point.packs == newest.packs
    model.prune(1, grace=0)
    assert len(model.keys("pack")) == 1
    model.check()


@pytest.mark.parametrize("pack_bytes", [1, 2 * BLOCK + 500, 1 << 30])
def test_a_new_pack_leads_to_its_own_index(tmp_path: Path, pack_bytes: int) -> None:
    model = Model(tmp_path, 3)
    model.content[:] = model.rng.randbytes(len(model.content))
    model.send(full=True, count=0)
    model.send(full=False, count=BLOCKS - 3)
    made = model.compact(worth=0.999, pack_bytes=pack_bytes)
    assert made is not None
    own = made.point.own_packs
    whole = model.disk.index(made.point)
    first = len(made.point.packs) - len(own)
    assert (len(own) > 1) == (pack_bytes < 1 << 30)
    for number, pack in enumerate(own, first):
        data = model.disk.objects.read_whole(f"bs1/disk/vm/pack/{pack.key}", 1 << 30)
        assert len(data) == pack.size
        magic, place, length, digest = TRAILER.unpack(data[-TRAILER.size :])
        assert magic == TRAILER_MAGIC
        assert place <= max(pack_bytes, BLOCK + 500)
        encoded = data[place + HEAD_BYTES : place + HEAD_BYTES + length]
        assert blake3(encoded).digest() == digest
        part = PointIndex.decode(encoded)
        mine = whole.frames.pack == number
        assert set(part.frames.pack.tolist()) == {number}
        assert sorted(map(bytes, part.frames.digest)) == sorted(
            map(bytes, whole.frames.digest[mine])
        )
        assert int((part.frames.wire + HEAD_BYTES).sum()) == place
        assert part.rows.offset.tolist() == whole.rows.offset[mine[whole.rows.frame]].tolist()
    model.check()


def test_of_two_that_commit_one_leaves_nothing(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = StoredDisk.commit

    def late(disk: StoredDisk, point: object) -> None:
        monkeypatch.setattr(StoredDisk, "commit", commit)
        model.send(full=False)  # somebody else was faster
        commit(disk, point)  # type: ignore[arg-type]

    monkeypatch.setattr(StoredDisk, "commit", late)
    packs, indexes = model.keys("pack"), model.keys("index")
    with pytest.raises(BusyError, match="has committed point 4"):
        compact(model.disk)
    theirs = model.disk.find("last").id
    assert [key for key in model.keys("pack") if theirs not in key] == packs
    assert [key for key in model.keys("index") if theirs not in key] == indexes
    model.check()


def test_a_store_that_fails_keeps_nothing_of_it(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_objects: Objects, _key: str, _data: bytes) -> None:
        raise StoreError("no space left")

    before = model.keys("")
    with monkeypatch.context() as patched:
        patched.setattr(FolderObjects, "put", full)
        with pytest.raises(StoreError, match="no space left"):
            compact(model.disk)
    assert model.keys("") == before
    with monkeypatch.context() as patched:
        patched.setattr(FolderObjects, "put_new", full)
        with pytest.raises(OutcomeUnknownError, match="whether point 4 of vm was committed"):
            compact(model.disk)
    assert model.compact() is not None
    model.check()


def test_a_pack_that_is_cut_is_not_copied(model: Model) -> None:
    key = model.keys("pack")[0]
    path = model.folder / "store" / key
    path.write_bytes(path.read_bytes()[:2000])
    before = model.keys("")
    with pytest.raises(StoreDamagedError, match="pack ends at byte"):
        compact(model.disk)
    assert model.keys("") == before


def test_a_frame_that_is_damaged_is_named_where_it_is_now(model: Model) -> None:
    path = model.folder / "store" / model.keys("pack")[0]
    data = bytearray(path.read_bytes())
    index = model.disk.index(model.disk.point(1))
    for start, wire in zip(index.frames.offset.tolist(), index.frames.wire.tolist(), strict=True):
        data[start + HEAD_BYTES + wire - 1] ^= 1
    path.write_bytes(data)
    made = model.compact()
    assert made is not None
    found = asyncio.run(verify_disk(Repository(model.disk.objects).disk("vm"), Run()))
    assert made.point.seq in found.broken
    (own,) = made.point.own_packs
    assert any(own.key in damage.key for damage in found.damages)
