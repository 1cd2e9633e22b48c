"""The limit on bytes per second, counted on the wire and changeable while it runs."""

import threading
import time
from collections.abc import Callable

# Bytes that an idle moment may save up, in seconds of the rate: what a burst may exceed it by.
_BURST_SECONDS = 0.03
# How much one write may take, in seconds of the rate.
_SLICE_SECONDS = 0.02
_SMALLEST_SLICE = 1024
_LARGEST_SLICE = 1 << 20


class Limiter:
    """Makes writers wait so that no second carries more than the rate, within a few percent."""

    def __init__(self, rate: int | None, clock: Callable[[], float] = time.monotonic) -> None:
        """Start with `rate` bytes a second; None for no limit."""
        self.rate = rate
        self._clock = clock
        self._free = clock()
        self._lock = threading.Lock()

    @property
    def slice_bytes(self) -> int:
        """How many bytes to write at a time."""
        if self.rate is None:
            return _LARGEST_SLICE
        wanted = int(self.rate * _SLICE_SECONDS)
        return max(_SMALLEST_SLICE, min(wanted, _LARGEST_SLICE))

    def wait(self, count: int) -> None:
        """Wait until `count` bytes may be written; any thread."""
        delay = self.delay(count)
        if delay > 0:
            time.sleep(delay)

    def delay(self, count: int) -> float:
        """Book `count` bytes and return how many seconds to wait before they are written."""
        if not self.rate:
            return 0.0
        with self._lock:
            now = self._clock()
            start = max(self._free, now - _BURST_SECONDS)
            self._free = start + count / self.rate
            return start - now
