"""What commands with machines of VMware have in common, and how `send` sends one."""

import contextlib
import getpass
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import click

from blockstream.cli.console import event
from blockstream.cli.options import cleared, warn
from blockstream.cli.peers import peer_options
from blockstream.cli.recv_cmd import show_received
from blockstream.cli.stores import opened_store, show_saved
from blockstream.errors import AuthenticationError, NotFoundError, StaleViewError, UsageError
from blockstream.interfaces import Source
from blockstream.jobs.compare import changes
from blockstream.jobs.copy import copy
from blockstream.jobs.disk_set import push_set
from blockstream.jobs.holdings import held_here, held_there
from blockstream.jobs.peer import PeerOptions, compared, push
from blockstream.jobs.receive import ReceiveRequest
from blockstream.jobs.send import SendRequest, SendResult
from blockstream.jobs.stores.repository import Repository
from blockstream.jobs.stores.save import save
from blockstream.jobs.supervision import Reporter, Work, supervised
from blockstream.locations import (
    MachinePlace,
    Remote,
    StorePlace,
    machine_place,
    open_source,
    open_vsphere,
    remote,
    server_of,
    store_place,
)
from blockstream.pipeline.progress import Progress
from blockstream.words import Secret, size_text

if TYPE_CHECKING:
    from blockstream.extents import ExtentMap  # numpy: 60 ms
    from blockstream.jobs.machines import MachineDisk, Round
    from blockstream.sources.vsphere import VSphere  # pyVmomi: 0.2 s

F = TypeVar("F", bound=Callable[..., Any])

PASSWORD = "BLOCKSTREAM_VSPHERE_PASSWORD"  # noqa: S105  # the variable's name
_OPTIONS: dict[str, Any] = {
    "password_file": None,
    "quiesce_guest": "try",
    "enable_cbt": False,
    "on_cbt_loss": "full",
    "allocated_from_cbt": False,
    "verify_cbt": False,
}


class Voice(Protocol):
    """How a run speaks; see `send`."""

    shown: list[Reporter]
    as_json: bool
    quiet: bool

    def warn_of(self, source: Source) -> None:
        """Say what people should know of what is sent."""


def with_password_option(function: F) -> F:
    """Add --password-file."""
    return click.option(
        "--password-file",
        type=click.Path(path_type=Path),
        metavar="FILE",
        envvar=f"{PASSWORD}_FILE",
        help=f"Holds the password for a vsphere:// location; {PASSWORD} may hold it itself. "
        "On a terminal it is asked for.",
    )(function)


def with_machine_options(function: F) -> F:
    """Add the options on how a machine of VMware is read."""
    for option in (
        with_password_option,
        click.option(
            "--allocated-from-cbt",
            is_flag=True,
            help="Of a machine: for a whole copy, read only what change tracking calls allocated.",
        ),
        click.option(
            "--verify-cbt",
            is_flag=True,
            help="Of a machine: read all of it and of TARGET, and send what the tracker missed.",
        ),
        click.option(
            "--on-cbt-loss",
            type=click.Choice(["full", "fail"]),
            default=_OPTIONS["on_cbt_loss"],
            show_default=True,
            help="Of a machine: what becomes of a disk when nobody knows what changed.",
        ),
        click.option(
            "--enable-cbt",
            is_flag=True,
            help="Of a machine: switch change tracking on where it is off.",
        ),
        click.option(
            "--quiesce-guest",
            type=click.Choice(["try", "require", "no"]),
            default=_OPTIONS["quiesce_guest"],
            show_default=True,
            help="Of a machine: whether its guest is brought to rest for the snapshot.",
        ),
    ):
        function = option(function)
    return function


def refuse_machine_options(options: Mapping[str, Any]) -> None:
    """An option without effect is an error.

    Raises:
        UsageError: If one was given that only a machine has.
    """
    for name, default in _OPTIONS.items():
        # The variable may be set for other commands.
        if name != "password_file" and options[name] != default:
            raise UsageError(f"--{name.replace('_', '-')} is for a vsphere:// location")


@contextlib.contextmanager
def opened_vsphere(place: MachinePlace, password_file: Path | None) -> Iterator["VSphere"]:
    """Log in, and out."""
    with contextlib.closing(open_vsphere(place, password_of(place, password_file))) as session:
        yield session


