"""The sending side: workers read, digest and pack pieces; a turnstile puts them back in order."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from itertools import islice

from blockstream.errors import BlockstreamError, InterruptedTransferError
from blockstream.extents import ExtentMap, Piece
from blockstream.interfaces import Source
from blockstream.pipeline.compression import CompressionChoice, Compressor, LevelControl
from blockstream.pipeline.error_map import code_of, translated
from blockstream.pipeline.failpoints import failpoint
from blockstream.pipeline.frame_sink import FrameSink
from blockstream.pipeline.packer import PackedFrame, Packer, data_of
from blockstream.pipeline.progress import Progress
from blockstream.pipeline.read_ahead import ReadAhead
from blockstream.pipeline.workers import Turnstile, Workers, default_workers
from blockstream_protocol import (
    Ack,
    Checkpoint,
    Codec,
    Committed,
    Effect,
    Extents,
    Finish,
    Frame,
    FrameType,
    Hello,
    Message,
    Open,
    RecordIntent,
    RemoteProtocolError,
    Send,
    Sender,
    State,
    Stream,
    Validate,
)

Wait = Callable[[Callable[[], None]], None]


@dataclass(slots=True)
class SendOptions:
    """How a stream is made.

    Attributes:
        compression: What the user chose.
        workers: Threads that read and pack; each holds one buffer.
        record_intent: Makes durable what the receiver must commit; called before END.
        choose: Gives the opening, now that the peer's HELLO tells what its target holds.
        may_trust: Whether a source that cannot change is surely the one that an unfinished transfer
            was made from; only then what it gave already is not read again.
        answers: Whether answers come from another thread, so that `run` has to wait for them.
        check_packing: Whether each frame is unpacked again and compared, because nobody else does
            so before the source may be gone.
        last_checkpoint: Whether a sender that is stopped asks that what it sent be made durable.
        before_data: Called once the receiver is ready to take data, before it is sent any; None to
            send it at once. It waits, and is given what raises once the session has failed.
        before_end: The same, once everything is durable there and only END is left to say; None to
            say it without waiting for that.
    """

    compression: CompressionChoice = field(default_factory=lambda: CompressionChoice(0))
    workers: int = field(default_factory=default_workers)
    record_intent: Callable[[Committed], None] = lambda _expected: None
    choose: Callable[[Hello], Open] | None = None
    may_trust: Callable[[], bool] = lambda: True
    answers: bool = False
    check_packing: bool = False
    last_checkpoint: bool = False
    before_data: Wait | None = None
    before_end: Wait | None = None


class SendEngine:
    """Runs one sender session: executes its effects with threads.

    Memory: one buffer of a frame a worker, the extent map, and what `ReadAhead` holds.
    """

    def __init__(
        self,
        session: Sender,
        source: Source,
        extents: ExtentMap,
        outlet: FrameSink,
        progress: Progress,
        options: SendOptions,
    ) -> None:
        """Prepare; `extents` must be those of the plan that the session announces."""
        self._session = session
        self._source = source
        self._ahead = ReadAhead(source)
        pieces = self._ahead.following(extents.pieces(), data_of)
        self._pieces: Iterator[tuple[int, Piece]] = enumerate(pieces)
        self._outlet = outlet
        self._progress = progress
        self._options = options
        self._level = LevelControl(options.compression)
        self._resume = 0
        self._streaming = False
        self._turnstile = Turnstile()
        self._taking = threading.Lock()
        self.lock = threading.RLock()
        self._changed = threading.Condition(self.lock)
        self._pinging = threading.Thread()
        self._marks: deque[tuple[int, int]] = deque()
        self.finish: Finish | None = None
        self._crew = Workers(self._wake)

    def run(self) -> Finish:
        """Send everything; blocks until the session is over.

        Raises:
            BlockstreamError: As the session or the source failed.
        """
        try:
            self.perform(self._locked(self._session.start))
            self._wait_until(lambda: self._streaming)
            if self._streaming:
                if self._options.before_data is not None:
                    self._options.before_data(self._raise_failure)
                with closing(self._ahead):
                    self._crew.run(self._work, self._options.workers)
                self._raise_failure()
                self._settle()
                self.perform(self._locked(self._session.source_ended))
                self._wait_until(lambda: self.finish is not None)
        except BaseException as error:
            self._crew.fail(error)
            self._tell_peer(error)
            raise translated(error) from error
        if self.finish is None:
            raise InterruptedTransferError("the sender ended before its session did")
        return self.finish

    def _settle(self) -> None:
        if self._options.before_end is not None:
            self.perform(self._locked(self._session.settle))
            self._wait_until(lambda: self._session.settled)
            self._options.before_end(self._raise_failure)

    def _wait_until(self, ready: Callable[[], bool]) -> None:
        """Wait for an answer, where answers come from another thread."""
        if not self._options.answers:
            return
        with self._changed:
            self._changed.wait_for(lambda: ready() or self._crew.error is not None)
        self._raise_failure()

    def _wake(self) -> None:
        self._turnstile.break_open()
        with self._changed:
            self._changed.notify_all()

    @property
    def errors(self) -> list[BaseException]:
        """Every error of the workers, the first one first."""
        return self._crew.errors

    def receive(self, message: Message) -> None:
        """Take an answer of the receiver, from any thread."""
        if isinstance(message, Hello) and self._session.state is State.GREET:
            self._greeted(message)
        self.perform(self._locked(lambda: self._session.receive(message, time.monotonic())))
        if isinstance(message, Ack):
            self._count_durable(message.frames)

    def _greeted(self, hello: Hello) -> None:
        if self._options.choose is not None:
            self._session.aim(self._options.choose(hello))

    def hung_up(self) -> None:
        """Take the end of the answers.

        Raises:
            RemoteProtocolError: Unless all was said.
        """
        self.perform(self._locked(self._session.end_of_stream))

    def tick(self) -> None:
        """Let the session notice the time; never blocks."""
        try:
            effects = self._locked(lambda: self._session.tick(time.monotonic()))
        except RemoteProtocolError as error:
            self.fail(error)
            return
        # A ping waits behind data that a hanging line does not take; the time must go on.
        if effects and not self._pinging.is_alive():
            self._pinging = threading.Thread(target=self._ping, args=(effects,), daemon=True)
            self._pinging.start()

    @property
    def is_silent(self) -> bool:
        """Whether no ping is still on its way into the line."""
        return not self._pinging.is_alive()

    def _ping(self, effects: list[Effect]) -> None:
        with suppress(BlockstreamError):  # whoever sends data hears of it, too
            self.perform(effects)

    def fail(self, error: BaseException) -> None:
        """Make `run` end with this error, which says that the peer is not there any more."""
        self._crew.fail(error)
        self._outlet.stop()

    def _count_durable(self, frames: int) -> None:
        with self.lock:
            while self._marks and self._marks[0][0] <= frames:
                self._progress.durable = self._marks.popleft()[1]
            self._changed.notify_all()

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
                if isinstance(message, Checkpoint):
                    self._marks.append((message.frames, self._progress.covered))
                self._outlet.send(message)
            case Stream(frames):
                return self._begin_stream(frames)
            case Validate():
                self._source.validate()
                return self._locked(self._session.validated)
            case RecordIntent(expected):
                failpoint("send.before_intent")
                self._options.record_intent(expected)
                failpoint("send.after_intent")
                return self._locked(self._session.intent_recorded)
            case Finish():
                if self._options.answers and effect.committed is not None:
                    self._progress.durable = self._progress.total
                self._set(finish=effect)
        return []

    def _begin_stream(self, frames: int) -> list[Effect]:
        """Let the workers begin; what a source that cannot change gave already is not read."""
        self._resume = frames
        following: list[Effect] = []
        if self._source.immutable and frames and self._options.may_trust():
            covered = sum(piece.covered for _, piece in islice(self._pieces, frames))
            following = self._locked(lambda: self._session.trusted(covered))
            self._turnstile = Turnstile(frames)
            self._progress.begin(covered)
            self._progress.durable = covered
        else:
            self._progress.begin()  # counted again as it is proved
        self._set(streaming=True)
        return following

    def _set(self, *, streaming: bool = False, finish: Finish | None = None) -> None:
        with self._changed:
            self._streaming = self._streaming or streaming
            self.finish = finish or self.finish
            self._changed.notify_all()

    def _locked(self, event: Callable[[], list[Effect]]) -> list[Effect]:
        with self.lock:
            return event()

    # Workers.

    def _work(self) -> None:
        packer = Packer(self._ahead.read_into)
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
            if self._options.check_packing:
                compressor.check(wire, packed.raw)
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
        self._progress.skip(data=len(packed.data), covered=packed.covered)
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
        stopped = isinstance(error, InterruptedTransferError)
        with self.lock:
            last = self._session.interrupted() if self._options.last_checkpoint else []
            effects = self._session.failed(code_of(error), str(error))
        if stopped:
            effects = last  # an outlet that was cut within a frame takes nothing more
        try:
            self.perform(effects)
        except (OSError, BlockstreamError):
            return
