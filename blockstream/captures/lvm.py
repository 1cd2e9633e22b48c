"""A logical volume, held still by a snapshot or by the word of who says that nobody writes it."""

import contextlib
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, replace

from blockstream.captures.interface import Captured, Held
from blockstream.captures.listing import listing_of, parsed
from blockstream.captures.lvm_changes import changes_between
from blockstream.captures.lvm_snapshots import (
    Memory,
    ident_of,
    is_ours,
    make_ours,
    moment_of,
    not_removed,
    number_of,
    remembered,
    remembering,
    volume_held,
)
from blockstream.captures.options import CaptureOptions, LvmOptions
from blockstream.errors import (
    InterruptedTransferError,
    LeftoverError,
    NotFoundError,
    OutcomeUnknownError,
    PartlyDoneError,
    RefusedError,
    SnapshotInvalidError,
    UsageError,
)
from blockstream.formats.extent_lists import ExtentList
from blockstream.interfaces import Source
from blockstream.linux import lvm
from blockstream.linux.lvm import Volume
from blockstream.locations.local import LocalDisk
from blockstream.run import Run
from blockstream.sources.volume import VolumeSource, flush
from blockstream.words import duration_text

# After these the same command goes on with what was begun.
_GOES_ON = (InterruptedTransferError, OutcomeUnknownError, PartlyDoneError)


class LvmCapture:
    """Reads a snapshot that it makes of a volume, or the volume, and asks LVM what changed."""

    def __init__(
        self,
        volume: Volume,
        location: LocalDisk,
        options: CaptureOptions,
        *,
        rehearsal: bool = False,
    ) -> None:
        """Name it.

        Args:
            volume: What was found there.
            location: As it was named.
            options: How it is read.
            rehearsal: Make no snapshot: nothing will be sent.

        Raises:
            UsageError: If the options contradict each other.
        """
        self._volume = volume
        self._location = location
        self._options = options
        self._rehearsal = rehearsal
        self._run: Run
        self._held: _HeldStill | None = None
        _check_options(options)

    @contextlib.asynccontextmanager
    async def open(self, held: Held, run: Run) -> AsyncIterator[Sequence[Captured]]:
        """See `Capture`. The snapshots that are kept say themselves what the target holds."""
        del held
        listing = await listing_of(self._options.states, run)
        self._run = run
        async with run.within(self._opened(listing)) as disk:
            yield [disk]

    async def committed(self, disk: Captured) -> None:
        """See `Capture`."""
        if self._held is not None:
            await self._run.settle(self._held.note_committed)

    @contextlib.contextmanager
    def _opened(self, listing: bytes | None) -> Iterator[Captured]:
        volume, options = self._volume, self._options
        _check_volume(volume, options)
        with volume_held(volume, options.state_dir, alone=False):
            if options.states.resume is not None:
                reading = self._resumed()
            elif self._reads_itself():
                reading = self._itself()
            else:
                reading = self._fresh()
            with reading as disk:
                said = parsed(listing, disk.source)
                yield disk if said is None else replace(disk, changes=said)

    def _reads_itself(self) -> bool:
        states = self._options.states
        own_list = bool(states.extents or states.base)
        quiet = self._options.lvm.quiesced or not self._volume.is_written
        return self._rehearsal or own_list or quiet

    def _captured(
        self, source: Source, base: str, state: str, moment: int | None, changes: ExtentList | None
    ) -> Captured:
        return Captured(
            name=self._options.name or self._volume.name,
            location=self._location.key,
            source=source,
            state=state,
            moment=moment,
            base=base,
            changes=changes,
        )

    @contextlib.contextmanager
    def _itself(self) -> Iterator[Captured]:
        """Read the volume itself, which nobody writes."""
        began, options, states = time.time_ns(), self._options, self._options.states
        with lvm.activated(self._volume) as active:
            last = remembered(options.state_dir, ident_of(self._volume, options.target))
            since = (
                _since(active, options, last, self._rehearsal) if options.lvm.since else _Since()
            )
            older = since.older
            if older is not None:
                flush(active)
            changes = changes_between(older, active, options.state_dir) if older else None
            watched = [older] if older is not None else []
            with contextlib.closing(VolumeSource(active, depends_on=watched)) as source:
                goal = states.goal or (active.uuid if source.immutable else "")
                base = older.uuid if older is not None else states.base
                moment = began if options.lvm.quiesced or source.is_still else None
                moment = moment_of(active) if source.immutable else moment
                disk = self._captured(source, base, goal, moment, changes)
                yield replace(disk, why_whole=since.why_whole)

    @contextlib.contextmanager
    def _resumed(self) -> Iterator[Captured]:
        """Read the snapshot that a token tells of, if it was kept; else the volume itself."""
        volume, states = self._volume, self._options.states
        mine = [v for v in lvm.volumes(volume.group) if v.origin == volume.name]
        by_uuid = {each.uuid: each for each in mine}
        kept, older = by_uuid.get(states.given_goal), by_uuid.get(states.given_base)
        with lvm.activated(kept or volume) as active:
            changes = None
            if older is not None and not states.extents:
                changes = changes_between(older, active, self._options.state_dir)
            watched = [older] if older is not None else []
            with contextlib.closing(VolumeSource(active, depends_on=watched)) as source:
                moment = moment_of(kept) if kept is not None else None
                base, goal = states.given_base, states.given_goal
                yield self._captured(source, base, goal, moment, changes)
        if kept is not None and is_ours(kept):
            _remove_used([kept])

    @contextlib.contextmanager
    def _fresh(self) -> Iterator[Captured]:
        """Read a snapshot that is made for it, or was, when the transfer was begun."""
        volume, options = self._volume, self._options
        ident = ident_of(volume, options.target)
        with remembering(options.state_dir, ident) as memory:
            since = _since(volume, options, memory.last) if options.lvm.since else _Since()
            notes = list[str]()
            ours, stale = _unfinished(volume, ident, since.older, memory.last, notes)
            made = ours is None
            if ours is None:
                ours = make_ours(volume, ident, options.lvm.snapshot_size)
            else:
                notes.append(
                    f"this goes on with {ours}, which an earlier run made "
                    f"{duration_text(max(0.0, time.time() - ours.created))} ago: what was written "
                    f"to {volume} since is not sent"
                )
            held = self._held = _HeldStill(ours, since, memory, notes)
            try:
                with self._read_snapshot(held) as disk:
                    yield disk
            except _GOES_ON as error:
                error.add(f"the snapshot {ours} is kept, so that the same command goes on with it")
                raise
            except BaseException:
                if held.is_committed:
                    stays = not_removed(held.used_up(stale, ident, keep=options.lvm.rotate))
                    for each, why in stays.items():
                        self._run.tell(f"the snapshot {each} stays, and grows: {why}")
                elif made:
                    not_removed([ours])
                raise
            _remove_used(held.used_up(stale, ident, keep=options.lvm.rotate))

    @contextlib.contextmanager
    def _read_snapshot(self, held: "_HeldStill") -> Iterator[Captured]:
        older = held.since.older
        with lvm.activated(held.snapshot) as snapshot:
            changes = None
            if older is not None:
                changes = changes_between(older, snapshot, self._options.state_dir)
            watched = [older] if older is not None else []
            with contextlib.closing(VolumeSource(snapshot, depends_on=watched)) as source:
                source.warnings += held.notes
                base = older.uuid if older is not None else ""
                state = self._options.states.goal or held.snapshot.uuid
                moment = moment_of(held.snapshot)
                disk = self._captured(source, base, state, moment, changes)
                yield replace(disk, why_whole=held.since.why_whole)


