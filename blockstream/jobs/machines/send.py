"""What `send` reads of a virtual machine: a snapshot that it makes, and what changed since.

What a target holds is named by a change id of VMware's tracker (`TrackedState`), which is
committed with the bytes. So the next round begins with what the target says it holds, from
whichever host it is run.
"""

import contextlib
import functools
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from enum import StrEnum

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
from blockstream.interfaces import Source
from blockstream.jobs.machines.readers import Readers
from blockstream.jobs.machines.snapshots import (
    Care,
    OpenWatch,
    cleaned,
    enable_tracking,
    frozen,
    ident_of,
    patiently,
)
from blockstream.linux.state_directory import locked, make_directory
from blockstream.locations import MachinePlace, Way
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
from blockstream.transfers.send import SendRequest
from blockstream_protocol import Kind

_UNSAFE = re.compile(r"[^A-Za-z0-9._-]")


class OnLoss(StrEnum):
    """What becomes of a disk of which the tracker cannot tell what changed."""

    FULL = "full"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class MachineWish:
    """How a machine is read.

    Attributes:
        care: How its snapshot is made.
        enable: Switch change tracking on where it is off.
        on_loss: What becomes of a disk of which nobody knows what changed.
        way: How an ESXi host is reached whose files are read over ssh.
        allocated: For a whole copy, read only what the tracker calls allocated.
    """

    care: Care = field(default_factory=Care)
    enable: bool = False
    on_loss: OnLoss = OnLoss.FULL
    allocated: bool = False
    way: Way = field(default_factory=Way)


@dataclass(slots=True)
class MachineDisk:
    """One disk that is to be sent.

    Attributes:
        name: What it is called at the target: the machine's name and the disk's number.
        disk: The disk.
        source: Reads it.
        request: What of it is sent.
        why_full: Why all of it is sent; empty if only the changes are.
    """

    name: str
    disk: VirtualDisk
    source: Source
    request: SendRequest
    why_full: str


@dataclass(frozen=True, slots=True)
class Round:
    """One round: the disks of a machine, of one moment.

    Attributes:
        machine: The machine.
        snapshot: The snapshot that they are read from.
        quiesced: Whether its guest was brought to rest for it.
        disks: The disks.
    """

    machine: Machine
    snapshot: Snapshot
    quiesced: bool
    disks: list[MachineDisk] = field(default_factory=list)


def _moment_of(snapshot: Snapshot) -> int | None:
    """Return when a snapshot was made, by the server's clock, in nanoseconds since 1970."""
    return round(snapshot.made.timestamp() * 1000) * 1_000_000 if snapshot.made else None


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


@contextlib.contextmanager
def opened_machine(
    session: VSphere,
    server: Server,
    place: MachinePlace,
    request: SendRequest,
    wish: MachineWish,
    held: Callable[[str], str],
    target: str,
) -> Iterator[Round]:
    """Make a snapshot of a machine, and open its disks; remove it whatever happens.

    Args:
        session: Where the machine is.
        server: The same, for its files.
        place: The machine, or one disk of it.
        request: What to send otherwise.
        wish: How it is read.
        held: Returns what the target holds of the disk of that name; empty for nothing known.
        target: Where it all goes, so that each target has snapshots of its own.

    Raises:
        LeftoverError: If all went well, but the snapshot could not be removed.
        BlockstreamError: As the server, or whoever uses what was opened, fails.
    """
    machine = session.machine(place.path)
    wanted = chosen(machine, place, wish.care.tell)
    ident = ident_of(f"{machine.uuid} {place.disk} {target}")
    folder = request.state_dir / "vsphere"
    make_directory(folder)
    # On this host nobody else does the same, so a leftover of ours is nobody's any more.
    with locked(folder / f"machine-{ident}", f"{place} on its way to {target}"):
        machine = cleaned(session, machine, ident, wish.care)
        machine = _tracking(session, machine, wish)
        # Asked before there is a snapshot, which nobody should wait with.
        bases = {each.key: request.base or held(disk_name(machine, each)) for each in wanted}
        with frozen(session, machine, ident, wish.care) as (snapshot, quiesced):
            found = Round(machine, snapshot, quiesced)
            with contextlib.ExitStack() as stack:
                readers = Readers(session, server, place, wish.way, machine, snapshot)
                stack.callback(readers.close)
                watch = OpenWatch(machine, snapshot, wish.care.tell, time.monotonic())
                opening = _Opening(session, readers, place, request, wish, watch)
                disks = {each.key: each for each in session.disks_of(snapshot)}
                for each in wanted:
                    if each.key not in disks:
                        raise GoneError(f"{place}: disk {each.key} was removed; nothing was sent")
                    disk = _unless_stopped(
                        wish.care.run,
                        readers,
                        functools.partial(opening.disk, found, disks[each.key], bases[each.key]),
                    )
                    stack.callback(disk.source.close)
                    if disk.request.base and disk.request.base == disk.request.goal:
                        wish.care.tell(f"{disk.name}: the target holds this very state")
                    else:
                        found.disks.append(disk)
                yield found


def _unless_stopped(run: Run, readers: Readers, work: Callable[[], MachineDisk]) -> MachineDisk:
    """Open a disk, which may be tried again and again, as long as that is wanted."""
    try:
        with run.heeding(lambda _reason: readers.stop()):
            return work()
    except BlockstreamError:
        run.check("nothing was sent")
        raise


