"""Several ssh connections at once: one process loads what they need, each relay forks from it.

Loading asyncssh takes half a second of a processor, which eight relays would each spend again.
"""

import multiprocessing
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess

from blockstream.transports.command import PipedLink, pipes_to_process

_RELAY = "blockstream.transports.ssh"


def relays(many: Sequence[Sequence[str]], name: str) -> list[PipedLink]:
    """Start relays, a list of the arguments of `blockstream.transports.ssh` for each.

    Returns:
        Their links, in the same order.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([_RELAY])
    links = []
    for words in many:
        ours, theirs = pipes_to_process()
        read, *written = theirs
        ends = [Connection(read, writable=False)]
        ends += [Connection(fd, readable=False) for fd in written]
        process = context.Process(target=_relay, args=(list(words), *ends), daemon=True)
        process.start()
        for end in ends:
            end.close()
        links.append(PipedLink(_Relay(process), ours, name))
    return links


def _relay(words: list[str], *ends: Connection) -> None:
    """Be one of them: in a process that has forked."""
    from blockstream.transports.ssh import main

    for number, end in enumerate(ends):
        os.dup2(end.fileno(), number)
        end.close()
    sys.exit(main(words))


@dataclass(frozen=True, slots=True)
class _Relay:
    """A relay as `command.Running`."""

    process: ForkServerProcess

    def wait(self, seconds: float) -> int | None:
        self.process.join(seconds)
        return self.process.exitcode

    def terminate(self) -> None:
        self.process.terminate()

    def kill(self) -> None:
        self.process.kill()
