"""`store repair`: what is damaged is replaced by its twin in a copy of the store."""

from collections.abc import Collection
from dataclasses import dataclass, field

import numpy as np

from blockstream.errors import NotFoundError, StoreDamagedError
from blockstream.interfaces import PART_BYTES, Objects
from blockstream.pipeline.compression import Decompressor
from blockstream.repository.repository import StoredDisk
from blockstream.repository.verify import Verified, runs, verified
from blockstream.run import Run
from blockstream_protocol import HEAD_BYTES


@dataclass(slots=True)
class Repaired:
    """What became of one disk.

    Attributes:
        disk: Its name.
        replaced: Keys of the objects that were replaced.
        left: Keys of those for which nothing was found.
        healed: Frames that were made anew from a disk.
        lost: Damaged frames of which that disk holds something else now.
        filled: Keys of packs that are no stream any more: what lay around their frames is lost.
        refusals: Why that disk could not be read.
        after: What is to be said of it now.
    """

    disk: str
    replaced: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    healed: int = 0
    lost: int = 0
    filled: list[str] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)
    after: Verified | None = None


async def repair(disk: StoredDisk, twin: StoredDisk, run: Run) -> Repaired:
    """Replace what is damaged by what a copy of the store has under the same keys.

    A twin is looked at before it is believed: a manifest by the digest that the next point has of
    it, an index by its manifest, a pack frame by frame.

    Args:
        disk: The disk whose points are damaged.
        twin: The same disk in the other store.
        run: Counts, and stops it.

    Raises:
        StoreError: If either store fails.
    """
    return await run.carry(lambda: _repaired(disk, twin, run))


def _repaired(disk: StoredDisk, twin: StoredDisk, run: Run) -> Repaired:
    result = Repaired(disk.name)
    # A manifest that comes back shows what else is damaged.
    for _ in range(3):
        found = verified(disk, run)
        wanted = dict.fromkeys(each.key for each in found.damages)
        wanted |= dict.fromkeys(_lost(disk, twin, found.unnamed))
        wanted = {key: None for key in wanted if key and key not in result.left}
        if not wanted:
            break
        for key in wanted:
            run.check("what was replaced until now is whole; the same command does the rest")
            if _is_good(disk, twin, key):
                _copy(twin.objects, disk.objects, key)
                result.replaced.append(key)
            else:
                result.left.append(key)
    result.after = verified(disk, run)
    return result


def _lost(disk: StoredDisk, twin: StoredDisk, unnamed: Collection[str]) -> list[str]:
    """Return the keys of manifests that the other store has of what has none here."""
    if not unnamed:
        return []
    newest = max(disk.numbers(), default=0)
    candidates = [point for point in twin.readable() if point.seq > newest]
    return [disk.point_key(point.seq) for point in candidates if point.id in unnamed]


def _is_good(disk: StoredDisk, twin: StoredDisk, key: str) -> bool:
    """Tell whether the other store has what is missing here."""
    words = key.removeprefix(disk.folder).split("/")
    try:
        match words:
            case ["point", name]:
                return _is_good_point(disk, twin, int(name.removesuffix(".json")))
            case ["index", _]:
                return _is_good_index(disk, twin, key)
            case ["pack", *_]:
                return _is_good_pack(disk, twin, key)
    except (StoreDamagedError, NotFoundError):
        return False
    return False


def _is_good_point(disk: StoredDisk, twin: StoredDisk, seq: int) -> bool:
    """Compare a manifest with what points here say of it, if one does."""
    candidate = twin.point(seq)
    for point in disk.readable():
        if point.parent is not None and point.parent.seq == seq:
            return point.parent.digest == candidate.digest
        if point.seq == seq:
            return False
    # Nobody here goes onto it: it is the newest, or was; its own parent must be the same.
    parent = candidate.parent
    return parent is None or any(
        point.seq == parent.seq and point.digest == parent.digest for point in disk.readable()
    )


def _is_good_index(disk: StoredDisk, twin: StoredDisk, key: str) -> bool:
    for point in disk.readable():
        if disk.folder + point.index == key:
            twin.index(point)
            return True
    return False


def _is_good_pack(disk: StoredDisk, twin: StoredDisk, key: str) -> bool:
    """Compare the frames of a pack with what our own indexes say of them; no index, no pack."""
    known, decompress = False, Decompressor()
    for point in disk.readable():
        numbers = [n for n in range(len(point.packs)) if disk.pack_key(point, n) == key]
        if not numbers:
            continue
        index = disk.index(point)
        frames = index.frames
        for run in runs(index, np.flatnonzero(np.equal(frames.pack, numbers[0])).tolist()):
            start = int(frames.offset[run[0]])
            ends = [int(frames.offset[each] + frames.wire[each]) + HEAD_BYTES for each in run]
            data = memoryview(twin.objects.read(key, start, ends[-1] - start))
            for each, end in zip(run, ends, strict=True):
                index.payload(
                    each, data[int(frames.offset[each]) - start : end - start], decompress
                )
        known = True
    return known


def _copy(source: Objects, target: Objects, key: str) -> None:
    """Copy an object, in place of what is there."""
    found = source.info(key)
    if found is None:
        raise StoreDamagedError(f"{source.name} has no {key} any more")
    upload = target.upload(key)
    try:
        for start in range(0, found.size, PART_BYTES):
            data = source.read(key, start, min(PART_BYTES, found.size - start))
            upload.write([memoryview(data)])
        upload.finish()
    except BaseException:
        upload.abort()
        raise
