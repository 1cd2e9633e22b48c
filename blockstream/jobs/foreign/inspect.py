"""`inspect` for streams of other tools: what they say, read to their end."""

import contextlib
from dataclasses import dataclass, field

from blockstream.errors import BlockstreamError
from blockstream.formats.foreign.table import HEAD_BYTES, chosen
from blockstream.formats.foreign.wrappings import wrapping
from blockstream.jobs.foreign.receive import told_whole
from blockstream.jobs.inspect import MAP_CELLS, into_cells
from blockstream.linux.streams import widen_pipe
from blockstream.run import Run
from blockstream.sources.foreign_stream import ForeignStream


@dataclass(slots=True)
class ForeignInspection:
    """What was found; counts in bytes unless said.

    Attributes:
        format: Its name.
        title: What people call it.
        packed: What it is compressed with; empty for nothing.
        size: Of the disk; None if it does not say.
        base: State that it belongs onto; empty if it does not say.
        goal: State that it leads to; empty if it does not say.
        whole: Whether it is a whole disk.
        records: Ranges of data in it.
        extents: Ranges once they are in order, the last one winning.
        data: Bytes of data.
        zeros: Bytes of zeros that it names.
        wire: Bytes of the stream.
        reach: Where its last range ends.
        cells: How many bytes of each 64th of the disk it writes; up to `reach` if it has no size.
        unchecked: What it cannot tell.
        remarks: What people should know.
        open_ended: Whether nothing says that it is whole.
        problem: What is wrong with it; None if nothing was seen.
    """

    format: str
    title: str
    packed: str
    size: int | None = None
    base: str = ""
    goal: str = ""
    whole: bool = False
    records: int = 0
    extents: int = 0
    data: int = 0
    zeros: int = 0
    wire: int = 0
    reach: int = 0
    cells: list[int] = field(default_factory=lambda: [0] * MAP_CELLS)
    unchecked: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    open_ended: bool = False
    problem: BlockstreamError | None = None


async def inspect_foreign(fd: int, head: bytes, given: str, run: Run) -> ForeignInspection:
    """Read a stream to its end and return what it holds, and what is wrong with it.

    Args:
        fd: Where it comes from.
        head: What was read from it already.
        given: Its format, where people say it; empty to recognise it.
        run: Told how much was seen, and stops it.

    Raises:
        BlockstreamError: If it is none that is read.
    """
    return await run.carry(lambda: _inspected(fd, head, given, run))


def _inspected(fd: int, head: bytes, given: str, run: Run) -> ForeignInspection:
    packed = wrapping(head)
    widen_pipe(fd)
    made = ForeignStream(fd, ahead=head, wrapping=packed, folder=None, tell=run.progress.look)
    with contextlib.closing(made) as intake, run.heeding(intake.stop):
        how = chosen(intake.head(HEAD_BYTES), given)
        found = ForeignInspection(how.name, how.title, packed, unchecked=how.unchecked)
        try:
            intake.run(how, None)
        except BlockstreamError as error:
            if intake.stopped:
                raise
            found.problem = error
        taken = intake.found
        found.open_ended = not told_whole(how, packed, taken.size, None)
        found.size, found.base, found.goal, found.whole = (
            taken.size,
            taken.base,
            taken.goal,
            taken.whole,
        )
        found.records, found.data, found.zeros = taken.records, taken.data, taken.zeros
        found.wire, found.reach, found.remarks = taken.wire, taken.reach, tuple(taken.remarks)
        if taken.digest is not None:
            name, value = taken.digest.name, taken.digest.value.hex()
            found.remarks += (f"it holds the {name} of the whole disk: {value}",)
        disk = taken.reach if taken.size is None else taken.size
        extents = taken.layers.flattened(disk).extents(disk)
        found.extents = len(extents)
        for extent in extents:
            into_cells(found.cells, extent.offset, extent.length, disk)
    return found
