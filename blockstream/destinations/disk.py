"""A disk or file of this host, or a folder with one for each."""

import contextlib
import functools
import uuid
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from blockstream.captures.interface import Captured, Holding
from blockstream.destinations.interface import Delivered, Rehearsal
from blockstream.destinations.places import Places
from blockstream.errors import NotFoundError, RefusedError
from blockstream.interfaces import Target
from blockstream.locations.interface import opened_source
from blockstream.locations.local import LocalDisk, open_target
from blockstream.pipeline.target_status import TargetStatus, status_at
from blockstream.run import Run
from blockstream.transfers.base_check import check_base_here
from blockstream.transfers.compare import differing
from blockstream.transfers.copy import copy
from blockstream.transfers.digests import Comparison
from blockstream.transfers.dry_run import rehearsed_here
from blockstream.transfers.opened_target import absolute_path, opened, record_adopted
from blockstream.transfers.receive_options import ReceiveRequest
from blockstream.transfers.send import SendPlan, TransferOptions, planned
from blockstream.transfers.sender_journal import SentTransfers
from blockstream_protocol import Clean, Dirty


@dataclass(frozen=True, slots=True)
class DiskDestination:
    """A disk or file of this host, for each name.

    Attributes:
        places: Where each goes.
        where: How it may be written; its own target is not looked at.
        how: How it travels.
        check_base: Read the target first, and take it for the base only if it is.
        is_remembered: Whether the sender's journal has what was sent there, for the last base and
            to continue under a name that was invented.
        makes_absent: Whether each place that is not there is made, round after round, if `where`
            says so.
    """

    places: Places[str]
    where: ReceiveRequest
    how: TransferOptions
    check_base: bool = False
    is_remembered: bool = True
    makes_absent: bool = False

    async def last(self, location: str, run: Run) -> str:
        """See `Destination`."""
        return await run.ask(functools.partial(self._last, location))

    def _last(self, location: str) -> str:
        target = self.places.of("")
        key, sent = absolute_path(target), SentTransfers(self.how.state_dir)
        with contextlib.suppress(NotFoundError, RefusedError):  # whoever writes it says so
            state = status_at(target, self.where.state_dir).state
            # An earlier run may have been killed after the commit, and before it noted that.
            intent = sent.find(state.transfer, key) if isinstance(state, Clean) else None
            if intent is not None and not intent.confirmed:
                sent.confirm(intent.expected, key)
        return sent.last_confirmed(location, key)

    async def held(self, name: str, run: Run) -> Holding:
        """See `Destination`."""
        self.places.check(name)
        return await run.ask(functools.partial(self._held, self.places.of(name)))

    def _held(self, place: str) -> Holding:
        if not Path(place).exists():
            return Holding(exists=False)
        try:
            return _holding_of(status_at(place, self.where.state_dir))
        except NotFoundError:
            return Holding()

    async def differing(self, disk: Captured, run: Run, *, adopt: bool = False) -> Comparison:
        """See `Destination`."""
        place = self.places.of(disk.name)
        work = self._adopted if adopt else _compared
        return await run.carry(functools.partial(work, disk, place, run))

    def _adopted(self, disk: Captured, place: str, run: Run) -> Comparison:
        base = f"compared-{uuid.uuid4()}"
        target = open_target(place, force_in_use=self.where.force_in_use, sources=disk.source.nodes)
        # By that name, and by what the kernel knows, it is refused if somebody writes to it later.
        with opened(target, self.where.state_dir) as everything:
            found = _compared(disk, place, run)
            record_adopted(everything, place, base)
        return replace(found, base=base)

    async def rehearse(self, disk: Captured, run: Run) -> Rehearsal:
        """See `Destination`."""
        place = self.places.of(disk.name)
        plan = await run.carry(functools.partial(planned, disk, self.how))
        answer = await rehearsed_here(plan, disk.source, self._going_to(place), run)
        return Rehearsal(place, plan, answer)

    async def deliver(self, disks: Sequence[Captured], run: Run) -> AsyncGenerator[Delivered, None]:
        """See `Destination`. One after the other: each is committed for itself."""
        for disk in disks:
            place = self.places.of(disk.name)
            key = absolute_path(place) if self.is_remembered else ""
            how, check = replace(self.how, target=key), None
            if self.check_base:
                check = functools.partial(_check, disk, run)
            result = await copy(disk, how, self._going_to(place), run, check)
            yield Delivered(disk, place, result, self.check_base)

    def _going_to(self, place: str) -> ReceiveRequest:
        create = self.where.create
        if self.makes_absent:
            # The same command, again and again, makes what is not there.
            create = create and not Path(place).exists()
        return replace(self.where, target=place, create=create)


def _check(disk: Captured, run: Run, what: SendPlan, target: Target) -> None:
    check_base_here(what, disk.source, target, run)


def _compared(disk: Captured, place: str, run: Run) -> Comparison:
    """Compare a disk with another one of this host.

    Raises:
        RefusedError: If the other one is smaller.
        BlockstreamError: If one of them cannot be read.
    """
    source = disk.source
    with opened_source(LocalDisk(place), from_medium=True) as other:
        if other.size < source.size:
            raise RefusedError(
                f"{source.name} has {source.size} bytes, {place} only {other.size}: they cannot "
                "be equal; nothing was written"
            )
        return Comparison(source.size, differing(source, other, run), other.size)


def _holding_of(status: TargetStatus) -> Holding:
    """Return what an increment for a target may start from."""
    state = status.state
    if status.staged:
        return Holding(status.staged)  # applied before anything else is taken
    if isinstance(state, Dirty):
        # Which is what a transfer that covers the unfinished one has.
        return Holding(state.base, unfinished=True)
    if isinstance(state, Clean):
        return Holding(state.id, state.moment)
    return Holding()
