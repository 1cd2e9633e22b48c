"""What `send` is given: the sources, and where they go."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from blockstream.cli.recv_cmd import TARGET_FLAGS
from blockstream.cli.remote_options import refuse_peer_options
from blockstream.cli.vsphere_options import refuse_machine_options
from blockstream.destinations.places import DiskSet, MachineDisks, Naming, OneDisk
from blockstream.errors import UsageError
from blockstream.locations import (
    MachinePlace,
    Remote,
    StorePlace,
    disk_name,
    is_machine,
    is_nbd,
    machine_place,
    remote,
    remote_folder,
    store_place,
    vmdk_path,
)
from blockstream.transfers.apply_modes import ApplyMode
from blockstream.transfers.opened_target import absolute_path


@dataclass(frozen=True, slots=True)
class SendArguments:
    """What is sent, and where to.

    Attributes:
        sources: The disks.
        target: As typed; None for standard output.
        from_host: Where a single source lies, if not on this host.
        point: The restore point that a single source is, if it is one.
        hosts: Where each source goes, if that is another host.
        is_in_store: Whether they go into a store.
        machine: The machine of VMware that is the source, if it is one.
    """

    sources: tuple[str, ...]
    target: str | None = None
    from_host: Remote | None = None
    point: StorePlace | None = None
    hosts: tuple[Remote, ...] = ()
    is_in_store: bool = False
    machine: MachinePlace | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """What each source is called at a target that has a place for several."""
        if self.hosts:
            return tuple(host.path for host in self.hosts)
        return tuple(map(disk_name, self.sources))

    @property
    def naming(self) -> Naming:
        """What the disks are called at the target."""
        if self.machine is not None:
            return MachineDisks(bool(self.machine.disk))
        if len(self.sources) > 1:
            return DiskSet(dict(zip(self.names, self.hosts, strict=False)))
        return OneDisk()

    @property
    def keys(self) -> tuple[str, ...]:
        """What each source's target is known as; empty where it need not be told from others."""
        if self.hosts:
            return tuple(host.key for host in self.hosts)
        if self.target is None or self.machine is not None:
            return ("",) * len(self.sources)
        if self.is_in_store and len(self.sources) > 1:
            return tuple(f"{self.target.rstrip('/')}/{name}" for name in self.names)
        return (self.target if self.is_in_store else absolute_path(self.target),)

    @property
    def within_one_host(self) -> bool:
        """Whether nothing travels: the target is a disk, a file or a folder here."""
        target = self.target
        if target is None or self.is_in_store or self.from_host is not None:
            return False
        return not self.hosts and remote(target) is None

    @classmethod
    def of(cls, words: tuple[str, ...]) -> "SendArguments":
        """Tell sources from a target.

        Raises:
            UsageError: If several sources have no place to go together.
        """
        if not all(words):
            raise UsageError("a place is empty; nothing was done; is a variable not set?")
        if is_machine(words[0]):
            return cls._of_machine(words)
        if len(words) == 1:
            point = store_place(words[0])
            return cls(words, None, None if point else remote(words[0]), point)
        sources, target = words[:-1], words[-1]
        stored = store_place(target, disk=len(sources) == 1)
        if len(sources) > 1:
            return cls._of_set(sources, target, stored)
        point = store_place(sources[0])
        from_host = None if point else remote(sources[0])
        if stored is not None:
            return cls(sources, target, from_host, point, is_in_store=True)
        together = None if point else remote_folder(target, sources)
        if together is not None:
            _check_has_path(sources)
            return cls(sources, target, hosts=tuple(together))
        host = remote(target)
        return cls(sources, target, from_host, point, (host,) if host is not None else ())

    @classmethod
    def _of_machine(cls, words: tuple[str, ...]) -> "SendArguments":
        if len(words) != 2:
            raise UsageError(
                "one machine goes to one TARGET: a folder, HOST:/FOLDER/, or STORE/NAME"
            )
        place, target = machine_place(words[0]), words[1]
        if not place.path:
            raise UsageError(f"{place} names no machine; `blockstream vsphere ls` lists them")
        return cls(words[:1], target, is_in_store=store_place(target) is not None, machine=place)

    @classmethod
    def _of_set(
        cls, sources: tuple[str, ...], target: str, stored: StorePlace | None
    ) -> "SendArguments":
        if any(store_place(each) is not None for each in sources):
            raise UsageError("restore points are sent one by one")
        if stored is not None:
            made = cls(sources, target, is_in_store=True)
            _check_names(made.names, target)
            return made
        together = remote_folder(target, sources)
        if together is None:
            raise UsageError("several SOURCEs go to HOST:, HOST:/FOLDER/ or a store together")
        _check_has_path(sources)
        return cls(sources, target, hosts=tuple(together))


