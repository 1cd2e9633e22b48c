"""What `send` is given: the sources, and where they go."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from blockstream.cli.nbd_certificates import with_certificates
from blockstream.errors import UsageError
from blockstream.locations.interface import DiskLocation, Location
from blockstream.locations.local import LocalDisk
from blockstream.locations.nbd import NbdExport
from blockstream.locations.registry import location_of
from blockstream.locations.ssh import HostFolder, Remote
from blockstream.locations.store import StorePlace
from blockstream.locations.vmdk import VmdkFile
from blockstream.locations.vsphere import MachinePlace

if TYPE_CHECKING:
    from blockstream.destinations.places import Naming


FAR = "one of SOURCE and TARGET has to be on this host; run it on one of theirs"


@dataclass(frozen=True, slots=True)
class SendArguments:
    """What is sent, and where to.

    Attributes:
        sources: The disks.
        target: Where they go; None for standard output.
    """

    sources: tuple[Location, ...]
    target: Location | None = None

    @property
    def source(self) -> Location:
        """The first disk."""
        return self.sources[0]

    @property
    def from_host(self) -> Remote | None:
        """Where a single source lies, if not on this host."""
        return self.source if isinstance(self.source, Remote) else None

    @property
    def point(self) -> StorePlace | None:
        """The restore point that a single source is, if it is one."""
        return self.source if isinstance(self.source, StorePlace) else None

    @property
    def machine(self) -> MachinePlace | None:
        """The machine of VMware that is the source, if it is one."""
        return self.source if isinstance(self.source, MachinePlace) else None

    @property
    def disks(self) -> tuple[DiskLocation, ...]:
        """The sources that are disks of this host, or exports."""
        kinds = (LocalDisk, NbdExport, VmdkFile)
        return tuple(each for each in self.sources if isinstance(each, kinds))

    @property
    def is_in_store(self) -> bool:
        """Whether they go into a store."""
        return isinstance(self.target, StorePlace)

    @property
    def to_host(self) -> bool:
        """Whether they go to another host."""
        return isinstance(self.target, Remote | HostFolder)

    @property
    def to_named(self) -> bool:
        """Whether a policy there decides where."""
        return isinstance(self.target, Remote) and bool(self.target.name)

    @property
    def hosts(self) -> tuple[Remote, ...]:
        """Where each disk goes on another host, if it does."""
        target = self.target
        if isinstance(target, HostFolder):
            return tuple(target.place_of(disk.key) for disk in self.disks)
        return (target,) if isinstance(target, Remote) and self.machine is None else ()

    @property
    def names(self) -> tuple[str, ...]:
        """What each disk is called at a target that has a place for several."""
        if self.hosts:
            return tuple(host.path for host in self.hosts)
        return tuple(disk.name for disk in self.disks)

    @property
    def naming(self) -> "Naming":
        """What the disks are called at the target."""
        from blockstream.destinations.places import DiskSet, MachineDisks, OneDisk

        if self.machine is not None:
            return MachineDisks(bool(self.machine.disk))
        if len(self.sources) > 1:
            return DiskSet(dict(zip(self.names, self.hosts, strict=True)) if self.hosts else {})
        return OneDisk()

    @property
    def keys(self) -> tuple[str, ...]:
        """What each source's target is known as; empty where it need not be told from others."""
        target = self.target
        if target is None or self.machine is not None:
            return ("",) * len(self.sources)
        if self.hosts:
            return tuple(host.key for host in self.hosts)
        if isinstance(target, StorePlace) and not target.disk:
            return tuple(StorePlace(target.store, name).key for name in self.names)
        return (target.key,)

    @property
    def within_one_host(self) -> bool:
        """Whether nothing travels: the target is a disk, a file or a folder here."""
        return isinstance(self.target, LocalDisk) and self.from_host is None

    @classmethod
    def of(cls, words: tuple[str, ...], certificates: str = "") -> "SendArguments":
        """Tell sources from a target.

        Args:
            words: As typed.
            certificates: Folder with certificates for NBD servers.

        Raises:
            UsageError: If several sources have no place to go together.
        """
        many = len(words) > 2
        found = tuple(map(location_of, words[:-1] or words))
        if len(words) > 1:
            found += (location_of(words[-1], many=many, folder=True),)
        found = with_certificates(found, certificates)
        if isinstance(found[0], MachinePlace):
            return cls._of_machine(found, found[0])
        if len(found) == 1:
            return cls(found)
        made = cls(found[:-1], found[-1])
        if isinstance(found[-1], StorePlace) and found[-1].point:
            raise UsageError(
                f"{found[-1]} is a point, which nobody writes; a new one is made by sending to "
                f"{found[-1].store}/{found[-1].disk}"
            )
        if many:
            made._check_set()
        elif isinstance(found[-1], HostFolder):
            return cls(made.sources, made._place_in(found[-1]))
        return made

    @classmethod
    def _of_machine(cls, words: tuple[Location, ...], machine: MachinePlace) -> "SendArguments":
        if len(words) != 2:
            raise UsageError(
                "one machine goes to one TARGET: a folder, HOST:/FOLDER/, or STORE/NAME"
            )
        if not machine.path:
            raise UsageError(f"{machine} names no machine; `blockstream vsphere ls` lists them")
        target = words[1]
        if isinstance(target, HostFolder) and not target.host.path:
            raise UsageError(
                f"{target} needs a folder for the disks of a machine: {target}/FOLDER/"
            )
        return cls(words[:1], target)

    def _place_in(self, folder: HostFolder) -> Remote:
        """Return where a single source goes that is given no path of its own."""
        if isinstance(self.source, Remote):
            raise UsageError(FAR)
        if isinstance(self.source, StorePlace):
            if not folder.host.path:
                raise UsageError("a restore point has no path that it could have there: HOST:/PATH")
            return replace(folder.host, path=f"{folder.host.path}{self.source.disk}")
        self._check_has_path()
        return folder.place_of(self.source.key)

    def _check_set(self) -> None:
        if any(isinstance(each, StorePlace) for each in self.sources):
            raise UsageError("restore points are sent one by one")
        for each in self.sources:
            if each not in self.disks:
                raise UsageError(f"{each} {each.what}")
        if isinstance(self.target, HostFolder):
            self._check_has_path()
            self._check_hosts()
        elif isinstance(self.target, StorePlace):
            self._check_names(self.target)
        else:
            raise UsageError("several SOURCEs go to HOST:, HOST:/FOLDER/ or a store together")

    def _check_hosts(self) -> None:
        """Two disks that went to one place would wait for each other, and write over it."""
        twice = {str(host) for host in self.hosts if self.hosts.count(host) > 1}
        if twice:
            raise UsageError(
                f"two SOURCEs would go to {min(twice)}; nothing was sent; send them one by one, "
                "each to a HOST:/PATH of its own"
            )

    def _check_names(self, target: StorePlace) -> None:
        names = self.names
        twice = {name for name in names if names.count(name) > 1}
        if twice or not all(names):
            what = f"two of them are called {min(twice)}" if twice else "one of them has no name"
            raise UsageError(
                f"each SOURCE is a disk of its own name in {target}, and {what}; send them one by "
                f"one, to {target}/NAME"
            )

    def _check_has_path(self) -> None:
        if any(isinstance(each, NbdExport) for each in self.sources):
            raise UsageError("an NBD export has no path that it could have there: HOST:/PATH")
        if any(isinstance(each, VmdkFile) for each in self.sources):
            raise UsageError("a vmdk:FILE needs a TARGET that is named: HOST:/PATH")
