"""A virtual machine of VMware: all of its disks, of one snapshot, and what changed in them.

What a target holds is named by a change id of VMware's tracker (`TrackedState`), which is
committed with the bytes. So the next round begins with what the target says it holds, from
whichever host it is run.
"""

import contextlib
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path

from blockstream.captures.interface import Captured, Held
from blockstream.captures.vsphere.readers import Readers
from blockstream.captures.vsphere.snapshots import (
    MachineSnapshots,
    OpenWatch,
    SnapshotPolicy,
    ident_of,
)
from blockstream.errors import (
    BlockstreamError,
    LeftoverError,
    NotFoundError,
    RefusedError,
    SourceError,
)
from blockstream.extents import ExtentMap
from blockstream.formats.changed_areas import TrackedState
from blockstream.formats.extent_lists import ExtentList, Meaning
from blockstream.linux.state_directory import locked, make_directory
from blockstream.locations.ssh import Way
from blockstream.locations.vsphere import MachinePlace
from blockstream.run import Run
from blockstream.sources.datastore import Server
from blockstream.sources.inventory import (
    GoneError,
    InTheWayError,
    Machine,
    Snapshot,
    TrackerError,
    VirtualDisk,
)
from blockstream.sources.virtual_disk import VirtualDiskSource
from blockstream.sources.vsphere import VSphere
from blockstream_protocol import Kind

_UNSAFE = re.compile(r"[^A-Za-z0-9._-]")

LogIn = Callable[[], AbstractContextManager[tuple[VSphere, Server]]]
"""Logs in where a machine is, and out; the second is the same server, for its files."""


class OnLoss(StrEnum):
    """What becomes of a disk of which the tracker cannot tell what changed."""

    FULL = "full"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class MachineOptions:
    """How a machine is read.

    Attributes:
        state_dir: Where is noted that a machine is being read.
        target: Where it all goes, so that each target has snapshots of its own.
        base: State that the target holds of each disk; empty to ask it.
        snapshots: How its snapshot is made.
        enable: Switch change tracking on where it is off.
        on_loss: What becomes of a disk of which nobody knows what changed.
        allocated: For a whole copy, read only what the tracker calls allocated.
        way: How an ESXi host is reached whose files are read over ssh.
    """

    state_dir: Path
    target: str
    base: str = ""
    snapshots: SnapshotPolicy = field(default_factory=SnapshotPolicy)
    enable: bool = False
    on_loss: OnLoss = OnLoss.FULL
    allocated: bool = False
    way: Way = field(default_factory=Way)


@dataclass(frozen=True, slots=True)
class Frozen:
    """The moment of which all disks are read.

    Attributes:
        machine: The machine.
        snapshot: Its snapshot.
        quiesced: Whether its guest was brought to rest for it.
    """

    machine: Machine
    snapshot: Snapshot
    quiesced: bool

    @property
    def moment(self) -> int | None:
        """When it was made, by the server's clock, in nanoseconds since 1970."""
        made = self.snapshot.made
        return round(made.timestamp() * 1000) * 1_000_000 if made else None


