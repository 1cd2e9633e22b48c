"""A disk of a store: what is delivered becomes a restore point. Several are one set."""

import functools
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass

from blockstream.captures.interface import Captured, Holding
from blockstream.destinations.interface import Delivered, Rehearsal
from blockstream.destinations.places import Places
from blockstream.errors import PartlyDoneError
from blockstream.extents import ExtentMap
from blockstream.locations.store import StorePlace
from blockstream.repository.audit import audit
from blockstream.repository.memory import Memory
from blockstream.repository.repository import Repository, StoredDisk
from blockstream.run import Run
from blockstream.transfers.digests import Comparison
from blockstream.transfers.save import SaveResult, estimated, last_state, save
from blockstream.transfers.send import TransferOptions, planned


@dataclass(frozen=True, slots=True)
class StoreDestination:
    """A disk of a store, for each name.

    Attributes:
        store: The store.
        location: Where it is.
        places: The name of each disk there.
        memory: What this host has seen of stores.
        how: How a disk travels.
        audit_cycle: In how many increments all that is called unchanged is compared; 0 for never.
    """

    store: Repository
    location: str
    places: Places[str]
    memory: Memory
    how: TransferOptions
    audit_cycle: int = 0

    def _disk(self, name: str) -> StoredDisk:
        return self.store.disk(self.places.of(name))

    def _shown(self, name: str) -> str:
        return str(StorePlace(self.location, self.places.of(name)))

    async def last(self, location: str, run: Run) -> str:
        """See `Destination`."""
        return await run.ask(functools.partial(last_state, self._disk(""), location))

    async def held(self, name: str, run: Run) -> Holding:
        """See `Destination`."""
        self.places.check(name)
        last = await run.ask(self._disk(name).last)
        if last is None:
            return Holding(exists=False)
        return Holding(last.state, last.moment, origin=str(last.source.get("identity", "")))

    async def differing(self, disk: Captured, run: Run, *, adopt: bool = False) -> Comparison:
        """See `Destination`. What is stored is compared by its digests where these are enough."""
        del adopt  # a point has its state for a name, and nobody writes to it
        return await run.carry(functools.partial(self._differing, disk, run))

    def _differing(self, disk: Captured, run: Run) -> Comparison:
        where, source = self._disk(disk.name), disk.source
        last, size = where.last(), source.size
        if last is None:
            return Comparison(size, ExtentMap.whole(size), 0)
        found = audit(source, where, last, ExtentMap.empty(size), 1, run).missed
        beyond = ExtentMap.whole(size).without(ExtentMap.whole(min(size, last.size)))
        return Comparison(size, found.overlaid(beyond), last.size, last.state)

    async def rehearse(self, disk: Captured, run: Run) -> Rehearsal:
        """See `Destination`."""
        return await run.ask(functools.partial(self._rehearsed, disk))

    def _rehearsed(self, disk: Captured) -> Rehearsal:
        where = self._disk(disk.name)
        self.memory.check(where)
        plan = planned(disk, self.how)
        return Rehearsal(self._shown(disk.name), plan, estimated(disk, self.how, where))

    async def deliver(self, disks: Sequence[Captured], run: Run) -> AsyncGenerator[Delivered, None]:
        """See `Destination`. Of several, all are durable before any point is visible."""
        places = [self._disk(each.name) for each in disks]
        for each in places:
            await run.ask(functools.partial(self.memory.check, each))
        saved, failed = list[SaveResult](), None
        try:
            await save(disks, self.how, places, run, self.audit_cycle, saved)
        except PartlyDoneError as error:
            failed = error
        for disk, where, result in zip(disks, places, saved, strict=False):
            await run.settle(functools.partial(self.memory.remember, where, result.point))
            yield Delivered(disk, self._shown(disk.name), result)
        if failed is not None:
            raise failed
