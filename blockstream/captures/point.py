"""A restore point of a store, as a disk held still, and what it changed since an older one."""

import contextlib
import functools
from collections.abc import AsyncIterator, Iterator, Sequence

from blockstream.captures.interface import Captured, Held, Holding
from blockstream.extents import ExtentMap
from blockstream.formats.extent_lists import ExtentList, Meaning
from blockstream.formats.point import Point
from blockstream.repository.repository import StoredDisk
from blockstream.repository.restore import identity_of, opened_point
from blockstream.run import Run
from blockstream.words import time_text

_ORIGIN = {"location", "host"}


class PointCapture:
    """Reads a point of a disk in a store, whose chain is checked first."""

    def __init__(self, disk: StoredDisk, point: Point, *, increments: bool = False) -> None:
        """Name it.

        Args:
            disk: The disk.
            point: Which state of it.
            increments: Send only what changed since the point that the destination holds, if this
                one was made from that one.
        """
        self._disk = disk
        self._point = point
        self._increments = increments

    @contextlib.asynccontextmanager
    async def open(self, held: Held, run: Run) -> AsyncIterator[Sequence[Captured]]:
        """See `Capture`. Nothing is made.

        Raises:
            StoreDamagedError: If something that it needs is missing or damaged.
        """
        await run.ask(functools.partial(self._warn, run))
        there = await held(self._disk.name) if self._increments else Holding()
        if there.origin == identity_of(self._point):
            run.tell(f"{self._disk.name}: the destination holds this very state")
            yield []
            return
        changes = await run.ask(functools.partial(self._since, there)) if there.state else None
        async with run.within(self._opened(there.state, changes), harmless=True) as disk:
            yield [disk]

    async def committed(self, disk: Captured) -> None:
        """See `Capture`. A point stays as it is."""

    def _warn(self, run: Run) -> None:
        """Say what `store verify` found of the point, before anything is overwritten with it."""
        damaged = self._disk.found_damaged()
        if self._point.seq not in damaged:
            return
        numbers = self._disk.numbers()
        seen = set(numbers) - self._disk.hidden(numbers).keys() - damaged.keys()
        name = f"{self._disk.objects.name}/{self._disk.name}"
        run.tell(
            f"point {self._point.seq} of {self._disk.name} was found damaged by `store verify` on "
            f"{time_text(damaged[self._point.seq])}, or what it goes onto was: what is damaged "
            "ends this with status 12; "
            + (f"without known damage is {name}@{max(seen)}" if seen else "so were all others")
        )

    def _since(self, there: Holding) -> ExtentList | None:
        """Return what changed since a point that led here; None where none is known to be held."""
        chain, size = self._disk.chain(self._point), self._point.size
        origins = [identity_of(each) for each in chain]
        if there.origin not in origins:
            return None
        changed = ExtentMap.empty(size)
        for index in self._disk.indexes(chain[origins.index(there.origin) + 1 :]):
            rows = index.within(size).rows
            newer = ExtentMap.from_columns(rows.offset, rows.length, rows.kind, size)
            changed = changed.overlaid(newer)
        return ExtentList(changed, Meaning.CHANGED, "points of a store", size)

    @contextlib.contextmanager
    def _opened(self, state: str, changes: ExtentList | None) -> Iterator[Captured]:
        disk, point, why = self._disk, self._point, ""
        if state and changes is None:
            why = f"nothing says that it goes onto {state!r}, which the destination holds"
        with contextlib.closing(opened_point(disk, point)) as source:
            yield Captured(
                name=disk.name,
                location=f"{disk.objects.name}/{disk.name}@{point.seq}",
                source=source,
                state=point.state,
                moment=point.moment,
                base=state if changes is not None else "",
                changes=changes,
                why_whole=why,
                origin={name: each for name, each in point.source.items() if name in _ORIGIN},
            )
