"""What `send` is given: the sources, and where they go."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from blockstream.cli.recv_cmd import TARGET_FLAGS
from blockstream.cli.remote_options import refuse_peer_options
from blockstream.cli.vsphere_options import refuse_machine_options
from blockstream.errors import UsageError
from blockstream.locations import (
    Remote,
    StorePlace,
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
class Places:
    """What is sent, and where to.

    Attributes:
        sources: The disks.
        target: As typed; None for standard output.
        from_host: Where a single source lies, if not on this host.
        hosts: Where each source goes, if that is another host.
        store: Where a single source goes, if that is a store.
        machine: Whether the source is a machine of VMware.
    """

    sources: tuple[str, ...]
    target: str | None
    from_host: Remote | None
    hosts: tuple[Remote, ...]
    store: StorePlace | None = None
    machine: bool = False

    @property
    def source(self) -> str:
        """The first disk."""
        return self.sources[0]

    @property
    def key(self) -> str:
        """What the first target is known as; empty where it need not be told from others."""
        if self.hosts:
            return self.hosts[0].key
        if self.target is None or self.machine:
            return ""
        if self.store is not None:
            return self.target
        return absolute_path(self.target)

    @property
    def within_one_host(self) -> bool:
        """Whether nothing travels: the target is a disk, a file or a folder here."""
        target = self.target or ""
        return store_place(target) is None and remote(target) is None

    @classmethod
    def of(cls, words: tuple[str, ...]) -> "Places":
        """Tell sources from a target.

        Raises:
            UsageError: If several sources have no place to go together.
        """
        if not all(words):
            raise UsageError("a place is empty; nothing was done; is a variable not set?")
        if is_machine(words[0]):
            return cls(words[:1], words[-1], None, (), machine=True)
        if len(words) == 1:
            return cls(words, None, remote(words[0]), ())
        sources, target = words[:-1], words[-1]
        store = store_place(target)
        if store is not None and len(sources) > 1:
            raise UsageError("several SOURCEs go into a store one by one, each under its own name")
        if store is not None:
            return cls(sources, target, remote(sources[0]), (), store)
        together = remote_folder(target, sources)
        if together is not None and any(map(is_nbd, sources)):
            raise UsageError("an NBD export has no path that it could have there: HOST:/PATH")
        if together is not None and any(vmdk_path(each) is not None for each in sources):
            raise UsageError("a vmdk:FILE needs a TARGET that is named: HOST:/PATH")
        if together is not None:
            return cls(sources, target, None, tuple(together))
        if len(sources) > 1:
            raise UsageError("several SOURCEs go to HOST: or HOST:/FOLDER/ together")
        host = remote(target)
        return cls(sources, target, remote(sources[0]), (host,) if host is not None else ())


def check_places(places: Places, options: Mapping[str, Any]) -> None:
    """Refuse what has no effect between these places.

    Raises:
        UsageError: If something has none.
    """
    if places.machine:
        _check_machine(places, options)
        return
    refuse_machine_options(options)
    _check_store(places, options)
    if options["bitmap"] and (places.from_host is not None or not all(map(is_nbd, places.sources))):
        raise UsageError("--bitmap is for a SOURCE that is an export of an NBD server")
    if places.from_host is not None and (options["delta"] or options["allow_outside"]):
        raise UsageError("--delta and --allow-outside are for a vmdk:FILE of this host")
    if places.from_host is not None and places.target is None:
        raise UsageError("a SOURCE of another host needs a TARGET here")
    if places.from_host is not None and places.hosts:
        raise UsageError("one of SOURCE and TARGET has to be on this host; run it on one of theirs")
    if places.from_host is None and not places.hosts:
        refuse_peer_options(options)
    flags = any(options[name] for name in TARGET_FLAGS) or options["apply"] != ApplyMode.DIRECT
    if places.target is None and flags:
        raise UsageError("options of the target need a TARGET; over a pipe, give them to `recv`")


def _check_machine(places: Places, options: Mapping[str, Any]) -> None:
    if options["bitmap"] or options["delta"] or options["allow_outside"]:
        raise UsageError("--bitmap, --delta and --allow-outside are not for a machine of VMware")
    if store_place(places.target or "") is not None:
        _check_no_disk(options)
    elif remote(places.target or "") is not None:
        return
    if machine_place(places.source).reader != "sftp":
        refuse_peer_options(options)


def _check_no_disk(options: Mapping[str, Any]) -> None:
    if any(options[name] for name in TARGET_FLAGS) or options["apply"] != ApplyMode.DIRECT:
        raise UsageError("a store is no disk: leave the options of a TARGET out")


def _check_store(places: Places, options: Mapping[str, Any]) -> None:
    if places.store is None:
        if options["access"].given or options["audit"]:
            raise UsageError("--endpoint-url, --identity and --audit are for a store")
        return
    if places.from_host is not None:
        raise UsageError("a disk of another host is sent into a store from there")
    _check_no_disk(options)
