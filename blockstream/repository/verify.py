"""`store verify`: everything that a disk's points name is read and checked."""

import contextlib
import random
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from blake3 import blake3

from blockstream.errors import (
    AuthenticationError,
    StoreDamagedError,
    StoreError,
)
from blockstream.formats.point import Kind, Point
from blockstream.formats.point_index import PointIndex
from blockstream.formats.point_map import merged
from blockstream.interfaces import PART_BYTES, Objects
from blockstream.pipeline.compression import Decompressor
from blockstream.repository.repository import DAMAGED, PRUNED, VERIFIED, StoredDisk
from blockstream.run import Run
from blockstream_protocol import HEAD_BYTES, MAGIC, Buffer, Decompress, link, sound_frames

_READERS: Final = 8
_RUN_BYTES: Final = 8 << 20

Place = tuple[str, int, int, bytes]


@dataclass(frozen=True, slots=True)
class Damage:
    """Something that is not as it was stored.

    Attributes:
        seq: The point whose it is.
        key: The object that is damaged.
        text: What it is.
        extents: Which ranges of the disk it holds, offset and length in bytes.
    """

    seq: int
    key: str
    text: str
    extents: tuple[tuple[int, int], ...] = ()


@dataclass(slots=True)
class Verified:
    """What was found of one disk.

    Attributes:
        disk: Its name.
        whole: Points that can be restored.
        broken: Points that cannot, or not all of them.
        damages: What is wrong.
        checked: Bytes that were read.
        part: Of the frames, how many were read: 1 for all.
        unnamed: Ids of points newer than the newest, of which there is no manifest.
        strays: Keys of what lies among its objects and is none of ours.
        noted: Whether what was found could be noted in the store, for `points` and `prune`.
    """

    disk: str
    whole: list[int] = field(default_factory=list)
    broken: list[int] = field(default_factory=list)
    damages: list[Damage] = field(default_factory=list)
    checked: int = 0
    part: float = 1.0
    unnamed: list[str] = field(default_factory=list)
    strays: list[str] = field(default_factory=list)
    noted: bool = True


async def verify_disk(
    disk: StoredDisk,
    run: Run,
    *,
    newest: bool = False,
    part: float = 1.0,
) -> Verified:
    """Read what the points of a disk are made of.

    Args:
        disk: The disk.
        run: Counts, and stops it.
        newest: Only what the newest point is made of.
        part: Of the frames, how many are read; which ones is left to chance.

    Raises:
        StoreError: If the store fails.
    """
    return await run.carry(lambda: verified(disk, run, newest=newest, part=part))


def verified(disk: StoredDisk, run: Run, *, newest: bool = False, part: float = 1.0) -> Verified:
    """Read what the points of a disk are made of, in a thread. See `verify_disk`."""
    return _Verifying(disk, run, newest=newest, part=part).done()


