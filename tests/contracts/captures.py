"""The promises of `captures.interface.Capture`, checked on any kind of disk.

They need nothing of the tests', so that a guest of the lab can run them on its own LVM.
"""

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from blockstream.captures.interface import Capture, Captured, Holding
from blockstream.errors import InterruptedTransferError, SourceError
from blockstream.formats.extent_lists import Meaning
from blockstream.interfaces import Source
from blockstream.linux.buffers import aligned_buffer
from blockstream.run import Run
from blockstream_protocol import Kind as ExtentKind
from blockstream_protocol import is_id

STEP = 1 << 20


class Kind(Protocol):
    """One kind of disk, at a place of its own."""

    @property
    def is_frozen(self) -> bool:
        """Whether what is written while it is held still is not seen."""

    def capture(self, number: int) -> Awaitable[Capture]:
        """Return the capture of one round: 0 sends all, each later one what changed since."""

    def contents(self) -> Sequence[bytes]:
        """Return what each disk holds now, in the order of the capture."""

    def write(self) -> None:
        """Change every disk."""

    def leftovers(self) -> set[str]:
        """Return the names of what was made for captures, and is there yet."""


@dataclass
class Target:
    """A destination in memory."""

    states: dict[str, str] = field(default_factory=dict)
    copies: dict[str, bytearray] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)

    async def held(self, name: str) -> Holding:
        origin = self.origins.get(name, "")
        return Holding(self.states.get(name, ""), exists=name in self.states, origin=origin)

    def take(self, disk: Captured, number: int) -> None:
        """Receive what is sent of a disk."""
        source = disk.source
        assert disk.base in {"", self.states.get(disk.name, disk.base)}
        copy = self.copies.setdefault(disk.name, bytearray())
        if not disk.base:
            copy[:] = b"\xee" * source.size  # what a full copy does not mention would show
        wanted = disk.changes.extents if disk.changes is not None else source.extents()
        if not disk.base:
            wanted = wanted.filled(ExtentKind.DATA)
        for offset, length, kind in wanted.rounded(source.alignment):
            copy[offset : offset + length] = (
                read(source, offset, length) if kind == ExtentKind.DATA else bytes(length)
            )
        source.validate()
        self.states[disk.name] = disk.state or f"round-{number}"
        self.origins[disk.name] = source.identity.key


def read(source: Source, offset: int, length: int) -> bytes:
    """Return a range."""
    data = bytearray()
    for at in range(offset, offset + length, STEP):
        buffer = aligned_buffer(min(STEP, offset + length - at))
        source.read_into([at], [len(buffer)], buffer)
        data += buffer
    return bytes(data)


def check_shape(disks: Sequence[Captured]) -> None:
    """Check what every captured disk has."""
    assert disks
    assert len({disk.name for disk in disks}) == len(disks)
    for disk in disks:
        assert disk.name
        assert disk.location
        assert not disk.state or is_id(disk.state)
        assert not disk.base or is_id(disk.base)
        changed = disk.changes is not None and disk.changes.meaning is Meaning.CHANGED
        assert changed == bool(disk.base)
        assert disk.source.size > 0


async def rounds_equal_their_moment(kind: Kind) -> None:
    """A full copy and two increments: each gives what the disks held when they were captured."""
    target = Target()
    for number in range(3):
        capture = await kind.capture(number)
        async with capture.open(target.held, Run()) as disks:
            check_shape(disks)
            assert [bool(disk.base) for disk in disks] == [bool(number)] * len(disks)
            expected = kind.contents()
            if kind.is_frozen:
                kind.write()
            for disk in disks:
                target.take(disk, number)
                await capture.committed(disk)
        for disk, content in zip(disks, expected, strict=True):
            assert bytes(target.copies[disk.name]) == content, f"{disk.name}, round {number}"
        kind.write()


async def what_nobody_takes_leaves_nothing(kind: Kind) -> None:
    """Left without a word, or by an error, and as often as that: nothing of it stays."""
    before, target = kind.leftovers(), Target()
    for error in (None, SourceError("the target is on fire"), KeyError("a bug"), None):
        capture = await kind.capture(0)
        with contextlib.suppress(SourceError, KeyError):
            async with capture.open(target.held, Run()) as disks:
                check_shape(disks)
                if error is not None:
                    raise error
        assert kind.leftovers() == before, error


async def what_was_cut_is_gone_on_with(kind: Kind) -> None:
    """After a cut, the same again gives the same states and bytes; after that, nothing stays."""
    before, target = kind.leftovers(), Target()
    capture = await kind.capture(0)
    states = list[str]()
    with contextlib.suppress(InterruptedTransferError):
        async with capture.open(target.held, Run()) as disks:
            expected = kind.contents()
            states += [disk.state for disk in disks]
            raise InterruptedTransferError("the line was cut")
    kept = kind.leftovers() - before
    if kept:
        kind.write()  # which is not seen: what was begun is gone on with
    again = await kind.capture(0)
    async with again.open(target.held, Run()) as disks:
        assert not kept or [disk.state for disk in disks] == states
        for disk, content in zip(disks, expected, strict=True):
            assert read(disk.source, 0, disk.source.size) == content
    assert kind.leftovers() == before


async def a_stop_leaves_nothing(kind: Kind) -> None:
    """Whoever is stopped before, or while the destination is asked, makes nothing."""
    before = kind.leftovers()

    async def never(_name: str) -> Holding:
        raise AssertionError("it was stopped before")

    run = Run()
    capture = await kind.capture(0)
    run.stop("stopped by a test")
    caught = ""
    try:
        async with capture.open(never, run):
            pass
    except InterruptedTransferError as error:
        caught = str(error)
    assert "stopped by a test" in caught
    assert kind.leftovers() == before


async def threads_end_with_it(kind: Kind) -> None:
    """Nothing goes on behind our back."""
    before, target = set(threading.enumerate()), Target()
    capture = await kind.capture(0)
    async with capture.open(target.held, Run()) as disks:
        read(disks[0].source, 0, 4096)
    left = set(threading.enumerate()) - before
    for thread in left:
        thread.join(5)
    assert not [thread for thread in left if thread.is_alive()], left


PROMISES: Mapping[str, Callable[[Kind], Awaitable[None]]] = {
    each.__name__: each
    for each in (
        rounds_equal_their_moment,
        what_nobody_takes_leaves_nothing,
        what_was_cut_is_gone_on_with,
        a_stop_leaves_nothing,
        threads_end_with_it,
    )
}


def check(kind: Kind, promise: str) -> None:
    """Check one promise."""

    async def checked() -> None:
        await PROMISES[promise](kind)

    asyncio.run(checked())
