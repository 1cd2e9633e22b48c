"""Options on how another host is reached."""

import os
from dataclasses import dataclass

from blockstream.cli.option_groups import OptionGroups
from blockstream.cli.options import warn
from blockstream.declared import Needs, option
from blockstream.errors import UsageError
from blockstream.locations.ssh import Way
from blockstream.transfers.peer_options import MOST_STREAMS, PeerOptions

AUTO = 0


def _streams(text: str) -> int:
    """Return how many connections; `AUTO` to count them.

    Raises:
        UsageError: If it is no such number.
    """
    if text == "auto":
        return AUTO
    if text.isdecimal() and 1 <= int(text) <= MOST_STREAMS:
        return int(text)
    raise UsageError(f"--streams is auto, or 1 to {MOST_STREAMS}, not {text!r}")


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class RemoteOptions:
    """How another host is reached.

    Attributes:
        rsh: Program that leads there; empty for our own ssh.
        remote_command: What blockstream is called there.
        host_keys: What becomes of a host whose key is not known.
        ssh_config: Configuration for our own ssh, in place of the user's.
        retry: How often to connect again without getting any further in between.
        streams: Connections side by side; 0 to count them by round-trip time.
    """

    rsh: str = option(
        "",
        "Reach the other host by this, such as `ssh -i KEY`; {host} and {command} may stand in it.",
        metavar="COMMAND",
        shown="our own ssh",
        needs=(Needs.HOST,),
    )
    remote_command: str = option(
        "blockstream",
        "What blockstream is called on the other host.",
        metavar="COMMAND",
        needs=(Needs.HOST,),
        rare=True,
    )
    host_keys: str = option(
        "strict",
        "What becomes of a host whose key is not known. A changed key is always refused.",
        choices=("strict", "accept-new"),
        needs=(Needs.HOST,),
        rare=True,
    )
    ssh_config: str = option(
        "",
        "Configuration of ssh, in place of the user's own.",
        metavar="FILE",
        completes="files",
        needs=(Needs.HOST,),
        rare=True,
    )
    retry: int = option(
        10,
        "How often to connect again without getting further in between.",
        metavar="N",
        least=0,
        needs=(Needs.HOST,),
        rare=True,
    )
    streams: int = option(
        1,
        "Connections side by side, for a long way; auto counts them by round-trip time.",
        metavar="N",
        parse=_streams,
        needs=(Needs.HOST,),
        rare=True,
    )

    def peer(self, *, as_json: bool) -> PeerOptions:
        """Return how the other end is reached.

        Raises:
            UsageError: If the options contradict each other.
        """
        for flag, is_set in (
            ("--host-keys", self.host_keys != "strict"),
            ("--ssh-config", self.ssh_config),
        ):
            if self.rsh and is_set:
                raise UsageError(f"{flag} is for our own ssh; tell that program of --rsh itself")
        if self.ssh_config and not os.access(self.ssh_config, os.R_OK):
            raise UsageError(f"{self.ssh_config} cannot be read; nothing was done")
        return PeerOptions(
            way=Way(self.rsh, self.host_keys, self.ssh_config),
            command=self.remote_command,
            retries=self.retry,
            streams=self.streams,
            tell=lambda text: warn(text, as_json=as_json),
        )


def refuse_remote_options(options: OptionGroups) -> None:
    """An option without effect is an error.

    Raises:
        UsageError: If one was given although no other host is named.
    """
    flag = options.given_of(RemoteOptions)
    if flag:
        raise UsageError(f"{flag} {Needs.HOST.value}; nothing was done")
