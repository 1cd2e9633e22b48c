"""The receiving side: workers take frames in order, check them, and write them in any order."""

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

import blake3

from blockstream.errors import BlockstreamError, RefusedError
from blockstream.linux.buffers import aligned_buffer
from blockstream.linux.streams import WakeableReader
from blockstream.pipeline.compression import Decompressor
from blockstream.pipeline.error_map import code_of, discreet, error_for, translated
from blockstream.pipeline.failpoints import failpoint
from blockstream.pipeline.progress import Progress
from blockstream.pipeline.samples import BaseCheck
from blockstream.pipeline.workers import Turnstile, Workers, WorkersStoppedError, default_workers
from blockstream_protocol import (
    EXTENTS_BYTES,
    MAGIC,
    CheckBase,
    Checkpoint,
    Code,
    Committed,
    Effect,
    Extent,
    Extents,
    Finish,
    Flush,
    Frame,
    FrameDecoder,
    Hello,
    Message,
    Moment,
    Open,
    Plan,
    Prepare,
    ReadBack,
    Receiver,
    Record,
    RemoteProtocolError,
    Send,
    State,
    Table,
    TakeSamples,
    TargetState,
    Verify,
    Write,
    check_hello,
    message_of,
    parse_table,
    unpacked,
)

# Of what is not a stream of ours, so much is shown.
_REST_BYTES = 1024
_REST_SECONDS = 1.0
# How long one that is stopped waits for a CHECKPOINT, which a sender says each 2 s, and one that is
# stopped within 3 s.
_LAST_CHECKPOINT_SECONDS = 4.0


class Applier(Protocol):
    """What a receiver's effects are executed on: a target and its journal, or a spool."""

    def prepare(
        self, opening: Open, plan: Plan, *, resumed: bool, first: int, moment: int | None
    ) -> None:
        """Make ready for the first write; a refusal here leaves everything as it was.

        Args:
            opening: What the sender announced.
            plan: Its plan, whole.
            resumed: Whether the identical transfer is unfinished here.
            first: Number of the first frame that comes; 0 if it comes again from the start.
            moment: When the source held the goal, in nanoseconds since 1970, UTC; None where the
                sender does not say it.
        """

    def record(self, state: TargetState) -> None:
        """Make a state durable."""

    def write(self, seq: int, frame: Frame, table: Table) -> None:
        """Write a checked frame, number `seq`; from several threads at once."""

    def flush(self) -> None:
        """Make every finished write durable."""

    def read_back(self, frame_digest: bytes, extents: list[Extent]) -> None:
        """Compare what the medium holds with what the frame said.

        Raises:
            IntegrityError: If it differs, named with the range.
        """

    def check_base(self, samples: str) -> BaseCheck:
        """Tell whether somebody wrote to the target since its commit, when it had these samples."""

    def samples(self) -> str:
        """Check that the target is whole, and return the digest of its samples.

        Raises:
            TargetError: If it is not what was written to it.
        """

    def leave(self) -> None:
        """Take the news that the session ends, and that the target could be flushed.

        All writers have ended. What was CLEAN, and was not written to, is recorded as CLEAN again.
        """


