"""A stream that another tool receives."""

import functools
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, replace

from blockstream.captures.interface import Captured
from blockstream.destinations.interface import Delivered
from blockstream.destinations.stdout import OneWay
from blockstream.formats.foreign.events import Format
from blockstream.run import Run
from blockstream.transfers.send import planned
from blockstream.transfers.write_foreign import WriteResult, head_of, lost, write_foreign


@dataclass(frozen=True, slots=True)
class OtherToolDestination(OneWay):
    """Another tool, which reads what is written.

    Attributes:
        format: What it understands.
        fd: What is written.
        pool_chunk: Bytes of a chunk of the pool that receives; 0 if nobody knows.
    """

    format: Format
    fd: int
    pool_chunk: int = 0

    async def deliver(self, disks: Sequence[Captured], run: Run) -> AsyncGenerator[Delivered, None]:
        """See `Destination`. Whether it was received, only that tool tells."""
        (disk,) = disks
        plan = await run.carry(functools.partial(planned, disk, self.how))
        head = replace(head_of(plan), pool_chunk=self.pool_chunk)
        without = ", ".join(lost(self.format, head))
        run.tell(f"{self.format.title} does not carry {without}")
        await write_foreign(self.format, disk.source, plan.extents, head, self.fd, run)
        counts = run.progress.snapshot()
        result = WriteResult(self.format.name, counts, plan.opening.goal, plan.moment)
        yield Delivered(disk, "", result, is_confirmed=False)
