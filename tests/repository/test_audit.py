"""A change tracker that lies is caught within the cycle, without reading the store for the rest."""

import asyncio
import random
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from blockstream.captures.interface import Captured
from blockstream.extents import ExtentMap
from blockstream.formats.extent_lists import ExtentList, Meaning
from blockstream.linux.buffers import aligned_buffer
from blockstream.pipeline.compression import CompressionChoice
from blockstream.repository.compaction import compact
from blockstream.repository.repository import Repository, StoredDisk
from blockstream.repository.restore import opened_point
from blockstream.run import Run
from blockstream.sources.disk import DiskSource
from blockstream.stores.folder import FolderObjects
from blockstream.transfers.save import SaveResult, save
from blockstream.transfers.send import TransferOptions
from blockstream_protocol import Kind

MIB = 1 << 20
SIZE = 24 * MIB
BLOCK = 4096
CYCLE = 5


class CountingObjects(FolderObjects):
    """A folder that counts what is read of packs."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.read_of_packs = 0

    def read(self, key: str, offset: int, length: int) -> bytes:
        self.read_of_packs += key.endswith(".pack")
        return super().read(key, offset, length)


class Vm:
    """A disk, and the points of it."""

    def __init__(self, folder: Path, rng: random.Random) -> None:
        self.objects = CountingObjects(folder / "store")
        Repository.create(self.objects)
        self.points: StoredDisk = Repository(self.objects).disk("vm")
        self.rng = rng
        # Noise, zeros, and blocks of both.
        self.content = bytearray(rng.randbytes(SIZE // 2) + bytes(SIZE // 2))
        for block in range(0, SIZE // BLOCK, 7):
            self.content[block * BLOCK : (block + 1) * BLOCK] = bytes(BLOCK)
        self._path = folder / "disk"
        self._state = 0

    def write(self, block: int, *, zero: bool = False) -> int:
        piece = bytes(BLOCK) if zero else self.rng.randbytes(BLOCK)
        self.content[block * BLOCK : (block + 1) * BLOCK] = piece
        return block * BLOCK

    def save(self, changed: list[int] | None = None, cycle: int = 0) -> SaveResult:
        """Save it whole, or what is said to have changed."""
        self._path.write_bytes(self.content)
        self._state += 1
        how = TransferOptions(self._path.parent, CompressionChoice.parse("none"))
        base, changes = "", None
        if changed is not None:
            places = np.array(sorted(set(changed)), np.int64)
            lengths = np.full(len(places), BLOCK, np.int64)
            extents = ExtentMap.from_columns(places, lengths, Kind.DATA, len(self.content))
            base = f"state-{self._state - 1}"
            changes = ExtentList(extents, Meaning.CHANGED, "test", len(self.content))
        with closing(DiskSource(str(self._path))) as source:
            location = str(self._path)
            state = f"state-{self._state}"
            disk = Captured("disk", location, source, state, None, base, changes)
            return asyncio.run(save([disk], how, [self.points], Run(), audit_cycle=cycle))[0]

    def restored(self) -> bytes:
        last = self.points.last()
        assert last is not None
        with closing(opened_point(self.points, last)) as source:
            buffer = aligned_buffer(source.size)
            source.read_into([0], [source.size], buffer)
            return bytes(buffer)


@pytest.fixture
def rng() -> random.Random:
    return random.Random(1)  # noqa: S311


@pytest.fixture
def vm(tmp_path: Path, rng: random.Random) -> Vm:
    return Vm(tmp_path, rng)


def test_an_honest_list_costs_no_reading_of_packs_that_are_whole(vm: Vm) -> None:
    vm.save()
    seen = 0
    for _ in range(CYCLE):
        found = vm.save([], CYCLE).audit
        assert found is not None
        assert not len(found.missed)
        seen += found.checked
    assert seen == SIZE
    assert vm.objects.read_of_packs == 0


def test_what_is_sent_in_between_leaves_no_part_out(vm: Vm) -> None:
    vm.save()
    seen = 0
    for number in range(CYCLE):
        vm.save([vm.write(number)])  # and so no frame that is whole
        compact(vm.points)
        if number == 2:
            vm.save()
        found = vm.save([], CYCLE).audit
        assert found is not None
        seen += found.checked
    assert seen == SIZE


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(12))
def test_whatever_is_missed_is_found_within_a_cycle(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)  # noqa: S311
    vm = Vm(tmp_path, rng)
    vm.save()
    for _ in range(rng.randrange(6)):  # so that frames are partly superseded
        honest = [vm.write(rng.randrange(SIZE // BLOCK), zero=rng.random() < 0.3) for _ in range(9)]
        vm.save(honest, CYCLE)
    if seed % 4 == 3:
        compact(vm.points)
    block = rng.randrange(SIZE // BLOCK)
    before = vm.content[block * BLOCK :][:BLOCK]
    lie = vm.write(block, zero=any(before) and rng.random() < 0.4)
    found = []
    for _ in range(CYCLE):
        others = [each for each in rng.sample(range(SIZE // BLOCK), 5) if each != block]
        honest = [vm.write(each) for each in others]
        result = vm.save(honest, CYCLE)
        assert result.audit is not None
        found += [each.offset for each in result.audit.missed]
        assert result.point.missed == result.audit.missed.total()
        if found:
            assert vm.restored() == vm.content
    assert found == [lie]
    assert vm.restored() == vm.content


def test_what_grew_and_what_shrank_is_no_lie(vm: Vm) -> None:
    vm.save()
    vm.content += b"x" * BLOCK
    for _ in range(CYCLE):
        grown = [SIZE] if len(vm.content) > SIZE and vm._state == 1 else []
        result = vm.save(grown, CYCLE)
        assert result.audit is not None
        assert not len(result.audit.missed)
    del vm.content[SIZE // 2 - 5 * BLOCK :]
    for _ in range(CYCLE):
        result = vm.save([], CYCLE)
        assert result.audit is not None
        assert not len(result.audit.missed)
    assert vm.restored() == vm.content
