"""One volume of a guest on its way to another host.

Each round is a transfer from a new snapshot, whose uuid is the state that the target holds then. So
a run that died is gone on with by looking at which snapshots of ours there are, and which of them
the target holds.
"""

import functools
import threading
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

from blockstream.captures.lvm_changes import changes_between
from blockstream.captures.lvm_round import RoundCapture
from blockstream.captures.lvm_snapshots import (
    ident_of,
    is_ours,
    make_ours,
    name_of,
    number_of,
    room_for,
)
from blockstream.destinations.standing import StandingDestination
from blockstream.errors import (
    RefusedError,
)
from blockstream.formats.extent_lists import ExtentList
from blockstream.jobs.migration.marks import made_for, tag_of
from blockstream.jobs.migration.narrowing import Narrowing
from blockstream.jobs.migration.target_volume import Landing, LandingWish, ask
from blockstream.jobs.transfer import ChangeOptions, transfer
from blockstream.linux import lvm
from blockstream.linux.lvm import Volume
from blockstream.locations.local import LocalDisk
from blockstream.locations.ssh import Remote
from blockstream.pipeline.compression import CompressionChoice
from blockstream.pipeline.limiter import Limiter
from blockstream.run import Run
from blockstream.transfers.peer_options import PeerOptions
from blockstream.transfers.receive_options import ReceiveRequest
from blockstream.transfers.send import SendResult, TransferOptions

# Of the volumes of a guest, two would take the same room of their group for theirs.
_MAKING = threading.Lock()


@dataclass(frozen=True, slots=True)
class Move:
    """One volume, and where it goes.

    Attributes:
        source: The volume as it was named.
        where: Its device on the other host.
        wish: What is to become of it there.
    """

    source: str
    where: Remote
    wish: LandingWish


def moved_to(volume: Volume, where: Remote) -> Move:
    """Return the move of a volume to a place that its tag tells of."""
    _, _, group, name = where.path.split("/")
    return Move(str(volume), where, LandingWish(group, name))


@dataclass(frozen=True, slots=True)
class Means:
    """What volumes are moved with.

    Attributes:
        state_dir: Where journals lie.
        options: How the other host is reached.
        compression: Codec and level.
        limiter: Limit on wire bytes, but for the last pass.
    """

    state_dir: Path
    options: PeerOptions
    compression: CompressionChoice = field(default_factory=lambda: CompressionChoice(None))
    limiter: Limiter = field(default_factory=lambda: Limiter(None))


@dataclass(frozen=True, slots=True)
class _Pass:
    """One pass over a volume.

    Attributes:
        newer: Snapshot that is sent.
        older: What the changes are counted from; None for all of it.
        compare: Whether the target holds most of it, so that only what differs need go over.
    """

    newer: Volume
    older: Volume | None
    compare: bool = False


