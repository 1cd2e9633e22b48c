"""A capture is told what its destination holds, and of nothing else; and is left in any case."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from blockstream.captures.interface import Captured, Held, Holding
from blockstream.destinations.interface import Delivered, Rehearsal
from blockstream.errors import BlockstreamError, InterruptedTransferError, TargetError
from blockstream.extents import ExtentMap
from blockstream.formats.extent_lists import ExtentList, Meaning
from blockstream.jobs.transfer import ChangeOptions, Unwatched, transfer
from blockstream.pipeline.progress import Snapshot
from blockstream.run import Run
from blockstream.sources.disk import DiskSource
from blockstream.transfers.digests import Comparison
from blockstream.transfers.write_foreign import WriteResult
from blockstream_protocol import Kind

SIZE = 1 << 20
RESULT = WriteResult("none", Snapshot(*[0] * 8))


def part(start: int, length: int) -> ExtentMap:
    return ExtentMap.from_columns(np.array([start]), np.array([length]), Kind.DATA, SIZE)


class Notes:
    """A capture of two disks, a destination, and what happened to both, in order."""

    def __init__(self, disk: Path) -> None:
        disk.write_bytes(bytes(SIZE))
        self.source = DiskSource(str(disk))
        self.source.warnings.append("the disk is warm")
        self.happened: list[str] = []
        self.told: list[str] = []
        self.sent: list[Captured] = []
        self.fails: BlockstreamError | None = None
        self.is_confirmed = True
        self.disks = ["a", "b"]
        self.base = ""

    # The capture.

    @contextlib.asynccontextmanager
    async def open(self, held: Held, run: Run) -> AsyncIterator[Sequence[Captured]]:
        del run
        for name in self.disks:
            assert (await held(name)).state == f"held-{name}"
        self.happened.append("opened")
        listed = ExtentList(part(0, 4096), Meaning.CHANGED, "test", SIZE) if self.base else None
        try:
            yield [
                Captured(name, name, self.source, base=self.base, changes=listed)
                for name in self.disks
            ]
        except BlockstreamError as error:
            self.happened.append(f"left by {type(error).__name__}")
            raise
        else:
            self.happened.append("left")

    async def committed(self, disk: Captured) -> None:
        self.happened.append(f"committed {disk.name}")

    # The destination.

    async def last(self, location: str, run: Run) -> str:
        raise AssertionError(f"{location} {run}")

    async def held(self, name: str, run: Run) -> Holding:
        del run
        return Holding(f"held-{name}")

    async def differing(self, disk: Captured, run: Run, *, adopt: bool = False) -> Comparison:
        del run
        self.happened.append(f"compared {disk.name}")
        return Comparison(SIZE, part(0, 8192), SIZE, "adopted" if adopt else "")

    async def rehearse(self, disk: Captured, run: Run) -> Rehearsal:
        raise AssertionError(f"{disk} {run}")

    async def deliver(self, disks: Sequence[Captured], run: Run) -> AsyncGenerator[Delivered, None]:
        del run
        for disk in disks:
            self.sent.append(disk)
            yield Delivered(disk, "there", RESULT, is_confirmed=self.is_confirmed)
            if self.fails is not None:
                raise self.fails

    def done(self, options: ChangeOptions | None = None) -> list[str]:
        """Transfer; return which disks arrived."""
        run = Run(self.told.append)
        work = transfer(self, self, run, Unwatched(), options or ChangeOptions())
        return [each.disk.name for each in asyncio.run(work)]


@pytest.fixture
def notes(tmp_path: Path) -> Notes:
    return Notes(tmp_path / "disk")


def test_each_disk_is_told_as_soon_as_it_is_held(notes: Notes) -> None:
    assert notes.done() == ["a", "b"]
    assert notes.happened == ["opened", "committed a", "committed b", "left"]
    assert notes.told == ["the disk is warm"] * 2


def test_what_nobody_confirms_is_not_told(notes: Notes) -> None:
    notes.is_confirmed = False
    assert notes.done() == ["a", "b"]
    assert notes.happened == ["opened", "left"]


@pytest.mark.parametrize("kind", [TargetError, InterruptedTransferError])
def test_what_was_committed_before_it_failed_is_told(
    notes: Notes, kind: type[BlockstreamError]
) -> None:
    notes.fails = kind("no more")
    with pytest.raises(kind, match="no more"):
        notes.done()
    assert notes.happened == ["opened", "committed a", f"left by {kind.__name__}"]


def test_nothing_to_send_is_nothing_delivered(notes: Notes) -> None:
    notes.disks = []
    assert notes.done() == []
    assert notes.happened == ["opened", "left"]


def test_what_differs_goes_onto_what_was_compared(notes: Notes) -> None:
    notes.disks = ["a"]
    notes.done(ChangeOptions(compare=True))
    (disk,) = notes.sent
    assert disk.base == "adopted"
    assert disk.changes is not None
    assert disk.changes.extents == part(0, 8192)
    assert notes.happened == ["opened", "compared a", "committed a", "left"]


def test_what_a_tracker_missed_is_sent_as_well(notes: Notes) -> None:
    notes.disks, notes.base = ["a"], "monday"
    notes.done(ChangeOptions(recheck=True))
    (disk,) = notes.sent
    assert disk.base == "monday"
    assert disk.changes is not None
    assert disk.changes.extents == part(0, 8192)


def test_a_whole_copy_is_not_compared_with_anything(notes: Notes) -> None:
    notes.done(ChangeOptions(recheck=True))
    assert notes.happened == ["opened", "committed a", "committed b", "left"]
