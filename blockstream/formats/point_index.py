"""The index of a restore point: which extent lies in which frame, and where that frame lies.

Columns rather than rows, because numpy takes them as they are, and because each packs better alone.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Final

import numpy as np
import numpy.typing as npt
import zstandard
from blake3 import blake3

from blockstream.errors import StoreDamagedError
from blockstream_protocol import (
    ALIGNMENT,
    DEVICE_BYTES,
    DIGEST_BYTES,
    EXTENTS_BYTES,
    FRAME_EXTENTS,
    Buffer,
    Codec,
    Decompress,
    Kind,
    RemoteProtocolError,
    frame_in,
    table_bytes,
    unpacked,
)

MAGIC: Final = b"BSINDEX1"
_HEAD: Final = struct.Struct("<8sQQQ")  # magic, bytes of the disk, frames, rows
_LEVEL: Final = 3
# Digests do not pack at all, and regular extents to a 33rd; a bomb, to far less.
_MOST_RATIO: Final = 256
_ANY_BYTES: Final = 64 << 10
_MOST_BYTES: Final = 4 << 30  # unpacked: 60 million frames, or 200 million extents
_FRAME_COLUMNS: Final = ("<u4", "<u8", "<u4", "<u4", "u1")  # pack, offset, wire, raw, codec
_ROW_COLUMNS: Final = ("<u8", "<u8", "<u4", "<u4", "u1")  # offset, length, frame, start, kind

Numbers = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Frames:
    """Where frames lie; one entry of each column a frame.

    Attributes:
        pack: Number of the pack, of those that the point's manifest lists.
        offset: Where the frame's head begins in it.
        wire: Bytes of the packed payload; the head comes before.
        raw: Bytes of the payload once unpacked.
        codec: How it is packed.
        digest: Its digest, a row of 32 bytes.
    """

    pack: Numbers
    offset: Numbers
    wire: Numbers
    raw: Numbers
    codec: Bytes
    digest: Bytes

    def __len__(self) -> int:
        return len(self.pack)

    def only(self, which: Numbers | Mask) -> "Frames":
        """Return those of these numbers, in their order, or those for which it is true."""
        return Frames(**{each.name: getattr(self, each.name)[which] for each in fields(self)})


@dataclass(frozen=True, slots=True)
class Rows:
    """Extents; ascending, one entry of each column an extent.

    Attributes:
        offset: First byte in the disk.
        length: Size in bytes.
        frame: Number of the frame that holds it.
        start: Where its bytes begin in the frame's unpacked payload; means nothing for ZERO.
        kind: `Kind` number.
    """

    offset: Numbers
    length: Numbers
    frame: Numbers
    start: Numbers
    kind: Bytes

    def __len__(self) -> int:
        return len(self.offset)

    def only(self, which: Numbers | Mask) -> "Rows":
        """Return those of these numbers, in their order, or those for which it is true."""
        return Rows(**{each.name: getattr(self, each.name)[which] for each in fields(self)})


@dataclass(frozen=True, slots=True)
class PointIndex:
    """All of a point's own frames, in order.

    Attributes:
        size: Bytes of the disk.
        frames: The frames.
        rows: Their extents.
    """

    size: int
    frames: Frames
    rows: Rows

    @classmethod
    def empty(cls, size: int) -> "PointIndex":
        """Return the index of no frames."""
        none, byte = np.empty(0, np.int64), np.empty(0, np.uint8)
        digest = np.empty((0, DIGEST_BYTES), np.uint8)
        return cls(
            size, Frames(none, none, none, none, byte, digest), Rows(none, none, none, none, byte)
        )

    @classmethod
    def joined(cls, size: int, parts: Sequence["PointIndex"]) -> "PointIndex":
        """Return the index of several parts of a transfer, one after the other."""
        if not parts:
            return cls.empty(size)
        counts = np.array([len(part.frames) for part in parts], np.int64)
        before = np.cumsum(counts) - counts
        frames, rows = (
            {
                each.name: np.concatenate([getattr(getattr(p, what), each.name) for p in parts])
                for each in fields(kind)
            }
            for what, kind in (("frames", Frames), ("rows", Rows))
        )
        rows["frame"] = rows["frame"] + np.repeat(before, [len(part.rows) for part in parts])
        return cls(size, Frames(**frames), Rows(**rows))

    def part(self, these: Numbers) -> "PointIndex":
        """Return the index of these frames alone, in this order."""
        number = np.full(len(self.frames), -1, np.int64)
        number[these] = np.arange(len(these))
        of = number[self.rows.frame]
        mine = np.greater_equal(of, 0)
        rows = replace(self.rows.only(mine), frame=of[mine])
        return PointIndex(self.size, self.frames.only(these), rows)

    def within(self, size: int) -> "PointIndex":
        """Return what it says of a disk of another size: where that shrank, of its first bytes."""
        rows = self.rows
        if not len(rows) or int(rows.offset[-1] + rows.length[-1]) <= size:
            return self if self.size == size else replace(self, size=size)
        cut = rows.only(np.less(rows.offset, size))
        cut = replace(cut, length=np.minimum(cut.length, size - cut.offset))
        return PointIndex(size, self.frames, cut)

    def encode(self) -> bytes:
        """Return it as it is stored."""
        frames, rows = self.frames, self.rows
        columns: list[tuple[Numbers | Bytes, ...]] = [
            (frames.pack, frames.offset, frames.wire, frames.raw, frames.codec),
            (rows.offset, rows.length, rows.frame, rows.start, rows.kind),
        ]
        parts = [_HEAD.pack(MAGIC, self.size, len(frames), len(rows))]
        for values, types in zip(columns, (_FRAME_COLUMNS, _ROW_COLUMNS), strict=True):
            parts += [
                column.astype(kind).tobytes() for column, kind in zip(values, types, strict=True)
            ]
        parts.append(frames.digest.tobytes())
        return zstandard.ZstdCompressor(level=_LEVEL).compress(b"".join(parts))

    @classmethod
    def decode(
        cls, data: bytes, *, size: int = DEVICE_BYTES, frames: int = DEVICE_BYTES
    ) -> "PointIndex":
        """Read it.

        Args:
            data: As it is stored.
            size: Bytes of the disk, at most.
            frames: How many frames it may have.

        Raises:
            StoreDamagedError: If it is no index, contradicts itself, or is larger than that; then
                nothing was unpacked.
        """
        raw = _unpacked(data, size, frames)
        _, size, frames, rows = _HEAD.unpack_from(raw)
        reader = _Reader(raw)
        pack, offset, wire, length, codec = (reader.column(kind, frames) for kind in _FRAME_COLUMNS)
        offsets, lengths, numbers, starts, kinds = (
            reader.column(kind, rows) for kind in _ROW_COLUMNS
        )
        # A copy, because a view would keep all that was unpacked.
        digest = reader.column("u1", frames * DIGEST_BYTES).reshape(frames, DIGEST_BYTES).copy()
        found = cls(
            size,
            Frames(
                pack.astype(np.int64),
                offset.astype(np.int64),
                wire.astype(np.int64),
                length.astype(np.int64),
                codec.astype(np.uint8),
                digest,
            ),
            Rows(
                offsets.astype(np.int64),
                lengths.astype(np.int64),
                numbers.astype(np.int64),
                starts.astype(np.int64),
                kinds.astype(np.uint8),
            ),
        )
        found.check()
        return found

    def payload(self, number: int, data: Buffer, decompress: Decompress) -> Buffer:
        """Return the unpacked payload of a frame, from its bytes in the pack.

        Args:
            number: Of the frame.
            data: Its bytes, head included.
            decompress: Unpacks one.

        Raises:
            StoreDamagedError: If it is not the one that was stored.
        """
        try:
            frame = frame_in(data)
            stated = int(self.frames.raw[number])
            if frame.digest != self.frames.digest[number].tobytes() or frame.raw_len != stated:
                raise StoreDamagedError("it is not the one that was stored")
            return unpacked(frame, blake3, decompress)
        except RemoteProtocolError as error:
            raise StoreDamagedError(f"it is damaged: {error}") from error

    def check(self) -> None:
        """Compare it with what a stream allows.

        Raises:
            StoreDamagedError: If it contradicts itself.
        """
        frames, rows = self.frames, self.rows
        ends = rows.offset + rows.length
        sound = not len(rows) or (
            int(rows.offset.min()) >= 0
            and int(rows.length.min()) > 0
            and int(ends.min()) > 0
            and int(ends.max()) <= self.size
            and not np.less(rows.offset[1:], ends[:-1]).any()
        )
        if not sound:
            raise StoreDamagedError("its extents overlap, are empty, or lie outside the disk")
        if len(frames) and (
            int(frames.offset.min()) < 0
            or int(frames.offset.max()) >= 1 << 62
            or int(frames.wire.max()) > EXTENTS_BYTES
            or int(frames.raw.max()) > EXTENTS_BYTES
            or int(frames.codec.max()) > max(Codec)
        ):
            raise StoreDamagedError("its frames are larger than frames are")
        self._check_frames()

    def _check_frames(self) -> None:
        """Each extent must lie in a frame that is large enough for it."""
        frames, rows = self.frames, self.rows
        if not len(rows):
            return
        if int(rows.frame.max()) >= len(frames):
            raise StoreDamagedError("its extents lie in frames that it does not list")
        if int(rows.kind.min()) < Kind.DATA or int(rows.kind.max()) > Kind.ZERO:
            raise StoreDamagedError("it has extents of a kind that is not known")
        data = np.equal(rows.kind, Kind.DATA)
        start, length = rows.start[data], rows.length[data]
        # Lengths first: a sum with a huge one could be small again.
        if np.greater(length, EXTENTS_BYTES).any() or (
            np.greater(start + length, frames.raw[rows.frame[data]]).any()
            or np.less(start, table_bytes(1)).any()
        ):
            raise StoreDamagedError("it has extents that their frames do not hold")


class _Reader:
    """Columns, one after the other."""

    def __init__(self, raw: bytes) -> None:
        self._raw = raw
        self._at = _HEAD.size

    def column(self, kind: str, count: int) -> npt.NDArray[np.unsignedinteger]:
        """Return the next one."""
        found = np.frombuffer(self._raw, kind, count, self._at)
        self._at += found.nbytes
        return found


def index_bytes(frames: int, rows: int) -> int:
    """Return the bytes of an index before it is packed."""
    widths = [
        sum(np.dtype(kind).itemsize for kind in kinds) for kinds in (_FRAME_COLUMNS, _ROW_COLUMNS)
    ]
    return _HEAD.size + frames * (widths[0] + DIGEST_BYTES) + rows * widths[1]


def most_index_bytes(size: int, frames: int) -> int:
    """Return how many bytes an index has at most, as it is stored.

    Args:
        size: Bytes of the disk.
        frames: How many frames it has.
    """
    most = min(index_bytes(frames, _most_rows(size)), _MOST_BYTES)
    return most + (most >> 7) + 1024  # what zstd adds where nothing packs


def _most_rows(size: int) -> int:
    return size // ALIGNMENT + FRAME_EXTENTS  # the rest for the ends of odd disks


def _unpacked(data: bytes, most_size: int, most_frames: int) -> bytes:
    """Unpack it, and take no more memory than what it may be needs.

    Raises:
        StoreDamagedError: If it is no zstd frame of that size.
    """
    try:
        size = zstandard.frame_content_size(data)
        with zstandard.ZstdDecompressor().stream_reader(data) as reader:
            head = reader.read(_HEAD.size)
            if len(head) < _HEAD.size or head[:8] != MAGIC:
                raise StoreDamagedError("it is no index")
            _, disk, frames, rows = _HEAD.unpack(head)
            if disk > most_size or frames > most_frames or rows > _most_rows(disk):
                raise StoreDamagedError("it is larger than that of its disk can be")
            if size > _MOST_RATIO * len(data) + _ANY_BYTES:
                raise StoreDamagedError("it unpacks to more than an index can")
            if size != index_bytes(frames, rows) or size > _MOST_BYTES:
                raise StoreDamagedError("it ends too early, or too late")
            rest = reader.read(size - _HEAD.size)
    except zstandard.ZstdError as error:
        raise StoreDamagedError(f"it does not unpack: {error}") from error
    if len(head) + len(rest) != size:
        raise StoreDamagedError("it ends too early")
    return head + rest


def starts_of(offsets: Numbers, lengths: Numbers, frame: Numbers, kind: Bytes | Numbers) -> Numbers:
    """Return where the bytes of each extent begin in its frame's payload: after its table.

    Each frame must hold exactly these extents, in order (SPEC 4.4).
    """
    if not len(offsets):
        return np.empty(0, np.int64)
    data = np.where(np.equal(kind, Kind.DATA), lengths, 0)
    before = np.cumsum(data) - data
    counts = np.bincount(frame)
    first = np.cumsum(counts) - counts
    row = table_bytes(1) - table_bytes(0)
    found: Numbers = before - before[first[frame]] + table_bytes(0) + row * counts[frame]
    return found
