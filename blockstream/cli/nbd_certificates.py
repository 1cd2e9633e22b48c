"""Certificates for exports of NBD servers that use TLS."""

from collections.abc import Sequence

from blockstream.errors import UsageError
from blockstream.locations.interface import DiskLocation, Location
from blockstream.locations.nbd import NbdExport


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
