"""Where the disks of a machine of VMware go: folders, other hosts, stores."""

import contextlib
import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from blockstream.cli.options import cleared
from blockstream.cli.recv_cmd import show_received
from blockstream.cli.remote_options import peer_options
from blockstream.cli.send_output import Voice, show_sent
from blockstream.cli.stores import opened_store, show_saved
from blockstream.errors import StaleViewError, UsageError
from blockstream.interfaces import Source
from blockstream.jobs.holdings import held_here, held_there
from blockstream.locations import MachinePlace, Remote, StorePlace, open_source, remote, store_place
from blockstream.repository.memory import Memory
from blockstream.repository.repository import Repository
from blockstream.run import Run
from blockstream.transfers.compare import changes
from blockstream.transfers.copy import copy
from blockstream.transfers.digests import compared
from blockstream.transfers.disk_set import push_set
from blockstream.transfers.push import push
from blockstream.transfers.receive import ReceiveRequest
from blockstream.transfers.remote_command import PeerOptions
from blockstream.transfers.save import save

if TYPE_CHECKING:
    from blockstream.extents import ExtentMap  # numpy: 60 ms
    from blockstream.jobs.machines.send import MachineDisk


_DISKS = "disks and files"


class MachineTarget(Protocol):
    """Where the disks of a machine go."""

    def held(self, name: str) -> str:
        """Return what is held of the disk of that name; empty for nothing known. In a thread."""

    async def differing(self, disk: "MachineDisk", run: Run) -> "ExtentMap":
        """Return where a disk differs from what is held of it; both are read."""

    async def deliver(self, disks: list["MachineDisk"], run: Run) -> None:
        """Send them, and say what became of it."""


def refuse_target_options(target: str, options: Mapping[str, Any]) -> None:
    """Refuse what has no effect on such a target, before anybody is asked for a password.

    Raises:
        UsageError: If something has none, or a machine cannot go there.
    """
    if store_place(target) is not None:
        if options["verify_cbt"]:
            raise UsageError(f"a store verifies by --audit 1; --verify-cbt is for {_DISKS}")
        return
    if options["access"].given or options["audit"]:
        raise UsageError("--endpoint-url, --identity and --audit are for a store")
    if remote(target) is None and target.endswith(":"):
        raise UsageError(f"{target} needs a folder for the disks of a machine: {target}/FOLDER/")


async def machine_target(
    target: str,
    place: MachinePlace,
    where: ReceiveRequest,
    options: Mapping[str, Any],
    voice: Voice,
    stack: contextlib.AsyncExitStack,
) -> MachineTarget:
    """Find out what kind of target it is, and open it."""
    stored = store_place(target)
    if stored is not None:
        opening = opened_store(stored.store, options["access"])
        store = await stack.enter_async_context(voice.run.within(opening, harmless=True))
        memory = Memory(options["access"].state_dir)
        return _InStore(store, stored, memory, bool(place.disk), options["audit"], voice)
    many = target.endswith("/")
    host = remote(target)
    if host is not None:
        peer = peer_options(options, as_json=voice.as_json)
        return _OnHost(host, many, where, peer, voice)
    return _Here.of(target, many, where, voice)


@dataclass(slots=True)
class _Single:
    """Sees to it that one place gets one disk; asked before there is a snapshot."""

    target: str
    many: bool
    first: str = ""

    def check(self, name: str) -> None:
        """Refuse a second disk.

        Raises:
            UsageError: If it is one.
        """
        self.first = self.first or name
        if not self.many and name != self.first:
            raise UsageError(
                f"{self.target} takes one disk, and this machine has several; nothing was sent; "
                f"give a folder, or pick one with ?disk={self.first.rpartition('-')[2]}"
            )


