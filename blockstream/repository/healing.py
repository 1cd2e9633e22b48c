"""`store repair --from DISK`: damaged frames are made anew from a disk that holds them yet.

Their digests say whether it does. What a pack holds besides is kept, made anew, or filled.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from blake3 import blake3

from blockstream.errors import SourceError, StoreDamagedError
from blockstream.formats.point import Kind, Point
from blockstream.formats.point_index import PointIndex
from blockstream.interfaces import PART_BYTES, Objects, Source
from blockstream.linux.buffers import aligned_buffer
from blockstream.pipeline.compression import Decompressor, packed_to
from blockstream.pipeline.failpoints import failpoint
from blockstream.pipeline.packs import fillers, footer, index_in
from blockstream.repository.repair import Repaired
from blockstream.repository.repository import StoredDisk
from blockstream.repository.verify import sound_parts, verified
from blockstream.run import Run
from blockstream_protocol import (
    HEAD_BYTES,
    MAGIC,
    Buffer,
    Codec,
    Extent,
    FrameType,
    encode_head,
    encode_table,
)
from blockstream_protocol import Kind as ExtentKind


async def heal(disk: StoredDisk, source: Source, run: Run) -> Repaired:
    """Make damaged frames anew from a disk, as far as it holds what they held.

    An index is made anew from the packs, each of which ends with its part. A pack is replaced at
    once and whole; if this ends early, the same again does the rest.

    Args:
        disk: The disk whose points are damaged.
        source: Any disk; of what it holds, that is taken whose digest is the recorded one.
        run: Counts, and stops it.

    Raises:
        StoreError: If the store fails.
    """
    return await run.carry(lambda: _healed(disk, source, run))


def _healed(disk: StoredDisk, source: Source, run: Run) -> Repaired:
    result = Repaired(disk.name)
    wanted = _damaged(disk, run)
    for key in wanted:
        if _index_healed(disk, key):
            result.replaced.append(key)
    if result.replaced:
        # An index that came back shows which frames are damaged.
        wanted = _damaged(disk, run)
    for key in wanted:
        run.check("what was replaced until now is whole; the same command does the rest")
        is_pack = key.startswith(f"{disk.folder}pack/")
        healed = is_pack and _Healing(disk, source, key, result).done()
        (result.replaced if healed else result.left).append(key)
    result.after = verified(disk, run)
    return result


def _damaged(disk: StoredDisk, run: Run) -> list[str]:
    """Return the keys of what is damaged."""
    found = verified(disk, run)
    return [key for key in dict.fromkeys(each.key for each in found.damages) if key]


def _index_healed(disk: StoredDisk, key: str) -> bool:
    """Make an index anew from the parts of it that the packs have; tell whether it is the same."""
    for point in disk.readable():
        if disk.folder + point.index != key or point.kind is Kind.SYNTHETIC:
            continue
        try:
            parts = [
                index_in(disk.objects, disk.pack_key(point, number), pack.size)
                for number, pack in enumerate(point.packs)
            ]
        except StoreDamagedError:
            return False
        encoded = PointIndex.joined(point.size, parts).encode()
        if blake3(encoded).hexdigest() == point.index_digest:
            disk.objects.put(key, encoded)
            return True
    return False


@dataclass(frozen=True, slots=True)
class _Recorded:
    """A frame as an index has it.

    Attributes:
        index: The index.
        number: The frame's number there.
    """

    index: PointIndex
    number: int

    @property
    def start(self) -> int:
        """Its first byte in the pack."""
        return int(self.index.frames.offset[self.number])

    @property
    def end(self) -> int:
        """Where it ends there."""
        return self.start + HEAD_BYTES + int(self.index.frames.wire[self.number])


class _Healing:
    """Makes one pack anew."""

    def __init__(self, disk: StoredDisk, source: Source, key: str, result: Repaired) -> None:
        self._objects = disk.objects
        self._source = source
        self._key = key
        self._result = result
        self._decompress = Decompressor()
        self._size = 0
        self._reading = _Reading(disk.objects, key, 0)
        self._own: PointIndex | None = None
        self._frames: dict[int, list[_Recorded]] = {}
        self._healed = self._lost = 0
        self._gained = self._filled = False
        points = disk.readable()
        self._is_certain = len(points) == len(disk.numbers())
        for point in points:
            self._note(disk, point)
        self._needed = frozenset(self._frames)
        self._note_footer()

    def done(self) -> bool:
        """Replace the pack, if that mends anything of it; tell whether it does.

        Never while somebody may need frames that we do not know of: they would be filled.
        """
        if not self._frames or (self._own is None and not self._is_certain):
            return False
        there = self._objects.info(self._key)
        self._gained = there is not None and there.size > self._size
        # Around frames that stay lost, nothing is worth a new pack.
        worth = any(self._healed for _ in self._pieces()) or (self._gained and not self._lost)
        if worth:
            self._replace()
        self._result.healed += self._healed
        self._result.lost += self._lost
        if worth and self._filled:
            self._result.filled.append(self._key)
        return worth

    def _replace(self) -> None:
        self._healed = self._lost = 0
        upload = self._objects.upload(self._key)
        try:
            for piece in self._pieces():
                upload.write([memoryview(piece)])
            failpoint("repair.before_finish")
            upload.finish()
        except BaseException:
            upload.abort()
            raise
        failpoint("repair.after_finish")

    def _note(self, disk: StoredDisk, point: Point) -> None:
        """Take what a point knows of the pack."""
        number = next(
            (n for n in range(len(point.packs)) if disk.pack_key(point, n) == self._key), -1
        )
        if number < 0:
            return
        try:
            index = disk.index(point)
        except StoreDamagedError:
            self._is_certain = False
            return
        self._size = point.packs[number].size
        mine = np.flatnonzero(np.equal(index.frames.pack, number))
        if point.packs[number] in point.own_packs:
            self._own = index.part(mine)
        for each in mine.tolist():
            recorded = _Recorded(index, each)
            self._frames.setdefault(recorded.start, []).append(recorded)

    def _note_footer(self) -> None:
        """Take what the pack says of itself: a map has only those extents that it needs."""
        try:
            part = index_in(self._objects, self._key, self._size)
        except StoreDamagedError:
            return
        self._own = self._own or part
        for each in range(len(part.frames)):
            recorded = _Recorded(part, each)
            self._frames.setdefault(recorded.start, []).append(recorded)

    def _pieces(self) -> Iterator[Buffer]:
        """Give the pack, frame by frame, and what lies between them."""
        self._reading, at = _Reading(self._objects, self._key, self._size), 0
        for start in [*sorted(self._frames), self._size]:
            if start < at:
                continue  # two indexes that differ: the digests tell which is right
            if start > at:
                yield from self._around(at, start)
            if start < self._size:
                at = self._frames[start][0].end
                yield self._frame(self._frames[start], self._reading.piece(start, at))

    def _frame(self, recorded: Sequence[_Recorded], there: Buffer | None) -> Buffer:
        """Return a frame as it must be, if there is a way to."""
        if there is not None and any(self._is_whole(each, there) for each in recorded):
            return there
        for each in recorded:
            made = self._made(each)
            if made is not None and self._is_whole(each, made):
                self._healed += 1
                return made
        self._lost += recorded[0].start in self._needed
        return there if there is not None else bytes(recorded[0].end - recorded[0].start)

    def _is_whole(self, recorded: _Recorded, frame: Buffer) -> bool:
        try:
            recorded.index.payload(recorded.number, frame, self._decompress)
        except StoreDamagedError:
            return False
        return True

    def _made(self, recorded: _Recorded) -> bytes | None:
        """Return a frame made anew from the disk; None if that holds something else now."""
        frames, rows = recorded.index.frames, recorded.index.rows
        mine = rows.only(np.equal(rows.frame, recorded.number))
        extents = [
            Extent(*row)
            for row in zip(
                mine.offset.tolist(), mine.length.tolist(), mine.kind.tolist(), strict=True
            )
        ]
        try:
            data = [_read(self._source, each) for each in extents if each.kind == ExtentKind.DATA]
        except SourceError as error:
            self._result.refusals.append(str(error))
            return None
        raw = encode_table(extents) + b"".join(data)
        digest, wire = frames.digest[recorded.number].tobytes(), int(frames.wire[recorded.number])
        if blake3(raw).digest() != digest:
            return None
        codec = Codec(int(frames.codec[recorded.number]))
        payload = packed_to(raw, wire) if codec is Codec.ZSTD else raw
        if payload is None or len(payload) != wire:
            return None
        return encode_head(FrameType.EXTENTS, codec, len(raw), wire, digest) + payload

    def _around(self, start: int, end: int) -> Iterator[Buffer]:
        """Give what lies around frames: what is whole of it, its index made anew, and fillers."""
        if not start and not any(sound_parts(self._objects, self._key, 0, len(MAGIC))):
            yield MAGIC
            start = len(MAGIC)
        for sound in sound_parts(self._objects, self._key, start, end):
            yield sound
            start += len(sound)
        if start == end:
            return
        last: list[bytes] = []
        if end == self._size and self._own is not None:
            # Its length does not depend on where it begins.
            length = sum(map(len, footer(self._own, 0)))
            if end - length == start or end - length >= start + HEAD_BYTES:
                end -= length
                last = list(footer(self._own, end))
                self._gained = True
        if start < end:
            self._filled = self._gained = True
            yield from fillers(end - start)
        yield from last


class _Reading:
    """Reads a pack in long ranges; where one cannot be read, piece by piece."""

    def __init__(self, objects: Objects, key: str, size: int) -> None:
        self._objects = objects
        self._key = key
        self._size = size
        self._start = 0
        self._data = b""

    def piece(self, start: int, end: int) -> Buffer | None:
        """Return a range; None if it cannot be read."""
        if start < self._start or end > self._start + len(self._data):
            most = min(max(end - start, PART_BYTES), self._size - start)
            for length in dict.fromkeys((most, end - start)):
                try:
                    self._data = self._objects.read(self._key, start, length)
                except StoreDamagedError:
                    continue
                self._start = start
                break
            else:
                return None
        return memoryview(self._data)[start - self._start : end - self._start]


def _read(source: Source, extent: Extent) -> memoryview:
    """Return what a disk holds there; less if it ends before.

    Raises:
        SourceError: If it cannot be read.
    """
    step = source.alignment
    start = extent.offset // step * step
    end = min(-(-(extent.offset + extent.length) // step) * step, source.size)
    buffer = aligned_buffer(max(0, end - start))
    if buffer:
        source.read_into([start], [end - start], buffer)
    return buffer[extent.offset - start :][: extent.length]
