"""A stream that goes into a store: cut into packs between frames, with an index of what lies where.

The packs of a transfer, one after the other, are its one-way stream. Each ends with its own part of
the index, in frames that a receiver skips (SPEC 14).
"""

import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from blake3 import blake3

from blockstream.errors import InterruptedTransferError, StoreDamagedError
from blockstream.formats.point import Pack
from blockstream.formats.point_index import Frames, PointIndex, Rows, starts_of
from blockstream.interfaces import Objects, Upload
from blockstream.pipeline.failpoints import failpoint
from blockstream.pipeline.limiter import Limiter
from blockstream.pipeline.packer import PackedFrame
from blockstream.pipeline.progress import Progress
from blockstream_protocol import (
    EXTENTS_BYTES,
    HEAD_BYTES,
    MAGIC,
    Extents,
    Frame,
    FrameType,
    Message,
    PlanRows,
    control_frame,
    encode,
    encode_head,
    encode_optional,
    plain_frame,
)

PACK_BYTES: Final = 1 << 30  # a sealed pack is never sent again
# Of a pack of small frames, a quarter; it is held twice while it is read.
_MOST_FOOTER: Final = PACK_BYTES // 4
FOOTER_TYPE: Final = 128
TRAILER_TYPE: Final = 129
FILLER_TYPE: Final = 130
TRAILER: Final = struct.Struct("<8sQQ32s")  # magic, offset and bytes of the index, its digest
TRAILER_MAGIC: Final = b"BSPACK1\0"


@dataclass(slots=True)
class _Columns:
    """Frames and their extents, as they come."""

    frames: list[tuple[int, int, int, int, int]] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)
    offsets: list[np.ndarray] = field(default_factory=list)
    lengths: list[np.ndarray] = field(default_factory=list)
    kinds: list[np.ndarray] = field(default_factory=list)

    def add(self, pack: int, offset: int, frame: Frame, packed: PackedFrame) -> None:
        self.frames.append((pack, offset, len(frame.payload), frame.raw_len, frame.codec))
        self.digests.append(frame.digest)
        # Views of a buffer that is used again.
        self.offsets.append(packed.offsets.copy())
        self.lengths.append(packed.lengths.copy())
        self.kinds.append(packed.kinds.copy())

    def index(self, size: int) -> PointIndex:
        """Return their index."""
        table = np.array(self.frames, np.int64).reshape(-1, 5)
        digest = np.frombuffer(b"".join(self.digests), np.uint8).reshape(-1, 32)
        counts = [len(each) for each in self.offsets]
        pack, offset, wire, raw, codec = table.T
        offsets, lengths = (_joined(each, np.int64) for each in (self.offsets, self.lengths))
        kinds = _joined(self.kinds, np.uint8)
        frame = np.repeat(np.arange(len(counts)), counts)
        starts = starts_of(offsets, lengths, frame, kinds)
        return PointIndex(
            size,
            Frames(pack, offset, wire, raw, codec.astype(np.uint8), digest),
            Rows(offsets, lengths, frame, starts, kinds),
        )


def footer(part: PointIndex, place: int) -> Iterator[bytes]:
    """Give the frames that end a pack.

    Args:
        part: The index of the frames in it.
        place: Where the last of these ends in it, in bytes.
    """
    index = part.encode()
    for start in range(0, len(index), EXTENTS_BYTES):
        yield encode_optional(FOOTER_TYPE, index[start : start + EXTENTS_BYTES], blake3)
    trailer = TRAILER.pack(TRAILER_MAGIC, place, len(index), blake3(index).digest())
    yield encode_optional(TRAILER_TYPE, trailer, blake3)


def frames_end(objects: Objects, key: str, size: int) -> int:
    """Return where the frames of a pack end, and its index begins; its size if it does not say.

    Args:
        objects: Where it lies.
        key: Its key.
        size: Its size in bytes.

    Raises:
        StoreDamagedError: If it is not there, or ends too early.
    """
    end = objects.read(key, max(0, size - TRAILER.size), min(size, TRAILER.size))
    if len(end) < TRAILER.size or not end.startswith(TRAILER_MAGIC):
        return size
    return min(size, int(TRAILER.unpack(end)[1]))


