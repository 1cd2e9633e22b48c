"""`inspect`: what a stored stream says, checked by the receiver's own rules."""

import contextlib
import threading
from dataclasses import dataclass, field

import blake3

from blockstream.errors import BlockstreamError, RefusedError
from blockstream.linux.streams import WakeableReader, widen_pipe
from blockstream.pipeline.faults import translated
from blockstream.pipeline.progress import Progress
from blockstream.pipeline.receiver import Applying, FrameReader, ReceiveEngine
from blockstream_protocol import (
    Codec,
    Extent,
    Frame,
    Kind,
    Open,
    Plan,
    Receiver,
    ReceiverPolicy,
    RemoteProtocolError,
    Table,
    TargetState,
    Unknown,
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
    problem: BlockstreamError | None = None


class _Counting:
    """An applier that only counts."""

    def __init__(self, found: Inspection) -> None:
        self._found = found
        self._lock = threading.Lock()

    def prepare(self, opening: Open, plan: Plan, *, resumed: bool, first: int) -> None:
        """Need nothing."""

    def record(self, state: TargetState) -> None:
        """Keep nothing."""

    def write(self, seq: int, frame: Frame, table: Table) -> None:
        """Count a frame."""
        with self._lock:
            found = self._found
            found.frames += 1
            found.packed_frames += frame.codec is not Codec.NONE
            found.extents += len(table.extents)
            found.data += len(table.data)
            for extent in table.extents:
                self._count(extent)

    def flush(self) -> None:
        """Keep nothing."""

    def read_back(self, frame_digest: bytes, extents: list[Extent]) -> None:
        """Compare nothing."""

    def samples(self) -> str:
        """Return nothing."""
        return ""

    def _count(self, extent: Extent) -> None:
        found = self._found
        if extent.kind == Kind.ZERO:
            found.zeros += extent.length
        found.largest = max(found.largest, extent.length)
        into_cells(found.cells, extent.offset, extent.length, found.opening.size)


def into_cells(cells: list[int], offset: int, length: int, size: int) -> None:
    """Count a range of a disk of `size` bytes in the cells that it lies in."""
    cell_bytes = max(1, -(-size // MAP_CELLS))
    end = offset + length
    while offset < end:
        cell = offset // cell_bytes
        step = min(end, (cell + 1) * cell_bytes) - offset
        cells[cell] += step
        offset += step


def inspect(fd: int, ahead: bytes = b"") -> Inspection:
    """Read a stream to its end and return what it holds, and what is wrong with it.

    Args:
        fd: Where it comes from.
        ahead: What was read from it already.

    Raises:
        IntegrityError: If it is no stream of ours at all.
        InterruptedTransferError: If it ends before it says anything.
        RefusedError: If it is of another version, or a continuation.
    """
    widen_pipe(fd)
    with contextlib.closing(WakeableReader(fd, ahead)) as reader:
        frames = FrameReader(reader)
        try:
            opening = frames.opening()
        except RemoteProtocolError as error:
            raise translated(error) from error
        if opening.frames:
            raise RefusedError(
                f"this stream continues after {opening.frames} frames of transfer to "
                f"{opening.goal!r}, so it can only be checked by the target that has them"
            )
        found, progress = Inspection(opening), Progress()
        session = Receiver(
            size=opening.size,
            state=Unknown(),
            new_digest=blake3.blake3,
            policy=ReceiverPolicy(force_base=True),
        )
        engine = ReceiveEngine(Applying(session, _Counting(found), progress), frames, progress)
        try:
            finish = engine.run()
        except BlockstreamError as error:
            found.problem = error
        else:
            found.chain = finish.committed.chain if finish.committed else ""
        found.wire = progress.snapshot().wire
        return found