class Applying:
    """Executes the effects of one receiver session; shared by streams and local copies."""

    def __init__(
        self,
        session: Receiver,
        applier: Applier,
        progress: Progress,
        answer: Callable[[Message], None] | None = None,
        *,
        keep_frames: bool = False,
        is_discreet: bool = False,
    ) -> None:
        """Prepare.

        Args:
            session: The rules.
            applier: What they are applied to.
            progress: Counted as frames are written.
            answer: Gives a message to the sender; None over a one-way pipe.
            keep_frames: Remember the frames since the last barrier, to read them back.
            is_discreet: Tell the sender nothing of this host.
        """
        self.session = session
        self._is_discreet = is_discreet
        # Why only samples told that the target is its base; empty where the kernel knew.
        self.sampled = ""
        self.lock = threading.RLock()
        self.finish: Finish | None = None
        self.on_finish: Callable[[], None] = lambda: None
        self._applier = applier
        self._progress = progress
        self._answer = answer
        self._keep_frames = keep_frames
        self._kept: dict[int, tuple[bytes, list[Extent]]] = {}

    @property
    def answers(self) -> bool:
        """Whether the sender hears us."""
        return self._answer is not None

    def event(self, report: Callable[[], list[Effect]]) -> list[Effect]:
        """Give the session an event, one at a time."""
        with self.lock:
            return report()

    def perform(self, effects: list[Effect]) -> None:
        """Execute effects other than Verify and Write, and those that follow from them."""
        todo = list(effects)
        while todo:
            todo += self._one(todo.pop(0))

    def write(self, effect: Write, frame: Frame, table: Table) -> None:
        """Execute a Write and what follows from it."""
        if self._keep_frames:
            with self.lock:
                self._kept[effect.seq] = (frame.digest, table.extents)
        failpoint("recv.before_write")
        self._applier.write(effect.seq, frame, table)
        failpoint("recv.after_write")
        self.perform(self.event(lambda: self.session.written(effect.seq)))

    def count(self, table: Table, wire: int) -> None:
        """Count a frame that was taken."""
        covered = sum(extent.length for extent in table.extents)
        self._progress.frame(data=len(table.data), covered=covered, wire=wire)

    def given_up(self, errors: list[BaseException]) -> BaseException:
        """Let the session keep what is good, now that nothing is being done any more.

        The session hears of every error: a flush that failed is never tried again, even if a cut
        came first.

        Args:
            errors: What happened, the first one first; errors of the last barrier are added.

        Returns:
            What to raise: the error that decided, with its companion if there is one.
        """
        # A frame that came before a cut may be found to be bad only after it.
        for error in sorted(errors, key=lambda error: code_of(error) is Code.INTERRUPTED):
            self._tell(error)
        for _ in range(2):  # the session gives up without a barrier the second time
            try:
                self.perform(self.event(self.session.drained))
                break
            except (BlockstreamError, RemoteProtocolError, WorkersStoppedError) as later:
                errors.append(later)
                self._tell(later)
        if not any(code_of(error) in {Code.TARGET, Code.BUG} for error in errors):
            self._applier.leave()
        return _decisive(errors, self.finish or Finish(code_of(errors[0])))

    def _tell(self, error: BaseException) -> None:
        said = discreet(error) if self._is_discreet else _said_to_sender(error)
        self.event(lambda: self.session.failed(code_of(error), said))

    def _one(self, effect: Effect) -> list[Effect]:  # one line an effect
        session = self.session
        match effect:
            case Send(message):
                self._say(message)
            case CheckBase(samples):
                found = self._applier.check_base(samples)
                self.sampled = found.sampled
                return self.event(lambda: session.base_checked(found.written))
            case Prepare(plan, resumed):
                return self._prepare(plan, resumed=resumed)
            case Record(state):
                self._applier.record(state)
                failpoint("recv.after_record")
                following = self.event(lambda: session.recorded(state))
                self._progress.durable = session.durable.covered
                self._forget_kept()
                return following
            case Flush():
                failpoint("recv.before_flush")
                self._applier.flush()
                failpoint("recv.after_flush")
                return self.event(session.flushed)
            case ReadBack(first, last):
                self._read_back(first, last)
                return self.event(session.read_back)
            case TakeSamples():
                samples = self._applier.samples()
                failpoint("recv.before_clean")
                return self.event(lambda: session.samples_taken(samples))
            case Finish():
                failpoint("recv.after_clean")
                self.finish = effect
                self.on_finish()
        return []

    def _say(self, message: Message) -> None:
        if isinstance(message, Committed):
            self.on_finish()  # what comes after it may be the next session's
        if self._answer is not None:
            self._answer(message)

    def _prepare(self, plan: Plan, *, resumed: bool) -> list[Effect]:
        opening = self.session.opening
        if opening is not None:
            first = self.session.durable.frames
            moment = self.session.moment
            self._applier.prepare(opening, plan, resumed=resumed, first=first, moment=moment)
            self._progress.size = opening.size
            self._progress.total = opening.total
            self._progress.begin(self.session.durable.covered)
        failpoint("recv.ready")
        return self.event(self.session.prepared)

    def _read_back(self, first: int, last: int) -> None:
        for seq in range(first, last):
            self._applier.read_back(*self._kept[seq])

    def _forget_kept(self) -> None:
        """Forget frames that are recorded as durable; until then a last barrier may ask again."""
        with self.lock:
            durable = self.session.durable.frames
            for seq in [seq for seq in self._kept if seq < durable]:
                del self._kept[seq]


