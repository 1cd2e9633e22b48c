"""What a vCenter, or an ESXi host, has: machines, their disks and their snapshots."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from blockstream.errors import SourceError

# KB 2090639: areas are wrong after a disk grew past 128 GiB; KB 2136854: writes made while a
# snapshot is consolidated are lost.
_LYING_RELEASES: Final = ("4.", "5.", "6.0.")


class TrackerError(SourceError):
    """The tracker cannot say what changed: only a full copy helps."""


class QuiesceError(SourceError):
    """The guest could not be brought to rest for a snapshot. None was made."""


class InTheWayError(SourceError):
    """Another task, or a lock, is in the way, and may pass. The call had no effect."""


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
        setting: What lets it be tracked, as `scsi0:1.ctkEnabled`; empty where nobody tells.
        setting_value: Its value, as `TRUE`; empty where it is not set.
    """

    key: int
    label: str
    file: str
    uuid: str
    size: int
    change: str
    obstacle: str
    setting: str
    setting_value: str

    @property
    def why_untracked(self) -> str:
        """Why nothing is tracked of it although its machine is tracked; empty if it is tracked."""
        name, value = self.setting or "scsiX:Y.ctkEnabled", self.setting_value
        if value and value.upper() != "TRUE":
            return (
                f"tracking is off for this disk, though on for its machine: {name} is {value} (set "
                "it to TRUE while the machine is off and has no snapshots)"
            )
        if self.change:
            return ""
        if value:
            return (
                f"nothing is tracked of it yet, though {name} is {value}: that begins with a "
                "snapshot (if the next round says so, too, switch the machine off and on)"
            )
        return (
            f"nothing is tracked of it yet, though its machine is tracked: {name} is not set (if "
            "the next round says so, too, set it to TRUE while the machine is off and has no "
            "snapshots)"
        )


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A snapshot of a machine.

    Attributes:
        ref: How the server calls it; another server calls it otherwise.
        name: What people call it.
        description: What was said of it.
        made: When it was made, by the server's clock; None where that was not asked.
    """

    ref: Any
    name: str
    description: str
    made: datetime | None = None


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
