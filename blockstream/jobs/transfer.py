"""Disks held still, on their way to a destination: any capture to any of them."""

import contextlib
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from blockstream.captures.interface import Capture, Captured
from blockstream.destinations.interface import Delivered, Destination, Rehearsal
from blockstream.errors import RefusedError
from blockstream.run import Run

if TYPE_CHECKING:
    from blockstream.transfers.digests import Comparison  # numpy: 60 ms


class Onlooker(Protocol):
    """Hears what happens, while it happens: what fails later does not take it back."""

    def captured(self, disks: Sequence[Captured]) -> None:
        """Disks are held still."""

    def compared(self, disk: Captured, found: "Comparison") -> None:
        """Both sides of a disk were read, to send what differs."""

    def missed(self, disk: Captured, count: int) -> None:
        """Of what was called unchanged in a disk, so many bytes differ, and are sent as well."""

    def delivered(self, what: Delivered) -> None:
        """A disk is committed, or was sent where nobody says so."""


class Unwatched:
    """Hears of nothing."""

    def captured(self, disks: Sequence[Captured]) -> None:
        """See `Onlooker`."""

    def compared(self, disk: Captured, found: "Comparison") -> None:
        """See `Onlooker`."""

    def missed(self, disk: Captured, count: int) -> None:
        """See `Onlooker`."""

    def delivered(self, what: Delivered) -> None:
        """See `Onlooker`."""


@dataclass(frozen=True, slots=True)
class ChangeOptions:
    """Who says what changed.

    Attributes:
        compare: Nobody: both sides are read, and what differs is sent.
        recheck: The capture, which is not believed: both sides are read, and what it missed is
            sent as well.
    """

    compare: bool = False
    recheck: bool = False


_UNWATCHED = Unwatched()
_BELIEVED = ChangeOptions()


async def transfer(
    capture: Capture,
    destination: Destination,
    run: Run,
    onlooker: Onlooker = _UNWATCHED,
    options: ChangeOptions = _BELIEVED,
) -> Sequence[Delivered]:
    """Hold disks still, deliver them, and let go.

    Args:
        capture: What is sent.
        destination: Where to.
        run: Counts, and stops it.
        onlooker: Hears what happens.
        options: Who says what changed.

    Raises:
        LeftoverError: If all was delivered, but something of the capture could not be removed.
        BlockstreamError: As either side fails.
    """
    async with capture.open(functools.partial(destination.held, run=run), run) as disks:
        onlooker.captured(disks)
        for disk in disks:
            for text in disk.source.warnings:
                run.tell(text)
        if options.compare:
            compared = [await _differing(disk, destination, run, onlooker) for disk in disks]
            disks = [disk for disk in compared if disk is not None]
        elif options.recheck:
            disks = [await _rechecked(disk, destination, run, onlooker) for disk in disks]
        if not disks:
            return []
        delivered = []
        async with contextlib.aclosing(destination.deliver(disks, run)) as delivering:
            async for each in delivering:
                if each.is_confirmed:
                    await capture.committed(each.disk)
                onlooker.delivered(each)
                delivered.append(each)
    return delivered


async def rehearse(
    capture: Capture,
    destination: Destination,
    run: Run,
    shown: Callable[[str, Rehearsal], None],
    onlooker: Onlooker = _UNWATCHED,
) -> None:
    """Say what would become of each disk; nothing is sent.

    Args:
        capture: What would be sent, made so that it makes nothing.
        destination: Where to.
        run: Stops it.
        shown: Takes the name of a source, and what would become of it.
        onlooker: Hears what would be captured.
    """
    async with capture.open(functools.partial(destination.held, run=run), run) as disks:
        onlooker.captured(disks)
        for disk in disks:
            shown(disk.source.name, await destination.rehearse(disk, run))


async def _differing(
    disk: Captured, destination: Destination, run: Run, onlooker: Onlooker
) -> Captured | None:
    """Return a disk of which only what differs is sent; all, where nothing is held of it.

    None where the state is held that it has, and nothing differs.

    Raises:
        RefusedError: If that state is held with another content.
    """
    from blockstream.formats.extent_lists import ExtentList, Meaning  # numpy

    found = await destination.differing(disk, run, adopt=True)
    onlooker.compared(disk, found)
    if not found.base:
        return disk
    if found.base == disk.state:
        if found.differing.total():
            raise RefusedError(
                f"{disk.name}: the destination holds state {disk.state!r} already, with another "
                "content; nothing was sent; --goal names this one otherwise"
            )
        run.tell(f"{disk.name}: the destination holds this very state, with this content")
        return None
    changes = ExtentList(found.differing, Meaning.CHANGED, "comparison", found.size)
    # The same open source: what is written to it from the first look on is noticed before END.
    return replace(disk, base=found.base, changes=changes)


async def _rechecked(
    disk: Captured, destination: Destination, run: Run, onlooker: Onlooker
) -> Captured:
    """Return a disk with what its capture did not call changed, and which differs all the same."""
    changes = disk.changes
    if not disk.base or changes is None:
        return disk
    differing = (await destination.differing(disk, run)).differing
    missed = differing.without(changes.extents)
    onlooker.missed(disk, missed.total())
    return replace(disk, changes=replace(changes, extents=changes.extents.overlaid(missed)))