class MachineCapture:
    """Makes a snapshot of a machine, and reads its disks from it.

    Attributes:
        frozen: What was made; there once it is open.
    """

    def __init__(self, place: MachinePlace, log_in: LogIn, options: MachineOptions) -> None:
        """Name it.

        Args:
            place: The machine, or one disk of it.
            log_in: Leads there.
            options: How it is read.
        """
        self.frozen: Frozen
        self._place = place
        self._log_in = log_in
        self._options = options

    @contextlib.asynccontextmanager
    async def open(self, held: Held, run: Run) -> AsyncIterator[Sequence[Captured]]:
        """See `Capture`. The snapshot is removed whatever happens.

        Raises:
            LeftoverError: If all went well, but the snapshot could not be removed.
            BlockstreamError: As the server, or whoever uses what was opened, fails.
        """
        async with (
            run.within(self._log_in(), harmless=True) as (session, server),
            run.within(self._ready(session, run)) as (snapshots, wanted),
        ):
            # Asked before there is a snapshot, which nobody should wait with.
            bases = {}
            for each in wanted:
                name = disk_name(snapshots.machine, each)
                bases[each.key] = self._options.base or (await held(name)).state
            opening = self._opened(session, server, snapshots, bases, run)
            async with run.within(opening) as disks:
                yield disks

    async def committed(self, disk: Captured) -> None:
        """See `Capture`. The target itself says the next time what it holds."""

    @contextlib.contextmanager
    def _ready(
        self, session: VSphere, run: Run
    ) -> Iterator[tuple[MachineSnapshots, list[VirtualDisk]]]:
        """Be alone with a machine that is tracked, and that no snapshot of ours is left of."""
        place, options = self._place, self._options
        snapshots = MachineSnapshots(session, session.machine(place.path), options.snapshots, run)
        wanted = chosen(snapshots.machine, place, run.tell)
        folder = options.state_dir / "vsphere"
        make_directory(folder)
        # On this host nobody else does the same, so a leftover of ours is nobody's any more.
        ident = self._ident(snapshots.machine)
        with locked(folder / f"machine-{ident}", f"{place} on its way to {options.target}"):
            snapshots.clean(ident)
            if options.enable and not snapshots.machine.tracked:
                try:
                    snapshots.enable_tracking()
                except LeftoverError as error:
                    raise SourceError(f"{error}; nothing was sent") from error
            yield snapshots, wanted

    def _ident(self, machine: Machine) -> str:
        return ident_of(f"{machine.uuid} {self._place.disk} {self._options.target}")

    @contextlib.contextmanager
    def _opened(
        self,
        session: VSphere,
        server: Server,
        snapshots: MachineSnapshots,
        bases: Mapping[int, str],
        run: Run,
    ) -> Iterator[list[Captured]]:
        machine, place, way = snapshots.machine, self._place, self._options.way
        with contextlib.ExitStack() as stack:
            freezing = snapshots.frozen(self._ident(machine))
            snapshot, quiesced = stack.enter_context(freezing)
            self.frozen = Frozen(machine, snapshot, quiesced)
            readers = Readers(session, server, place, way, machine, snapshot)
            stack.callback(readers.close)
            watch = OpenWatch(machine, snapshot, run.tell, time.monotonic())
            opening = _Opening(
                *(session, readers, place, self._options, self.frozen, snapshots, watch, run)
            )
            found = []
            there = {each.key: each for each in session.disks_of(snapshot)}
            for key, base in bases.items():
                if key not in there:
                    raise GoneError(f"{place}: disk {key} was removed; nothing was sent")
                disk = opening.unless_stopped(there[key], base)
                stack.callback(disk.source.close)
                if disk.base and disk.base == disk.state:
                    run.tell(f"{disk.name}: the target holds this very state")
                else:
                    found.append(disk)
            yield found


def disk_name(machine: Machine, disk: VirtualDisk) -> str:
    """Return what a disk is called at a target, as a file or in a store."""
    return f"{_UNSAFE.sub('_', machine.name)}-{disk.key}"


def chosen(machine: Machine, place: MachinePlace, tell: Callable[[str], None]) -> list[VirtualDisk]:
    """Return the disks that are meant, and say which ones no snapshot holds.

    Raises:
        NotFoundError: If there is none.
        RefusedError: If the machine is a template, or no snapshot holds the one disk.
    """
    if machine.template:
        raise RefusedError(
            f"{place} is a template, of which there are no snapshots; nothing was sent"
        )
    found = [each for each in machine.disks if place.disk in {0, each.key}]
    if not found:
        raise NotFoundError(
            f"{machine.path} has no disk {place.disk or 'at all'}; nothing was sent; it has "
            f"{', '.join(str(each.key) for each in machine.disks) or 'none'}"
        )
    for each in found:
        if each.obstacle and place.disk:
            raise RefusedError(f"{place}: {each.label} {each.obstacle}; nothing was sent")
        if each.obstacle:
            tell(f"{machine.name}: {each.label} {each.obstacle}, so it is left out")
    found = [each for each in found if not each.obstacle]
    if not found:
        raise RefusedError(f"{machine.path} has no disk that a snapshot holds; nothing was sent")
    return found


def _untracked(machine: Machine, disk: VirtualDisk) -> str:
    """Say what to do about a disk without a change id."""
    if machine.tracked:
        return disk.why_untracked
    return "nothing is tracked of it (`blockstream vsphere enable-cbt` switches it on)"


