"""`store compact`: a point that needs no other, and packs without what nobody needs.

The new point is a map of frames that were written for others. A pack of which it needs only little
would be kept whole for ever: what it needs of that is copied, within the store where that can.
"""

import contextlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np
from blake3 import blake3

from blockstream import __version__
from blockstream.errors import BlockstreamError, BusyError, StoreError
from blockstream.formats.point import Kind, Pack, Point, rooted
from blockstream.formats.point_index import Numbers, PointIndex
from blockstream.formats.point_map import flattened
from blockstream.pipeline.failpoints import failpoint
from blockstream.pipeline.packs import PACK_BYTES, footer, frames_end
from blockstream.repository.alive import alive
from blockstream.repository.repository import StoredDisk, new_id
from blockstream_protocol import HEAD_BYTES

WORTH: Final = 0.5  # what is copied takes room of its own until older points are gone


@dataclass(frozen=True, slots=True)
class Compacted:
    """What was made.

    Attributes:
        point: The new point, which is the state of the one before.
        rewritten: Packs of older points whose frames were copied.
        copied: How many bytes that were.
    """

    point: Point
    rewritten: int
    copied: int


def compact(
    disk: StoredDisk,
    *,
    worth: float = WORTH,
    pack_bytes: int = PACK_BYTES,
    check: Callable[[], None] = lambda: None,
) -> Compacted | None:
    """Add a map of the newest point that needs no other point, and little that nobody needs.

    What is copied stays as it is, byte by byte: a frame that was damaged is damaged afterwards,
    too, and its digest tells. Nothing is visible if this fails; the same again is right then.

    Args:
        disk: The disk.
        worth: A pack is given up if the point needs less than this part of its frames; 0 copies
            nothing.
        pack_bytes: Where a new pack ends.
        check: Called between steps; ends it by what it raises.

    Returns:
        None if the newest point needs no other, and there is nothing to give up.

    Raises:
        BusyError: If somebody else committed a point meanwhile; that is the newest then.
        OutcomeUnknownError: If the store failed while the point was committed.
        BlockstreamError: As the store fails.
    """
    last = disk.last()
    if last is None or (last.parent is None and last.packs == last.own_packs):
        return None
    disk.check_free(last.seq + 1)
    index, packs = _laid(disk, last)
    thin = _thin(disk, index, packs, worth)
    if last.parent is None and len(packs) == len(last.packs) and not thin.any():
        return None
    moving = _Moving(disk, new_id(), index, packs, thin, check)
    with alive(disk, moving.identity):
        try:
            moving.copy(pack_bytes)
            point = _written(disk, last, moving)
        except BaseException:
            disk.discard(moving.identity, moving.made)
            raise
        failpoint("compact.before_commit")
        try:
            disk.commit(point)
        except (BusyError, StoreError):
            disk.discard(moving.identity, moving.made)
            raise
    failpoint("compact.after_commit")
    return Compacted(point, int(thin.sum()), moving.copied)


def _laid(disk: StoredDisk, last: Point) -> tuple[PointIndex, list[Pack]]:
    """Return what a point holds where, and those packs that it needs anything of."""
    chain = disk.chain(last)
    indexes = disk.indexes(chain)
    packs, firsts = list[Pack](), list[int]()
    for point in chain:
        firsts.append(len(packs))
        packs += point.packs
    index = flattened(indexes, firsts)
    used, pack = np.unique(index.frames.pack, return_inverse=True)
    frames = replace(index.frames, pack=pack.astype(np.int64))
    return replace(index, frames=frames), [packs[number] for number in used.tolist()]


def _thin(disk: StoredDisk, index: PointIndex, packs: list[Pack], worth: float) -> np.ndarray:
    """Tell for each pack whether it is given up."""
    sizes = np.array([pack.size for pack in packs], np.float64)
    live = np.bincount(index.frames.pack, _lengths(index), len(packs))
    thin: np.ndarray = np.less(live, worth * sizes)
    for number in np.flatnonzero(thin).tolist():
        # The index of small frames may be larger than they are, and a new pack would have it, too.
        key = f"{disk.folder}pack/{packs[number].key}"
        end = frames_end(disk.objects, key, packs[number].size)
        thin[number] = live[number] < worth * end
    return thin


def _lengths(index: PointIndex) -> Numbers:
    """Return the bytes of each frame in its pack."""
    return index.frames.wire + HEAD_BYTES


