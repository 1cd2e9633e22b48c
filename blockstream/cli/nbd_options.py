"""The options of sources that are exports of an NBD server."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar
from urllib.parse import quote

import click

from blockstream.errors import UsageError
from blockstream.locations import is_nbd

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


def with_certificates(places: Sequence[str], folder: str) -> tuple[str, ...]:
    """Return places with the certificates' folder in those that use TLS, as libnbd writes it.

    Raises:
        UsageError: If none does.
    """
    if not folder:
        return tuple(places)
    if not any(map(_uses_tls, places)):
        raise UsageError("--tls-certificates is for nbds://... and nbds+unix://...")
    return tuple(_with(place, folder) if _uses_tls(place) else place for place in places)


def _uses_tls(place: str) -> bool:
    return is_nbd(place) and place.startswith("nbds")


def _with(place: str, folder: str) -> str:
    return f"{place}{'&' if '?' in place else '?'}tls-certificates={quote(folder)}"