class MovingVolume:
    """A volume under way.

    Attributes:
        volume: The volume.
        made: When the snapshot was made whose state the target holds.
        filled: How full the snapshot was that the last round was counted from, in per cent.
        preparing: Seconds that it took to find out what changed, last.
    """

    def __init__(self, move: Move, volume: Volume, means: Means, store: int) -> None:
        """Name it; nothing is done.

        Args:
            move: Where it goes.
            volume: What was found under its name.
            means: What it is moved with.
            store: Bytes for each classic snapshot; 0 to decide by the volume's size.
        """
        self.volume = volume
        self.made = 0.0
        self._move = move
        self._means = means
        self._store = store
        self._ident = ident_of(volume, str(move.where))
        self._held: Volume | None = None  # None before the whole copy
        self._room = 0
        self._spent: Volume | None = None  # a snapshot that nothing is counted from any more
        self._made_there = False
        self._narrowing = Narrowing()
        self._there = StandingDestination(
            move.where,
            ReceiveRequest(move.where.path, means.state_dir),
            TransferOptions(means.state_dir, means.compression, means.limiter),
            means.options,
        )
        self.filled = self.preparing = 0.0

    @property
    def where(self) -> Remote:
        """Its device on the other host."""
        return self._move.where

    @property
    def tag(self) -> str:
        """The tag that tells that the volume is on its way there."""
        return tag_of(self.where)

    def ours(self) -> list[Volume]:
        """Return our snapshots of it, oldest first."""
        there = lvm.volumes(self.volume.group)
        mine = [v for v in there if v.origin == self.volume.name and is_ours(v, self._ident)]
        return sorted(mine, key=number_of)

    def has_overflowed(self) -> bool:
        """Tell whether so much was changed that nobody knows what."""
        spent = {self._spent.uuid} if self._spent is not None else set()
        return any(each.is_invalid for each in self.ours() if each.uuid not in spent)

    def drop_snapshots(self) -> None:
        """Remove our snapshots of it."""
        for snapshot in self.ours():
            lvm.remove(snapshot)
        self._spent = None

    def claim(self) -> None:
        """Let LVM itself tell from now on that the volume is on its way."""
        if self.tag not in lvm.again(self.volume).tags:
            lvm.add_tag(self.volume, self.tag)

    def release(self) -> None:
        """Nothing is left of the migration, on both hosts."""
        lvm.drop_tag(self.volume, self.tag)

    def left(self) -> list[str]:
        """Return what there is of the migration, to be named; what is of no use is removed."""
        self._drop_spent()
        for each in self.ours():
            if each.is_invalid:
                lvm.remove(each)
        made = f"{self.where}, which was made for this"
        return [*map(str, self.ours()), *([made] if self._made_there else [])]

    def problem(self) -> str:
        """Return why it cannot be moved; empty if it can."""
        volume = self.volume
        if volume.suspended:
            return f"{volume} is suspended: `dmsetup resume {volume.dm_path}`"
        if not volume.is_active:
            return f"{volume} is not active"
        if volume.attributes[:1] not in {"-", "o", "V", "m", "r", "R"}:
            return f"{volume} is a snapshot, a part of a pool, or being merged into"
        if lvm.origin_merges(volume):
            return f"a snapshot is being merged into {volume}"
        if volume.is_thin or self.ours():
            return ""
        room = room_for(volume, self._store)
        return room if isinstance(room, str) else ""

    def asked(
        self, run: Run, *, dry_run: bool = False, remove: bool = False, settle: bool = False
    ) -> Landing:
        """Ask the other host for its place there, or tell it what became of it.

        Raises:
            BlockstreamError: If it is not reached.
        """
        wish = replace(
            self._move.wish,
            size=self.volume.size,
            mark=made_for(self._ident),
            dry_run=dry_run,
            remove=remove,
            settle=settle,
        )
        self._made_there |= wish.create and not dry_run  # unless the answer says otherwise
        found = ask(self.where, wish, self._means.options, run)
        self._made_there = found.made
        return found

    def enlarge(self) -> bool:
        """Let the next snapshots have twice the room; tell whether there is that much."""
        self.close()
        if self.volume.is_thin:
            return False
        self.drop_snapshots()
        before = self._store or room_for(self.volume, 0)
        if isinstance(before, str) or isinstance(room_for(self.volume, before * 2), str):
            return False
        self._store = before * 2
        self._held, self._room = None, 0
        return True

    async def begin(self, landing: Landing, run: Run, *, compare: bool) -> SendResult | None:
        """Bring it over, or go on with what an earlier run began.

        Args:
            landing: What the target is known to hold.
            run: Counts, and stops it.
            compare: Whether it holds most of it, so that only what differs need go over.

        Returns:
            What went over; None if an earlier run had sent it.

        Raises:
            BlockstreamError: If it fails.
        """
        first = await run.carry(lambda: self._taken_up(landing, run, compare=compare))
        if first is None:
            return None
        sent = await self._send(first, run)
        await run.settle(self._drop_others)
        return sent

    def _taken_up(self, landing: Landing, run: Run, *, compare: bool) -> "_Pass | None":
        """Return what is to be sent first; None if an earlier run had sent it."""
        ours = {each.uuid: each for each in self.ours() if not each.is_invalid}
        held = ours.get(landing.holds)
        if landing.state == "clean" and held is not None:
            self._held, self.made = held, time.monotonic()
            run.tell(f"{self.volume}: an earlier run brought it to {held}")
            self._drop_others()
            return None
        base = ours.get(landing.base)
        if landing.state == "dirty" and held is not None and (base or not landing.base):
            self._narrowing.rest()
            run.tell(f"{self.volume}: an unfinished round is gone on with")
            return _Pass(held, base)
        if base is not None:
            # Of the base, and of all that changed since: that makes good what came after it.
            self._held, self.made = base, time.monotonic()
            self._narrowing.rest()
            run.tell(f"{self.volume}: an earlier run went on from {base}, and so does this")
            self._drop_others()
            return None
        self.drop_snapshots()
        return _Pass(self._snapshot(), None, compare=compare)

    async def round(self, run: Run) -> SendResult:
        """Send what changed, from a new snapshot.

        Raises:
            SnapshotInvalidError: If so much did that nobody knows what.
            BlockstreamError: If it fails.
        """

        def begun() -> _Pass:
            lvm.again(self.volume)
            self._drop_spent()
            older = self._held
            self._there.stand_by()
            return _Pass(self._snapshot(), older)

        return await self._send(await run.carry(begun), run)

    def stand_by(self) -> None:
        """Let a receiver wait there for the last pass.

        Raises:
            BlockstreamError: If somebody did something to the volume or its snapshot.
        """
        lvm.again(self.volume)
        self._there.stand_by()

    def close(self) -> None:
        """Give the connections back."""
        self._there.close()

    async def rest(self, run: Run) -> SendResult:
        """Send what changed since the last snapshot, from the volume itself: nobody writes it now.

        Raises:
            SnapshotInvalidError: If so much did that nobody knows what.
            ConnectionLostError: If the receiver that stood by is gone: to wait for another one may
                take long.
            BlockstreamError: If it fails.
        """
        older = self._held
        if older is None:
            raise RefusedError("there was no first round")
        with self._there.in_haste():
            rest = self._read(self.volume, older, itself=True)
            return await self._delivered(rest, run)

    async def differing(self, run: Run) -> int:
        """Return how many bytes differ between both sides."""
        capture = self._read(self.volume, None, itself=True)
        async with capture.open(functools.partial(self._there.held, run=run), run) as (disk,):
            found = await self._there.differing(disk, run)
        return found.differing.total()

    def _snapshot(self) -> Volume:
        with _MAKING:
            return self._made()

    def _made(self) -> Volume:
        if self._held is None or not (self.volume.is_thin or self._room):
            room = room_for(self.volume, self._store)
            self._room = room if isinstance(room, int) else 0
            return make_ours(self.volume, self._ident, self._store)
        # Without looking again: each command of LVM takes a tenth of a second.
        name = name_of(self._ident, number_of(self._held) + 1)
        return lvm.make_snapshot(self.volume, name, self._room)

    def _read(self, newer: Volume, older: Volume | None, *, itself: bool = False) -> RoundCapture:
        return RoundCapture(
            LocalDisk(self._move.source), newer, older, self._changes, itself=itself
        )

    async def _delivered(
        self, capture: RoundCapture, run: Run, *, compare: bool = False
    ) -> SendResult:
        (delivered,) = await transfer(capture, self._there, run, options=ChangeOptions(compare))
        if not isinstance(delivered.result, SendResult):
            raise TypeError("another host says what was sent")
        return delivered.result

    async def _send(self, what: "_Pass", run: Run) -> SendResult:
        made, older = time.monotonic(), what.older
        capture = self._read(what.newer, older)
        sent = await self._delivered(capture, run, compare=what.compare)
        self.preparing = capture.preparing
        self._narrowing.carried(sent)
        self._held, self.made = what.newer, made
        if older is not None:
            self.filled = await run.settle(lambda: lvm.filled(older))
            self._spent = older
        return sent

    def _changes(self, older: Volume, newer: Volume, run: Run) -> ExtentList:
        """Return what changed, as finely as it pays to find out."""
        found = changes_between(older, newer, self._means.state_dir)
        return self._narrowing.narrowed(older, newer, found, run) if older.is_thin else found

    def _drop_spent(self) -> None:
        """Remove what the last round was counted from; the last pass does not wait for that."""
        if self._spent is not None:
            lvm.remove(self._spent)
            self._spent = None

    def _drop_others(self) -> None:
        for each in self.ours():
            if self._held is None or each.uuid != self._held.uuid:
                lvm.remove(each)
        self._spent = None