@dataclass(slots=True)
class _Moving:
    """Copies frames out of packs that are given up.

    Attributes:
        disk: Whose they are.
        identity: The id of the new point.
        index: What it holds where; after `copy`, where the frames lie then.
        packs: What that counts; the same.
        thin: Which of them are given up.
        check: Ends it by what it raises.
        made: New packs, the one that is not whole as well.
        copied: Bytes that were copied.
    """

    disk: StoredDisk
    identity: str
    index: PointIndex
    packs: list[Pack]
    thin: np.ndarray
    check: Callable[[], None]
    made: list[Pack] = field(default_factory=list)
    copied: int = 0

    def copy(self, pack_bytes: int) -> None:
        """Write the new packs."""
        old, old_packs = self.index, self.packs
        self.index, contents = _placed(old, self.thin, pack_bytes)
        for these in contents:
            self._write(these, old, old_packs)
        kept = itertools.compress(old_packs, (~self.thin).tolist())
        self.packs = [*kept, *self.made]

    def _write(self, these: Numbers, old: PointIndex, old_packs: list[Pack]) -> None:
        """Write one pack of frames, which lie in `old` and `old_packs` yet."""
        key = f"{self.identity}/{len(self.made):04d}.pack"
        upload = self.disk.objects.upload(f"{self.disk.folder}pack/{key}")
        self.made.append(Pack(key, 0))
        try:
            size = 0
            for pack, offset, length in _runs(old, these):
                self.check()
                source = f"{self.disk.folder}pack/{old_packs[pack].key}"
                upload.copy(source, offset, length)
                size += length
            self.copied += size
            for frame in footer(self.index.part(these), size):
                upload.write([memoryview(frame)])
                size += len(frame)
            upload.finish()
        except BaseException:
            with contextlib.suppress(BlockstreamError):
                upload.abort()
            raise
        self.made[-1] = Pack(key, size)
        failpoint("compact.after_pack")


def _placed(
    index: PointIndex, thin: np.ndarray, pack_bytes: int
) -> tuple[PointIndex, list[Numbers]]:
    """Return the index once no frame lies in a pack that is given up, and what new packs hold.

    That is the numbers of their frames, in the order in which these lie in the old packs.
    """
    frames = index.frames
    moved = np.flatnonzero(thin[frames.pack])
    moved = moved[np.lexsort((frames.offset[moved], frames.pack[moved]))]
    number = np.cumsum(~thin) - 1
    pack, offset = number[frames.pack], frames.offset.copy()
    contents = [moved[first:end] for first, end in _cuts(_lengths(index)[moved], pack_bytes)]
    for each, these in enumerate(contents, int((~thin).sum())):
        lengths = _lengths(index)[these]
        pack[these] = each
        offset[these] = np.cumsum(lengths) - lengths
    return replace(index, frames=replace(frames, pack=pack, offset=offset)), contents


def _cuts(lengths: Numbers, pack_bytes: int) -> Iterator[tuple[int, int]]:
    """Give the first frame of each new pack, and the one after its last."""
    ends, first, before = np.cumsum(lengths), 0, 0
    while first < len(ends):
        end = max(first + 1, int(np.searchsorted(ends, before + pack_bytes, side="right")))
        yield first, end
        first, before = end, int(ends[end - 1])


def _runs(index: PointIndex, these: Numbers) -> Iterator[tuple[int, int, int]]:
    """Give pack, offset and length of ranges that hold these frames, and nothing else."""
    pack, offset = index.frames.pack[these], index.frames.offset[these]
    end = offset + _lengths(index)[these]
    begins = np.ones(len(these), np.bool_)
    begins[1:] = np.not_equal(pack[1:], pack[:-1]) | np.not_equal(offset[1:], end[:-1])
    edges = [*np.flatnonzero(begins).tolist(), len(these)]
    for first, after in itertools.pairwise(edges):
        start = int(offset[first])
        yield int(pack[first]), start, int(end[after - 1]) - start


def _written(disk: StoredDisk, last: Point, moving: _Moving) -> Point:
    """Write the index; return the manifest."""
    encoded = moving.index.encode()
    PointIndex.decode(encoded)  # the newest point must never be one that nobody can read
    key = f"index/{moving.identity}.index"
    disk.objects.put(disk.folder + key, encoded)
    digest = blake3(encoded).hexdigest()
    return Point(
        disk=disk.name,
        seq=last.seq + 1,
        kind=Kind.SYNTHETIC,
        id=moving.identity,
        created=last.created,
        state=last.state,
        base="",
        parent=None,
        size=last.size,
        source=last.source,
        transfer="",
        frames=len(moving.index.frames),
        chain=digest,
        total=last.size,
        data=0,
        index=key,
        index_digest=digest,
        packs=tuple(moving.packs),
        root=rooted(None, digest),
        milliseconds=0,
        software=f"blockstream {__version__}",
        audits=last.audits,
        moment=last.moment,
    )
