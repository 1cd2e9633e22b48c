"""A disk of this host, sent to another one, over as many connections as it takes."""

from dataclasses import replace

from blockstream.captures.interface import Captured
from blockstream.errors import (
    ConnectionLostError,
    InterruptedTransferError,
    OutcomeUnknownError,
    RefusedError,
    SourceError,
)
from blockstream.locations.ssh import Remote
from blockstream.run import Run
from blockstream.transfers.peer_options import PeerOptions
from blockstream.transfers.receive_options import ReceiveRequest
from blockstream.transfers.reconnecting import Patience
from blockstream.transfers.remote_command import (
    LOCK_WAIT_SECONDS,
    check_named,
    connected,
    target_options,
    wished_streams,
)
from blockstream.transfers.remote_errors import explained, pass_on
from blockstream.transfers.send import SendResult, TransferOptions
from blockstream.transfers.session import Sending
from blockstream_protocol import Committed


class Push:
    """Sends one disk to another host, connection after connection."""

    def __init__(
        self,
        sending: Sending,
        where: Remote,
        words: list[str],
        options: PeerOptions,
        run: Run,
        *,
        again: bool = False,
    ) -> None:
        """Prepare; `words` are options of `recv` there, `again` as for `push`."""
        self._sending = sending
        self._where = where
        self._words = words
        self._options = options
        self._run = run
        self._patience = Patience(options, connected=again)

    async def done(self) -> Committed:
        """Send it, and return when it is committed.

        Raises:
            BlockstreamError: With what the other end said.
        """
        run, where = self._run, self._where
        self._patience.streams = await run.ask(lambda: wished_streams(where, self._options))
        while True:
            try:
                try:
                    return await run.carry(self._once)
                except (ConnectionLostError, OutcomeUnknownError) as error:
                    await self._patience.after(error, run)
            except InterruptedTransferError as error:
                if not run.stopped:
                    raise
                raise InterruptedTransferError(
                    f"{error}; {where} is unfinished, {run.progress.durable} of "
                    f"{run.progress.total} bytes are durable there; the same command continues"
                ) from error
            except (SourceError, RefusedError):
                # What was begun there was another state of the source: of no use any more.
                if not self._sending.start_anew():
                    raise

    def _once(self) -> Committed:
        waiting = ["--lock-wait", f"{LOCK_WAIT_SECONDS:.0f}"] if self._patience.connected else []
        words = ["recv", "--session", *waiting, *self._words]
        with connected(self._where, words, self._options, self._patience.streams) as links:
            lanes = [link.to_peer for link in links]
            try:
                committed = self._sending.over(links[0].from_peer, *lanes, name=links[0].name)
            except (ConnectionLostError, OutcomeUnknownError) as error:
                raise explained(
                    error,
                    links,
                    greeted=self._sending.greeted,
                    again=self._patience.connected,
                ) from error
            finally:
                self._patience.connected |= self._sending.greeted
            pass_on(links[0], self._options.tell)
            return committed


async def push(
    disk: Captured,
    how: TransferOptions,
    where: Remote,
    what: ReceiveRequest,
    options: PeerOptions,
    run: Run,
    *,
    again: bool = False,
) -> SendResult:
    """Send a disk of this host to another one, and return when it is committed there.

    Args:
        disk: What to send.
        how: How it travels.
        where: Where it goes.
        what: How it may be written there.
        options: How its host is reached.
        run: Counts, and stops it.
        again: Whether another connection was lost, which may hold the target a while yet.

    Raises:
        BlockstreamError: With what the other end said.
    """
    if where.name:
        check_named(what, options)
    how = replace(how, name=where.name, target=where.key)
    sending = await run.carry(lambda: Sending(disk, how, run))
    began = run.now()
    committed = await Push(sending, where, target_options(what), options, run, again=again).done()
    await run.settle(lambda: sending.confirm(committed))
    counts, seconds = run.progress.snapshot(), run.now() - began
    moment = sending.what.moment
    return SendResult(committed, counts, seconds, confirmed=True, moment=moment)