def _said_to_sender(error: BaseException) -> str:
    """Return the text of an error; of a refusal, with what its class advises."""
    meant = translated(error)
    if isinstance(meant, RefusedError) and meant.advice:
        return f"{error}; nothing was written; {meant.advice}"
    return str(error)


def _decisive(errors: list[BaseException], finish: Finish) -> BaseException:
    """Return the error that the session ended with, and another one beside it if it came first."""
    decided = next((e for e in errors if code_of(e) == finish.code), errors[0])
    first = translated(errors[0])
    if decided is errors[0]:
        return first
    return BaseExceptionGroup("the transfer failed twice", [translated(decided), first])


class FrameReader:
    """Frames from a descriptor, read straight into the buffers of whoever asks for the next.

    Over several lanes, each frame takes the next one, in turn (SPEC 3.1).
    """

    def __init__(self, *readers: WakeableReader) -> None:
        self._space = memoryview(b"")
        self._lanes = [
            (reader, FrameDecoder(lambda size: self._space[:size])) for reader in readers
        ]
        self._turn = 0
        self._pushed: deque[Frame] = deque()
        # How the stream begins: what is not ours is another tool's.
        self.begin = b""
        # Called with the number of bytes that came; may take its time.
        self.wait: Callable[[int], None] = lambda _count: None

    @property
    def is_foreign(self) -> bool:
        """Whether the first bytes are not those of a stream of ours, not even of an altered one."""
        return len(self.begin) >= len(MAGIC) and not self.begin.startswith(MAGIC[:4])

    @property
    def stopped(self) -> bool:
        """Whether `stop` was called, so that an end of input means nothing."""
        return self._lanes[0][0].stopped

    def next(self, buffer: memoryview) -> Frame | None:
        """Read one frame into `buffer`; None at the end of input, or once stopped.

        Raises:
            RemoteProtocolError: If the bytes are no frame.
        """
        return self._pushed.popleft() if self._pushed else self._read(buffer)

    def _read(self, buffer: memoryview) -> Frame | None:
        self._space = buffer
        reader, decoder = self._lanes[self._turn % len(self._lanes)]
        while True:
            space = decoder.buffer()
            count = reader.read_into(space)
            if not count:
                return None
            if len(self.begin) < len(MAGIC):
                self.begin += bytes(space[:count])
            self.wait(count)
            frame = decoder.filled(count)
            if frame is not None:
                self._turn += not frame.is_optional
                return frame

    def end(self) -> None:
        """Take the end of input.

        Raises:
            RemoteProtocolError: If it falls inside a frame.
        """
        self._lanes[self._turn % len(self._lanes)][1].end()

    @property
    def wire_bytes(self) -> int:
        """How many bytes came, those of unfinished frames included."""
        return sum(decoder.wire_bytes for _, decoder in self._lanes)

    def foreign_words(self) -> bytes:
        """Return how a stream that is not ours begins, and what follows at once."""
        impatience = threading.Timer(_REST_SECONDS, self.stop)
        impatience.daemon = True
        impatience.start()
        said, view = bytearray(self.begin), memoryview(bytearray(_REST_BYTES))
        while len(said) < _REST_BYTES and (count := self._lanes[0][0].read_into(view)):
            said += view[:count]
        impatience.cancel()
        return bytes(said[:_REST_BYTES])

    def opening(self) -> Open:
        """Look ahead to the opening; `next` gives its frames again."""
        return self.beginning()[1]

    def greeting(self) -> Hello:
        """Look ahead to HELLO; `next` gives its frame again.

        Raises:
            RemoteProtocolError: If the stream does not begin with one.
        """
        hello = self._ahead(0)
        if not isinstance(hello, Hello):
            raise RemoteProtocolError("the stream does not begin with HELLO")
        check_hello(hello)
        return hello

    def beginning(self) -> tuple[Hello, Open]:
        """Look ahead to HELLO and the opening; `next` gives their frames again.

        Only where the sender says both without waiting: one-way.

        Raises:
            RemoteProtocolError: If the stream does not begin with them.
        """
        hello, opening = self.greeting(), self._ahead(1)
        if isinstance(opening, Moment):
            opening = self._ahead(2)
        if not isinstance(opening, Open):
            raise RemoteProtocolError("the stream does not begin with HELLO and OPEN")
        return hello, opening

    def _ahead(self, number: int) -> Message:
        """Return the message of that number, of those that nobody has taken yet."""
        while len(self._pushed) <= number:
            frame = self._read(memoryview(bytearray(EXTENTS_BYTES)))
            if frame is None:
                self.end()
                empty = "the input is empty" if not self.wire_bytes else "the stream was cut"
                raise RemoteProtocolError(empty, Code.INTERRUPTED)
            self._pushed.append(frame)
        return message_of(self._pushed[number], blake3.blake3, Decompressor())

    def stop(self) -> None:
        """Wake the reader and let it see an end; from any thread or signal handler."""
        for reader, _ in self._lanes:
            reader.stop()


