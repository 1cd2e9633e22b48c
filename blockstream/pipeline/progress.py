"""How far a transfer is: counters that workers raise and reporters read."""

import threading
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The counters at one moment; all in bytes but `frames`.

    Attributes:
        total: What the plan covers.
        covered: How much of it is done.
        size: The whole device.
        data: Bytes that were read or written; zeros cost none.
        zeros: Bytes that travelled as zeros.
        wire: Bytes on the wire.
        durable: How much of the plan is durable on the target; 0 where nobody tells.
        frames: EXTENTS frames.
        seen: Bytes of a stream that is looked through before the transfer begins.
        skipped: How much of what is done an earlier run had brought.
    """

    total: int = 0
    covered: int = 0
    size: int = 0
    data: int = 0
    zeros: int = 0
    wire: int = 0
    durable: int = 0
    frames: int = 0
    seen: int = 0
    skipped: int = 0


@dataclass(slots=True)
class Progress:
    """Counters under a lock; `snapshot` may be called from a signal handler's loop."""

    size: int = 0
    total: int = 0
    covered: int = 0
    data: int = 0
    zeros: int = 0
    wire: int = 0
    durable: int = 0
    frames: int = 0
    seen: int = 0
    skipped: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def begin(self, skipped: int = 0) -> None:
        """Count from the start again, or from what an earlier run had brought."""
        with self._lock:
            self.covered = self.skipped = skipped
            self.data = self.zeros = self.frames = 0

    def skip(self, *, data: int, covered: int) -> None:
        """Count a frame that an earlier run had brought."""
        self.frame(data=data, covered=covered, wire=0)
        with self._lock:
            self.skipped += covered

    def frame(self, *, data: int, covered: int, wire: int) -> None:
        """Count one frame."""
        with self._lock:
            self.data += data
            self.covered += covered
            self.zeros += covered - data
            self.wire += wire
            self.frames += 1

    def control(self, wire: int) -> None:
        """Count the bytes of a message that is not data."""
        with self._lock:
            self.wire += wire

    def look(self, count: int) -> None:
        """Count bytes of a stream that is looked through."""
        with self._lock:
            self.seen += count

    def snapshot(self) -> Snapshot:
        """Return the counters as they are."""
        with self._lock:
            return Snapshot(
                self.total,
                self.covered,
                self.size,
                self.data,
                self.zeros,
                self.wire,
                self.durable,
                self.frames,
                self.seen,
                self.skipped,
            )
