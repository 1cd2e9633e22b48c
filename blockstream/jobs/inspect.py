"""`inspect`: what a stored stream says, checked by the receiver's own rules."""

import contextlib
import threading
from dataclasses import dataclass, field

from blockstream.errors import BlockstreamError
from blockstream.linux.streams import widen_pipe
from blockstream.run import Run
from blockstream.transfers.stream_scan import StreamScan
from blockstream_protocol import (
    Codec,
    Frame,
    Kind,
    Open,
    Table,
)

MAP_CELLS = 64


@dataclass(slots=True)
class Inspection:
    """What was found; counts in bytes unless said.

    Attributes:
        opening: What the stream announces.
        frames: EXTENTS frames in it.
        packed_frames: How many of them are compressed.
        extents: Extents in it.
        data: Bytes of data, unpacked.
        zeros: Bytes of zeros.
        wire: Bytes of the stream.
        largest: Size of its largest extent.
        cells: How many bytes of each 64th of the device it writes.
        chain: The final chain, hex; empty if it is not sound.
        moment: When its disk held the goal, in nanoseconds since 1970, UTC; None if that is not
            said.
        problem: What is wrong with it; None if it is whole and sound.
    """

    opening: Open
    frames: int = 0
    packed_frames: int = 0
    extents: int = 0
    data: int = 0
    zeros: int = 0
    wire: int = 0
    largest: int = 0
    cells: list[int] = field(default_factory=lambda: [0] * MAP_CELLS)
    chain: str = ""
    moment: int | None = None
    problem: BlockstreamError | None = None


def into_cells(cells: list[int], offset: int, length: int, size: int) -> None:
    """Count a range of a disk of `size` bytes in the cells that it lies in."""
    cell_bytes = max(1, -(-size // MAP_CELLS))
    end = offset + length
    while offset < end:
        cell = offset // cell_bytes
        step = min(end, (cell + 1) * cell_bytes) - offset
        cells[cell] += step
        offset += step


async def inspect(fd: int, ahead: bytes, run: Run) -> Inspection:
    """Read a stream to its end and return what it holds, and what is wrong with it.

    Args:
        fd: Where it comes from.
        ahead: What was read from it already.
        run: Told how much was seen, and stops it.

    Raises:
        IntegrityError: If it is no stream of ours at all.
        InterruptedTransferError: If it ends before it says anything.
        RefusedError: If it is of another version, or a continuation.
    """
    return await run.carry(lambda: _inspected(fd, ahead, run))


def _inspected(fd: int, ahead: bytes, run: Run) -> Inspection:
    widen_pipe(fd)
    with contextlib.closing(StreamScan(fd, ahead, run)) as stream:
        found, lock = Inspection(stream.opening), threading.Lock()

        def look(_seq: int, frame: Frame, table: Table) -> None:
            with lock:
                _count(found, frame, table)

        try:
            finish = stream.run(look)
        except BlockstreamError as error:
            if run.stopped:
                raise
            found.problem = error
        else:
            found.chain = finish.committed.chain if finish.committed else ""
        found.wire, found.moment = stream.wire_bytes, stream.moment
        return found


def _count(found: Inspection, frame: Frame, table: Table) -> None:
    found.frames += 1
    found.packed_frames += frame.codec is not Codec.NONE
    found.extents += len(table.extents)
    found.data += len(table.data)
    for extent in table.extents:
        if extent.kind == Kind.ZERO:
            found.zeros += extent.length
        found.largest = max(found.largest, extent.length)
        into_cells(found.cells, extent.offset, extent.length, found.opening.size)
