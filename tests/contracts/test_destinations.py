"""Whatever takes captured disks keeps the promises of `destinations.interface.Destination`."""

import asyncio
import contextlib
import random
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest

from blockstream.captures.interface import Captured
from blockstream.destinations.interface import Destination
from blockstream.destinations.places import DiskSet, MachineDisks, Naming, OneDisk
from blockstream.destinations.registry import DestinationOptions, opened_destination
from blockstream.errors import InterruptedTransferError
from blockstream.extents import ExtentMap
from blockstream.formats.extent_lists import ExtentList, Meaning
from blockstream.locations.registry import location_of
from blockstream.locations.ssh import Remote, Way
from blockstream.repository.repository import Repository
from blockstream.repository.restore import opened_point
from blockstream.run import Run
from blockstream.sources.disk import DiskSource
from blockstream.stores.folder import FolderObjects
from blockstream.transfers.peer_options import PeerOptions
from blockstream.transfers.receive_options import ReceiveRequest
from blockstream.transfers.send import TransferOptions
from blockstream_protocol import Kind

SIZE = 4 << 20
BLOCK = 65536


@dataclass
class Place:
    """A destination of one kind, and what lies there.

    Attributes:
        target: As people type it.
        naming: What disks are called there.
        names: The disks that are sent to it.
        read: Returns what is held of a disk.
        options: How it takes them.
    """

    target: str
    naming: Naming
    names: Sequence[str]
    read: Callable[[str], bytes]
    options: DestinationOptions

    def opened(self) -> AbstractAsyncContextManager[Destination]:
        many = isinstance(self.naming, DiskSet)
        target = location_of(self.target, many=many, folder=many)
        return opened_destination(target, self.naming, self.options, Run())


