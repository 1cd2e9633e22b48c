"""The sending side: workers read, digest and pack pieces; a turnstile puts them back in order."""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

import blake3

from blockstream.errors import BlockstreamError, InterruptedTransferError
from blockstream.extents import ExtentMap, Piece
from blockstream.interfaces import Source
from blockstream.linux.streams import WakeableWriter
from blockstream.pipeline.compression import CompressionChoice, Compressor, LevelControl
from blockstream.pipeline.crew import Crew, Turnstile, default_workers
from blockstream.pipeline.failpoints import failpoint
from blockstream.pipeline.faults import code_of, translated
from blockstream.pipeline.limiter import Limiter
from blockstream.pipeline.packer import PackedFrame, Packer
from blockstream.pipeline.progress import Progress
from blockstream_protocol import (
    MAGIC,
    Checkpoint,
    Codec,
    Committed,
    Effect,
    End,
    Extents,
    Finish,
    Frame,
    FrameType,
    Hello,
    Message,
    Open,
    PlanRows,
    RecordIntent,
    Send,
    Sender,
    Stream,
    Validate,
    control_frame,
    encode_head,
    plain_frame,
)

_FAILPOINTS: dict[type[Message], str] = {
    Hello: "send.hello",
    Open: "send.open",
    Checkpoint: "send.checkpoint",
    End: "send.after_end",
}


class Outlet(Protocol):
    """Where a sender's messages go."""

    def send(self, message: Message) -> None:
        """Give a message other than data to the peer."""

    def send_frame(self, frame: Frame, packed: PackedFrame) -> Callable[[], None] | None:
        """Give a data frame to the peer, in order.

        Returns:
            What is left to do out of order, by the same thread; None for nothing.
        """


class PipeOutlet:
    """Writes the stream to a pipe or file. Calls must not overlap."""

    def __init__(self, fd: int, limiter: Limiter, progress: Progress) -> None:
        """Write to `fd`, which stays the caller's."""
        self._writer = WakeableWriter(fd)
        self._limiter = limiter
        self._progress = progress
        self._started = False

    def send(self, message: Message) -> None:
        """Write a message."""
        if not self._started:
            self._started = True
            self._write([memoryview(MAGIC)])
        if isinstance(message, PlanRows):
            frame = plain_frame(FrameType.PLAN, bytes(message.rows), blake3.blake3)
        elif isinstance(message, Extents):
            frame = message.frame
        else:
            frame = control_frame(message, blake3.blake3)
        self._write_frame(frame)
        self._progress.control(frame.wire_len)
        failpoint(_FAILPOINTS.get(type(message), ""))

    def stop(self) -> None:
        """Let a write that waits for a full pipe fail."""
        self._limiter.stop()
        self._writer.stop()

    def close(self) -> None:
        """Give the writer's descriptors back."""
        self._writer.close()

    def send_frame(self, frame: Frame, packed: PackedFrame) -> None:
        """Write a data frame."""
        failpoint("send.first_data")
        self._write_frame(frame)
        self._progress.frame(data=len(packed.data), covered=packed.covered, wire=frame.wire_len)

    def _write_frame(self, frame: Frame) -> None:
        payload = memoryview(frame.payload)
        head = encode_head(frame.kind, frame.codec, frame.raw_len, len(payload), frame.digest)
        self._write([memoryview(head), payload])

    def _write(self, parts: list[memoryview]) -> None:
        try:
            self._write_within_limit(parts)
        except BrokenPipeError:
            raise InterruptedTransferError(
                "the receiver hung up before it had everything; its own message says why"
            ) from None
        except OSError as error:
            raise InterruptedTransferError(
                f"the stream cannot be written: {error.strerror}; it is not complete"
            ) from error

    def _write_within_limit(self, parts: list[memoryview]) -> None:
        if self._limiter.rate is None:
            self._writer.write(parts)
            return
        for part in parts:
            start = 0
            while start < len(part):
                step = part[start : start + self._limiter.slice_bytes]
                self._limiter.wait(len(step))
                self._writer.write([step])
                start += len(step)
                failpoint("send.mid_frame")


@dataclass(slots=True)
class SendOptions:
    """How a stream is made.

    Attributes:
        compression: What the user chose.
        workers: Threads that read and pack; each holds one buffer.
        record_intent: Makes durable what the receiver must commit; called before END.
    """

    compression: CompressionChoice = field(default_factory=lambda: CompressionChoice(0))
    workers: int = field(default_factory=default_workers)
    record_intent: Callable[[Committed], None] = lambda _expected: None


