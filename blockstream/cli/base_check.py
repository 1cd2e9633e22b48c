"""`send --check-base`, on the command line."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import click

from blockstream.cli.console import event, say
from blockstream.cli.options import cleared
from blockstream.cli.send_arguments import Places
from blockstream.cli.send_output import Voice
from blockstream.errors import UsageError
from blockstream.locations import Remote
from blockstream.transfers.receive import ReceiveRequest
from blockstream.transfers.remote_command import PeerOptions
from blockstream.transfers.send import SendPlan, SendRequest

if TYPE_CHECKING:
    from blockstream.interfaces import Source, Target
    from blockstream.transfers.copy import Check

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
    places: Places,
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
    disk = places.hosts or (places.target is not None and places.store is None)
    named = any(host.name for host in places.hosts)
    if not disk or named or places.machine or compare or dry_run or where.create:
        raise UsageError(
            "--check-base reads a TARGET that is there: HOST:/PATH, or a disk of this host; not "
            "HOST::NAME, a machine or a store; leave out --compare, --create and -n"
        )


def check_here(request: SendRequest, disk: "Source", voice: Voice) -> "Check":
    """Return what reads a target of this host, once it is held."""
    from blockstream.transfers.base_check import check_base_here  # numpy, and rarely used

    _check_increment(request)

    def check(what: SendPlan, target: "Target") -> None:
        check_base_here(what, disk, target, voice.run)
        _say_checked(target.name, voice)

    return check


async def checked_there(
    request: SendRequest, disk: "Source", host: Remote, peer: PeerOptions, voice: Voice
) -> SendRequest:
    """Let a target of another host be read; return what is to be sent, which it must take.

    Raises:
        BlockstreamError: If it is not the base.
    """
    from blockstream.transfers.base_check import check_base_there  # numpy, and rarely used

    _check_increment(request)
    checked = await check_base_there(request, disk, host, peer, voice.run)
    _say_checked(str(host), voice)
    return checked


def _check_increment(request: SendRequest) -> None:
    if not request.base:
        raise UsageError("--check-base is for an increment: a full copy needs no base")


def _say_checked(target: str, voice: Voice) -> None:
    cleared(voice.shown)
    if voice.as_json:
        event("base-checked", target=target)
    elif not voice.quiet:
        say(f"{target} holds the base: all that is not sent was read, and is equal")
