"""Damaged frames are made anew from a disk, also where only a map knows of them."""

import asyncio
import errno
import os
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pytest

from blockstream.extents import ExtentMap
from blockstream.repository.healing import heal
from blockstream.repository.repair import Repaired
from blockstream.repository.verify import verify_disk
from blockstream.run import Run
from blockstream.sources.disk import DiskSource
from blockstream_protocol import HEAD_BYTES
from tests.repository.test_prune import BLOCK, BLOCKS, Model


def healed(model: Model, content: bytes) -> Repaired:
    path = model.folder / "source"
    path.write_bytes(content)
    with closing(DiskSource(str(path))) as source:
        return asyncio.run(heal(model.disk, source, Run()))


def damage(model: Model, key: str, seq: int) -> None:
    """Flip a byte of each frame of a pack."""
    path, index = model.folder / "store" / key, model.disk.index(model.disk.point(seq))
    data = bytearray(path.read_bytes())
    for start in index.frames.offset[index.frames.pack == 0].tolist():
        data[start + HEAD_BYTES + 50] ^= 1
    path.write_bytes(data)


def test_a_frame_of_which_a_map_needs_a_part_is_made_anew_as_a_whole(tmp_path: Path) -> None:
    model = Model(tmp_path, 1)
    model.content[:] = model.rng.randbytes(BLOCK * BLOCKS)
    model.send(full=True, count=0)
    before = bytes(model.content)
    model.send(full=False, blocks=[3, 4, 9])
    made = model.compact(worth=0)
    assert made is not None
    model.prune(1, grace=0)
    key = model.disk.pack_key(made.point, 0)
    damage(model, key, made.point.seq)
    kept = healed(model, bytes(model.content))  # it has overwritten what the map does not need
    assert (kept.healed, kept.lost, kept.left) == (0, 1, [key])
    found = healed(model, before)
    assert (found.healed, found.lost, found.replaced, found.filled) == (1, 0, [key], [])
    model.check()


@pytest.mark.parametrize("size", [BLOCK * 3, BLOCK * BLOCKS - 100, 0])
def test_a_disk_that_ends_before_is_no_source(tmp_path: Path, size: int) -> None:
    model = Model(tmp_path, 1)
    model.send(full=True, count=BLOCKS)
    (key,) = model.keys("pack")
    damage(model, key, 1)
    found = healed(model, bytes(model.content[:size]))
    assert (found.healed, found.lost) == (0, 1)
    assert found.after is not None
    assert found.after.broken == [1]
    found = healed(model, bytes(model.content) + b"more")
    assert (found.healed, found.lost) == (1, 0)
    model.check()


def test_what_a_bad_medium_holds_is_named_and_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Model(tmp_path, 1)
    model.send(full=True, count=BLOCKS)
    (key,) = model.keys("pack")
    bad, read = (tmp_path / "store" / key).stat().st_ino, os.preadv

    def failing(fd: int, buffers: Sequence[memoryview], offset: int, *flags: int) -> int:
        if os.fstat(fd).st_ino == bad:
            raise OSError(errno.EIO, "Input/output error")
        return read(fd, buffers, offset, *flags)

    monkeypatch.setattr(os, "preadv", failing)
    found = asyncio.run(verify_disk(model.disk, Run()))
    assert any(f"{key} cannot be read from byte" in each.text for each in found.damages)
    assert (found.whole, found.broken) == ([], [1])
    assert healed(model, bytes(model.content)).replaced == [key]
    model.check()


def test_an_index_comes_back_from_the_packs(tmp_path: Path) -> None:
    model = Model(tmp_path, 1)
    model.send(full=True, count=BLOCKS)
    model.send(full=False, count=4)
    for key in model.keys("index"):
        (tmp_path / "store" / key).write_bytes(b"")
    found = healed(model, bytes(BLOCK))
    assert found.replaced == model.keys("index")
    model.check()


@pytest.mark.parametrize("pruned", [False, True])
def test_a_pack_whose_frames_nobody_lists_is_left_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, pruned: bool
) -> None:
    """A map knows some of them only; the others may be good, unless their point is gone."""
    monkeypatch.setattr(ExtentMap.pieces, "__defaults__", (BLOCK, 4))
    model = Model(tmp_path, 1)
    model.send(full=True, count=BLOCKS)
    before = bytes(model.content)
    model.send(full=False, blocks=[3])
    made = model.compact(worth=0)
    assert made is not None
    key = model.disk.pack_key(made.point, 0)
    damage(model, key, made.point.seq)
    path, (index, *_) = tmp_path / "store" / key, model.keys("index")
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    if not pruned:
        (tmp_path / "store" / index).unlink()
    if pruned:
        model.prune(1, grace=0)
    left = path.read_bytes()
    found = healed(model, before)
    if pruned:
        assert (found.healed > 10, found.lost, found.replaced) == (True, 0, [key])
        assert found.filled == [key]
        model.check()
    else:
        assert (found.healed, found.replaced) == (0, [])
        assert path.read_bytes() == left
