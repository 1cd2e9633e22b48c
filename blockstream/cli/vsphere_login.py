"""What commands with machines of VMware have in common, and how `send` reads one."""

import contextlib
import getpass
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from blockstream.captures.options import VsphereOptions
from blockstream.errors import AuthenticationError, NotFoundError
from blockstream.locations.ssh import Way
from blockstream.locations.vsphere import MachinePlace, open_vsphere, server_of
from blockstream.words import Secret

if TYPE_CHECKING:
    from blockstream.captures.vsphere.capture import MachineCapture
    from blockstream.sources.datastore import Server  # ssl and http
    from blockstream.sources.vsphere import VSphere  # pyVmomi: 0.2 s

PASSWORD = "BLOCKSTREAM_VSPHERE_PASSWORD"  # noqa: S105  # the variable's name


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
    state_dir: Path,
    base: str,
    options: VsphereOptions,
    way: Way,
) -> "MachineCapture":
    """Return how a machine is held still; whoever sits at the terminal may be asked to log in.

    Raises:
        AuthenticationError: If there is no password.
    """
    from blockstream.captures.vsphere.capture import MachineCapture, MachineOptions, OnLoss
    from blockstream.captures.vsphere.snapshots import Quiesce, SnapshotPolicy

    how = MachineOptions(
        state_dir=state_dir,
        target=target,
        base=base,
        snapshots=SnapshotPolicy(Quiesce(options.quiesce_guest)),
        enable=options.enable_cbt,
        on_loss=OnLoss(options.on_cbt_loss),
        allocated=options.allocated_from_cbt,
        way=way,
    )
    password = password_of(place, options.password_file)

    @contextlib.contextmanager
    def log_in() -> "Iterator[tuple[VSphere, Server]]":
        with opened_vsphere(place, password) as session:
            yield session, server_of(place)

    return MachineCapture(place, log_in, how)