def _check_names(names: tuple[str, ...], target: str) -> None:
    twice = {name for name in names if names.count(name) > 1}
    if twice or not all(names):
        what = f"two of them are called {min(twice)}" if twice else "one of them has no name"
        raise UsageError(
            f"each SOURCE is a disk of its own name in {target}, and {what}; send them one by one, "
            f"to {target.rstrip('/')}/NAME"
        )


def _check_has_path(sources: tuple[str, ...]) -> None:
    if any(map(is_nbd, sources)):
        raise UsageError("an NBD export has no path that it could have there: HOST:/PATH")
    if any(vmdk_path(each) is not None for each in sources):
        raise UsageError("a vmdk:FILE needs a TARGET that is named: HOST:/PATH")


def check_arguments(given: SendArguments, options: Mapping[str, Any]) -> None:
    """Refuse what has no effect between these places.

    Raises:
        UsageError: If something has none.
    """
    if given.machine is not None:
        _check_machine(given, given.machine, options)
        return
    refuse_machine_options(options)
    _check_store(given, options)
    here = all(map(is_nbd, given.sources))
    if options["bitmap"] and (given.from_host is not None or not here):
        raise UsageError("--bitmap is for a SOURCE that is an export of an NBD server")
    if given.point is not None:
        _check_point(options)
    if given.from_host is not None and (options["delta"] or options["allow_outside"]):
        raise UsageError("--delta and --allow-outside are for a vmdk:FILE of this host")
    if given.from_host is not None and given.target is None:
        raise UsageError("a SOURCE of another host needs a TARGET here")
    if given.from_host is not None and given.hosts:
        raise UsageError("one of SOURCE and TARGET has to be on this host; run it on one of theirs")
    if given.from_host is None and not given.hosts:
        refuse_peer_options(options)
    if given.target is None and _target_options_given(options):
        raise UsageError("options of the target need a TARGET; over a pipe, give them to `recv`")


def _check_point(options: Mapping[str, Any]) -> None:
    """A point says itself what it is."""
    for name in ("since", "quiesced", "rotate", "snapshot_size", "delta", "allow_outside"):
        if options[name]:
            raise UsageError(
                f"--{name.replace('_', '-')} is for a disk, and not for a point of one"
            )


def _target_options_given(options: Mapping[str, Any]) -> bool:
    return any(options[name] for name in TARGET_FLAGS) or options["apply"] != ApplyMode.DIRECT


def _check_machine(given: SendArguments, place: MachinePlace, options: Mapping[str, Any]) -> None:
    target = given.target or ""
    if options["bitmap"] or options["delta"] or options["allow_outside"]:
        raise UsageError("--bitmap, --delta and --allow-outside are not for a machine of VMware")
    if given.is_in_store:
        _check_no_disk(options)
        if options["verify_cbt"]:
            raise UsageError("a store verifies by --audit 1; --verify-cbt is for disks and files")
    elif options["access"].given or options["audit"]:
        raise UsageError("--endpoint-url, --identity and --audit are for a store")
    elif remote(target) is not None:
        return
    elif target.endswith(":"):
        raise UsageError(f"{target} needs a folder for the disks of a machine: {target}/FOLDER/")
    if place.reader != "sftp":
        refuse_peer_options(options)


def _check_no_disk(options: Mapping[str, Any]) -> None:
    if _target_options_given(options):
        raise UsageError("a store is no disk: leave the options of a TARGET out")


def _check_store(given: SendArguments, options: Mapping[str, Any]) -> None:
    if not given.is_in_store:
        if options["audit"] or (options["access"].given and given.point is None):
            raise UsageError("--endpoint-url, --identity and --audit are for a store")
        return
    if given.from_host is not None:
        raise UsageError("a disk of another host is sent into a store from there")
    _check_no_disk(options)