def password_of(place: MachinePlace, file: Path | None) -> Secret:
    """Return the password, from a file, the environment, or whoever sits at the terminal.

    Raises:
        NotFoundError: If the file cannot be read.
        AuthenticationError: If there is none.
    """
    # Nobody that we start need know it.
    given = os.environ.pop(PASSWORD, None)
    if file is not None:
        try:
            return Secret(file.read_text().rstrip("\r\n"))
        except (OSError, UnicodeDecodeError) as error:
            raise NotFoundError(f"{file} cannot be read as a password: {error}") from None
    if given is not None:
        return Secret(given)
    if os.isatty(0) and os.isatty(2):
        return Secret(getpass.getpass(f"password of {place.user} at {place.host}: "))
    raise AuthenticationError(
        f"no password for {place.user} at {place.host}; nothing was asked; set {PASSWORD}, or name "
        "a file with --password-file"
    )


def send_machine(
    words: tuple[str, ...],
    request: SendRequest,
    where: ReceiveRequest,
    options: Mapping[str, Any],
    voice: Voice,
) -> None:
    """Send the disks of a machine.

    Raises:
        BlockstreamError: As the server, a disk or a target fails.
    """
    from blockstream.jobs.machine_snapshots import Care, Quiesce
    from blockstream.jobs.machines import MachineWish, OnLoss, opened_machine

    if len(words) != 2:
        raise UsageError("one machine goes to one TARGET: a folder, HOST:/FOLDER/, or STORE/NAME")
    place = machine_place(words[0])
    if not place.path:
        raise UsageError(f"{place} names no machine; `blockstream vsphere ls` lists them")
    _refuse(request, options)

    def tell(text: str) -> None:
        cleared(voice.shown)
        warn(text, as_json=voice.as_json)

    wish: MachineWish = MachineWish(
        care=Care(Quiesce(options["quiesce_guest"]), tell),
        enable=options["enable_cbt"],
        on_loss=OnLoss(options["on_cbt_loss"]),
        allocated=options["allocated_from_cbt"],
        way=peer_options(options, as_json=voice.as_json).way,
    )
    with contextlib.ExitStack() as stack:
        goes_to = _destination(words[1], place, where, options, voice, stack)
        session = stack.enter_context(opened_vsphere(place, options["password_file"]))
        found = stack.enter_context(
            opened_machine(session, server_of(place), place, request, wish, goes_to.held, words[1])
        )
        _show_round(found, voice, tell)
        missed = _missed(found, goes_to, voice) if options["verify_cbt"] else {}
        if found.disks:
            goes_to.deliver(found.disks)
    if missed:
        raise StaleViewError(
            f"what arrived is right, but change tracking had missed "
            f"{', '.join(f'{size_text(count)} of {name}' for name, count in missed.items())}: what "
            "other targets hold may lack them; send them full copies, and do not trust this "
            "tracker before it was switched off and on"
        )


def _missed(found: "Round", goes_to: "_Destination", voice: Voice) -> dict[str, int]:
    """Compare without the tracker; return how many bytes it had missed, by disk."""
    from blockstream.jobs.machines import add_missed

    counts: dict[str, int] = {}
    for each in found.disks:
        if each.request.base:
            missed = add_missed(each, goes_to.differing(each)).total()
            cleared(voice.shown)
            if voice.as_json:
                event("verified", name=each.name, missed=missed)
            if missed:
                counts[each.name] = missed
    return counts


def _refuse(request: SendRequest, options: Mapping[str, Any]) -> None:
    """Refuse what has no effect on a machine."""
    if request.extents or request.resume or request.receipt_seconds or request.goal:
        raise UsageError("--extents, --goal, --resume and --require-receipt are not for a machine")
    if request.base == "last":
        raise UsageError("the target of a machine is asked what it holds: leave --base last out")
    if options["since"] or options["rotate"] or options["quiesced"] or options["snapshot_size"]:
        raise UsageError(
            "--since, --rotate, --quiesced and --snapshot-size are for logical volumes: of a "
            "machine, what changed since the target's state is sent without being asked for"
        )


def _show_round(found: "Round", voice: Voice, tell: Callable[[str], None]) -> None:
    whole = [each for each in found.disks if each.why_full]
    if voice.as_json:
        event(
            "machine",
            machine=found.machine.path,
            snapshot=found.snapshot.name,
            quiesced=found.quiesced,
            whole=len(whole),
            disks=[
                {
                    "name": each.name,
                    "key": each.disk.key,
                    "size": each.disk.size,
                    "base": each.request.base,
                    "goal": each.request.goal,
                    "why_whole": each.why_full,
                }
                for each in found.disks
            ],
        )
        return
    for each in whole:
        tell(f"{each.name}: all of its {size_text(each.disk.size)}, because {each.why_full}")


class _Destination(Protocol):
    """Where the disks of a machine go."""

    def held(self, name: str) -> str:
        """Return what is held of the disk of that name; empty for nothing known."""

    def differing(self, disk: "MachineDisk") -> "ExtentMap":
        """Return where a disk differs from what is held of it; both are read."""

    def deliver(self, disks: list["MachineDisk"]) -> None:
        """Send them, and say what became of it."""


