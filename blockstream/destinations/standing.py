"""A disk of another host with a receiver that stands by, and takes round after round."""

import contextlib
from collections.abc import AsyncGenerator, Iterator, Sequence
from dataclasses import replace

from blockstream.captures.interface import Captured, Holding
from blockstream.destinations.host import HostDestination
from blockstream.destinations.interface import Delivered, Rehearsal
from blockstream.destinations.places import OneDisk
from blockstream.errors import ConnectionLostError, OutcomeUnknownError
from blockstream.locations.ssh import Remote
from blockstream.pipeline.limiter import Limiter
from blockstream.run import Run
from blockstream.transfers.digests import Comparison
from blockstream.transfers.peer_options import PeerOptions
from blockstream.transfers.push import push
from blockstream.transfers.receive_options import ReceiveRequest
from blockstream.transfers.reusable_receiver import ReusableReceiver, standing
from blockstream.transfers.send import SendResult, TransferOptions


class StandingDestination:
    """A disk of another host. Until somebody lets a receiver stand by, each delivery connects."""

    def __init__(
        self, place: Remote, where: ReceiveRequest, how: TransferOptions, peer: PeerOptions
    ) -> None:
        """Connect to nothing yet.

        Args:
            place: The disk.
            where: How it may be written there.
            how: How what is sent to it travels.
            peer: How its host is reached.
        """
        self._place = place
        self._where = where
        self._how = how
        self._peer = peer
        self._host = HostDestination(OneDisk().there(place), where, how, peer)
        self._line: ReusableReceiver | None = None
        self._hurries = False
        self._closing = contextlib.ExitStack()

    def stand_by(self) -> None:
        """Let a receiver wait there, in a thread.

        Raises:
            BlockstreamError: If its host is not reached.
        """
        if self._line is None or not self._line.usable:
            self.close()
            opening = standing(self._place, self._where, self._peer)
            self._line = self._closing.enter_context(opening)

    def close(self) -> None:
        """Give its connection back, in a thread."""
        self._line = None
        self._closing.close()

    async def last(self, location: str, run: Run) -> str:
        """See `Destination`."""
        return await self._host.last(location, run)

    async def held(self, name: str, run: Run) -> Holding:
        """See `Destination`."""
        return await self._host.held(name, run)

    async def differing(self, disk: Captured, run: Run, *, adopt: bool = False) -> Comparison:
        """See `Destination`."""
        return await self._host.differing(disk, run, adopt=adopt)

    async def rehearse(self, disk: Captured, run: Run) -> Rehearsal:
        """See `Destination`."""
        return await self._host.rehearse(disk, run)

    async def deliver(self, disks: Sequence[Captured], run: Run) -> AsyncGenerator[Delivered, None]:
        """See `Destination`. Where the receiver is gone, another connection is made."""
        (disk,) = disks
        yield Delivered(disk, str(self._place), await self._sent(disk, run))

    async def _sent(self, disk: Captured, run: Run) -> SendResult:
        how, line, lost = self._how, self._line, False
        if line is not None:
            try:
                hurried = replace(how, limiter=Limiter(None)) if self._hurries else how
                return await line.send(disk, hurried, run)
            except (ConnectionLostError, OutcomeUnknownError) as error:
                if self._hurries:
                    raise
                run.tell(f"{error}; connecting again")
            # The receiver of the lost connection may still hold the target.
            lost = True
            await run.settle(self.close)
        return await push(disk, how, self._place, self._where, self._peer, run, again=lost)

    @contextlib.contextmanager
    def in_haste(self) -> Iterator[None]:
        """Deliver without a limit, and over no other connection: to wait for one may take long.

        Raises:
            ConnectionLostError: If no receiver stands by.
        """
        if self._line is None or not self._line.usable:
            raise ConnectionLostError(f"the connection to {self._place.account} was lost")
        self._hurries = True
        try:
            yield
        finally:
            self._hurries = False