class _Verifying:
    """Checks one disk."""

    def __init__(self, disk: StoredDisk, run: Run, *, newest: bool, part: float) -> None:
        self.found = Verified(disk.name, part=part)
        self._disk = disk
        self._run = run
        self._progress = run.count_anew()
        self._newest = newest
        self._part = part
        self._seen: set[Place] = set()
        self._bad: set[Place] = set()
        self._sizes: dict[str, int] = {}
        self._last = 0

    def done(self) -> Verified:
        """Check it."""
        points = self._points()
        self._progress.total = self._progress.size = sum(point.stored for point in points)
        indexes = {point.seq: self._index(point) for point in points}
        self._sizes = {info.key: info.size for _, info in self._disk.listed("pack")}
        for point in points:
            index = indexes[point.seq]
            if index is not None:
                self._frames(point, index)
                self._around(point, index)
        for point in points[-1:] if self._newest else points:
            good = self._is_whole(point, {each.seq: each for each in points}, indexes)
            (self.found.whole if good else self.found.broken).append(point.seq)
        self._note(points, indexes)
        self.found.strays = sorted(self._disk.strays)
        return self.found

    def _note(self, points: Sequence[Point], indexes: dict[int, PointIndex | None]) -> None:
        """Leave marks of what was found; who may only read cannot."""
        broken, whole = set(self.found.broken), set(self.found.whole)
        for point in points if self._newest else ():  # all that the newest one goes onto was read
            if not self._is_whole(point, {each.seq: each for each in points}, indexes):
                broken.add(point.seq)
        if self._part < 1:
            whole = set()  # what a sample calls whole, nobody has read
        for seq in sorted(broken | whole):
            try:
                self._disk.mark_found(seq, self._last, whole=seq not in broken)
            except (AuthenticationError, StoreError):
                self.found.noted = False

    def _damaged(
        self, seq: int, key: str, text: str, extents: tuple[tuple[int, int], ...] = ()
    ) -> None:
        self.found.damages.append(Damage(seq, key, text, extents))

    def _points(self) -> list[Point]:
        """Return the points whose manifests are good, and which are asked for."""
        points = []
        # Before the numbers: somebody may commit a point now, and verify it.
        kinds = (PRUNED, VERIFIED, DAMAGED)
        marked = sorted({seq for kind in kinds for seq in self._disk.marks(kind)})
        numbers = self._disk.numbers()
        for seq in numbers:
            try:
                points.append(self._disk.point(seq))
            except StoreDamagedError as error:
                self._damaged(seq, self._disk.point_key(seq), str(error))
                self.found.broken.append(seq)
        with contextlib.suppress(StoreDamagedError):  # of the newest manifest, which was named
            self.found.unnamed = self._disk.unnamed()
        self._last = max(numbers, default=0)  # what comes later, nobody looks at
        for seq in marked:
            if seq > self._last:  # pruning never takes the newest
                key = self._disk.point_key(seq)
                self._damaged(seq, key, f"{key} is missing: there was a point {seq}")
        for point in points:
            parent = point.parent
            if parent is not None and parent.seq not in numbers:
                text = f"{self._disk.point_key(parent.seq)} is missing: point {point.seq} needs it"
                self._damaged(parent.seq, self._disk.point_key(parent.seq), text)
        if not self._newest or not points:
            return points
        try:
            return self._disk.chain(points[-1])
        except StoreDamagedError as error:
            self._damaged(points[-1].seq, "", str(error))
            return points[-1:]

    def _index(self, point: Point) -> PointIndex | None:
        """Return a point's index if it is the one that its chain says."""
        try:
            index = self._disk.index(point)
        except StoreDamagedError as error:
            self._damaged(point.seq, self._disk.folder + point.index, str(error))
            return None
        chain = point.index_digest
        if point.kind is not Kind.SYNTHETIC:
            value = bytes.fromhex(point.transfer)
            for digest in index.frames.digest:
                value = link(blake3, value, digest.tobytes())
            chain = value.hex()
        if len(index.frames) != point.frames or chain != point.chain:
            text = f"the index of point {point.seq} has another chain than it"
            self._damaged(point.seq, self._disk.folder + point.index, text)
            return None
        return index

    def _frames(self, point: Point, index: PointIndex) -> None:
        """Read frames of a point, and compare each with its digest."""
        rng = random.Random()  # noqa: S311  # a sample
        places = self._places(point, index)
        wanted = [
            number
            for number, place in enumerate(places)
            if place not in self._seen and rng.random() < self._part
        ]
        if places and not wanted and not self.found.checked:
            wanted = [rng.randrange(len(places))]  # a look at nothing would say nothing
        self._seen.update(places)
        decompress = Decompressor()
        for run, data in self._fetched(point, index, wanted):
            base = int(index.frames.offset[run[0]])
            for number in run:
                start = int(index.frames.offset[number]) - base
                end = start + HEAD_BYTES + int(index.frames.wire[number])
                # Of a range that cannot be read, each frame is asked for by itself.
                frame = data[start:end] if isinstance(data, bytes) else data
                if isinstance(frame, str) and len(run) > 1:
                    frame = self._read(point, index, [number])
                text = frame if isinstance(frame, str) else _wrong(frame, index, number, decompress)
                if text:
                    self._bad_frame(point, index, number, text)
                self.found.checked += end - start
                self._progress.frame(data=0, covered=end - start, wire=end - start)

    def _around(self, point: Point, index: PointIndex) -> None:
        """Check the sizes of a point's own packs, and what lies in them around its frames.

        To restore takes none of that; to receive the packs as a stream, or to salvage them, does.
        """
        own = set(point.own_packs)
        for number, pack in enumerate(point.packs):
            key = self._disk.pack_key(point, number)
            size = self._sizes.get(key, 0)
            if pack not in own or not size:
                continue  # of one that is missing, each frame is
            if size != pack.size:
                self._damaged(point.seq, key, f"{key} has {size} bytes, and not {pack.size}")
                continue
            for start, end in gaps(index, number, size) if self._part >= 1 else ():
                sound = sum(map(len, sound_parts(self._disk.objects, key, start, end)))
                self.found.checked += end - start
                if sound != end - start:
                    where = f"{key} at {start + sound}"
                    text = f"{where}: what lies around its frames is damaged; no point needs it"
                    self._damaged(point.seq, key, text)

    def _bad_frame(self, point: Point, index: PointIndex, number: int, text: str) -> None:
        rows = np.equal(index.rows.frame, number)
        pairs = zip(index.rows.offset[rows].tolist(), index.rows.length[rows].tolist(), strict=True)
        place = self._places(point, index)[number]
        self._bad.add(place)
        key = place[0]
        # Of a pack that is not there, one word is enough for all of its frames.
        words = f"{key} at {place[1]}: {text}" if key in self._sizes else text
        self._damaged(point.seq, key, words, tuple(pairs))

    def _places(self, point: Point, index: PointIndex) -> list[Place]:
        """Return where each frame lies, and what it is: pack, offset, size and digest.

        What one index says of a frame, another may say otherwise.
        """
        keys = [self._disk.pack_key(point, number) for number in range(len(point.packs))]
        frames = index.frames
        return [
            (keys[pack], offset, wire, digest.tobytes())
            for pack, offset, wire, digest in zip(
                frames.pack.tolist(),
                frames.offset.tolist(),
                frames.wire.tolist(),
                frames.digest,
                strict=True,
            )
        ]

    def _fetched(
        self, point: Point, index: PointIndex, wanted: Sequence[int]
    ) -> Iterator[tuple[Sequence[int], bytes | str]]:
        """Give runs of frames with their bytes, or with what is wrong with all of them."""
        with ThreadPoolExecutor(_READERS) as pool:
            waiting: deque[tuple[Sequence[int], Future[bytes | str]]] = deque()
            for run in runs(index, wanted):
                waiting.append((run, pool.submit(self._read, point, index, run)))
                if len(waiting) > _READERS:
                    run, future = waiting.popleft()
                    yield run, future.result()
                if self._run.stopped:
                    pool.shutdown(cancel_futures=True)
                self._run.check("not everything was checked")
            for run, future in waiting:
                yield run, future.result()

    def _read(self, point: Point, index: PointIndex, run: Sequence[int]) -> bytes | str:
        frames = index.frames
        start = int(frames.offset[run[0]])
        end = int(frames.offset[run[-1]]) + HEAD_BYTES + int(frames.wire[run[-1]])
        key = self._disk.pack_key(point, int(frames.pack[run[0]]))
        try:
            return self._disk.objects.read(key, start, end - start)
        except StoreDamagedError as error:
            return str(error)

    def _is_whole(
        self, point: Point, points: dict[int, Point], indexes: dict[int, PointIndex | None]
    ) -> bool:
        """Tell whether nothing that a point needs is damaged, as far as it was read."""
        try:
            chain = self._disk.chain(point)
            layers = [indexes.get(each.seq) if each.seq in points else None for each in chain]
            if any(layer is None for layer in layers):
                return False
            found = merged([layer for layer in layers if layer is not None])
        except StoreDamagedError:
            return False
        places = [
            self._places(each, layer)
            for each, layer in zip(chain, layers, strict=True)
            if layer is not None
        ]
        used = _pairs(found.layer, found.frame)
        return not any(places[layer][frame] in self._bad for layer, frame in used)


