"""What would become of a transfer: its opening is shown to the target, and nothing follows."""

import contextlib
import os
from dataclasses import dataclass, replace

from blockstream.errors import ConnectionLostError, InterruptedTransferError
from blockstream.interfaces import Source
from blockstream.locations.ssh import Remote, open_link
from blockstream.pipeline.frame_sink import PipeSink
from blockstream.pipeline.limiter import Limiter
from blockstream.pipeline.progress import Progress
from blockstream.run import Run
from blockstream.transfers.peer_options import PeerOptions
from blockstream.transfers.receive import ReceiveResult, received
from blockstream.transfers.receive_options import ReceiveRequest
from blockstream.transfers.remote_command import remote_command, target_options
from blockstream.transfers.remote_errors import explained, values_in
from blockstream.transfers.send import SendPlan, one_way
from blockstream_protocol import Send

_PIECE = 4096


@dataclass(frozen=True, slots=True)
class WouldTake:
    """What a target of another host would take.

    Attributes:
        base: The state that it goes onto; empty for a full copy.
        goal: The state that it leads to.
    """

    base: str
    goal: str


async def rehearsed_here(
    plan: SendPlan, source: Source, what: ReceiveRequest, run: Run
) -> ReceiveResult:
    """Ask a target of this host.

    Raises:
        BlockstreamError: As the transfer would be refused.
    """
    return await run.carry(lambda: rehearsed(plan, source, what, run))


def rehearsed(plan: SendPlan, source: Source, what: ReceiveRequest, run: Run) -> ReceiveResult:
    """Ask a target of this host, in a thread. See `rehearsed_here`."""
    fd = os.memfd_create("opening")
    try:
        _announce(plan, source, fd)
        os.lseek(fd, 0, os.SEEK_SET)
        return received(replace(what, dry_run=True), fd, run)
    finally:
        os.close(fd)


async def rehearsed_there(
    plan: SendPlan,
    source: Source,
    what: ReceiveRequest,
    where: Remote,
    options: PeerOptions,
    run: Run,
) -> WouldTake:
    """Ask a target of another host; return what it would take.

    Raises:
        BlockstreamError: As the transfer would be refused, or the host is not reached.
    """
    return await run.ask(lambda: _rehearsed_there(plan, source, what, where, options))


def _rehearsed_there(
    plan: SendPlan, source: Source, what: ReceiveRequest, where: Remote, options: PeerOptions
) -> WouldTake:
    command = remote_command(options, ["recv", "--dry-run", *target_options(what)], where)
    with contextlib.closing(open_link(where, command, options.way)) as link:
        with contextlib.suppress(InterruptedTransferError):  # its status says more
            _announce(plan, source, link.to_peer)
        link.hang_up()
        while os.read(link.from_peer, _PIECE):
            pass  # until it has ended
        status, words = link.ended()
        if status:
            raise explained(ConnectionLostError("it ended"), [link], greeted=False)
        return _taken(words, link.name)


def _taken(words: str, name: str) -> WouldTake:
    """Return what a target there would take, of what was said of it.

    Raises:
        InterruptedTransferError: If nothing was.
    """
    for line in words.splitlines():
        values = values_in(line)
        if values.get("event") == "would-apply":
            return WouldTake(str(values.get("base", "")), str(values.get("goal", "")))
    raise InterruptedTransferError(f"what {name} says of it is not understood; nothing was sent")


def _announce(plan: SendPlan, source: Source, fd: int) -> None:
    """Write what a stream begins with: HELLO, OPEN and the plan."""
    session = one_way(plan, source)
    with contextlib.closing(PipeSink(fd, Limiter(None), Progress())) as outlet:
        for effect in session.start():
            if isinstance(effect, Send):
                outlet.send(effect.message)
