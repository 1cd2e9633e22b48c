"""A stream that another tool receives."""

import functools
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, replace

from blockstream.captures.interface import Captured, Holding
from blockstream.destinations.interface import Delivered, Rehearsal
from blockstream.errors import UsageError
from blockstream.formats.foreign.events import Format
from blockstream.run import Run
from blockstream.transfers.digests import Comparison
from blockstream.transfers.send import TransferOptions, planned
from blockstream.transfers.sender_journal import SentTransfers
from blockstream.transfers.write_foreign import WriteResult, head_of, lost, write_foreign


@dataclass(frozen=True, slots=True)
class OtherToolDestination:
    """Another tool, which reads what is written.

    Attributes:
        format: What it understands.
        pool_chunk: Bytes of a chunk of the pool that receives; 0 if nobody knows.
        how: Has the sender's journal.
        fd: What is written.
    """

    format: Format
    pool_chunk: int
    how: TransferOptions
    fd: int

    async def last(self, location: str, run: Run) -> str:
        """See `Destination`."""
        sent = SentTransfers(self.how.state_dir)
        return await run.ask(functools.partial(sent.last_confirmed, location, self.how.target))

    async def held(self, name: str, run: Run) -> Holding:
        """See `Destination`. Nobody can be asked."""
        del name, run
        return Holding(exists=False)

    async def differing(self, disk: Captured, run: Run, *, adopt: bool = False) -> Comparison:
        """See `Destination`."""
        raise UsageError("a stream cannot be compared: give a TARGET")

    async def rehearse(self, disk: Captured, run: Run) -> Rehearsal:
        """See `Destination`."""
        plan = await run.carry(functools.partial(planned, disk, self.how))
        return Rehearsal("", plan, None)

    async def deliver(self, disks: Sequence[Captured], run: Run) -> AsyncGenerator[Delivered, None]:
        """See `Destination`. Whether it was received, only that tool tells."""
        (disk,) = disks
        plan = await run.carry(functools.partial(planned, disk, self.how))
        head = replace(head_of(plan), pool_chunk=self.pool_chunk)
        without = ", ".join(lost(self.format, head))
        run.tell(f"{self.format.title} does not carry {without}")
        await write_foreign(self.format, disk.source, plan.extents, head, self.fd, run)
        yield Delivered(disk, "", WriteResult(self.format.name, run.progress.snapshot()))
