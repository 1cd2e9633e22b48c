"""A restore point reads as the disk was, in any order, from any thread, with few requests."""

import asyncio
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from blockstream.captures.interface import Captured
from blockstream.errors import (
    OutcomeUnknownError,
    SourceError,
    StoreDamagedError,
    StoreError,
)
from blockstream.extents import ExtentMap
from blockstream.formats.extent_lists import ExtentList, Meaning
from blockstream.linux.buffers import aligned_buffer
from blockstream.pipeline.compression import CompressionChoice
from blockstream.repository.repository import Repository, StoredDisk
from blockstream.repository.restore import opened_point
from blockstream.run import Run
from blockstream.sources.disk import DiskSource
from blockstream.sources.point import PointSource
from blockstream.stores.folder import FolderObjects
from blockstream.transfers.save import save
from blockstream.transfers.send import TransferOptions
from blockstream_protocol import Kind

MIB = 1 << 20
SIZE = 24 * MIB
BLOCK = 4096

Saver = Callable[[bytes, list[int] | None], StoredDisk]


class CountingObjects(FolderObjects):
    """A folder that counts what is read of packs."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.requests: list[tuple[str, int, int]] = []

    def read(self, key: str, offset: int, length: int) -> bytes:
        if key.endswith(".pack"):
            self.requests.append((key, offset, length))
        return super().read(key, offset, length)


@pytest.fixture
def objects(tmp_path: Path) -> CountingObjects:
    made = CountingObjects(tmp_path / "store")
    Repository.create(made)
    return made


@pytest.fixture
def saver(objects: CountingObjects, tmp_path: Path) -> Saver:
    """Saves a content, whole or the blocks that changed."""

    def save_it(content: bytes, blocks: list[int] | None) -> StoredDisk:
        disk = Repository(objects).disk("vm")
        path = tmp_path / "disk"
        path.write_bytes(content)
        last = disk.last()
        changes = None
        if blocks is not None:
            offsets = np.array(sorted(blocks)) * BLOCK
            lengths = np.full(len(blocks), BLOCK)
            found = ExtentMap.from_columns(offsets, lengths, Kind.DATA, len(content))
            changes = ExtentList(found, Meaning.CHANGED, "test", len(content))
        base = last.state if last is not None and blocks is not None else ""
        how = TransferOptions(tmp_path / "state", CompressionChoice(0))
        with closing(DiskSource(str(path))) as source:
            what = Captured("disk", str(path), source, base=base, changes=changes)
            asyncio.run(save([what], how, [disk], Run()))
        return disk

    return save_it


def content_of(seed: int) -> bytearray:
    rng = random.Random(seed)  # noqa: S311  # the same each time
    return bytearray(rng.randbytes(SIZE // 2) + bytes(SIZE // 4) + rng.randbytes(SIZE // 4))


def changed(content: bytearray, seed: int, count: int) -> list[int]:
    rng = random.Random(seed)  # noqa: S311  # the same each time
    blocks = rng.sample(range(SIZE // BLOCK), count)
    for block in blocks:
        content[block * BLOCK : (block + 1) * BLOCK] = rng.randbytes(BLOCK)
    return blocks


def read(source: PointSource, *ranges: tuple[int, int]) -> bytes:
    buffer = aligned_buffer(sum(length for _, length in ranges))
    source.read_into([offset for offset, _ in ranges], [length for _, length in ranges], buffer)
    return bytes(buffer)


def newest(disk: StoredDisk) -> PointSource:
    return opened_point(disk, disk.find("last"))


def test_it_reads_as_the_disk_was(saver: Saver) -> None:
    content = content_of(1)
    disk = saver(bytes(content), None)
    for seed in range(5):
        blocks = changed(content, seed, 300)
        disk = saver(bytes(content), blocks)
    with closing(newest(disk)) as source:
        assert source.size == SIZE
        assert source.immutable
        assert source.extents().total() == SIZE
        assert source.extents().total(Kind.ZERO) > 0
        steps = [(at, min(700_000, SIZE - at)) for at in range(0, SIZE, 700_000)]
        with ThreadPoolExecutor(4) as pool:
            pieces = list(pool.map(lambda step: read(source, step), steps))
        assert b"".join(pieces) == content
        rng = random.Random(7)  # noqa: S311  # the same each time
        for _ in range(200):
            ranges = sorted(rng.sample(range(SIZE), 6))
            pairs = [(low, high - low) for low, high in zip(ranges[::2], ranges[1::2], strict=True)]
            pairs = [(low, min(length, 30_000)) for low, length in pairs]
            assert read(source, *pairs) == b"".join(
                content[low : low + length] for low, length in pairs
            )
        source.validate()


def test_a_whole_pass_asks_for_each_byte_about_once_in_large_pieces(
    saver: Saver, objects: CountingObjects
) -> None:
    content = content_of(2)
    saver(bytes(content), None)
    blocks = changed(content, 1, 500)
    disk = saver(bytes(content), blocks)
    with closing(newest(disk)) as source:
        objects.requests.clear()
        for at in range(0, SIZE, MIB):
            assert read(source, (at, MIB)) == content[at : at + MIB]
        assert source._fetching._cached < 10 * MIB  # what was read to its end does not stay
    asked = sum(length for _, _, length in objects.requests)
    stored = sum(point.stored for point in disk.points())
    assert asked <= stored
    assert len(objects.requests) <= 10, objects.requests


def test_one_block_takes_one_small_request(saver: Saver, objects: CountingObjects) -> None:
    content = content_of(3)
    with closing(newest(saver(bytes(content), None))) as source:
        objects.requests.clear()
        assert read(source, (10 * MIB + 512, 512)) == content[10 * MIB + 512 :][:512]
        assert read(source, (13 * MIB, BLOCK)) == bytes(BLOCK)  # zeros take none
        assert read(source, (20, 10)) == content[20:][:10]
    assert len(objects.requests) == 2
    assert all(length < 1.2 * MIB for _, _, length in objects.requests)


def test_what_was_fetched_for_nobody_does_not_stay(
    saver: Saver, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (
        ("_RUN_BYTES", 2 * MIB),
        ("_AHEAD_BYTES", 2 * MIB),
        ("_MOST_HELD", 6 * MIB),
    ):
        monkeypatch.setattr(f"blockstream.sources.point.{name}", value)
    monkeypatch.setattr("blockstream.sources.point._CACHE_BYTES", MIB)
    content = content_of(6)
    with closing(newest(saver(bytes(content), None))) as source:
        for _ in range(3):
            for at in [*range(0, SIZE, 4 * MIB), *range(3 * MIB, SIZE, 5 * MIB)]:
                assert read(source, (at, BLOCK)) == content[at : at + BLOCK]
                assert source._fetching._held <= 6 * MIB + 4 * MIB
        assert read(source, (0, SIZE)) == content
    assert source._fetching._held <= 10 * MIB


def test_what_is_damaged_is_named_and_nothing_of_it_given(
    saver: Saver, objects: CountingObjects, tmp_path: Path
) -> None:
    disk = saver(bytes(content_of(4)), None)
    (pack,) = (tmp_path / "store").rglob("*.pack")
    data = bytearray(pack.read_bytes())
    data[len(data) // 2] ^= 1
    pack.write_bytes(data)
    with closing(newest(disk)) as source:
        failed = []
        for at in range(0, SIZE, MIB):
            try:
                read(source, (at, MIB))
            except StoreDamagedError as error:
                failed.append(str(error))
        assert len(failed) == 1
        assert "the frame at offset" in failed[0]
        with pytest.raises(StoreDamagedError):  # and again
            read(source, (0, SIZE))


def test_a_run_that_nobody_heard_of_is_not_done_twice(saver: Saver, tmp_path: Path) -> None:
    disk = saver(bytes(content_of(7)), None)
    first = disk.find("last")
    with closing(DiskSource(str(tmp_path / "disk"))) as source:
        source.immutable = True  # as a snapshot is
        what = Captured("disk", str(tmp_path / "disk"), source, first.state)
        (saved,) = asyncio.run(save([what], TransferOptions(tmp_path / "s"), [disk], Run()))
        assert saved.point == first
    assert disk.numbers() == [1]


def test_a_commit_that_nobody_answered_is_not_known(
    saver: Saver, objects: CountingObjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = saver(bytes(content_of(8)), None)

    def lost(_objects: object, key: str, _data: bytes) -> bool:
        raise StoreError(f"{key}: no answer")

    monkeypatch.setattr(CountingObjects, "put_new", lost)
    with pytest.raises(OutcomeUnknownError, match="point 2 of vm was committed is not known"):
        saver(bytes(content_of(9)), None)
    packs = [info.key for info in objects.listed("bs1/disk/vm/pack/")]
    assert len(packs) == 2  # somebody may need them
    assert disk.numbers() == [1]


@pytest.mark.parametrize(("offset", "length"), [(SIZE, 1), (SIZE - 1, 2), (-1, 1)])
def test_outside_the_disk_there_is_nothing(saver: Saver, offset: int, length: int) -> None:
    disk = saver(bytes(content_of(5)), None)
    with closing(newest(disk)) as source, pytest.raises(SourceError):
        read(source, (offset, length))
