"""A receiver on another host that takes one disk after the other."""

import contextlib
import select
from collections.abc import Iterator

from blockstream.captures.interface import Captured
from blockstream.errors import (
    ConnectionLostError,
    OutcomeUnknownError,
)
from blockstream.interfaces import Link
from blockstream.locations.ssh import Remote
from blockstream.run import Run
from blockstream.transfers.peer_options import PeerOptions
from blockstream.transfers.receive_options import ReceiveRequest
from blockstream.transfers.remote_command import LOCK_WAIT_SECONDS, connected, target_options
from blockstream.transfers.remote_errors import explained
from blockstream.transfers.send import SendResult, TransferOptions
from blockstream.transfers.session import Sending


class ReusableReceiver:
    """A receiver that takes one disk after the other, so that only the first waits for it."""

    def __init__(self, link: Link) -> None:
        """Take over a link on which `recv --session --standing` runs."""
        self._link = link
        self._took_all = True
        self._poll = select.poll()
        self._poll.register(link.from_peer, select.POLLIN)

    @property
    def usable(self) -> bool:
        """Whether it takes another one, as far as is known: one that says anything has ended."""
        return self._took_all and not self._poll.poll(0)

    async def send(self, disk: Captured, options: TransferOptions, run: Run) -> SendResult:
        """Send a disk.

        Raises:
            BlockstreamError: With what the other end said; then it takes no other.
        """
        return await run.carry(lambda: self._sent(disk, options, run))

    def _sent(self, disk: Captured, options: TransferOptions, run: Run) -> SendResult:
        self._took_all = False
        sending, link = Sending(disk, options, run), self._link
        began = run.now()
        try:
            committed = sending.over(link.from_peer, link.to_peer, name=link.name)
        except (ConnectionLostError, OutcomeUnknownError) as error:
            raise explained(error, [link], greeted=sending.greeted) from error
        sending.confirm(committed)
        self._took_all = sending.ended_with_end
        counts = run.progress.snapshot()
        seconds, moment = run.now() - began, sending.what.moment
        return SendResult(committed, counts, seconds, confirmed=True, moment=moment)


@contextlib.contextmanager
def standing(
    where: Remote, what: ReceiveRequest, options: PeerOptions
) -> Iterator[ReusableReceiver]:
    """Start a receiver on another host, which takes what is sent before the block ends.

    Its predecessor, whose connection was lost, may still hold the target: so it waits for that.
    """
    words = ["recv", "--session", "--standing", "--lock-wait", f"{LOCK_WAIT_SECONDS:.0f}"]
    with connected(where, [*words, *target_options(what)], options, 1) as links:
        yield ReusableReceiver(links[0])
