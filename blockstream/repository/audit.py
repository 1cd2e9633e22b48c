"""The rolling audit: what a change tracker calls unchanged, compared with the newest point.

Change trackers lie. So each increment looks at another part of the disk, and after a cycle of them
all of it was looked at. A frame that is still alive as a whole is compared by its digest, without
asking the store for it; only of others the bytes are fetched.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from blake3 import blake3

from blockstream.extents import DATA, ExtentMap, Piece
from blockstream.formats.point import Point
from blockstream.formats.point_index import Bytes, Numbers, PointIndex
from blockstream.formats.point_map import PointMap, merged
from blockstream.interfaces import Source
from blockstream.linux.buffers import aligned_buffer
from blockstream.pipeline.packer import frame_table
from blockstream.repository.repository import StoredDisk
from blockstream.repository.restore import opened_point
from blockstream.run import Run
from blockstream.sources.point import PointSource
from blockstream_protocol import DATA_BYTES, Kind, table_bytes

_BLOCK: Final = 4096  # the grain in which a difference is told
_REGION: Final = 1 << 20  # where parts of a disk are cut


@dataclass(frozen=True, slots=True)
class Audit:
    """What one audit found.

    Attributes:
        checked: Bytes of the disk that were compared.
        missed: What differs from the newest point although it was called unchanged.
    """

    checked: int
    missed: ExtentMap


def audit(
    source: Source,
    disk: StoredDisk,
    last: Point,
    changed: ExtentMap,
    cycle: int,
    run: Run,
) -> Audit:
    """Compare a part of what is called unchanged with the newest point.

    Args:
        source: The disk, which nobody may be writing.
        disk: Its points.
        last: The newest of them.
        changed: What is said to have changed since then.
        cycle: In how many increments, one after the other, all of it is compared.
        run: Counts, and stops it.

    Raises:
        BlockstreamError: As the source or the store fails.
    """
    return _Auditing(source, disk, last, changed, cycle, run).done()


class _Auditing:
    """One audit."""

    def __init__(
        self,
        source: Source,
        disk: StoredDisk,
        last: Point,
        changed: ExtentMap,
        cycle: int,
        run: Run,
    ) -> None:
        self._source = source
        self._disk = disk
        self._last = last
        self._changed = changed
        self._window = _window(min(source.size, last.size), last.audits % cycle, cycle)
        self._run = run
        self._progress = run.count_anew()
        self._buffer, self._stored = aligned_buffer(DATA_BYTES), aligned_buffer(DATA_BYTES)
        self._missed: list[tuple[int, int]] = []

    def done(self) -> Audit:
        """Compare."""
        layers = self._disk.indexes(self._disk.chain(self._last))
        size = min(self._source.size, self._last.size)
        layers = [each.within(size) for each in layers]
        rows = _unchanged(merged(layers), self._changed)
        frames = _Frames.of(rows, layers, self._window)
        self._progress.size = self._source.size
        self._progress.total = total = int(frames.rows.length.sum())
        doubtful = [extents for extents, digest in frames if not self._is_same(extents, digest)]
        if doubtful:
            with contextlib.closing(opened_point(self._disk, self._last)) as point:
                for extents in doubtful:
                    self._compare(extents, point)
        offsets, lengths = np.array(self._missed, np.int64).reshape(-1, 2).T
        missed = ExtentMap.from_columns(offsets, lengths, Kind.DATA, self._source.size)
        return Audit(total, missed)

    def _is_same(self, extents: Piece, digest: bytes | None) -> bool:
        """Tell whether a frame is surely what it was; count it."""
        self._check_stopped()
        self._progress.frame(data=extents.data_bytes, covered=extents.covered, wire=0)
        return digest is not None and self._digest(extents) == digest

    def _digest(self, extents: Piece) -> bytes:
        """Return the digest of the frame that these extents make now; none if zeros are not."""
        data = extents.kinds == DATA
        zeros = zip(extents.offsets[~data].tolist(), extents.lengths[~data].tolist(), strict=True)
        for offset, length in zeros:
            if any(np.frombuffer(piece, np.uint8).any() for piece in self._read(offset, length)):
                return b""
        lengths = extents.lengths[data].tolist()
        found = self._buffer[: sum(lengths)]
        self._source.read_into(extents.offsets[data].tolist(), lengths, found)
        return blake3(frame_table(extents)).update(found).digest()

    def _compare(self, extents: Piece, point: PointSource) -> None:
        """Compare bytes with those of the point, and note what differs."""
        for offset, length in zip(extents.offsets.tolist(), extents.lengths.tolist(), strict=True):
            at = offset
            for ours in self._read(offset, length):
                self._check_stopped()
                stored = self._stored[: len(ours)]
                point.read_into([at], [len(ours)], stored)
                self._note_differing(at, ours, stored)
                at += len(ours)

    def _read(self, offset: int, length: int) -> Iterator[memoryview]:
        """Give the bytes of a range, in pieces that are valid until the next."""
        end = offset + length
        while offset < end:
            count = min(end - offset, len(self._buffer))
            piece = self._buffer[:count]
            self._source.read_into([offset], [count], piece)
            yield piece
            offset += count

    def _note_differing(self, offset: int, ours: memoryview, stored: memoryview) -> None:
        if ours == stored:
            return
        for start in range(0, len(ours), _BLOCK):
            if ours[start : start + _BLOCK] != stored[start : start + _BLOCK]:
                self._note(offset + start, min(_BLOCK, len(ours) - start))

    def _note(self, offset: int, length: int) -> None:
        if self._missed and sum(self._missed[-1]) == offset:
            begin, before = self._missed.pop()
            offset, length = begin, before + length
        self._missed.append((offset, length))

    def _check_stopped(self) -> None:
        self._run.check("nothing was stored")


@dataclass(frozen=True, slots=True)
class _Frames:
    """The frames whose turn it is, with the extents of each that are alive and unchanged.

    Attributes:
        rows: Extents, those of one frame together.
        firsts: Where each frame's extents begin in `rows`.
        digests: Digest of each frame, a row of 32 bytes.
        whole: Which frames have lost nothing, so that their digest still says something.
    """

    rows: PointMap
    firsts: Numbers
    digests: Bytes
    whole: npt.NDArray[np.bool_]

    def __iter__(self) -> Iterator[tuple[Piece, bytes | None]]:
        """Give the extents of each frame, and its digest if it is whole."""
        rows = self.rows
        ends = np.append(self.firsts, len(rows))[1:]
        for number, (first, end) in enumerate(
            zip(self.firsts.tolist(), ends.tolist(), strict=True)
        ):
            digest = self.digests[number].tobytes() if self.whole[number] else None
            part = slice(first, end)
            yield Piece(rows.offset[part], rows.length[part], rows.kind[part]), digest

    @classmethod
    def of(cls, rows: PointMap, layers: Sequence[PointIndex], window: tuple[int, int]) -> "_Frames":
        """Choose the frames whose first extent, when they were written, lies in the window."""
        counts = np.array([len(each.frames) for each in layers], np.int64)
        frame = (np.cumsum(counts) - counts)[rows.layer] + rows.frame
        began = np.concatenate([_beginnings(each) for each in layers])[frame]
        mine = np.flatnonzero((began >= window[0]) & (began < window[1]))
        mine = mine[np.argsort(frame[mine], kind="stable")]
        rows, frame = _chosen(rows, mine), frame[mine]
        frames, firsts, sizes = np.unique(frame, return_index=True, return_counts=True)
        # Its payload is as long as these extents make it only if none is missing, and none cut.
        data = np.append(0, np.cumsum(np.where(rows.kind == DATA, rows.length, 0)))
        size = data[firsts + sizes] - data[firsts]
        size += table_bytes(0) + (table_bytes(1) - table_bytes(0)) * sizes
        raw, digests = (
            np.concatenate([getattr(each.frames, name) for each in layers])[frames]
            for name in ("raw", "digest")
        )
        whole = (size == raw) & (data[firsts + sizes] - data[firsts] <= DATA_BYTES)
        return cls(rows, firsts, digests, whole)


def _beginnings(index: PointIndex) -> Numbers:
    """Return the first byte of the disk that each frame of an index holds."""
    found = np.zeros(len(index.frames), np.int64)
    frames, firsts = np.unique(index.rows.frame, return_index=True)
    found[frames] = index.rows.offset[firsts]  # they are ascending
    return found


def _window(size: int, turn: int, cycle: int) -> tuple[int, int]:
    """Return where one of so many parts of a disk begins and ends."""
    regions = -(-size // _REGION)
    first, end = (regions * number // cycle * _REGION for number in (turn, turn + 1))
    return first, min(end, size)


def _unchanged(found: PointMap, changed: ExtentMap) -> PointMap:
    """Return the extents of a point that nothing of the changes touches, whole or cut."""
    left = ExtentMap.whole(found.size).without(_of_size(changed, found.size))
    edges = np.unique(np.concatenate([found.offset, left.offsets, left.offsets + left.lengths]))
    edges = edges[edges < found.size]
    row = np.searchsorted(found.offset, edges, side="right") - 1
    length = np.diff(np.append(edges, found.size))
    inside = np.searchsorted(left.offsets, edges, side="right") - 1
    ends = left.offsets + left.lengths
    keep = (inside >= 0) & (edges < ends[np.maximum(inside, 0)]) if len(left) else edges < 0
    row, edges, length = row[keep], edges[keep], length[keep]
    return PointMap(
        found.size,
        edges,
        length,
        found.kind[row],
        found.layer[row],
        found.frame[row],
        found.start[row] + edges - found.offset[row],
    )


def _of_size(extents: ExtentMap, size: int) -> ExtentMap:
    """Return what of a map lies within so many bytes."""
    ends = np.minimum(extents.offsets + extents.lengths, size)
    lengths = np.maximum(ends - extents.offsets, 0)
    keep = lengths > 0
    return ExtentMap.from_columns(extents.offsets[keep], lengths[keep], extents.kinds[keep], size)


def _chosen(rows: PointMap, which: npt.NDArray[np.int64]) -> PointMap:
    return PointMap(
        rows.size,
        rows.offset[which],
        rows.length[which],
        rows.kind[which],
        rows.layer[which],
        rows.frame[which],
        rows.start[which],
    )
