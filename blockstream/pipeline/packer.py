"""From extents to frames: read, find zeros, lay table and data side by side, digest."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import blake3
import numpy as np

from blockstream.extents import DATA, ZERO, Column, Kinds, Piece
from blockstream.linux.buffers import PAGE, aligned_buffer
from blockstream_protocol import DATA_BYTES, FRAME_EXTENTS, ROW, table_bytes

# Grain in which zeros are looked for: the block of nearly every file system.
ZERO_BLOCK = 4096
# A shorter run of zeros inside data costs more as a row and a request than as bytes.
SHORTEST_ZERO_RUN = 4 * ZERO_BLOCK
# The table ends where the data begins, and the data begins on a page, for O_DIRECT.
_TABLE_ROOM = -(-table_bytes(FRAME_EXTENTS) // PAGE) * PAGE
# Where the blocks of one extent begin, in words.
_ONE_EXTENT = np.arange(0, DATA_BYTES, ZERO_BLOCK) >> 3
_ONE_ROW = (1).to_bytes(4, "little")
_ROW = np.dtype([("offset", "<u8"), ("length", "<u8"), ("kind", "<u4")])

ReadInto = Callable[[Sequence[int], Sequence[int], memoryview], None]

if _ROW.itemsize != ROW.size:  # pragma: no cover  # a numpy that pads
    raise RuntimeError("the table's row is not packed")


@dataclass(frozen=True, slots=True)
class PackedFrame:
    """An EXTENTS payload, not yet compressed.

    Attributes:
        raw: Table and data; a view of the packer's buffer, valid until its next `pack`.
        digest: Its digest.
        table: How many of the bytes of `raw` are table.
        covered: Bytes of the device that it covers.
        offsets: First bytes of its extents.
        lengths: Their sizes.
        kinds: Their kinds.
    """

    raw: memoryview
    digest: bytes
    table: int
    covered: int
    offsets: Column
    lengths: Column
    kinds: Kinds

    @property
    def data(self) -> memoryview:
        """The bytes of the DATA extents."""
        return self.raw[self.table :]


def data_of(piece: Piece) -> tuple[list[int], list[int]]:
    """Return first bytes and sizes of what a packer reads of a piece."""
    data = piece.kinds == DATA
    return piece.offsets[data].tolist(), piece.lengths[data].tolist()


class Packer:
    """Makes payloads in one reused buffer; one a worker."""

    def __init__(self, read_into: ReadInto) -> None:
        """Prepare; `read_into` is that of a source, or promises the same."""
        self._read_into = read_into
        self._buffer = aligned_buffer(_TABLE_ROOM + DATA_BYTES)
        self._words = np.frombuffer(self._buffer, np.uint64)

    def pack(self, piece: Piece) -> PackedFrame:
        """Read a piece and return its payload.

        Raises:
            SourceError: If a range cannot be read.
        """
        if len(piece.offsets) == 1 and piece.kinds[0] == DATA:
            return self._pack_run(piece)
        data = piece.kinds == DATA
        offsets, lengths = piece.offsets[data], piece.lengths[data]
        size = int(lengths.sum())
        if size:
            self._read(offsets.tolist(), lengths.tolist(), size)
            zeros = self._zero_blocks(lengths, size)
            if zeros is not None:
                piece, size = self._without_zeros(piece, zeros)
        return self._laid_out(piece, size)

    def _pack_run(self, piece: Piece) -> PackedFrame:
        """Pack one extent of data, without arrays where no block of it can be zeros.

        Nearly every frame of a full copy is one, and arrays of one element cost more than the rest.
        """
        offset, size = int(piece.offsets[0]), int(piece.lengths[0])
        self._read((offset,), (size,), size)
        first_words = self._words[
            _TABLE_ROOM // 8 : (_TABLE_ROOM + size + 7) // 8 : ZERO_BLOCK // 8
        ]
        if np.minimum.reduce(first_words):
            table = _ONE_ROW + ROW.pack(offset, size, DATA)
            return self._digested(table, size, piece, covered=size)
        zeros = self._zero_blocks(piece.lengths, size)
        if zeros is not None:
            piece, size = self._without_zeros(piece, zeros)
        return self._laid_out(piece, size)

    def _read(self, offsets: Sequence[int], lengths: Sequence[int], size: int) -> None:
        area = self._buffer[_TABLE_ROOM : _TABLE_ROOM + size]
        self._read_into(offsets, lengths, area)
        if size % 8:
            # Zeros are looked for in words; only the end of a file is no whole one.
            self._buffer[_TABLE_ROOM + size : _TABLE_ROOM + size + 8 - size % 8] = bytes(
                8 - size % 8
            )

    def _zero_blocks(self, lengths: Column, size: int) -> "_Blocks | None":
        """Return which blocks of the data read are zero; None if none is."""
        words = self._words[_TABLE_ROOM // 8 : (_TABLE_ROOM + size + 7) // 8]
        blocks = None
        if len(lengths) == 1:  # a long run: most frames of a full copy
            starts = _ONE_EXTENT[: -(-size // ZERO_BLOCK)]
        else:
            blocks = _Blocks(lengths)
            starts = blocks.starts >> 3
        # Nearly every block of data shows it in its first word.
        if words[starts].all():
            return None
        zero = np.maximum.reduceat(words, starts) == 0
        if not zero.any():
            return None
        blocks = blocks or _Blocks(lengths)
        blocks.zero = zero
        return blocks

    def _without_zeros(self, piece: Piece, blocks: "_Blocks") -> tuple[Piece, int]:
        """Turn runs of zero blocks into ZERO extents and close the gaps in the buffer."""
        data = piece.kinds == DATA
        rows = blocks.runs()
        offsets = piece.offsets[data][rows.extent] + rows.inside
        kinds = np.where(rows.zero, ZERO, DATA).astype(np.uint8)
        if len(offsets) + int((~data).sum()) > FRAME_EXTENTS:
            return piece, int(piece.lengths[data].sum())
        size = self._compact(rows.starts[~rows.zero], rows.lengths[~rows.zero])
        offsets = np.concatenate((offsets, piece.offsets[~data]))
        lengths = np.concatenate((rows.lengths, piece.lengths[~data]))
        kinds = np.concatenate((kinds, piece.kinds[~data]))
        order = np.argsort(offsets)
        return Piece(offsets[order], lengths[order], kinds[order]), size

    def _compact(self, starts: Column, lengths: Column) -> int:
        """Move the kept ranges together; return how many bytes they are."""
        position = _TABLE_ROOM
        for start, length in zip(starts.tolist(), lengths.tolist(), strict=True):
            source = _TABLE_ROOM + start
            if source != position:
                self._buffer[position : position + length] = self._buffer[source : source + length]
            position += length
        return position - _TABLE_ROOM

    def _laid_out(self, piece: Piece, size: int) -> PackedFrame:
        """Put the table right before the data and digest both."""
        return self._digested(frame_table(piece), size, piece, covered=piece.covered)

    def _digested(self, table: bytes, size: int, piece: Piece, *, covered: int) -> PackedFrame:
        begin = _TABLE_ROOM - len(table)
        self._buffer[begin:_TABLE_ROOM] = table
        raw = self._buffer[begin : _TABLE_ROOM + size]
        return PackedFrame(
            raw=raw,
            digest=blake3.blake3(raw).digest(),
            table=len(table),
            covered=covered,
            offsets=piece.offsets,
            lengths=piece.lengths,
            kinds=piece.kinds,
        )


def frame_table(piece: Piece) -> bytes:
    """Return the table that a payload of these extents begins with (SPEC 4.4)."""
    rows = np.empty(len(piece.offsets), _ROW)
    rows["offset"], rows["length"], rows["kind"] = piece.offsets, piece.lengths, piece.kinds
    return len(rows).to_bytes(4, "little") + rows.tobytes()


@dataclass(frozen=True, slots=True)
class _Rows:
    """Runs of blocks of one kind.

    Attributes:
        extent: Number of the DATA extent that each lies in.
        inside: Where it begins in that extent.
        starts: Where it begins in the buffer.
        lengths: Its size.
        zero: Whether it is zeros.
    """

    extent: Column
    inside: Column
    starts: Column
    lengths: Column
    zero: np.ndarray[tuple[int], np.dtype[np.bool_]]


class _Blocks:
    """The blocks of the data in a buffer, extent by extent."""

    def __init__(self, lengths: Column) -> None:
        counts = -(-lengths // ZERO_BLOCK)
        first = np.cumsum(counts) - counts
        self.extent = np.repeat(np.arange(len(lengths)), counts)
        number = np.arange(int(counts.sum())) - first[self.extent]
        base = np.cumsum(lengths) - lengths
        self.inside = number * ZERO_BLOCK
        self.starts = base[self.extent] + self.inside
        self.sizes = np.minimum(ZERO_BLOCK, lengths[self.extent] - self.inside)
        self.zero = np.zeros(len(self.starts), np.bool_)
        self._lengths = lengths

    def runs(self) -> _Rows:
        """Join neighbours of one kind; short runs of zeros inside data count as data."""
        first = self._bounds()
        lengths = np.add.reduceat(self.sizes, first)
        zero = self.zero[first]
        whole = lengths == self._lengths[self.extent[first]]
        short = zero & (lengths < SHORTEST_ZERO_RUN) & ~whole
        if short.any():
            counts = np.diff(np.append(first, len(self.zero)))
            self.zero &= ~np.repeat(short, counts)
            first = self._bounds()
            lengths = np.add.reduceat(self.sizes, first)
        return _Rows(
            self.extent[first], self.inside[first], self.starts[first], lengths, self.zero[first]
        )

    def _bounds(self) -> Column:
        change = (np.diff(self.extent) != 0) | (np.diff(self.zero))
        return np.concatenate(([0], np.flatnonzero(change) + 1))
