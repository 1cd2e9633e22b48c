"""What a vCenter, or an ESXi host, has: machines, their disks and their snapshots."""

from dataclasses import dataclass
from typing import Any, Final

from blockstream.errors import SourceError

# KB 2090639: areas are wrong after a disk grew past 128 GiB; KB 2136854: writes made while a
# snapshot is consolidated are lost.
_LYING_RELEASES: Final = ("4.", "5.", "6.0.")


class TrackerError(SourceError):
    """The tracker cannot say what changed: only a full copy helps."""


class QuiesceError(SourceError):
    """The guest could not be brought to rest for a snapshot. None was made."""


class GoneError(SourceError):
    """A machine, a disk or a snapshot is not there any more."""


class MaybeDoneError(SourceError):
    """The server is not reached any more: the call may have had its effect, or not."""


@dataclass(frozen=True, slots=True)
class VirtualDisk:
    """A disk of a machine, or of a snapshot of it.

    Attributes:
        key: Its number in the machine.
        label: What people call it.
        file: Where it lies: `[STORE] FOLDER/NAME.vmdk`.
        uuid: Its own UUID; empty where the server tells none.
        size: Its size in bytes.
        change: The change id; empty where nothing is tracked.
        obstacle: Why a snapshot does not hold it; empty if one does.
    """

    key: int
    label: str
    file: str
    uuid: str
    size: int
    change: str
    obstacle: str


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A snapshot of a machine.

    Attributes:
        ref: How the server calls it; another server calls it otherwise.
        name: What people call it.
        description: What was said of it.
    """

    ref: Any
    name: str
    description: str


@dataclass(frozen=True, slots=True)
class Machine:
    """A virtual machine, as it was a moment ago.

    Attributes:
        ref: How the server calls it.
        path: Where people find it: `DATACENTER/vm/.../NAME`.
        uuid: Its instance UUID.
        tracked: Whether change tracking is switched on.
        template: Whether it is a template, which has no snapshots.
        hardware: Its hardware version.
        release: The version of the host that it is on; empty where it is not told.
        disks: Its disks.
        snapshots: All of its snapshots, parents first.
        consolidation: Whether files of removed snapshots wait to be put together.
    """

    ref: Any
    path: str
    uuid: str
    tracked: bool
    template: bool
    hardware: int
    release: str
    disks: tuple[VirtualDisk, ...]
    snapshots: tuple[Snapshot, ...]
    consolidation: bool

    @property
    def name(self) -> str:
        """Its own name."""
        return self.path.rpartition("/")[2]

    @property
    def lies(self) -> bool:
        """Whether its host's release is known for wrong answers about changes."""
        return self.release.startswith(_LYING_RELEASES)