def _pairs(one: np.ndarray, other: np.ndarray) -> set[tuple[int, int]]:
    return set(zip(one.tolist(), other.tolist(), strict=True))


def _wrong(data: Buffer, index: PointIndex, number: int, decompress: Decompress) -> str:
    """Return what is wrong with a frame; empty for nothing."""
    try:
        index.payload(number, data, decompress)
    except StoreDamagedError as error:
        return str(error)
    return ""


def gaps(index: PointIndex, number: int, size: int) -> Iterator[tuple[int, int]]:
    """Give the ranges of a pack in which no frame of an index lies: first byte, and end."""
    frames = index.frames
    mine = np.flatnonzero(np.equal(frames.pack, number))
    mine = mine[np.argsort(frames.offset[mine])]
    starts = [*frames.offset[mine].tolist(), size]
    ends = [0, *(frames.offset[mine] + frames.wire[mine] + HEAD_BYTES).tolist()]
    for start, end in zip(ends, starts, strict=True):
        if start < end:
            yield start, end


def sound_parts(objects: Objects, key: str, start: int, end: int) -> Iterator[bytes]:
    """Give the whole frames that a range of a pack begins with, of whatever type they are."""
    while start < end:
        try:
            data = objects.read(key, start, min(PART_BYTES, end - start))
        except StoreDamagedError:
            return
        known = len(MAGIC) if not start and data.startswith(MAGIC) else 0
        sound = known + sound_frames(memoryview(data)[known:], blake3)
        if not sound:
            return
        yield data[:sound]
        start += sound


def runs(index: PointIndex, wanted: Sequence[int]) -> Iterator[Sequence[int]]:
    """Join frames that lie one after the other."""
    frames, run = index.frames, list[int]()
    for number in wanted:
        if run:
            last = run[-1]
            end = int(frames.offset[last]) + HEAD_BYTES + int(frames.wire[last])
            beside = int(frames.pack[last]) == int(frames.pack[number])
            beside = beside and end == int(frames.offset[number])
            if not beside or end - int(frames.offset[run[0]]) > _RUN_BYTES:
                yield run
                run = []
        run.append(number)
    if run:
        yield run