def add_missed(disk: MachineDisk, differing: ExtentMap) -> ExtentMap:
    """Send what differs from the target, too, although the tracker did not call it changed.

    Args:
        disk: The disk, of which only the changes are sent.
        differing: What differs, found without the tracker.

    Returns:
        What the tracker had missed.
    """
    changes = disk.request.changes
    if changes is None:
        return ExtentMap.empty(disk.source.size)
    missed = differing.without(changes.extents)
    extents = changes.extents.overlaid(missed)
    disk.request = replace(disk.request, changes=replace(changes, extents=extents))
    return missed


def _untracked(machine: Machine, disk: VirtualDisk) -> str:
    """Say what to do about a disk without a change id."""
    if machine.tracked:
        return disk.why_untracked
    return "nothing is tracked of it (`blockstream vsphere enable-cbt` switches it on)"


def _tracking(session: VSphere, machine: Machine, wish: MachineWish) -> Machine:
    if machine.tracked or not wish.enable:
        return machine
    try:
        return enable_tracking(session, machine, wish.care)
    except LeftoverError as error:
        raise SourceError(f"{error}; nothing was sent") from error


class _Opening:
    """Opens the disks of one round."""

    def __init__(
        self,
        session: VSphere,
        readers: Readers,
        place: MachinePlace,
        request: SendRequest,
        wish: MachineWish,
        watch: OpenWatch,
    ) -> None:
        self._session = session
        self._readers = readers
        self._place = place
        self._request = request
        self._wish = wish
        self._watch = watch

    def disk(self, found: Round, disk: VirtualDisk, base: str) -> MachineDisk:
        """Open a disk, and find out what of it has to be sent."""
        machine, session = found.machine, self._session
        place = replace(self._place, disk=disk.key)
        now = TrackedState(machine.uuid, disk.key, disk.uuid, disk.size, disk.change)
        changes, why_full = self._changes(found, disk, now, base)
        if why_full and base and self._wish.on_loss is OnLoss.FAIL:
            raise SourceError(
                f"{place}: {why_full}, so that all of it would have to be sent; nothing was sent; "
                "--on-cbt-loss full does"
            )
        goal = self._request.goal or (str(now) if disk.change else "")
        if why_full and self._wish.allocated:
            changes = self._allocated(found, disk)
        reader = self._readers.open(disk)
        key = f"{machine.uuid}:{disk.key}:{disk.uuid}"

        def still_frozen() -> None:
            frozen = {each.key: each for each in session.disks_of(found.snapshot)}
            if disk.key not in frozen or frozen[disk.key].file != disk.file:
                raise GoneError(
                    f"{place}: its snapshot was removed while it was read, so what was sent is no "
                    "one state of it; END was not sent; send again"
                )

        def tick() -> None:
            session.keep_alive()
            self._watch.look(time.monotonic())

        source = VirtualDiskSource(str(place), disk.size, key, reader, still_frozen, tick)
        request = replace(
            self._request,
            source=str(place),
            base="" if why_full else base,
            goal=goal,
            changes=changes,
            moment=_moment_of(found.snapshot),
        )
        return MachineDisk(disk_name(machine, disk), disk, source, request, why_full)

    def _changes(
        self, found: Round, disk: VirtualDisk, now: TrackedState, base: str
    ) -> tuple[ExtentList | None, str]:
        """Return what changed since the base; or why all of it is sent."""
        then = TrackedState.parse(base)
        if then is not None and (then.machine, then.key) != (now.machine, now.key):
            raise RefusedError(
                f"the target of {now.key} holds disk {then.key} of machine {then.machine}, and "
                f"this is disk {now.key} of {now.machine}; nothing was sent; name another "
                "target, or `blockstream adopt` it under another --id to have it overwritten"
            )
        if not disk.change:
            return None, _untracked(found.machine, disk)
        if not base:
            return None, "the target holds nothing of it yet"
        if then is None:
            return None, f"the target holds {base!r}, which is no state of this tracker"
        why = now.why_not_since(then)
        if not why and found.machine.lies:
            why = f"hosts of release {found.machine.release} are known to lose changes"
        if why:
            return None, why
        try:
            extents = self._asked(found, disk, then.change)
        except (TrackerError, InTheWayError) as error:
            return None, str(error)
        return ExtentList(extents, Meaning.CHANGED, "change tracking", disk.size), ""

    def _asked(self, found: Round, disk: VirtualDisk, since: str) -> ExtentMap:
        machine, snapshot = found.machine, found.snapshot
        return patiently(
            lambda: self._session.changed(machine, snapshot, disk, since),
            machine,
            self._wish.care,
            "",
        )

    def _allocated(self, found: Round, disk: VirtualDisk) -> ExtentList | None:
        """Return what the tracker calls allocated; the rest reads as zeros."""
        try:
            extents = self._asked(found, disk, "*")
        except (TrackerError, InTheWayError) as error:
            self._wish.care.tell(f"{disk.label}: what is allocated is not known: {error}")
            return None
        return ExtentList(
            extents.filled(Kind.ZERO), Meaning.ALLOCATED, "change tracking", disk.size
        )
