"""The snapshots that `send` makes of virtual machines: found again, and gone afterwards.

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
from enum import StrEnum

from blockstream.errors import BlockstreamError, SourceError
from blockstream.jobs.supervision import postponed, undisturbed
from blockstream.sources.inventory import Machine, QuiesceError, Snapshot
from blockstream.sources.vsphere import VSphere

# As Bareos does: a guest that is busy now may come to rest a moment later.
_QUIESCE_ATTEMPTS = 3
_QUIESCE_PAUSE_SECONDS = 5.0
_NAME = re.compile(r"blockstream_([0-9a-f]{8})_[0-9a-f]{8}")


class SnapshotStaysError(SourceError):
    """A snapshot could not be removed, and grows."""


class Quiesce(StrEnum):
    """Whether the guest writes out what it keeps in memory before a snapshot."""

    TRY = "try"
    REQUIRE = "require"
    NO = "no"


@dataclass(frozen=True, slots=True)
class Care:
    """How snapshots are made.

    Attributes:
        quiesce: Whether the guest is brought to rest.
        tell: Says to people what they should know.
        pause: Seconds between attempts to bring it to rest.
    """

    quiesce: Quiesce = Quiesce.TRY
    tell: Callable[[str], None] = lambda _text: None
    pause: float = _QUIESCE_PAUSE_SECONDS


def enable_tracking(session: VSphere, machine: Machine, tell: Callable[[str], None]) -> Machine:
    """Switch change tracking on, and let it begin; return the machine as it is then.

    Raises:
        RefusedError: If it must not, or cannot, be.
        SourceError: If it does not.
    """
    session.track(machine)
    # It begins when the machine is stunned the next time, which a snapshot does.
    name = _new_name(ident_of(machine.uuid))
    with postponed(tell):
        stun = session.make_snapshot(machine, name, _description(), quiesced=False)
        _remove(session, machine, stun, tell)
    tell(f"{machine.name}: change tracking is on; until now nothing was tracked")
    return session.again(machine)


@contextlib.contextmanager
def frozen(
    session: VSphere, machine: Machine, ident: str, care: Care
) -> Iterator[tuple[Snapshot, bool]]:
    """Make a snapshot, and remove it.

    Raises:
        SnapshotStaysError: If that failed after all else went well.
    """
    name = _new_name(ident)
    made: list[tuple[Snapshot, bool]] = []
    try:
        # Whether there is one has to be known before anybody leaves.
        with postponed(care.tell):
            made.append(_make_snapshot(session, machine, name, care))
        yield made[0]
    except BaseException:
        for snapshot, _ in made:
            try:
                _remove(session, machine, snapshot, care.tell)
            except BlockstreamError as error:
                care.tell(f"{error}")
        raise
    _remove(session, machine, made[0][0], care.tell)


def _make_snapshot(
    session: VSphere, machine: Machine, name: str, care: Care
) -> tuple[Snapshot, bool]:
    """Make a snapshot; tell whether the guest was brought to rest for it."""
    attempts = 0 if care.quiesce is Quiesce.NO else _QUIESCE_ATTEMPTS
    for attempt in range(1, attempts + 1):
        try:
            return session.make_snapshot(machine, name, _description(), quiesced=True), True
        except QuiesceError as error:
            if attempt < attempts:
                threading.Event().wait(care.pause)
                continue
            if care.quiesce is Quiesce.REQUIRE:
                raise QuiesceError(
                    f"{machine.path}: {error}, {attempt} times; nothing was sent; --quiesce-guest "
                    "try goes on without"
                ) from error
            care.tell(
                f"{machine.path}: {error}, {attempt} times: the snapshot is as after a power cut"
            )
    return session.make_snapshot(machine, name, _description(), quiesced=False), False


def _remove(
    session: VSphere, machine: Machine, snapshot: Snapshot, tell: Callable[[str], None]
) -> None:
    """Remove a snapshot of ours, and what it leaves.

    Raises:
        SnapshotStaysError: If it could not be removed.
    """
    with undisturbed(tell):
        try:
            _remove_or_find_gone(session, machine, snapshot)
            if session.consolidate(machine):
                tell(f"{machine.path}: its disks had to be consolidated, and were")
        except BlockstreamError as error:
            raise SnapshotStaysError(
                f"{machine.path}: the snapshot {snapshot.name} could not be removed: {error}; it "
                "grows until it is: remove it by hand, or run the same command again"
            ) from error


def _remove_or_find_gone(session: VSphere, machine: Machine, snapshot: Snapshot) -> None:
    try:
        session.remove_snapshot(snapshot)
    except SourceError:
        # Where an answer was lost, the task that it told of runs, and another one cannot.
        if session.has_snapshot(machine, snapshot.name):
            raise


def cleaned(session: VSphere, machine: Machine, ident: str, care: Care) -> Machine:
    """Remove what a round of ours left that was killed; name what others left."""
    gone = False
    for each in machine.snapshots:
        found = _NAME.fullmatch(each.name)
        if found is None:
            continue
        if found[1] in {ident, ident_of(machine.uuid)} and each.description == _description():
            care.tell(f"{machine.path}: the snapshot {each.name} of a killed round is removed")
            _remove(session, machine, each, care.tell)
            gone = True
        else:
            care.tell(
                f"{machine.path} has the snapshot {each.name} ({each.description}); if nothing "
                "runs there that made it, remove it"
            )
    return session.again(machine) if gone else machine


def ident_of(text: str) -> str:
    """Return what our snapshots have in their names: of a machine and a target, or of one alone."""
    return hashlib.blake2s(text.encode(), digest_size=4).hexdigest()


def _new_name(ident: str) -> str:
    return f"blockstream_{ident}_{secrets.token_hex(4)}"


def _description() -> str:
    return f"made by blockstream on {socket.gethostname()}"
