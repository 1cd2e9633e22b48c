"""`store prune`: points that nobody wants any more, and what only they need.

Nothing that was committed is ever changed. A point is hidden by a mark, and deleted when the mark
is older than whoever may still be reading it; what it is made of is deleted when nothing names it.

What a run left that died looks like what a slow one is about to name. It is marked first, and
deleted by a later prune, if it is old by the store's clock and there was no sign of life between.
"""

import contextlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from blockstream.errors import BusyError, NotAllowedError, StoreDamagedError, StoreError
from blockstream.formats.point import Point
from blockstream.formats.store_names import UNNAMED, owner_of
from blockstream.pipeline.failpoints import failpoint
from blockstream.repository.compaction import compact
from blockstream.repository.repository import (
    ALIVE_SECONDS,
    DAMAGED,
    FOLDERS,
    PRUNED,
    VERIFIED,
    Owned,
    StoredDisk,
)
from blockstream.repository.retention import Rules, kept
from blockstream.words import time_text

# Whoever has given no sign of life for longer than this has failed.
_LONGEST_JOB_SECONDS: Final = 7 * 86_400.0
# A clock that jumps makes all of it old at once: so it is looked at twice, with room for a sign.
_BETWEEN_SECONDS: Final = 6 * ALIVE_SECONDS
_LONGEST_CHAIN: Final = 32  # indexes that a restore reads


@dataclass(slots=True)
class Pruned:
    """What became of one disk.

    Attributes:
        disk: Its name.
        kept: Points that stay.
        hidden: Points that nobody sees any more, from now on or since an earlier time.
        deleted: Points whose manifests are gone.
        freed: Bytes that were deleted.
        locked: Objects that the store does not let go yet.
        unfinished: Uploads of runs that died, given up now.
        uploads: Why such uploads could not be looked for; empty if they were.
        doubtful: Objects that no point names and that look old; they go when a later prune sees no
            sign of life of whoever wrote them.
        strays: Keys of what lies among its objects and is none of ours: it stays.
        damaged: What is wrong with points that cannot be restored, by number: those that were found
            damaged, and the newest ones that lack something. As many sound ones are kept besides.
    """

    disk: str
    kept: list[int] = field(default_factory=list)
    hidden: list[int] = field(default_factory=list)
    deleted: list[int] = field(default_factory=list)
    freed: int = 0
    locked: int = 0
    unfinished: int = 0
    uploads: str = ""
    doubtful: int = 0
    strays: list[str] = field(default_factory=list)
    damaged: dict[int, str] = field(default_factory=dict)


def prune(
    disk: StoredDisk,
    rules: Rules,
    *,
    grace: float,
    dry_run: bool = False,
    check: Callable[[], None] = lambda: None,
) -> Pruned:
    """Hide what the rules do not keep, and delete what was hidden long enough.

    Args:
        disk: The disk.
        rules: What to keep.
        grace: Seconds for which a hidden point is not deleted.
        dry_run: Only say what would become of it.
        check: Called between steps; ends it by what it raises.

    Raises:
        StoreDamagedError: If no point can be restored; nothing was done.
        BlockstreamError: As the store fails; run again, it goes on.
    """
    points = list(disk.points())
    damaged = _damaged(disk, points)
    sound = [point for point in points if point.seq not in damaged]
    keep = kept(points, rules) | kept(sound, rules)
    result = Pruned(disk.name, sorted(keep), damaged=damaged)
    numbers = disk.numbers()
    marks = disk.hidden(numbers)
    unwanted = [point.seq for point in points if point.seq not in keep]
    result.hidden = sorted({*marks, *unwanted} & set(numbers))
    result.strays = sorted(disk.strays)
    if dry_run:
        return result
    now = disk.now()
    for seq in unwanted:
        check()
        disk.mark(seq)
        marks[seq] = now
        failpoint("prune.after_mark")
    # A chain that is long is slow to read, and keeps all that it is made of. Only the map is made
    # anew: to copy takes long, and room until older points are gone.
    live = [point for point in points if point.seq in keep]
    if live and live[-1].seq not in damaged and len(disk.chain(live[-1])) > _LONGEST_CHAIN:
        # Who commits a point meanwhile is in the way of the map alone, and the next time makes it.
        with contextlib.suppress(BusyError):
            compact(disk, worth=0, check=check)
    old = {seq for seq, when in marks.items() if now - when >= grace}
    _delete(disk, old, now, result, check)
    result.strays = sorted(disk.strays)
    return result


def _damaged(disk: StoredDisk, points: Sequence[Point]) -> dict[int, str]:
    """Return what is wrong with points; what they lack, of the newest, down to a whole one.

    Raises:
        StoreDamagedError: If all of them lack something.
    """
    found = {
        seq: f"`store verify` found point {seq} damaged on {time_text(when)}"
        for seq, when in disk.found_damaged().items()
    }
    lacks = dict[int, str]()
    for point in reversed(points):
        lack = disk.lack_of(point)
        if not lack:
            both = found | lacks
            return {each.seq: both[each.seq] for each in points if each.seq in both}
        lacks[point.seq] = lack
    if lacks:
        raise StoreDamagedError(
            f"{lacks[points[-1].seq]}; no point of {disk.name} can be restored: nothing was "
            f"pruned; `blockstream store verify {disk.objects.name}/{disk.name}` says what is "
            "missing, and `store repair` takes it from a copy of the store"
        )
    return found