def _destination(
    target: str,
    place: MachinePlace,
    where: ReceiveRequest,
    options: Mapping[str, Any],
    voice: Voice,
    stack: contextlib.ExitStack,
) -> _Destination:
    """Find out what kind of target it is.

    Raises:
        UsageError: If a machine cannot go there.
    """
    stored = store_place(target)
    if stored is not None:
        store = stack.enter_context(opened_store(stored.store, options["access"]))
        return _InStore(store, stored, bool(place.disk), options["audit"], voice)
    if options["access"].given or options["audit"]:
        raise UsageError("--endpoint-url, --identity and --audit are for a store")
    many = target.endswith("/")
    host = remote(target)
    if host is not None:
        peer = peer_options(options, as_json=voice.as_json)
        return _OnHost(host, many, where, peer, voice)
    if target.endswith(":"):
        raise UsageError(f"{target} needs a folder for the disks of a machine: {target}/FOLDER/")
    single = _Single(target, many or Path(target).is_dir())
    return _Here(Path(target), single, where, voice)


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
    single: bool
    audit: int
    voice: Voice

    def _named(self, name: str) -> str:
        return self.place.disk if self.single else f"{self.place.disk}-{name.rpartition('-')[2]}"

    def held(self, name: str) -> str:
        last = self.store.disk(self._named(name)).last()
        return last.state if last is not None else ""

    def differing(self, disk: "MachineDisk") -> "ExtentMap":
        raise UsageError("a store verifies by --audit 1; --verify-cbt is for disks and files")

    def deliver(self, disks: list["MachineDisk"]) -> None:
        for each in disks:
            disk = self.store.disk(self._named(each.name))
            progress = Progress()
            self.voice.warn_of(each.source)
            try:
                saved = save(
                    each.request, each.source, disk, progress, self.voice.shown, self.audit
                )
            finally:
                cleared(self.voice.shown)
            shown = replace(self.place, disk=disk.name)
            show_saved(saved, shown, as_json=self.voice.as_json, quiet=self.voice.quiet)


@dataclass(slots=True)
class _Here:
    """A disk or file of this host, or FOLDER/NAME-KEY.raw."""

    path: Path
    single: _Single
    where: ReceiveRequest
    voice: Voice

    def _place(self, name: str) -> str:
        return str(self.path / f"{name}.raw" if self.single.many else self.path)

    def held(self, name: str) -> str:
        self.single.check(name)
        place = self._place(name)
        return held_here(place, self.where.state_dir) if Path(place).exists() else ""

    def differing(self, disk: "MachineDisk") -> "ExtentMap":
        progress, stopped = Progress(), list[str]()
        old = open_source(self._place(disk.name), from_medium=True)
        with contextlib.closing(old):
            return supervised(
                lambda: changes(disk.source, old, progress, stopped),
                Work(stopped.append),
                progress,
                self.voice.shown,
            )

    def deliver(self, disks: list["MachineDisk"]) -> None:
        for each in disks:
            place = self._place(each.name)
            # The same command, again and again, makes what is not there.
            create = self.where.create and not Path(place).exists()
            where = replace(self.where, target=place, create=create)
            self.voice.warn_of(each.source)
            try:
                result = copy(each.request, each.source, where, Progress(), self.voice.shown)
            finally:
                cleared(self.voice.shown)
            show_received(result, place, as_json=self.voice.as_json, quiet=self.voice.quiet)


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
        found = held_there(self._place(name), self._peer)
        if found is None:
            self._absent.add(name)
        return found or ""

    def differing(self, disk: "MachineDisk") -> "ExtentMap":
        place = self._place(disk.name)
        return compared(disk.source, place, self._peer, self._voice.shown).differing

    def deliver(self, disks: list["MachineDisk"]) -> None:
        places = [self._place(each.name) for each in disks]
        creating = [self._where.create and each.name in self._absent for each in disks]
        requests = [each.request for each in disks]
        sources = [each.source for each in disks]
        try:
            if len(disks) == 1:
                where = replace(self._where, create=creating[0])
                args = (requests[0], sources[0], places[0], where, self._peer)
                sent = [push(*args, Progress(), self._voice.shown)]
            else:
                for source in sources:
                    self._voice.warn_of(source)
                sent = push_set(
                    *(requests, sources, places, self._where, self._peer, self._voice.shown),
                    creating,
                )
        finally:
            cleared(self._voice.shown)
        for each, place, result in zip(disks, places, sent, strict=True):
            self._show(result, str(place), full=not each.request.base)

    def _show(self, result: SendResult, target: str, *, full: bool) -> None:
        from blockstream.cli.send_cmd import show_sent  # which has us

        show_sent(result, self._voice, full=full, target=target)
