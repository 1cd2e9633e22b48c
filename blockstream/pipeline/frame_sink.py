"""Where a sender's messages go: into a pipe, or straight to a receiver."""

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import blake3

from blockstream.errors import ConnectionLostError, InterruptedTransferError
from blockstream.linux.streams import WakeableWriter
from blockstream.pipeline.failpoints import failpoint
from blockstream.pipeline.limiter import Limiter
from blockstream.pipeline.progress import Progress
from blockstream_protocol import (
    MAGIC,
    Checkpoint,
    End,
    Extents,
    Frame,
    FrameType,
    Hello,
    Message,
    Open,
    PlanRows,
    control_frame,
    encode_head,
    plain_frame,
)

if TYPE_CHECKING:
    from blockstream.pipeline.packer import PackedFrame  # numpy: 60 ms that `recv` need not wait

_FAILPOINTS: dict[type[Message], str] = {
    Hello: "send.hello",
    Open: "send.open",
    Checkpoint: "send.checkpoint",
    End: "send.after_end",
}


class FrameSink(Protocol):
    """Where a sender's messages go."""

    def send(self, message: Message) -> None:
        """Give a message other than data to the peer."""

    def send_frame(self, frame: Frame, packed: "PackedFrame") -> Callable[[], None] | None:
        """Give a data frame to the peer, in order.

        Returns:
            What is left to do out of order, by the same thread; None for nothing.
        """

    def stop(self) -> None:
        """Let a call that waits for the peer fail."""


class PipeSink:
    """Writes messages to a pipe or file, from any thread, one after the other.

    Over several lanes, each frame takes the next one, in turn (SPEC 3.1).
    """

    def __init__(self, fd: int, limiter: Limiter, progress: Progress, *more: int) -> None:
        """Write to `fd` and those after it, which stay the caller's."""
        self._lanes = [WakeableWriter(lane) for lane in (fd, *more)]
        self._turn = 0
        self._begun = False  # the lane of this turn, by an optional frame
        self._lock = threading.Lock()
        # The limit outlives us: another connection goes on with it.
        self._limiter = limiter
        self._in_haste = threading.Event()
        self._is_torn = False
        self._progress = progress
        self.said: type[Message] | None = None  # last

    def send(self, message: Message) -> None:
        """Write a message."""
        if isinstance(message, PlanRows):
            frame = plain_frame(FrameType.PLAN, bytes(message.rows), blake3.blake3)
        elif isinstance(message, Extents):
            frame = message.frame
        else:
            frame = control_frame(message, blake3.blake3)
        self._write_frame(frame, type(message))
        self._progress.control(frame.wire_len)
        failpoint(_FAILPOINTS.get(type(message), ""))

    def hurry(self) -> None:
        """Keep to no limit any more: what is on its way is the last."""
        self._in_haste.set()

    def stop(self) -> None:
        """Let a write that waits for a full pipe fail."""
        self.hurry()
        for lane in self._lanes:
            lane.stop()

    def close(self) -> None:
        """Give our own descriptors back."""
        for lane in self._lanes:
            lane.close()

    def send_frame(self, frame: Frame, packed: "PackedFrame") -> None:
        """Write a data frame."""
        failpoint("send.first_data")
        self._write_frame(frame, Extents)
        self._progress.frame(data=len(packed.data), covered=packed.covered, wire=frame.wire_len)

    def _write_frame(self, frame: Frame, kind: type[Message]) -> None:
        payload = memoryview(frame.payload)
        head = encode_head(frame.kind, frame.codec, frame.raw_len, len(payload), frame.digest)
        with self._lock:
            if self._is_torn:
                raise ConnectionLostError("the stream was cut within a frame")
            self.said = kind
            if self._turn < len(self._lanes) and not self._begun:
                head = MAGIC + head
            lane = self._lanes[self._turn % len(self._lanes)]
            # An optional frame goes before the next one, in its lane, and is not counted.
            self._begun = frame.is_optional
            self._turn += not frame.is_optional
            self._write(lane, [memoryview(head), payload])

    def _write(self, lane: WakeableWriter, parts: list[memoryview]) -> None:
        self._is_torn = True
        try:
            self._write_within_limit(lane, parts)
            self._is_torn = False
        except BrokenPipeError:
            raise ConnectionLostError(
                "the receiver hung up before it had everything; its own message says why"
            ) from None
        except InterruptedError:
            raise ConnectionLostError("the receiver took nothing any more") from None
        except OSError as error:
            raise InterruptedTransferError(
                f"the stream cannot be written: {error.strerror}; it is not complete"
            ) from error

    def _write_within_limit(self, lane: WakeableWriter, parts: list[memoryview]) -> None:
        if self._limiter.rate is None:
            lane.write(parts)
            return
        for part in parts:
            start = 0
            while start < len(part):
                step = part[start : start + self._limiter.slice_bytes]
                self._in_haste.wait(max(0.0, self._limiter.delay(len(step))))
                lane.write([step])
                start += len(step)
                failpoint("send.mid_frame")
