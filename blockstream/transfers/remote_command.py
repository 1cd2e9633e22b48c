"""The program on the other host: how it is reached, and what it is told to do."""

import contextlib
import math
import os
import shlex
from collections.abc import Iterator, Sequence

from blockstream.errors import (
    UsageError,
)
from blockstream.interfaces import Link
from blockstream.linux.stream_join import new_token, tell_token
from blockstream.locations.ssh import Remote, open_links, round_trip
from blockstream.transfers.peer_options import MOST_STREAMS, PeerOptions
from blockstream.transfers.receive_options import ReceiveRequest
from blockstream_protocol import IDLE_SECONDS

# The one thing that a peer may ask a forced command for; it is compared, never parsed.
PEER_COMMAND = "blockstream-peer 1"
# The receiver of a connection that broke may hold the target until it, too, notices.
LOCK_WAIT_SECONDS = IDLE_SECONDS - 15.0
# Windows are about 2 MiB: with one stream for each 12.5 ms a line of 1 Gbit/s is full.
_SECONDS_A_STREAM = 0.0125


@contextlib.contextmanager
def connected(
    where: Remote, words: Sequence[str], options: PeerOptions, count: int
) -> Iterator[list[Link]]:
    """Connect `count` times, and let the programs there meet in one session."""
    with contextlib.ExitStack() as stack:
        meeting = ["--meeting", str(count - 1)] if count > 1 else []
        commands = [remote_command(options, [*words, *meeting], where)]
        commands += [f"{options.command} join --json {number}" for number in range(count - 1)]
        links: list[Link] = [
            stack.enter_context(contextlib.closing(link))
            for link in open_links(where, commands, options.way)
        ]
        for each in links:
            # Before any is waited for, because the programs there wait for each other.
            stack.callback(each.hang_up)
        if count > 1:
            token = new_token()
            for each in links:
                tell_token(token, each.to_peer)
        yield links


def wished_streams(where: Remote, options: PeerOptions) -> int:
    """Return how many connections to use.

    One connection carries little more than its window in a round trip; and one process encrypts
    about 200 MiB a second, which many cores can double.
    """
    if options.streams:
        return options.streams
    seconds = round_trip(where, options.way)
    if seconds is None:
        return 1
    by_distance = math.ceil(seconds / _SECONDS_A_STREAM)
    by_cores = min(4, (os.cpu_count() or 1) // 4)
    return max(1, min(MOST_STREAMS, max(by_distance, by_cores)))


def remote_command(options: PeerOptions, words: Sequence[str], where: Remote) -> str:
    """Return the command line for the other host's shell; the path is its last word.

    What goes wrong there is said in lines of JSON. `serve` decides by itself; it only compares what
    it is asked.
    """
    if where.name:
        return PEER_COMMAND
    return f"{options.command} {shlex.join([*words, '--json', '--', where.path])}"


def check_named(what: ReceiveRequest, options: PeerOptions) -> None:
    """Refuse what the policy there decides."""
    default = ReceiveRequest(what.target, what.state_dir)
    if what != default or options.command != PeerOptions().command or options.streams != 1:
        raise UsageError(
            "how HOST::NAME is written is decided by the policy there: leave --apply, --create, "
            "--verify, --force..., --remote-command and --streams out"
        )


def target_options(what: ReceiveRequest) -> list[str]:
    """Return the options of `recv` for the other host."""
    words = ["--apply", str(what.apply)]
    for option, given in (
        ("--create", what.create),
        ("--verify", what.verify),
        ("--force-in-use", what.force_in_use),
        ("--force-larger", what.force_larger),
        ("--force-base", what.force_base),
    ):
        words += [option] if given else []
    return words