@dataclass(frozen=True, slots=True)
class _Since:
    """What the changes are counted from.

    Attributes:
        older: The snapshot; None for a whole copy.
        why_whole: Why it is one, although there was a snapshot.
    """

    older: Volume | None = None
    why_whole: str = ""


@dataclass(slots=True)
class _HeldStill:
    """A snapshot of ours that is read.

    Attributes:
        snapshot: The snapshot.
        since: What the changes in it are counted from.
        memory: Which snapshot the target held last.
        notes: What people should know of it.
        is_committed: Whether the target holds this one.
    """

    snapshot: Volume
    since: _Since
    memory: Memory
    notes: list[str]
    is_committed: bool = False

    def note_committed(self) -> None:
        """The target holds it."""
        self.memory.note(self.snapshot.uuid)
        self.is_committed = True

    def used_up(self, stale: list[Volume], ident: str, *, keep: bool) -> list[Volume]:
        """Return what nobody needs any more.

        Args:
            stale: What earlier runs left.
            ident: What is in the names of ours.
            keep: Whether the next round is to start from this one.
        """
        if not self.is_committed:
            # What the target held last is what it holds, as far as is known.
            return [each for each in stale if each.uuid != self.memory.last] + [self.snapshot]
        older = self.since.older
        if not keep:
            return [*stale, self.snapshot]
        return [*stale, older] if older is not None and is_ours(older, ident) else stale


def _check_options(options: CaptureOptions) -> None:
    """Refuse what contradicts itself."""
    states, how = options.states, options.lvm
    if how.since and (states.base or states.extents or states.resume):
        raise UsageError("--since finds out base and changes; leave --base, --extents, --resume")
    if how.rotate and (how.quiesced or states.goal):
        raise UsageError("--rotate keeps a snapshot, whose uuid is the goal")


