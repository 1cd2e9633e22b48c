"""The options of sources that are exports of an NBD server."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

from blockstream.errors import UsageError
from blockstream.locations.interface import DiskLocation, Location
from blockstream.locations.nbd import NbdExport

F = TypeVar("F", bound=Callable[..., Any])


def with_export_options(function: F) -> F:
    """Add --bitmap and --tls-certificates."""
    for option in (
        click.option(
            "--tls-certificates",
            default="",
            metavar="DIR",
            help="Of nbds://..., the folder with ca-cert.pem, and client-cert.pem with "
            "client-key.pem if the server asks for them. [default: the authorities of this host]",
        ),
        click.option(
            "--bitmap",
            default="",
            metavar="NAME",
            help="Of an NBD export of QEMU's, only what this dirty bitmap says has changed.",
        ),
    ):
        function = option(function)
    return function


def with_certificates(places: Sequence[Location], folder: str) -> tuple[Location, ...]:
    """Return places with the certificates' folder in those that use TLS.

    Raises:
        UsageError: If none does.
    """
    if not folder:
        return tuple(places)
    if not any(isinstance(each, NbdExport) and each.uses_tls for each in places):
        raise UsageError("--tls-certificates is for nbds://... and nbds+unix://...")
    return tuple(
        each.with_certificates(folder) if isinstance(each, NbdExport) and each.uses_tls else each
        for each in places
    )


def disk_with_certificates(disk: DiskLocation, folder: str) -> DiskLocation:
    """Return one disk with them.

    Raises:
        UsageError: If it uses none.
    """
    if not isinstance(disk, NbdExport):
        raise UsageError("--tls-certificates is for nbds://... and nbds+unix://...")
    with_certificates([disk], folder)
    return disk.with_certificates(folder)