class SendEngine:
    """Runs one sender session: executes its effects with threads.

    Memory: one buffer of a frame a worker, and the extent map.
    """

    def __init__(
        self,
        session: Sender,
        source: Source,
        extents: ExtentMap,
        outlet: Outlet,
        progress: Progress,
        options: SendOptions,
    ) -> None:
        """Prepare; `extents` must be those of the plan that the session announces."""
        self._session = session
        self._source = source
        self._pieces: Iterator[tuple[int, Piece]] = enumerate(extents.pieces())
        self._outlet = outlet
        self._progress = progress
        self._options = options
        self._level = LevelControl(options.compression)
        self._resume = 0
        self._streaming = False
        self._turnstile = Turnstile()
        self._taking = threading.Lock()
        self.lock = threading.RLock()
        self.finish: Finish | None = None
        self._crew = Crew(self._turnstile.break_open)

    def run(self) -> Finish:
        """Send everything; blocks until the session is over.

        Raises:
            BlockstreamError: As the session or the source failed.
        """
        try:
            self.perform(self._locked(self._session.start))
            if self._streaming:
                self._crew.run(self._work, self._options.workers)
                self._raise_failure()
                self.perform(self._locked(self._session.source_ended))
        except BaseException as error:
            self._crew.fail(error)
            self._tell_peer(error)
            raise translated(error) from error
        if self.finish is None:
            raise InterruptedTransferError("the sender ended before its session did")
        return self.finish

    @property
    def errors(self) -> list[BaseException]:
        """Every error of the workers, the first one first."""
        return self._crew.errors

    def receive(self, message: Message) -> None:
        """Take an answer of the receiver, from any thread."""
        self.perform(self._locked(lambda: self._session.receive(message, time.monotonic())))

    def stop(self, reason: str) -> None:
        """Make `run` end soon; what the receiver acknowledged stays."""
        self._crew.fail(InterruptedTransferError(reason))

    def perform(self, effects: list[Effect]) -> None:
        """Execute effects, and those that follow from them."""
        todo = list(effects)
        while todo:
            todo += self._one(todo.pop(0))

    def _one(self, effect: Effect) -> list[Effect]:
        match effect:
            case Send(message):
                self._outlet.send(message)
            case Stream(frames):
                self._resume = frames
                self._streaming = True
            case Validate():
                self._source.validate()
                return self._locked(self._session.validated)
            case RecordIntent(expected):
                failpoint("send.before_intent")
                self._options.record_intent(expected)
                failpoint("send.after_intent")
                return self._locked(self._session.intent_recorded)
            case Finish():
                self.finish = effect
        return []

    def _locked(self, event: Callable[[], list[Effect]]) -> list[Effect]:
        with self.lock:
            return event()

    # Workers.

    def _work(self) -> None:
        packer = Packer(self._source)
        compressor = Compressor()
        while True:
            with self._taking:
                seq, piece = next(self._pieces, (-1, None))
            if piece is None:
                return
            packed = packer.pack(piece)
            if seq < self._resume:
                self._replay(seq, packed)
                continue
            wire = compressor.packed(packed.raw, self._level.level)
            frame = Frame(
                FrameType.EXTENTS, wire.codec, len(packed.raw), packed.digest, wire.payload
            )
            self._turnstile.wait_for(seq)
            rest = self._emit(frame, packed)
            self._turnstile.advance()
            if rest is not None:
                rest()

    def _replay(self, seq: int, packed: PackedFrame) -> None:
        """Prove a frame that the receiver holds already."""
        self._turnstile.wait_for(seq)
        with self.lock:
            effects = self._session.replayed(packed.digest, packed.covered)
        self.perform(effects)
        self._progress.frame(data=len(packed.data), covered=packed.covered, wire=0)
        self._turnstile.advance()

    def _emit(self, frame: Frame, packed: PackedFrame) -> Callable[[], None] | None:
        """Send one frame, in turn, and whatever the session wants sent after it."""
        rest = None
        with self.lock:
            effects = self._session.frame(frame, packed.covered, time.monotonic())
        began = time.monotonic()
        for effect in effects:
            if isinstance(effect, Send) and isinstance(effect.message, Extents):
                rest = self._outlet.send_frame(frame, packed)
            else:
                self.perform([effect])
        packed_well = frame.codec is not Codec.NONE
        self._level.note(frame.raw_len, time.monotonic() - began, packed=packed_well)
        return rest

    # Failure.

    def _raise_failure(self) -> None:
        if self._crew.error is not None:
            raise self._crew.error

    def _tell_peer(self, error: BaseException) -> None:
        """Say ABORT, if the peer can still hear it."""
        with self.lock:
            effects = self._session.failed(code_of(error), str(error))
        if isinstance(error, InterruptedTransferError):
            return  # stopped in the middle of a frame, or nobody listens
        try:
            self.perform(effects)
        except (OSError, BlockstreamError):
            return