def index_in(objects: Objects, key: str, size: int) -> PointIndex:
    """Return the part of the index with which a pack ends.

    Args:
        objects: Where it lies.
        key: Its key.
        size: Its size in bytes.

    Raises:
        StoreDamagedError: If it does not end with one.
    """
    place = frames_end(objects, key, size)
    if size - place > _MOST_FOOTER:
        raise StoreDamagedError(f"{objects.name}: {key} says that it is mostly index")
    footer = objects.read(key, place, size - place)
    trailer = footer[-TRAILER.size :]
    if len(trailer) < TRAILER.size or not trailer.startswith(TRAILER_MAGIC):
        raise StoreDamagedError(f"{objects.name}: {key} does not end with its index")
    length, digest = TRAILER.unpack(trailer)[2:]
    count = min(-(-length // EXTENTS_BYTES), len(footer) // HEAD_BYTES)
    step = EXTENTS_BYTES + HEAD_BYTES
    pieces = [footer[each * step + HEAD_BYTES : (each + 1) * step] for each in range(count)]
    index = b"".join(pieces)[:length]  # no more than there is of it, whatever it says
    if blake3(index).digest() != digest:
        raise StoreDamagedError(f"{objects.name}: the index of {key} is damaged")
    return PointIndex.decode(index, frames=size // HEAD_BYTES)


def fillers(length: int) -> Iterator[bytes]:
    """Give frames that mean nothing, in place of lost ones that were as long together."""
    while length >= HEAD_BYTES:
        most = length if length <= EXTENTS_BYTES else EXTENTS_BYTES - HEAD_BYTES
        yield encode_optional(FILLER_TYPE, bytes(most - HEAD_BYTES), blake3)
        length -= most
    yield bytes(length)


def _joined(parts: list[np.ndarray], kind: type) -> np.ndarray:
    return np.concatenate(parts).astype(kind) if parts else np.empty(0, kind)


class PackSink:
    """Writes a sender's messages into packs. Any thread, but one after the other.

    Attributes:
        packs: The packs that are whole.
    """

    def __init__(
        self,
        objects: Objects,
        folder: str,
        size: int,
        limiter: Limiter,
        progress: Progress,
        pack_bytes: int = PACK_BYTES,
    ) -> None:
        """Prepare; nothing is written before there is a data frame.

        Args:
            objects: Where to.
            folder: What the keys of the packs begin with.
            size: Bytes of the disk.
            limiter: Limit on the bytes a second.
            progress: Counted.
            pack_bytes: Where a pack ends.
        """
        self.packs: list[Pack] = []
        self._objects = objects
        self._folder = folder
        self._size = size
        self._limiter = limiter
        self._progress = progress
        self._pack_bytes = pack_bytes
        self._columns = _Columns()  # of the open pack
        self._indexes: list[PointIndex] = []  # of those that are whole: as arrays they are small
        self._upload: Upload | None = None
        self._key = ""
        self._written = 0
        self._head = [MAGIC]  # what comes before the first data frame
        self._stopped = threading.Event()

    def send(self, message: Message) -> None:
        """Write a message."""
        if isinstance(message, PlanRows):
            frame = plain_frame(FrameType.PLAN, bytes(message.rows), blake3)
        elif isinstance(message, Extents):
            frame = message.frame
        else:
            frame = control_frame(message, blake3)
        if self._upload is None:
            self._head.append(encode(frame))
        else:
            self._write(encode(frame))
        self._progress.control(frame.wire_len)

    def send_frame(self, frame: Frame, packed: PackedFrame) -> None:
        """Write a data frame."""
        failpoint("send.first_data")
        payload = memoryview(frame.payload)
        head = encode_head(frame.kind, frame.codec, frame.raw_len, len(payload), frame.digest)
        if self._upload is not None and self._written + len(head) + len(payload) > self._pack_bytes:
            self._seal()
        if self._upload is None:
            self._begin()
        self._columns.add(len(self.packs), self._written, frame, packed)
        self._write(head, payload)
        self._progress.frame(data=len(packed.data), covered=packed.covered, wire=frame.wire_len)

    def finish(self) -> PointIndex:
        """Seal the last pack; return what lies where."""
        if self._upload is not None:
            self._seal()
        return PointIndex.joined(self._size, self._indexes)

    def stop(self) -> None:
        """Let a write that waits for the limit fail."""
        self._stopped.set()

    def abort(self) -> None:
        """Forget the pack that is not whole."""
        if self._upload is not None:
            self._upload.abort()
            self._upload = None

    def _begin(self) -> None:
        self._key = f"{self._folder}{len(self.packs):04d}.pack"
        self._upload = self._objects.upload(self._key)
        self._written = 0
        if self._head:
            self._write(b"".join(self._head))
            self._head = []

    def _seal(self) -> None:
        """End a pack with its part of the index."""
        self._indexes.append(self._columns.index(self._size))
        self._columns = _Columns()
        for frame in footer(self._indexes[-1], self._written):
            self._write(frame)
        failpoint("store.before_seal")
        if self._upload is not None:
            self._upload.finish()
        self._upload = None
        self.packs.append(Pack("/".join(self._key.split("/")[-2:]), self._written))
        failpoint("store.after_seal")

    def _write(self, *parts: bytes | memoryview) -> None:
        views = [memoryview(part) for part in parts]
        count = sum(len(view) for view in views)
        if self._stopped.wait(max(0.0, self._limiter.delay(count)) if self._limiter.rate else 0.0):
            raise InterruptedTransferError("stopped; nothing of this point is visible in the store")
        if self._upload is not None:
            self._upload.write(views)
        self._written += count
