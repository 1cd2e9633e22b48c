"""What commands with machines of VMware have in common, and how `send` sends one."""

import contextlib
import getpass
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from blockstream.cli.console import event
from blockstream.cli.machine_targets import MachineTarget, machine_target, refuse_target_options
from blockstream.cli.options import cleared
from blockstream.cli.remote_options import peer_options
from blockstream.cli.send_output import Voice
from blockstream.errors import (
    AuthenticationError,
    LeftoverError,
    NotFoundError,
    StaleViewError,
    UsageError,
)
from blockstream.locations import (
    MachinePlace,
    machine_place,
    open_vsphere,
    server_of,
)
from blockstream.transfers.receive import ReceiveRequest
from blockstream.transfers.send import SendRequest
from blockstream.words import Secret, size_text

if TYPE_CHECKING:
    from blockstream.jobs.machines.send import Round
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
def opened_vsphere(place: MachinePlace, password: Secret) -> Iterator["VSphere"]:
    """Log in, and out."""
    with contextlib.closing(open_vsphere(place, password)) as session:
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
            why = error.strerror if isinstance(error, OSError) else "it is no text"
            raise NotFoundError(
                f"{file} cannot be read as a password: {why}; nothing was asked"
            ) from None
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
    from blockstream.jobs.machines.send import MachineWish, OnLoss, opened_machine
    from blockstream.jobs.machines.snapshots import Care, Quiesce

    if len(words) != 2:
        raise UsageError("one machine goes to one TARGET: a folder, HOST:/FOLDER/, or STORE/NAME")
    place = machine_place(words[0])
    if not place.path:
        raise UsageError(f"{place} names no machine; `blockstream vsphere ls` lists them")
    _refuse(request, options)

    wish: MachineWish = MachineWish(
        care=Care(Quiesce(options["quiesce_guest"]), voice.run),
        enable=options["enable_cbt"],
        on_loss=OnLoss(options["on_cbt_loss"]),
        allocated=options["allocated_from_cbt"],
        way=peer_options(options, as_json=voice.as_json).way,
    )
    refuse_target_options(words[1], options)
    # A terminal is asked here, where nothing else runs.
    password = password_of(place, options["password_file"])

    async def sent() -> None:
        missed: dict[str, int] = {}
        run = voice.run
        try:
            async with contextlib.AsyncExitStack() as stack:
                goes_to = await machine_target(words[1], place, where, options, voice, stack)
                logged_in = run.within(opened_vsphere(place, password), harmless=True)
                session = await stack.enter_async_context(logged_in)
                server = await run.ask(lambda: server_of(place))
                args = (session, server, place, request, wish, goes_to.held, words[1])
                found = await stack.enter_async_context(run.within(opened_machine(*args)))
                _show_round(found, voice)
                missed = await _missed(found, goes_to, voice) if options["verify_cbt"] else {}
                if found.disks:
                    await goes_to.deliver(found.disks, run)
        except LeftoverError:
            # It has the status that somebody has to act on soonest; the other must be known, too.
            if missed:
                voice.tell(_missed_words(missed))
            raise
        if missed:
            raise StaleViewError(_missed_words(missed))

    voice.done(sent())


def _missed_words(missed: Mapping[str, int]) -> str:
    return (
        "what arrived is right, but change tracking had missed "
        f"{', '.join(f'{size_text(count)} of {name}' for name, count in missed.items())}: what "
        "other targets hold may lack them; send them full copies, and do not trust this tracker "
        "before it was switched off and on"
    )


async def _missed(found: "Round", goes_to: "MachineTarget", voice: Voice) -> dict[str, int]:
    """Compare without the tracker; return how many bytes it had missed, by disk."""
    from blockstream.jobs.machines.send import add_missed

    counts: dict[str, int] = {}
    for each in found.disks:
        if each.request.base:
            differing = await goes_to.differing(each, voice.run)
            missed = add_missed(each, differing).total()
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


def _show_round(found: "Round", voice: Voice) -> None:
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
        voice.tell(f"{each.name}: all of its {size_text(each.disk.size)}, because {each.why_full}")
