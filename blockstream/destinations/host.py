"""A disk of another host, or a folder there with one for each; several are one set."""

import contextlib
import functools
import json
import uuid
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field, replace

from blockstream.captures.interface import Captured, Holding
from blockstream.destinations.interface import Delivered, Rehearsal
from blockstream.destinations.places import Places
from blockstream.errors import (
    ConnectionLostError,
    NotFoundError,
    UnknownTargetError,
    UsageError,
)
from blockstream.linux.streams import WakeableReader
from blockstream.locations.ssh import Remote, open_link
from blockstream.run import Run
from blockstream.transfers.base_check import check_base_there
from blockstream.transfers.digests import Comparison, compared
from blockstream.transfers.disk_set import push_set
from blockstream.transfers.dry_run import rehearsed_there
from blockstream.transfers.peer_options import PeerOptions
from blockstream.transfers.push import push
from blockstream.transfers.receive_options import ReceiveRequest
from blockstream.transfers.remote_command import remote_command
from blockstream.transfers.remote_errors import explained
from blockstream.transfers.send import SendResult, TransferOptions, planned
from blockstream.transfers.sender_journal import SentTransfers

_PIECE = 1 << 16
_MOST_BYTES = 1 << 20  # of one status; a plan is not in it


@dataclass(frozen=True, slots=True)
class HostDestination:
    """A disk of another host, for each name.

    Attributes:
        places: Where each goes.
        where: How it may be written there; its own target is not looked at.
        how: How it travels.
        peer: How the host is reached.
        check_base: Read the target first, and take it for the base only if it is.
        makes_absent: Whether each place that was found not to be there is made, if `where` says
            so.
    """

    places: Places[Remote]
    where: ReceiveRequest
    how: TransferOptions
    peer: PeerOptions
    check_base: bool = False
    makes_absent: bool = False
    _absent: set[str] = field(default_factory=set)

    async def last(self, location: str, run: Run) -> str:
        """See `Destination`."""
        sent, key = SentTransfers(self.how.state_dir), self.places.of("").key
        return await run.ask(functools.partial(sent.last_confirmed, location, key))

    async def held(self, name: str, run: Run) -> Holding:
        """See `Destination`."""
        self.places.check(name)
        found = await run.ask(functools.partial(_held, self.places.of(name), self.peer, run))
        if not found.exists:
            self._absent.add(name)
        return found

    async def differing(self, disk: Captured, run: Run, *, adopt: bool = False) -> Comparison:
        """See `Destination`."""
        place = self.places.of(disk.name)
        if not adopt:
            return await compared(disk.source, place, self.peer, run)
        if place.name:
            raise UsageError("HOST::NAME can be compared by `verify`, but not sent what differs")
        base = f"compared-{uuid.uuid4()}"
        found = await compared(disk.source, place, self.peer, run, adopt=base)
        return replace(found, base=base)

    async def rehearse(self, disk: Captured, run: Run) -> Rehearsal:
        """See `Destination`."""
        place = self.places.of(disk.name)
        plan = await run.carry(functools.partial(planned, disk, self.how))
        if place.name:  # its policy tells only a real transfer
            return Rehearsal(str(place), plan, None)
        answer = await rehearsed_there(plan, disk.source, self.where, place, self.peer, run)
        return Rehearsal(str(place), plan, answer)

    async def deliver(self, disks: Sequence[Captured], run: Run) -> AsyncGenerator[Delivered, None]:
        """See `Destination`. Several are one set: all are durable before any is committed."""
        places = [self.places.of(each.name) for each in disks]
        sending = list(disks)
        if self.check_base:
            for number, (disk, place) in enumerate(zip(disks, places, strict=True)):
                sending[number] = await check_base_there(disk, self.how, place, self.peer, run)
        sent = await self._sent(sending, places, run)
        for disk, place, result in zip(disks, places, sent, strict=True):
            yield Delivered(disk, str(place), result, self.check_base)

    async def _sent(
        self, disks: Sequence[Captured], places: Sequence[Remote], run: Run
    ) -> Sequence[SendResult]:
        creating = [self.where.create] * len(disks)
        if self.makes_absent:
            creating = [self.where.create and each.name in self._absent for each in disks]
        if len(disks) == 1:
            where = replace(self.where, create=creating[0])
            return [await push(disks[0], self.how, places[0], where, self.peer, run)]
        return await push_set(disks, self.how, places, self.where, self.peer, run, creating)


def _held(where: Remote, peer: PeerOptions, run: Run) -> Holding:
    """Ask another host what a disk of it holds.

    Raises:
        UsageError: If only its policy knows where it lies.
        BlockstreamError: If the host is not reached.
    """
    if where.name:
        raise UsageError(
            f"{where} is not asked what it holds: give a HOST:/PATH, or the state with --base"
        )
    command = remote_command(peer, ["status", "--json"], where)
    with contextlib.closing(open_link(where, command, peer.way)) as link:
        with (
            contextlib.closing(WakeableReader(link.from_peer)) as reader,
            run.heeding(lambda _reason: reader.stop()),
        ):
            said, piece = bytearray(), memoryview(bytearray(_PIECE))
            while len(said) <= _MOST_BYTES and (count := reader.read_into(piece)):
                said += piece[:count]
        run.check("nothing was sent")
        status, _ = link.ended()
        if status:
            reason = explained(ConnectionLostError("it ended"), [link], greeted=False)
            if isinstance(reason, NotFoundError) and reason.where:
                return Holding(exists=isinstance(reason, UnknownTargetError))
            raise reason
    return _holding_in(bytes(said), link.name)


def _holding_in(text: bytes, name: str) -> Holding:
    """Read the line of `blockstream status --json`.

    Raises:
        ConnectionLostError: If it is none.
    """
    try:
        values = json.loads(text)
        kind = values["state"]
        found = values["staged"] or values.get({"clean": "id", "dirty": "base"}.get(kind, ""))
    except (ValueError, TypeError, KeyError, RecursionError):
        raise ConnectionLostError(f"what {name} says of its disk is not understood") from None
    return Holding(str(found or ""), unfinished=kind == "dirty")