@dataclass(frozen=True, slots=True)
class _Opening:
    """Opens the disks of one moment."""

    session: VSphere
    readers: Readers
    place: MachinePlace
    options: MachineOptions
    frozen: Frozen
    snapshots: MachineSnapshots
    watch: OpenWatch
    run: Run

    def unless_stopped(self, disk: VirtualDisk, base: str) -> Captured:
        """Open a disk, which may be tried again and again, as long as that is wanted."""
        try:
            with self.run.heeding(lambda _reason: self.readers.stop()):
                return self.disk(disk, base)
        except BlockstreamError:
            self.run.check("nothing was sent")
            raise

    def disk(self, disk: VirtualDisk, base: str) -> Captured:
        """Open a disk, and find out what of it has to be sent."""
        machine, options = self.frozen.machine, self.options
        place = replace(self.place, disk=disk.key)
        now = TrackedState(machine.uuid, disk.key, disk.uuid, disk.size, disk.change)
        changes, why_whole = self._changes(disk, now, base)
        if why_whole and base and options.on_loss is OnLoss.FAIL:
            raise SourceError(
                f"{place}: {why_whole}, so that all of it would have to be sent; nothing was sent; "
                "--on-cbt-loss full does"
            )
        if why_whole and options.allocated:
            changes = self._allocated(disk)
        return Captured(
            name=disk_name(machine, disk),
            location=str(place),
            source=self._source(disk, place),
            state=str(now) if disk.change else "",
            moment=self.frozen.moment,
            base="" if why_whole else base,
            changes=changes,
            why_whole=why_whole,
        )

    def _source(self, disk: VirtualDisk, place: MachinePlace) -> VirtualDiskSource:
        session, snapshot = self.session, self.frozen.snapshot
        reader = self.readers.open(disk)
        key = f"{self.frozen.machine.uuid}:{disk.key}:{disk.uuid}"

        def still_frozen() -> None:
            frozen = {each.key: each for each in session.disks_of(snapshot)}
            if disk.key not in frozen or frozen[disk.key].file != disk.file:
                raise GoneError(
                    f"{place}: its snapshot was removed while it was read, so what was sent is no "
                    "one state of it; END was not sent; send again"
                )

        def tick() -> None:
            session.keep_alive()
            self.watch.look(time.monotonic())

        return VirtualDiskSource(str(place), disk.size, key, reader, still_frozen, tick)

    def _changes(
        self, disk: VirtualDisk, now: TrackedState, base: str
    ) -> tuple[ExtentList | None, str]:
        """Return what changed since the base; or why all of it is sent."""
        machine, then = self.frozen.machine, TrackedState.parse(base)
        if then is not None and (then.machine, then.key) != (now.machine, now.key):
            raise RefusedError(
                f"the target of {now.key} holds disk {then.key} of machine {then.machine}, and "
                f"this is disk {now.key} of {now.machine}; nothing was sent; name another "
                "target, or `blockstream adopt` it under another --id to have it overwritten"
            )
        if not disk.change:
            return None, _untracked(machine, disk)
        if not base:
            return None, "the target holds nothing of it yet"
        if then is None:
            return None, f"the target holds {base!r}, which is no state of this tracker"
        why = now.why_not_since(then)
        if not why and machine.lies:
            why = f"hosts of release {machine.release} are known to lose changes"
        if why:
            return None, why
        try:
            extents = self._asked(disk, then.change)
        except (TrackerError, InTheWayError) as error:
            return None, str(error)
        return ExtentList(extents, Meaning.CHANGED, "change tracking", disk.size), ""

    def _asked(self, disk: VirtualDisk, since: str) -> ExtentMap:
        machine, snapshot = self.frozen.machine, self.frozen.snapshot
        return self.snapshots.retried(
            lambda: self.session.changed(machine, snapshot, disk, since), ""
        )

    def _allocated(self, disk: VirtualDisk) -> ExtentList | None:
        """Return what the tracker calls allocated; the rest reads as zeros."""
        try:
            extents = self._asked(disk, "*")
        except (TrackerError, InTheWayError) as error:
            self.run.tell(f"{disk.label}: what is allocated is not known: {error}")
            return None
        return ExtentList(
            extents.filled(Kind.ZERO), Meaning.ALLOCATED, "change tracking", disk.size
        )