def _made_of(disk: StoredDisk, point: Point, everything: Sequence[Point]) -> set[int]:
    """Return the numbers of the points that a point is made of; of a broken chain, all older."""
    try:
        return {each.seq for each in disk.chain(point)}
    except StoreDamagedError:
        return {each.seq for each in everything if each.seq <= point.seq}


def _delete(
    disk: StoredDisk, old: set[int], now: float, result: Pruned, check: Callable[[], None]
) -> None:
    """Delete points that were hidden long ago and that no other needs; and what nothing names."""
    everything = disk.everything()
    # Somebody may be reading what was hidden lately, too.
    needed: set[int] = set()
    for point in everything:
        if point.seq not in old:
            needed |= _made_of(disk, point, everything)
    gone = [point for point in everything if point.seq in old - needed]
    # The newest first, so that none is ever there without what it goes onto.
    for point in reversed(gone):
        check()
        if point.seq in needed:
            continue
        if _let_go(disk, disk.point_key(point.seq), 0, result):
            failpoint("prune.after_manifest")
            result.deleted.append(point.seq)
        else:
            needed |= _made_of(disk, point, everything)
    failpoint("prune.before_sweep")
    deleted = set(result.deleted)
    _pass_on_damage(disk, {point.seq for point in everything} - deleted)
    _unmark(disk, {point.seq for point in everything} - deleted, result)
    check()
    result.hidden = [seq for seq in result.hidden if seq not in deleted]
    left = [point for point in everything if point.seq not in deleted]
    _sweep(disk, left, [point for point in gone if point.seq in deleted], now, result, check)


def _pass_on_damage(disk: StoredDisk, left: set[int]) -> None:
    """Mark what goes onto damaged points, or is made of their packs, before their marks go."""
    own = disk.marks(DAMAGED).keys()
    if own - left:
        newest = max(left, default=0)
        for seq in (disk.found_damaged().keys() & left) - own:
            disk.mark_found(seq, newest, whole=False)


def _unmark(disk: StoredDisk, left: set[int], result: Pruned) -> None:
    """Delete marks of points that are gone, also of those that somebody deleted who died then."""
    newest = max(left, default=0)  # what came meanwhile is not ours
    for kind in (PRUNED, VERIFIED, DAMAGED):
        for seq in disk.marks(kind):
            if seq not in left and seq < newest:
                _let_go(disk, disk.mark_key(seq, kind), 0, result)


def _sweep(
    disk: StoredDisk,
    left: Sequence[Point],
    gone: Sequence[Point],
    now: float,
    result: Pruned,
    check: Callable[[], None],
) -> None:
    """Delete packs and indexes that no point names, and that nobody can be about to name."""
    named, named_before = set(_names(disk, left)), set(_names(disk, gone))
    living = {point.id for point in left}
    ours, waiting = {point.id for point in gone}, set[str]()
    for owner, owned in disk.owned().items():
        check()
        doomed = owner in ours
        # A map may need what was written for a point that is gone.
        others = Owned([info for info in owned.objects if info.key not in named])
        if others.objects and owner not in ours | living:
            doomed = _is_dead(disk, owner, others, now, result)
            waiting |= set() if doomed else {owner}
        sign = disk.alive_key(owner) if owner in living else ""
        for info in others.objects:
            # A map may have been the last to need what was written for points that went long ago.
            if doomed or info.key in named_before or info.key == sign:
                _let_go(disk, info.key, info.size, result)
                failpoint("prune.after_object")
    for name, info in disk.listed("mark"):
        if UNNAMED.fullmatch(name) and owner_of(name) not in waiting:
            _let_go(disk, info.key, 0, result)
    before = now - _LONGEST_JOB_SECONDS
    try:
        for what, (depth, _) in FOLDERS.items():
            folder = f"{disk.folder}{what}/"
            result.unfinished += disk.objects.forget_unfinished(folder, depth, before, waiting)
    except (NotAllowedError, StoreError) as error:
        result.uploads = str(error)  # they cost room, and are in nobody's way


def _is_dead(disk: StoredDisk, owner: str, owned: Owned, now: float, result: Pruned) -> bool:
    """Tell whether what nothing names is old, and a prune long before saw the same."""
    if now - owned.newest <= _LONGEST_JOB_SECONDS:
        return False
    key = disk.unnamed_key(owner)
    seen = disk.objects.info(key)
    if seen is not None and _is_noted(disk, key, owned.digest):
        if now - seen.modified > _BETWEEN_SECONDS:
            return True
    else:
        disk.objects.put(key, owned.digest.encode())
    result.doubtful += len(owned.objects)
    return False


def _is_noted(disk: StoredDisk, key: str, digest: str) -> bool:
    try:
        return disk.objects.read_whole(key, len(digest)) == digest.encode()
    except StoreDamagedError:
        return False


def _names(disk: StoredDisk, points: Iterable[Point]) -> Iterable[str]:
    for point in points:
        for number in range(len(point.packs)):
            yield disk.pack_key(point, number)
        if point.index:
            yield disk.folder + point.index


def _let_go(disk: StoredDisk, key: str, size: int, result: Pruned) -> bool:
    """Delete an object, unless the store holds it for a time that is not over."""
    try:
        if disk.objects.locked(key):
            result.locked += 1
            return False
        disk.objects.delete(key)
    except NotAllowedError:
        result.locked += 1
        return False
    result.freed += size
    return True