class ReceiveEngine:
    """Reads a stream from a descriptor into an `Applying`.

    Memory: one buffer of a frame a worker, twice for packed frames, and the plan.
    """

    def __init__(
        self,
        applying: Applying,
        frames: FrameReader,
        progress: Progress,
        workers: int | None = None,
    ) -> None:
        """Prepare; nothing is read yet."""
        self._applying = applying
        self._frames = frames
        self._progress = progress
        self._workers = workers or default_workers()
        self._reading = threading.Lock()
        self._turnstile = Turnstile()
        self._first: int | None = None
        self._taken = 0  # number of the next frame
        self._crew = Workers(self._wake)
        self._stopped = ""
        self._heard = 0
        self._listening = False
        self._ended = False
        # A sender that hears us leaves its direction open; nothing more is expected there.
        applying.on_finish = frames.stop

    def run(self) -> Finish:
        """Take the whole stream; blocks until the session is over.

        Raises:
            BlockstreamError: As the session, the target or the input failed; whatever was good by
                then has been made durable.
        """
        self._crew.run(self._work, self._workers)
        errors = self._crew.errors
        if self._stopped:
            errors.append(error_for(Code.INTERRUPTED, self._stopped))
        if self._applying.finish is None:
            if not errors:
                text = "the receiver ended before its session did"
                errors.append(error_for(Code.INTERRUPTED, text))
            raise self._applying.given_up(errors)
        return self._applying.finish

    def stop(self, reason: str) -> None:
        """Make `run` end soon, after a last barrier for what has arrived.

        Over a pipe, a sender that was stopped, too, confirms what it sent last; any other one does
        so soon. That is waited for, because nothing else makes good what it would send again.
        """
        self._stopped = reason
        if self._applying.answers or not self._applying.session.awaits_checkpoint:
            self._frames.stop()
            return
        impatience = threading.Timer(_LAST_CHECKPOINT_SECONDS, self._frames.stop)
        impatience.daemon = True
        impatience.start()

    def tick(self) -> None:
        """Let the session notice the time; may flush, so call it from a thread of its own."""
        session, now = self._applying.session, time.monotonic()
        # While all of us write or flush, nobody knows what the sender says.
        if not self._listening:
            session.busy(now)
        if self._frames.wire_bytes != self._heard:
            self._heard = self._frames.wire_bytes
            session.heard(now)
        try:
            self._applying.perform(self._applying.event(lambda: session.tick(now)))
        except (BlockstreamError, RemoteProtocolError) as error:
            self._crew.fail(error)

    # Workers.

    def _work(self) -> None:
        buffer = aligned_buffer(EXTENTS_BYTES)
        decompress = Decompressor()
        while True:
            effects = self._next(buffer, decompress)
            if effects is None:
                return
            for effect in effects:
                if isinstance(effect, Verify):
                    self._apply(effect, decompress)
                else:
                    self._applying.perform([effect])

    def _next(self, buffer: memoryview, decompress: Decompressor) -> list[Effect] | None:
        """Read one message, in order; None when there is nothing more to read.

        Whatever must be done before the next message may be looked at is done here.
        """
        with self._reading:
            if self._ended or self._crew.error is not None:
                return None
            try:
                return self._next_in_turn(buffer, decompress)
            except (BlockstreamError, RemoteProtocolError) as error:
                # While the lock is held: nobody reads on behind what was refused. What came
                # before it is finished first: if that is not good, this is no news.
                self._turnstile.wait_for(self._taken)
                self._crew.note(error)
                return None

    def _next_in_turn(self, buffer: memoryview, decompress: Decompressor) -> list[Effect] | None:
        self._listening = True
        frame = self._frames.next(buffer)
        self._listening = False
        session = self._applying.session
        if frame is None:
            return self._end_of_input()
        message = message_of(frame, blake3.blake3, decompress)
        self._progress.control(0 if isinstance(message, Extents) else frame.wire_len)
        if self._stopped and isinstance(message, Checkpoint):
            self._frames.stop()
        effects = self._applying.event(lambda: session.receive(message, time.monotonic()))
        if session.state in {State.STREAM, State.SKIM}:
            self._open_turnstile()
            self._taken += sum(isinstance(effect, Verify) for effect in effects)
            return effects
        self._applying.perform(effects)
        self._open_turnstile()
        self._ended = session.state is State.DONE
        return []

    def _end_of_input(self) -> list[Effect] | None:
        self._ended = True
        if self._frames.stopped:
            return None
        try:
            self._frames.end()
            return self._applying.event(self._applying.session.end_of_stream)
        except RemoteProtocolError:
            if not self._stopped:
                raise
            return None  # which is what we were stopped for, too

    def _open_turnstile(self) -> None:
        """Let the first frame pass, whose number is known once the session is ready for it."""
        if self._first is None and self._applying.session.state in {State.STREAM, State.SKIM}:
            self._first = self._taken = self._applying.session.durable.frames
            self._turnstile = Turnstile(self._first)
            if self._crew.error is not None or self._frames.stopped:
                self._turnstile.break_open()

    def _apply(self, effect: Verify, decompress: Decompressor) -> None:
        frame, seq = effect.frame, effect.seq
        table = parse_table(unpacked(frame, blake3.blake3, decompress))
        session = self._applying.session
        self._turnstile.wait_for(seq)
        effects = self._applying.event(lambda: session.verified(seq, table.extents))
        self._turnstile.advance()
        for following in effects:
            if isinstance(following, Write):
                self._applying.write(following, frame, table)
            else:
                self._applying.perform([following])
        self._applying.count(table, frame.wire_len)

    # Ends.

    def _wake(self) -> None:
        self._frames.stop()
        self._turnstile.break_open()