class Stoppable(DiskSource):
    """A disk whose reads stop a run, once."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.run: Run | None = None
        self.after = 3

    def read_into(self, offsets: Sequence[int], lengths: Sequence[int], buffer: memoryview) -> None:
        """See `Source`."""
        self.after -= 1
        if self.run is not None and self.after < 0:
            self.run.stop("stopped by a test")
        super().read_into(offsets, lengths, buffer)


@dataclass
class Disks:
    """The disks that are sent."""

    folder: Path
    names: Sequence[str]
    rng: random.Random = field(default_factory=lambda: random.Random(3))  # noqa: S311
    contents: dict[str, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.contents = {name: self.rng.randbytes(SIZE) for name in self.names}

    def change(self, name: str) -> ExtentMap:
        """Change a block of a disk; return where."""
        place = self.rng.randrange(1, SIZE // BLOCK) * BLOCK
        content = bytearray(self.contents[name])
        content[place : place + BLOCK] = self.rng.randbytes(BLOCK)
        self.contents[name] = bytes(content)
        return ExtentMap.from_columns(np.array([place]), np.array([BLOCK]), Kind.DATA, SIZE)

    @contextlib.contextmanager
    def captured(self, state: str) -> Iterator[list[Captured]]:
        """Hold all of them still, whole."""
        with contextlib.ExitStack() as stack:
            found = []
            for number, name in enumerate(self.names):
                path = self.folder / f"source-{number}"
                path.write_bytes(self.contents[name])
                source = stack.enter_context(contextlib.closing(Stoppable(str(path))))
                found.append(Captured(name, str(path), source, f"{state}-{number}", 77))
            yield found


def _options(folder: Path, stored: Path) -> DestinationOptions:
    state = folder / "state"
    command = f"env BLOCKSTREAM_STATE_DIR={folder / 'far'} {sys.executable} -m blockstream"

    def open_store(store: str, _disk: str) -> contextlib.AbstractContextManager[Repository]:
        assert store == f"dir:{stored}"
        return contextlib.nullcontext(Repository(FolderObjects(stored)))

    return DestinationOptions(
        where=ReceiveRequest("", state, create=True),
        how=TransferOptions(state),
        peer=PeerOptions(Way(rsh="sh -c {command}"), command),
        open_store=open_store,
    )


def _in_store(folder: Path, name: str) -> bytes:
    disk = Repository(FolderObjects(folder)).disk(name)
    last = disk.last()
    assert last is not None
    assert last.moment == 77
    with contextlib.closing(opened_point(disk, last)) as point:
        buffer = memoryview(bytearray(point.size))
        point.read_into([0], [point.size], buffer)
        return bytes(buffer)


def _place(kind: str, folder: Path) -> Place:
    there, stored = folder / "there", folder / "store"
    there.mkdir()
    Repository.create(FolderObjects(stored))
    options = _options(folder, stored)
    pair = ["vm-2000", "vm-2001"]

    def in_folder(name: str) -> bytes:
        return (there / f"{name}.raw").read_bytes()

    def itself(name: str) -> bytes:
        return (there / name).read_bytes()

    hosts = {name: Remote("lab", str(there / name)) for name in pair}
    return {
        "disk": lambda: Place(str(there / "vm"), OneDisk(), ["vm"], itself, options),
        "folder": lambda: Place(f"{there}/", MachineDisks(single=False), pair, in_folder, options),
        "host": lambda: Place(f"lab:{there}/vm", OneDisk(), ["vm"], itself, options),
        "host-set": lambda: Place("lab:", DiskSet(hosts), pair, itself, options),
        "host-folder": lambda: Place(
            f"lab:{there}/", MachineDisks(single=False), pair, in_folder, options
        ),
        "store": lambda: Place(
            f"dir:{stored}/vm", OneDisk(), ["vm"], lambda n: _in_store(stored, n), options
        ),
        "store-set": lambda: Place(
            f"dir:{stored}/", DiskSet(), pair, lambda n: _in_store(stored, n), options
        ),
        "store-machine": lambda: Place(
            f"dir:{stored}/vm",
            MachineDisks(single=False),
            pair,
            lambda n: _in_store(stored, n),
            options,
        ),
    }[kind]()


SLOW = pytest.mark.slow  # programs are started
KINDS = [
    "disk",
    "folder",
    pytest.param("host", marks=SLOW),
    pytest.param("host-set", marks=SLOW),
    pytest.param("host-folder", marks=SLOW),
    "store",
    "store-set",
    "store-machine",
]


@pytest.fixture(params=KINDS)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    return _place(request.param, tmp_path)


@pytest.fixture
def disks(place: Place, tmp_path: Path) -> Disks:
    return Disks(tmp_path, place.names)


def again(place: Place) -> Place:
    """Return the place as the next command has it: what is there is not made."""
    if place.naming.by_rounds:
        return place  # which makes what is not there, as often as that
    options = place.options
    return replace(place, options=replace(options, where=replace(options.where, create=False)))


def run(work: Awaitable[object]) -> None:
    async def done() -> None:
        await work

    asyncio.run(done())


def increments(held: Sequence[Captured], base: str, changed: Sequence[ExtentMap]) -> list[Captured]:
    return [
        replace(
            disk,
            base=f"{base}-{number}",
            changes=ExtentList(extents, Meaning.CHANGED, "test", SIZE),
        )
        for number, (disk, extents) in enumerate(zip(held, changed, strict=True))
    ]


def test_what_is_delivered_is_held(place: Place, disks: Disks) -> None:
    async def deliver(base: str, state: str, changed: Sequence[ExtentMap]) -> None:
        here = again(place) if base else place
        with disks.captured(state) as held:
            sent = increments(held, base, changed) if base else held
            async with here.opened() as destination:
                for number, name in enumerate(place.names):
                    before = await destination.held(name, Run())
                    assert before.state == (f"{base}-{number}" if base else "")
                    assert before.exists == bool(base)
                delivered = [each async for each in destination.deliver(sent, Run())]
                assert [each.disk.name for each in delivered] == list(place.names)
                assert all(each.place for each in delivered)
                for number, name in enumerate(place.names):
                    found = await destination.held(name, Run())
                    assert (found.state, found.exists) == (f"{state}-{number}", True)
                    assert not found.unfinished
        for name in place.names:
            assert place.read(name) == disks.contents[name]

    run(deliver("", "monday", []))
    run(deliver("monday", "tuesday", [disks.change(name) for name in place.names]))
    run(deliver("tuesday", "wednesday", [disks.change(name) for name in place.names]))


def test_a_delivery_that_was_stopped_is_finished_by_the_same_again(
    place: Place, disks: Disks
) -> None:
    async def stopped(after: int) -> None:
        run = Run()
        with disks.captured("monday") as held:
            for disk in held:
                assert isinstance(disk.source, Stoppable)
                disk.source.run, disk.source.after = run, after
            async with place.opened() as destination:
                for name in place.names:
                    await destination.held(name, Run())
                with pytest.raises(InterruptedTransferError, match="stopped by a test"):
                    [each async for each in destination.deliver(held, run)]

    async def finished() -> None:
        with disks.captured("monday") as held:
            async with place.opened() as destination:
                for name in place.names:
                    await destination.held(name, Run())
                [each async for each in destination.deliver(held, Run())]

    run(stopped(0))
    run(stopped(2))
    run(finished())
    for name in place.names:
        assert place.read(name) == disks.contents[name]


def test_what_differs_is_found_and_an_increment_goes_onto_what_was_compared(
    place: Place, disks: Disks
) -> None:
    async def full() -> None:
        with disks.captured("monday") as held:
            async with place.opened() as destination:
                for name in place.names:
                    await destination.held(name, Run())
                [each async for each in destination.deliver(held, Run())]

    async def differing() -> None:
        changed = {name: disks.change(name) for name in place.names}
        with disks.captured("tuesday") as held:
            async with again(place).opened() as destination:
                sent = []
                for disk in held:
                    plain = await destination.differing(disk, Run())
                    assert not changed[disk.name].without(plain.differing).total()
                    found = await destination.differing(disk, Run(), adopt=True)
                    assert found.base
                    assert found.differing.total() <= 2 * BLOCK
                    changes = ExtentList(found.differing, Meaning.CHANGED, "test", SIZE)
                    sent.append(replace(disk, base=found.base, changes=changes))
                [each async for each in destination.deliver(sent, Run())]
        for name in place.names:
            assert place.read(name) == disks.contents[name]

    run(full())
    run(differing())


def test_a_rehearsal_writes_nothing(place: Place, disks: Disks) -> None:
    async def rehearsed() -> None:
        with disks.captured("monday") as held:
            async with place.opened() as destination:
                for disk in held:
                    found = await destination.rehearse(disk, Run())
                    assert found.plan.opening.goal == disk.state
                    assert found.answer is not None
                for name in place.names:
                    assert not (await destination.held(name, Run())).state

    run(rehearsed())
