"""What commands with machines of VMware have in common, and how `send` reads one."""

import contextlib
import getpass
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from blockstream.captures.options import StateOptions
from blockstream.errors import AuthenticationError, NotFoundError, UsageError
from blockstream.locations.ssh import Way
from blockstream.locations.vsphere import MachinePlace, open_vsphere, server_of
from blockstream.words import Secret

if TYPE_CHECKING:
    from blockstream.captures.vsphere.capture import MachineCapture
    from blockstream.sources.datastore import Server  # ssl and http
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


def machine_capture(
    place: MachinePlace,
    target: str,
    states: StateOptions,
    state_dir: Path,
    way: Way,
    options: Mapping[str, Any],
) -> "MachineCapture":
    """Return how a machine is held still; whoever sits at the terminal may be asked to log in.

    Raises:
        UsageError: If something was asked for that a machine has not.
        AuthenticationError: If there is no password.
    """
    from blockstream.captures.vsphere.capture import MachineCapture, MachineOptions, OnLoss
    from blockstream.captures.vsphere.snapshots import Quiesce, SnapshotPolicy

    _refuse(states, options)
    how = MachineOptions(
        state_dir=state_dir,
        target=target,
        base=states.base,
        snapshots=SnapshotPolicy(Quiesce(options["quiesce_guest"])),
        enable=options["enable_cbt"],
        on_loss=OnLoss(options["on_cbt_loss"]),
        allocated=options["allocated_from_cbt"],
        way=way,
    )
    password = password_of(place, options["password_file"])

    @contextlib.contextmanager
    def log_in() -> "Iterator[tuple[VSphere, Server]]":
        with opened_vsphere(place, password) as session:
            yield session, server_of(place)

    return MachineCapture(place, log_in, how)


def _refuse(states: StateOptions, options: Mapping[str, Any]) -> None:
    """Refuse what has no effect on a machine."""
    if states.extents or states.resume or states.goal:
        raise UsageError("--extents, --goal and --resume are not for a machine")
    if states.base == "last":
        raise UsageError("the target of a machine is asked what it holds: leave --base last out")
    if options["since"] or options["rotate"] or options["quiesced"] or options["snapshot_size"]:
        raise UsageError(
            "--since, --rotate, --quiesced and --snapshot-size are for logical volumes: of a "
            "machine, what changed since the target's state is sent without being asked for"
        )
