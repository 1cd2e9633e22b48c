"""A disk of another host, fetched onto one of this host."""

import functools
from collections.abc import Sequence
from dataclasses import replace

from blockstream.errors import (
    ConnectionLostError,
    ForeignStreamError,
    InterruptedTransferError,
    UsageError,
)
from blockstream.locations.ssh import Remote
from blockstream.run import Run
from blockstream.transfers.peer_options import PeerOptions
from blockstream.transfers.receive import ReceiveResult, receive
from blockstream.transfers.receive_options import ReceiveRequest
from blockstream.transfers.reconnecting import Patience
from blockstream.transfers.remote_command import connected, wished_streams
from blockstream.transfers.remote_errors import explained, pass_on
from blockstream.words import noise_text


async def pull(
    where: Remote,
    send_options: Sequence[str],
    what: ReceiveRequest,
    options: PeerOptions,
    run: Run,
) -> ReceiveResult:
    """Fetch a disk of another host onto one of this host.

    Args:
        where: The source.
        send_options: Options of `send` there.
        what: The target.
        options: How the other host is reached.
        run: Counts, and stops it.

    Raises:
        BlockstreamError: With what the other end said.
    """
    patience = Patience(options)
    if where.name:
        raise UsageError("`serve` only lets write: a disk is fetched from HOST:/PATH")
    patience.streams = await run.ask(lambda: wished_streams(where, options))
    words = ["send", "--session", *send_options]
    while True:
        async with run.within(connected(where, words, options, patience.streams)) as links:
            lanes = [link.from_peer for link in links]
            try:
                result = await receive(what, lanes[0], run, links[0].to_peer, lanes[1:])
            except ForeignStreamError as error:
                text = noise_text(links[0].name, await run.settle(error.words))
                raise InterruptedTransferError(text) from error
            except ConnectionLostError as error:
                if run.stopped:
                    raise
                lost, greeted = error, run.progress.total > 0
                failure = await run.settle(
                    lambda: explained(lost, links, greeted=greeted, again=patience.connected)  # noqa: B023
                )
            else:
                links[0].hang_up()
                await run.settle(functools.partial(pass_on, links[0], options.tell))
                return result
        patience.connected |= greeted
        await patience.after(failure, run)
        # What this run has made is there now.
        what = replace(what, create=False) if greeted else what