def _check_volume(volume: Volume, options: CaptureOptions) -> None:
    """Refuse what cannot be read now.

    Raises:
        RefusedError: If it cannot.
    """
    if volume.suspended:
        raise RefusedError(
            f"{volume} is suspended, so reading it would hang; nothing was sent; "
            f"`dmsetup resume {volume.dm_path}` wakes it"
        )
    if volume.attributes[:1] in {"t", "T", "e"}:
        raise RefusedError(f"{volume} is a part of a thin pool, not a disk; nothing was sent")
    if volume.attributes[:1] == "O" or (volume.is_active and lvm.origin_merges(volume)):
        raise RefusedError(f"a snapshot is being merged into {volume}; nothing was sent")
    states = options.states
    own_list = states.base or states.extents or states.resume
    if volume.is_snapshot and volume.is_written and not (options.lvm.quiesced or own_list):
        raise RefusedError(
            f"{volume} is a snapshot that can be written, of which LVM makes no snapshot; nothing "
            f"was sent; give --quiesced if nobody writes it, or make it read-only: `lvchange -pr "
            f"{volume}`"
        )


def _remove_used(snapshots: list[Volume]) -> None:
    """Remove snapshots that are not needed any more.

    Raises:
        LeftoverError: If one cannot be removed; then the others are, all the same.
    """
    for snapshot, error in not_removed(snapshots).items():
        raise LeftoverError(
            f"all was sent, but its snapshot {snapshot} stays, and grows: {error}; remove it with "
            "lvremove, or leave that to the next run of the same command"
        ) from error


def _since(volume: Volume, options: CaptureOptions, last: str, rehearsal: bool = False) -> _Since:
    """Return what the changes are counted from.

    Args:
        volume: What is sent.
        options: What was asked for.
        last: Uuid of the snapshot that the target held last.
        rehearsal: Remove nothing.

    Raises:
        NotFoundError: If there is none of that name.
        RefusedError: If it is none of this volume.
        SnapshotInvalidError: If it is not valid, and nothing is to be sent then.
    """
    if options.lvm.since != "last":
        return _Since(lvm.of_origin(volume, options.lvm.since))
    ident = ident_of(volume, options.target)
    for each in lvm.volumes(volume.group):
        if each.origin == volume.name and is_ours(each, ident) and each.uuid == last:
            return _lost(each, options.lvm, rehearsal) if each.is_invalid else _Since(each)
    if not options.lvm.rotate:
        raise NotFoundError(
            f"no snapshot of {volume} was kept for this target; nothing was sent; --rotate keeps "
            "one, and begins with a whole copy"
        )
    return _Since()


def _lost(kept: Volume, how: LvmOptions, rehearsal: bool) -> _Since:
    """Give up a snapshot that overflowed since the last time: all is sent again.

    Raises:
        SnapshotInvalidError: If nothing is to be sent then.
    """
    text = f"{kept}, which was kept for the next time, has overflowed"
    if how.on_lost_base == "fail":
        raise SnapshotInvalidError(
            f"{text}, so nothing is known of what changed; nothing was sent; without "
            "--on-lost-base fail all is sent again; --snapshot-size gives the next one more room"
        )
    stays = {} if rehearsal else not_removed([kept])
    gone = f"cannot be removed ({stays[kept]})" if stays else "was removed"
    gone = "would be removed" if rehearsal else gone
    return _Since(None, f"{text}, and {gone}; --snapshot-size gives the next one more room")


def _unfinished(
    volume: Volume, ident: str, older: Volume | None, last: str, notes: list[str]
) -> tuple[Volume | None, list[Volume]]:
    """Return the snapshot that an unfinished transfer was made from, and what goes after this one.

    Others of it are removed, which is noted; those for which that fails are returned, too. What the
    target holds stays until it holds something newer.
    """
    found = [
        each
        for each in lvm.volumes(volume.group)
        if each.origin == volume.name and is_ours(each, ident)
    ]
    found = [each for each in found if older is None or each.uuid != older.uuid]
    useful, stale, kept = None, list[Volume](), list[Volume]()
    for each in sorted(found, key=number_of):
        # One from before the base would lead back in time.
        early = older is not None and not _lies_after(each, older, ident)
        if each.uuid == last and not each.is_invalid:
            kept.append(each)
        elif each.is_invalid or early:
            stale.append(each)
        else:
            useful = each
        if early and each.uuid != last:
            notes.append(f"{each}, which an earlier run left, is older than {older}: not used")
    return useful, [*kept, *not_removed(stale)]


def _lies_after(kept: Volume, older: Volume, ident: str) -> bool:
    """Tell whether a snapshot of ours was made after the base, by LVM's own order.

    Of two in the same second our numbers tell, if both are ours; else it is not certain.
    """
    if not older.is_thin and kept.created == older.created:
        return is_ours(older, ident) and number_of(kept) > number_of(older)
    return kept.lies_after(older)
