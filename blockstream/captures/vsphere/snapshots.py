"""The snapshots that we make of virtual machines: found again, and gone afterwards.

One is named `blockstream_ID_NUMBER`, where ID stands for the machine and the target, and its
description names the host that made it.
"""

import contextlib
import hashlib
import re
import secrets
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import TypeVar

from blockstream.errors import BlockstreamError, LeftoverError, SourceError
from blockstream.run import Run
from blockstream.sources.inventory import InTheWayError, Machine, QuiesceError, Snapshot
from blockstream.sources.vsphere import VSphere
from blockstream.words import size_text

T = TypeVar("T")

# As Bareos does: a guest that is busy now may come to rest a moment later.
_QUIESCE_ATTEMPTS = 3
_PAUSE_SECONDS = 5.0
# Two minutes: another backup's snapshot, or a lock that a host gives up, takes less.
_PATIENCE_ATTEMPTS = 25
# VMware advises against more than 24 to 72 hours (KB 1025279).
_LONG = timedelta(days=1)
_HOUR = timedelta(hours=1)
# By then, what was written since is a good part of what the disks can hold.
_GROWN_PART = 4
_ALL_DONE = "all was sent and committed, but "
_NAME = re.compile(r"blockstream_([0-9a-f]{8})_[0-9a-f]{8}")


class Quiesce(StrEnum):
    """Whether the guest writes out what it keeps in memory before a snapshot."""

    TRY = "try"
    REQUIRE = "require"
    NO = "no"


@dataclass(frozen=True, slots=True)
class SnapshotPolicy:
    """How snapshots are made.

    Attributes:
        quiesce: Whether the guest is brought to rest.
        pause: Seconds between attempts, to bring it to rest or past what is in the way.
    """

    quiesce: Quiesce = Quiesce.TRY
    pause: float = _PAUSE_SECONDS


class MachineSnapshots:
    """The snapshots of one machine: ours are made, found again and removed; others' are named.

    Attributes:
        machine: The machine, as it was seen last.
    """

    def __init__(
        self, session: VSphere, machine: Machine, policy: SnapshotPolicy, run: Run
    ) -> None:
        """Name the machine; nothing is done.

        Args:
            session: Where it is.
            machine: The machine.
            policy: How its snapshots are made.
            run: Says to people what they should know, and stops it.
        """
        self.machine = machine
        self._session = session
        self._policy = policy
        self._run = run

    def enable_tracking(self) -> None:
        """Switch change tracking on, and let it begin.

        Raises:
            RefusedError: If it must not, or cannot, be.
            SourceError: If it does not.
            LeftoverError: If it does, but the snapshot that it took stays.
        """
        session, machine = self._session, self.machine
        self.retried(lambda: session.track(machine), "nothing was switched on")
        # It begins when the machine is stunned the next time, which a snapshot does.
        made: list[Snapshot] = []
        name = _new_name(ident_of(machine.uuid))

        def stun() -> None:
            with self._run.postponed():
                made.append(session.make_snapshot(machine, name, _description(), quiesced=False))

        try:
            self.retried(
                stun,
                "change tracking is on and begins with the next snapshot, of whoever makes it",
            )
        finally:
            for each in made:
                self._remove(each, "change tracking is on, but ")
        self._run.tell(f"{machine.name}: change tracking is on; until now nothing was tracked")
        self.machine = session.again(machine)

    def retried(self, make: Callable[[], T], undone: str) -> T:
        """Do something with the machine; wait while something is in the way that may pass.

        Args:
            make: Does it; it is done again after it raised InTheWayError.
            undone: What was not done, if it does not pass; empty where the caller says it.

        Raises:
            InTheWayError: If it does not pass.
        """
        path, pause = self.machine.path, self._policy.pause
        most = (_PATIENCE_ATTEMPTS - 1) * pause
        for attempt in range(1, _PATIENCE_ATTEMPTS):
            try:
                return make()
            except InTheWayError as error:
                if attempt == 1:
                    self._run.tell(f"{path}: {error}: that is waited for, up to {most:.0f} s")
                self._run.wait(pause)
        try:
            return make()
        except InTheWayError as error:
            advice = f"; {undone}; run it again when that has ended" if undone else ""
            raise InTheWayError(
                f"{path}: {error}, which did not pass in {most:.0f} s{advice}"
            ) from error

    @contextlib.contextmanager
    def frozen(self, ident: str) -> Iterator[tuple[Snapshot, bool]]:
        """Make a snapshot, and remove it.

        Args:
            ident: What is in its name.

        Yields:
            The snapshot, and whether the guest was brought to rest for it.

        Raises:
            LeftoverError: If it could not be removed after all else went well.
        """
        name = _new_name(ident)
        made: list[tuple[Snapshot, bool]] = []

        def make() -> None:
            # Whether there is one has to be known before anybody leaves.
            with self._run.postponed():
                made.append(self._made(name))

        try:
            self.retried(make, "no snapshot was made and nothing was sent")
            yield made[0]
        except BaseException:
            for snapshot, _ in made:
                try:
                    self._remove(snapshot, "")
                except LeftoverError as error:
                    self._run.tell(f"{error}")
            raise
        self._remove(made[0][0], _ALL_DONE)

    def clean(self, ident: str) -> None:
        """Remove what an earlier round of ours left; name what others left.

        Args:
            ident: What is in the names of ours.

        Raises:
            SourceError: If something of ours could not be removed: beside it, there must be no
                other.
        """
        machine, gone = self.machine, False
        for each in machine.snapshots:
            found = _NAME.fullmatch(each.name)
            if found is None:
                continue
            mine = found[1] in {ident, ident_of(machine.uuid)}
            if mine and each.description == _description():
                self._run.tell(
                    f"{machine.path}: the snapshot {each.name} of an earlier round is removed"
                )
                try:
                    self._remove(each, "nothing was sent, but ")
                except LeftoverError as error:
                    raise SourceError(f"{error}") from error
                gone = True
            else:
                self._run.tell(
                    f"{machine.path} has the snapshot {each.name} ({each.description}); if "
                    "nothing runs there that made it, remove it"
                )
        self.machine = self._session.again(machine) if gone else machine
        self._tell_of_old()

    def _made(self, name: str) -> tuple[Snapshot, bool]:
        """Make a snapshot; tell whether the guest was brought to rest for it."""
        session, machine, policy = self._session, self.machine, self._policy
        attempts = 0 if policy.quiesce is Quiesce.NO else _QUIESCE_ATTEMPTS
        for attempt in range(1, attempts + 1):
            try:
                return session.make_snapshot(machine, name, _description(), quiesced=True), True
            except QuiesceError as error:
                if attempt < attempts:
                    self._run.wait(policy.pause)
                    continue
                if policy.quiesce is Quiesce.REQUIRE:
                    raise QuiesceError(
                        f"{machine.path}: {error}, {attempt} times; nothing was sent; "
                        "--quiesce-guest try goes on without"
                    ) from error
                self._run.tell(
                    f"{machine.path}: {error}, {attempt} times: the snapshot is as after a power "
                    "cut"
                )
        return session.make_snapshot(machine, name, _description(), quiesced=False), False

    def _remove(self, snapshot: Snapshot, done: str) -> None:
        """Remove a snapshot of ours, and what it leaves.

        Args:
            snapshot: The snapshot.
            done: What was done although it stays, with `, but `; empty if nothing is to be said.

        Raises:
            LeftoverError: If it could not be removed.
        """
        session, machine = self._session, self.machine

        def consolidate() -> None:
            if session.consolidate(machine):
                self._run.tell(f"{machine.path}: its disks had to be consolidated, and were")

        with self._run.undisturbed():
            try:
                self.retried(lambda: _remove_or_find_gone(session, machine, snapshot), "")
            except BlockstreamError as error:
                raise LeftoverError(
                    f"{done}the snapshot {snapshot.name} of {machine.path} could not be removed: "
                    f"{error}; it grows, and may fill its datastore, until it is removed: by "
                    "hand, or by the same command, run again"
                ) from error
            try:
                self.retried(consolidate, "")
            except BlockstreamError as error:
                raise LeftoverError(
                    f"{done}the files of the snapshot {snapshot.name} of {machine.path}, which "
                    f"was removed, were not put together: {error}; they grow, and may fill their "
                    "datastore, until the machine's disks are consolidated: by hand, or by the "
                    "same command, run again"
                ) from error

    def _tell_of_old(self) -> None:
        """Say which snapshots are there for long, or hold much."""
        session, machine, tell = self._session, self.machine, self._run.tell
        if not machine.snapshots:
            return
        now = session.now()
        held, size = session.delta_bytes(machine), sum(each.size for each in machine.disks)
        grows = f"what its snapshots hold is {size_text(held)} and grows" if held else "it grows"
        for each in machine.snapshots:
            if each.made is not None and now - each.made >= _LONG:
                hours = (now - each.made) // _HOUR
                tell(
                    f"{machine.path} has the snapshot {each.name} for {hours} h; {grows}; if "
                    "nobody needs it, remove it"
                )
        if held * _GROWN_PART > size:
            tell(
                f"{machine.path}: what its snapshots hold, {size_text(held)}, is more than "
                f"1/{_GROWN_PART} of its disks, and grows; remove the snapshots that nobody needs"
            )


