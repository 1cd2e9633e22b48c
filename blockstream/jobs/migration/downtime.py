"""How long a guest stands still, and who ends that if it is too long."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

from blockstream.errors import BlockstreamError, InterruptedTransferError
from blockstream.run import Run
from blockstream.words import duration_text


@dataclass(frozen=True, slots=True)
class Downtime:
    """How long the guest stood still, in seconds.

    Attributes:
        pausing: From the moment it began to stand still to the end of `pause`.
        passing: The last pass, which has the limit.
        verifying: Comparing both sides, where that was asked for.
        starting: Starting it over there.
    """

    pausing: float
    passing: float
    verifying: float
    starting: float

    @property
    def total(self) -> float:
        """All of it."""
        return self.pausing + self.passing + self.verifying + self.starting


class Watch:
    """Wakes a guest that stands still for too long, whatever the rest of us waits for."""

    def __init__(self, seconds: float, wake: Callable[[], None], run: Run) -> None:
        """Begin to count; `wake` is called from another thread, at most once."""
        self._seconds = seconds
        self._wake = wake
        self._run = run
        self._lock = threading.Lock()
        self._is_over = False
        self.fired = False
        self.woken = False
        self._timer = threading.Timer(seconds, self._fire)
        self._timer.daemon = True

    async def __aenter__(self) -> Self:
        self._timer.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Count no more.

        Raises:
            InterruptedTransferError: If the guest was woken, or should have been.
        """
        with self._lock:
            self._is_over = True
        self._timer.cancel()
        if self.fired:
            await self._run.settle(self._timer.join)
            raise InterruptedTransferError(
                f"the last pass did not end within the {duration_text(self._seconds)} that the "
                "guest may stand still"
            )

    def _fire(self) -> None:
        with self._lock:
            if self._is_over:
                return
            self.fired = True
        try:
            self._wake()
        except BlockstreamError:
            return  # whoever rolls back tries again, and says why it fails
        self.woken = True
