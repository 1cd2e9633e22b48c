"""Whether to connect again after a connection was lost, and when."""

from dataclasses import dataclass

from blockstream.errors import (
    BlockstreamError,
    ConnectionLostError,
    OutcomeUnknownError,
)
from blockstream.run import Run
from blockstream.transfers.peer_options import PeerOptions

_FIRST_PAUSE_SECONDS = 1.0
_LONGEST_PAUSE_SECONDS = 30.0


@dataclass(slots=True)
class Patience:
    """Decides whether to try again, and when."""

    options: PeerOptions
    connected: bool = False
    failures: int = 0
    durable: int = 0
    streams: int = 1

    async def after(self, error: BlockstreamError, run: Run) -> None:
        """Wait before the next connection.

        Raises:
            BlockstreamError: The error, if there is to be none.
        """
        if run.progress.durable > self.durable:
            self.durable, self.failures = run.progress.durable, 0
        self.failures += 1
        again = isinstance(error, ConnectionLostError | OutcomeUnknownError)
        if not again or not self.connected or self.failures > self.options.retries:
            raise error
        if self.failures > 1 and self.streams > 1:
            self.streams = 1  # whatever it is, one connection has the best chance
        pause = min(_FIRST_PAUSE_SECONDS * 2 ** (self.failures - 1), _LONGEST_PAUSE_SECONDS)
        self.options.tell(f"{error}; connecting again in {pause:.0f} s")
        await run.pause(pause)
