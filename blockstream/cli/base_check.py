"""`send --check-base`, on the command line."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import click

from blockstream.cli.send_arguments import SendArguments
from blockstream.errors import UsageError
from blockstream.transfers.receive_options import ReceiveRequest

F = TypeVar("F", bound=Callable[..., Any])


def with_check_base(command: F) -> F:
    """Add the option."""
    option = click.option(
        "--check-base",
        is_flag=True,
        help="Of an increment: read all of TARGET, and compare with SOURCE what is said not to "
        "have changed; only then take it for the base, whoever may have written to it.",
    )
    return option(command)


def refuse_check_base(
    places: SendArguments,
    where: ReceiveRequest,
    options: Mapping[str, Any],
    *,
    compare: bool,
    dry_run: bool,
) -> None:
    """Refuse what it cannot be for; an option without effect is an error.

    Raises:
        UsageError: If there is no target that it could read.
    """
    if not options["check_base"]:
        return
    disk = places.to_host or places.within_one_host
    if not disk or places.to_named or places.machine or compare or dry_run or where.create:
        raise UsageError(
            "--check-base reads a TARGET that is there: HOST:/PATH, or a disk of this host; not "
            "HOST::NAME, a machine or a store; leave out --compare, --create and -n"
        )
