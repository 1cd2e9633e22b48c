"""A stream of ours on a descriptor, or a session over a pair of them."""

import functools
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from blockstream.captures.interface import Captured, Holding
from blockstream.destinations.interface import Delivered, Rehearsal
from blockstream.errors import UsageError
from blockstream.run import Run
from blockstream.transfers.send import TransferOptions, planned, send
from blockstream.transfers.sender_journal import SentTransfers
from blockstream.transfers.session import send_session

if TYPE_CHECKING:
    from blockstream.transfers.digests import Comparison


@dataclass(frozen=True, slots=True)
class OneWay:
    """Whoever reads what is written, and cannot be asked.

    Attributes:
        how: How a disk travels; has the sender's journal.
    """

    how: TransferOptions

    async def last(self, location: str, run: Run) -> str:
        """See `Destination`."""
        sent = SentTransfers(self.how.state_dir)
        return await run.ask(functools.partial(sent.last_confirmed, location, self.how.target))

    async def held(self, name: str, run: Run) -> Holding:
        """See `Destination`. Nobody can be asked."""
        del name, run
        return Holding(exists=False)

    async def differing(self, disk: Captured, run: Run, *, adopt: bool = False) -> "Comparison":
        """See `Destination`."""
        raise UsageError("a stream cannot be compared: give a TARGET")

    async def rehearse(self, disk: Captured, run: Run) -> Rehearsal:
        """See `Destination`."""
        plan = await run.carry(functools.partial(planned, disk, self.how))
        return Rehearsal("", plan, None)


@dataclass(frozen=True, slots=True)
class StreamDestination(OneWay):
    """A blockstream that reads a stream of ours, or answers in a session.

    Attributes:
        lanes: Descriptors that are written.
        answers: Descriptor that answers come from; None where nobody answers.
    """

    lanes: Sequence[int] = ()
    answers: int | None = None

    async def deliver(self, disks: Sequence[Captured], run: Run) -> AsyncGenerator[Delivered, None]:
        """See `Destination`. Over a plain pipe nobody says whether it was committed."""
        (disk,) = disks
        if self.answers is None:
            result = await send(disk, self.how, self.lanes[0], run)
        else:
            result = await send_session(disk, self.how, self.answers, self.lanes, run)
        yield Delivered(disk, "", result, is_confirmed=result.confirmed)