@dataclass(slots=True)
class _InStore:
    """Each disk is one of the store: under NAME-KEY, or with ?disk= under the name that was given.

    STORE/NAME-KEY, where NAME takes the place of the machine's.
    """

    store: Repository
    place: StorePlace
    memory: Memory
    single: bool
    audit: int
    voice: Voice

    def _named(self, name: str) -> str:
        return self.place.disk if self.single else f"{self.place.disk}-{name.rpartition('-')[2]}"

    def held(self, name: str) -> str:
        last = self.store.disk(self._named(name)).last()
        return last.state if last is not None else ""

    async def differing(self, disk: "MachineDisk", run: Run) -> "ExtentMap":
        raise UsageError(f"a store is not compared as {_DISKS} are")

    async def deliver(self, disks: list["MachineDisk"], run: Run) -> None:
        stale: list[StaleViewError] = []
        for each in disks:
            disk = self.store.disk(self._named(each.name))
            await run.carry(functools.partial(self.memory.check, disk))
            self.voice.warn_of(each.source)
            try:
                saved = await save(each.request, each.source, disk, run, self.audit)
            finally:
                cleared(self.voice.shown)
            await run.settle(functools.partial(self.memory.remember, disk, saved.point))
            shown = replace(self.place, disk=disk.name)
            try:
                show_saved(saved, shown, as_json=self.voice.as_json, quiet=self.voice.quiet)
            except StaleViewError as error:
                stale.append(error)  # the other disks are to be saved as well
        if stale:
            raise StaleViewError("; ".join(str(error) for error in stale))


@dataclass(slots=True)
class _Here:
    """A disk or file of this host, or FOLDER/NAME-KEY.raw."""

    path: Path
    single: _Single
    where: ReceiveRequest
    voice: Voice

    @classmethod
    def of(cls, target: str, many: bool, where: ReceiveRequest, voice: Voice) -> "_Here":
        """Look whether it is a folder."""
        single = _Single(target, many or Path(target).is_dir())
        return cls(Path(target), single, where, voice)

    def _place(self, name: str) -> str:
        return str(self.path / f"{name}.raw" if self.single.many else self.path)

    def held(self, name: str) -> str:
        self.single.check(name)
        place = self._place(name)
        return held_here(place, self.where.state_dir) if Path(place).exists() else ""

    def _going_to(self, place: str) -> ReceiveRequest:
        # The same command, again and again, makes what is not there.
        create = self.where.create and not Path(place).exists()
        return replace(self.where, target=place, create=create)

    async def differing(self, disk: "MachineDisk", run: Run) -> "ExtentMap":
        async with run.within(_opened(self._place(disk.name)), harmless=True) as old:
            return await changes(disk.source, old, run)

    async def deliver(self, disks: list["MachineDisk"], run: Run) -> None:
        for each in disks:
            place = self._place(each.name)
            where = self._going_to(place)
            self.voice.warn_of(each.source)
            try:
                result = await copy(each.request, each.source, where, run)
            finally:
                cleared(self.voice.shown)
            show_received(result, place, as_json=self.voice.as_json, quiet=self.voice.quiet)


@contextlib.contextmanager
def _opened(location: str) -> Iterator[Source]:
    with contextlib.closing(open_source(location, from_medium=True)) as source:
        yield source


class _OnHost:
    """A disk of another host, or HOST:/FOLDER/NAME-KEY.raw; several are one set."""

    def __init__(
        self, host: Remote, many: bool, where: ReceiveRequest, peer: PeerOptions, voice: Voice
    ) -> None:
        self._host = host
        self._single = _Single(str(host), many)
        self._where = where
        self._peer = peer
        self._voice = voice
        self._absent: set[str] = set()

    def _place(self, name: str) -> Remote:
        return (
            replace(self._host, path=f"{self._host.path}{name}.raw")
            if self._single.many
            else self._host
        )

    def held(self, name: str) -> str:
        self._single.check(name)
        found = held_there(self._place(name), self._peer, self._voice.run)
        if found is None:
            self._absent.add(name)
        return found or ""

    async def differing(self, disk: "MachineDisk", run: Run) -> "ExtentMap":
        place = self._place(disk.name)
        return (await compared(disk.source, place, self._peer, run)).differing

    async def deliver(self, disks: list["MachineDisk"], run: Run) -> None:
        places = [self._place(each.name) for each in disks]
        creating = [self._where.create and each.name in self._absent for each in disks]
        requests = [each.request for each in disks]
        sources = [each.source for each in disks]
        try:
            if len(disks) == 1:
                where = replace(self._where, create=creating[0])
                args = (requests[0], sources[0], places[0], where, self._peer)
                sent = [await push(*args, run)]
            else:
                for source in sources:
                    self._voice.warn_of(source)
                sent = await push_set(
                    *(requests, sources, places, self._where, self._peer, run), creating
                )
        finally:
            cleared(self._voice.shown)
        for each, place, result in zip(disks, places, sent, strict=True):
            show_sent(result, self._voice, full=not each.request.base, target=str(place))
