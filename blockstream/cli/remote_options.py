"""Options on how another host is reached."""

import os
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

import click

from blockstream.cli.options import warn
from blockstream.errors import UsageError
from blockstream.linux.stream_join import MOST_STREAMS
from blockstream.locations.ssh import Way
from blockstream.transfers.remote_command import PeerOptions

F = TypeVar("F", bound=Callable[..., Any])

_DEFAULTS: dict[str, Any] = {
    "rsh": "",
    "remote_command": "blockstream",
    "host_keys": "strict",
    "ssh_config": "",
    "retry": 10,
    "streams": "1",
}


PEER_OPTIONS: Final = frozenset(_DEFAULTS)


def with_peer_options(function: F) -> F:
    """Add the options on another host."""
    for option in (
        click.option(
            "--streams",
            default=_DEFAULTS["streams"],
            show_default=True,
            metavar="N",
            help="Connections side by side, for a long way; auto counts them by round-trip time.",
        ),
        click.option(
            "--retry",
            type=click.IntRange(min=0),
            default=_DEFAULTS["retry"],
            show_default=True,
            metavar="N",
            help="How often to connect again without getting further in between.",
        ),
        click.option(
            "--ssh-config",
            default=_DEFAULTS["ssh_config"],
            metavar="FILE",
            help="Configuration of ssh, in place of the user's own.",
        ),
        click.option(
            "--host-keys",
            type=click.Choice(["strict", "accept-new"]),
            default=_DEFAULTS["host_keys"],
            show_default=True,
            help="What becomes of a host whose key is not known. A changed key is always refused.",
        ),
        click.option(
            "--remote-command",
            default=_DEFAULTS["remote_command"],
            show_default=True,
            metavar="COMMAND",
            help="What blockstream is called on the other host.",
        ),
        click.option(
            "--rsh",
            default=_DEFAULTS["rsh"],
            metavar="COMMAND",
            help="Reach the other host by this, as with `ssh -i KEY`; {host} and {command} may say "
            "where these belong. [default: our own ssh]",
        ),
    ):
        function = option(function)
    return function


def refuse_peer_options(options: Mapping[str, Any]) -> None:
    """An option without effect is an error."""
    for name, default in _DEFAULTS.items():
        if options[name] != default:
            raise UsageError(
                f"{_option(name)} needs another host, as HOST:/PATH, and none was named; nothing "
                "was done"
            )


def peer_options(options: Mapping[str, Any], *, as_json: bool) -> PeerOptions:
    """Return them.

    Raises:
        UsageError: If they contradict each other.
    """
    for name in ("host_keys", "ssh_config"):
        if options["rsh"] and options[name] != _DEFAULTS[name]:
            raise UsageError(
                f"{_option(name)} is for our own ssh; tell that program of --rsh itself"
            )
    if options["ssh_config"] and not os.access(options["ssh_config"], os.R_OK):
        raise UsageError(f"{options['ssh_config']} cannot be read; nothing was done")
    return PeerOptions(
        way=Way(options["rsh"], options["host_keys"], options["ssh_config"]),
        command=options["remote_command"],
        retries=options["retry"],
        streams=_streams(options["streams"]),
        tell=lambda text: warn(text, as_json=as_json),
    )


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _streams(text: str) -> int:
    """Return how many connections; 0 for auto."""
    if text == "auto":
        return 0
    if text.isdecimal() and 1 <= int(text) <= MOST_STREAMS:
        return int(text)
    raise UsageError(f"--streams is auto, or 1 to {MOST_STREAMS}, not {text!r}")