def _remove_or_find_gone(session: VSphere, machine: Machine, snapshot: Snapshot) -> None:
    try:
        session.remove_snapshot(snapshot)
    except SourceError:
        # Where an answer was lost, the task that it told of runs, and another one cannot.
        if session.has_snapshot(machine, snapshot.name):
            raise


def tell_untracked(machine: Machine, tell: Callable[[str], None]) -> None:
    """Say which disks of a tracked machine are not tracked."""
    for disk in machine.disks:
        if not disk.obstacle and disk.why_untracked:
            tell(f"{machine.name}: {disk.label}: {disk.why_untracked}")


class OpenWatch:
    """Says once, while a snapshot of ours is read, that it is open for long."""

    def __init__(
        self, machine: Machine, snapshot: Snapshot, tell: Callable[[str], None], began: float
    ) -> None:
        """Begin.

        Args:
            machine: The machine.
            snapshot: The snapshot.
            tell: Says it.
            began: When it was made, in seconds of the clock that `look` is told.
        """
        self._words = f"{machine.path}: the snapshot {snapshot.name}, which is being read,"
        self._tell = tell
        self._due = began + _LONG.total_seconds()
        self._lock = threading.Lock()

    def look(self, now: float) -> None:
        """Look at the clock; several threads may."""
        with self._lock:
            if now < self._due:
                return
            self._due = float("inf")
        hours = _LONG // _HOUR
        self._tell(f"{self._words} is open for {hours} h and grows until all is sent")


def ident_of(text: str) -> str:
    """Return what our snapshots have in their names: of a machine and a target, or of one alone."""
    return hashlib.blake2s(text.encode(), digest_size=4).hexdigest()


def _new_name(ident: str) -> str:
    return f"blockstream_{ident}_{secrets.token_hex(4)}"


def _description() -> str:
    return f"made by blockstream on {socket.gethostname()}"
