"""What executes the effects of a session on the simulated world: one driver for each end.

They stand for the engines of `blockstream.pipeline`: an event, then its effects in order, each of
which ends in the next event.
"""

import json
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING

from blake3 import blake3

from blockstream.pipeline.journal import Journal
from blockstream.pipeline.samples import BaseCheck, Evidence, base_check
from blockstream_protocol import (
    MAGIC,
    Buffer,
    CheckBase,
    Clean,
    Code,
    Codec,
    Committed,
    ControlMessage,
    Effect,
    Extent,
    Extents,
    Finish,
    Flush,
    Frame,
    FrameDecoder,
    FrameType,
    Hello,
    Kind,
    Message,
    Open,
    PlanRows,
    Prepare,
    ReadBack,
    Receiver,
    Record,
    RecordIntent,
    RemoteProtocolError,
    Send,
    Sender,
    State,
    Stream,
    TakeSamples,
    Validate,
    Verify,
    Write,
    control_frame,
    encode,
    message_of,
    parse_table,
    plain_frame,
    told,
    unpacked,
)
from tests.simulation.world import Disk, Pipe, SenderRecord, below

if TYPE_CHECKING:
    from tests.simulation.simulator import World

WINDOW = 4  # frames being verified or written, and frames on the link
Job = CheckBase | Prepare | Record | Flush | ReadBack | TakeSamples


def no_codec(_packed: Buffer, _raw_len: int) -> Buffer:
    """Stand for zstd, which no simulated sender uses: only a flipped head can ask for it."""
    raise RemoteProtocolError("a payload does not unpack")


def wire_of(message: Message) -> bytes:
    """Return the bytes of a message, as they travel."""
    if isinstance(message, Extents):
        return encode(message.frame)
    if isinstance(message, PlanRows):
        return encode(plain_frame(FrameType.PLAN, bytes(message.rows), blake3))
    if isinstance(message, Hello):
        return encode(control_frame(message, blake3))
    return control_wire(message)


# Both are pure, and a transfer that is tried ten times says the same things ten times.
@lru_cache(maxsize=256)
def control_wire(message: ControlMessage) -> bytes:
    """Return the bytes of a message that is not data."""
    return encode(control_frame(message, blake3))


@lru_cache(maxsize=256)
def control_message(kind: FrameType, codec: Codec, digest: bytes, payload: bytes) -> Message:
    """Return what a frame that is not data says."""
    return message_of(Frame(kind, codec, len(payload), digest, payload), blake3, no_codec)


def message_in(frame: Frame) -> Message:
    """Return the message in a frame, checked."""
    if frame.kind is FrameType.EXTENTS:
        return Extents(frame)
    return control_message(frame.kind, frame.codec, frame.digest, bytes(frame.payload))


def pieces_of(extents: list[Extent], data: Buffer) -> Iterator[tuple[int, bytes]]:
    """Give the bytes of each extent with their place, zeros as zeros."""
    view, start = memoryview(data), 0
    for offset, length, kind in extents:
        if kind == Kind.ZERO:
            yield offset, bytes(length)
        else:
            yield offset, bytes(view[start : start + length])
            start += length


def evidence_of(disk: Disk, *, traced: bool) -> Evidence:
    """Return the evidence that nobody writes to a disk: one of both kinds has to do alone.

    Either the kernel counts writes, and the samples miss each of them; or it does not, and they
    miss none.
    """
    if not traced:
        return Evidence(blake3(disk.medium()).hexdigest())
    counts = {"": [disk.counted, 0]}
    return Evidence("00" * 32, json.dumps({"kind": "device", "life": "boot:1", "counts": counts}))


class FrameSink:
    """Puts messages on a pipe, the magic before the first."""

    def __init__(self, pipe: Pipe) -> None:
        self._pipe = pipe
        self._started = False

    def send(self, message: Message) -> None:
        """Send, or drop where nobody listens any more."""
        wire = wire_of(message)
        if not self._started:
            self._started = True
            wire = MAGIC + wire
        if not self._pipe.closed:
            self._pipe.flight.append(wire)


class ReceiverDriver:
    """Executes the receiver's effects: verifies in order, writes in any order, one barrier at once.

    Attributes:
        finish: How the session ended, once it did.
        receiver: The shipped class, or a mutant of it.
        writes: Writes under way.
        jobs: The slow effect under way, with what it saw when it began.
    """

    def __init__(self, world: "World") -> None:
        self._world = world
        self._disk = world.disk
        self.journal = Journal(world.storage, blake3, world.size)
        self.receiver: Receiver = world.rules.receiver(
            size=world.size,
            state=self.journal.state,
            new_digest=blake3,
            policy=world.policy,
            facts=told(self.journal.state),
            now=world.now,
        )
        self.decoder = FrameDecoder()
        self._outlet = FrameSink(world.back)
        self._verifies: deque[Verify] = deque()
        self.writes: list[Write] = []
        self.jobs: list[tuple[Job, int]] = []
        self._data: dict[int, Buffer] = {}
        self._unread: dict[int, list[tuple[int, bytes]]] = {}
        self._failing = False
        self._draining = False
        self._reporting = False
        self._trace = ""
        self.finish: Finish | None = None
        self.writes_before = world.disk.writes

    # What the scheduler may do.

    @property
    def is_flushing(self) -> bool:
        """Whether a flush is under way."""
        return bool(self.jobs) and isinstance(self.jobs[0][0], Flush)

    def add_actions(self, actions: list[Callable[[], None]]) -> None:
        """Add what could happen next at this end."""
        if self._listens() and self._world.forward_ready:
            actions.append(self.take)
        if self._verifies:
            actions.append(self.verify)
        if self.writes:
            actions.append(self.write)
        if self.jobs:
            actions.append(self.work)
        elif self._failing and not self.writes:
            actions.append(self.drain)

    def _listens(self) -> bool:
        """Tell whether this end reads: within its window, and never while it decides."""
        if self._failing or self._draining:
            return False
        if len(self._verifies) + len(self.writes) >= WINDOW:
            return False
        return self.receiver.state is not State.DECIDING

    def take(self) -> None:
        """Take the next frame of the link, or its end."""
        pipe = self._world.forward
        if not pipe.flight:
            self._world.forward_ended = True
            self._report(self._end)
            return
        wire = pipe.flight.pop(0)
        try:
            for frame in self.decoder.feed(wire):
                message = message_in(frame)
                self.perform(self.receiver.receive(message, self._world.now))
        except RemoteProtocolError as error:
            self.fail(error.code, str(error))

    def _end(self) -> list[Effect]:
        self.decoder.end()
        return self.receiver.end_of_stream()

    def verify(self) -> None:
        """Check the oldest frame that waits for it."""
        effect = self._verifies.popleft()
        self._report(lambda: self._verified(effect))

    def _verified(self, effect: Verify) -> list[Effect]:
        table = parse_table(self.raw(effect.frame))
        self._data[effect.seq] = table.data
        return self.receiver.verified(effect.seq, table.extents)

    def raw(self, frame: Frame) -> Buffer:
        """Return the payload, checked."""
        return unpacked(frame, blake3, no_codec)

    def write(self) -> None:
        """Carry out any one of the writes under way."""
        world = self._world
        effect = self.writes.pop(below(world.rng, len(self.writes)))
        data = self._data.pop(effect.seq)
        pieces = list(pieces_of(effect.extents, data))
        try:
            for offset, piece in pieces:
                self._disk.write(offset, piece)
        except OSError as error:
            self.fail(Code.TARGET, str(error))
            return
        if world.policy.read_back:
            self._unread[effect.seq] = pieces
        self._report_late(lambda: self.receiver.written(effect.seq))

    def work(self) -> None:
        """Carry out the slow effect under way."""
        job, began = self.jobs.pop(0)
        try:
            self._work(job, began)
        except OSError as error:
            self.fail(Code.TARGET, str(error))

    def _work(self, job: Job, began: int) -> None:
        receiver = self.receiver
        match job:
            case Flush():
                self.flush(began)
                self._report_late(receiver.flushed)
            case Record(state):
                self.record(job)
                self._report_late(lambda: receiver.recorded(state))
            case ReadBack(first, last):
                self._read_back(first, last)
            case CheckBase(expected):
                found = self.check_base(Evidence(expected, self.journal.trace))
                self._report(lambda: receiver.base_checked(found.written))
            case TakeSamples():
                evidence = self.evidence()
                self._trace = evidence.trace
                self._report(lambda: receiver.samples_taken(evidence.samples))
            case Prepare():
                self._report(receiver.prepared)

    def evidence(self) -> Evidence:
        """Return what tells whether somebody writes to the target."""
        return evidence_of(self._disk, traced=self._world.traced)

    def check_base(self, then: Evidence) -> BaseCheck:
        """Tell whether the target is what it was at its last commit."""
        return base_check(then, self.evidence())

    def flush(self, began: int) -> None:
        """Flush what was written before the flush began."""
        self._world.faults.point("receiver", "before the flush")
        self._disk.flush(began)
        self._world.faults.point("receiver", "after the flush")

    def record(self, job: Record) -> None:
        """Make a state durable; the world looks at CLEAN before anybody can be told."""
        self._world.check_clean(job.state)
        trace = self._trace if isinstance(job.state, Clean) else ""
        self.journal.record(job.state, self._world.facts, trace=trace)
        self._world.tell("journal: %s", job.state)

    def _read_back(self, first: int, last: int) -> None:
        if self.reads_back(first, last):
            self._report_late(self.receiver.read_back)
        else:
            self.fail(Code.INTEGRITY, "what was written reads back different")

    def reads_back(self, first: int, last: int) -> bool:
        """Tell whether the medium holds what was written."""
        medium = self._disk.medium()
        return all(
            medium[offset : offset + len(piece)] == piece
            for seq in range(first, last)
            for offset, piece in self._unread[seq]
        )

    def tick(self) -> None:
        """Let time pass."""
        self._report(lambda: self.receiver.tick(self._world.now))

    # Failing: what is in flight ends, then one last barrier, then Finish.

    def fail(self, code: Code, text: str) -> None:
        """Tell the session of an error, and stop reading."""
        self._world.tell("receiver fails, %s: %s", code.name, text)
        self.perform(self.receiver.failed(code, text))
        self._failing = True
        self._verifies.clear()
        # An engine may report what was in flight, or throw the reports away.
        self._reporting = self._world.rng.random() < 0.5

    def drain(self) -> None:
        """Nothing is under way any more."""
        self._failing = False
        self._draining = True
        self.perform(self.receiver.drained())

    def stop(self) -> None:
        """Let people end it."""
        self.perform(self.receiver.stop("stopped"))
        self._failing = True
        self._verifies.clear()

    # Events in, effects out.

    def _report(self, event: Callable[[], list[Effect]]) -> None:
        if self._failing or self.finish is not None:
            return
        try:
            effects = event()
        except RemoteProtocolError as error:
            self.fail(error.code, str(error))
        else:
            self.perform(effects)

    def _report_late(self, event: Callable[[], list[Effect]]) -> None:
        """Report the end of what may have been in flight when the session failed."""
        if self._failing and self._reporting:
            self.perform(event())
        else:
            self._report(event)

    def perform(self, effects: list[Effect]) -> None:
        """Execute effects in order; slow ones begin here and end in a later step."""
        for effect in effects:
            match effect:
                case Send(message):
                    if self._world.duplex:
                        self._outlet.send(message)
                case Verify():
                    self._verifies.append(effect)
                case Write():
                    self.writes.append(effect)
                case Finish():
                    self.finish = effect
                case CheckBase() | Prepare() | Record() | Flush() | ReadBack() | TakeSamples():
                    self.jobs.append((effect, len(self._disk.pending)))
                case _:
                    raise TypeError(effect)

    def die(self) -> None:
        """Leave writes that were under way half done."""
        for effect in self.writes:
            for offset, piece in pieces_of(effect.extents, self._data[effect.seq]):
                self._disk.tear_write(offset, piece)


class SenderDriver:
    """Executes the sender's effects.

    Attributes:
        finish: How the session ended, once it did.
        sender: The shipped class, or a mutant of it.
    """

    def __init__(self, world: "World") -> None:
        self._world = world
        self.opening: Open = world.opening()
        self.sender: Sender = world.rules.sender(
            self.opening,
            world.source.plan,
            new_digest=blake3,
            duplex=world.duplex,
            moment=world.source.moment,
            now=world.now,
        )
        self.goal = self.opening.goal
        self._generation = world.source.generation
        self._decoder = FrameDecoder()
        self._outlet = FrameSink(world.forward)
        self._next: int | None = None
        self._resume = 0
        self._settling = False
        self._jobs: list[Validate | RecordIntent] = []
        self.promised: dict[int, list[tuple[int, bytes]]] = {}
        self.image = b""
        self.finish: Finish | None = None
        self.perform(self.sender.start())

    # What the scheduler may do.

    def add_actions(self, actions: list[Callable[[], None]]) -> None:
        """Add what could happen next at this end."""
        if self._world.back_ready:
            actions.append(self.take)
        if self._next is not None and len(self._world.forward.flight) < WINDOW:
            actions.append(self.produce)
        if self._settling and self.sender.settled:
            actions.append(self.end_source)
        if self._jobs:
            actions.append(self.work)

    def take(self) -> None:
        """Take the next answer, or the end of the way back."""
        pipe = self._world.back
        if not pipe.flight:
            self._world.back_ended = True
            self._report(self._end)
            return
        wire = pipe.flight.pop(0)
        try:
            for frame in self._decoder.feed(wire):
                message = message_in(frame)
                if isinstance(message, Hello) and self.sender.state is State.GREET:
                    self._greeted(message)
                self.perform(self.sender.receive(message, self._world.now))
                self._world.check_ack(self, message)
        except RemoteProtocolError as error:
            self.fail(error.code, str(error))

    def _greeted(self, hello: Hello) -> None:
        """Continue what is unfinished on the target."""
        world = self._world
        if not world.aiming:
            return
        intent = world.store.view.intent
        sent = [*world.invented, *([intent.goal] if intent is not None else [])]
        self.goal = world.command.goal_for(hello, self.opening.base, sent)
        self.opening = replace(self.opening, goal=self.goal)
        self.sender.aim(self.opening)
        world.source.rename(self.goal)
        world.tell("sender aims at %s", self.goal)

    def _end(self) -> list[Effect]:
        self._decoder.end()
        return self.sender.end_of_stream()

    def produce(self) -> None:
        """Read the next piece of the source."""
        index = self._next
        if index is None:
            return
        frames = self._world.source.frames
        if index >= len(frames):
            self._next = None
            self._settling = self._world.in_a_set
            self._report(self.sender.settle if self._settling else self.sender.source_ended)
            return
        piece = frames[index]
        self._next = index + 1
        self.promised[index] = piece.pieces
        if index < self._resume:
            self._report(lambda: self.sender.replayed(piece.frame.digest, piece.covered))
        else:
            now = self._world.now
            self._report(lambda: self.sender.frame(piece.frame, piece.covered, now))

    def end_source(self) -> None:
        """Let the set go on: all of it is durable."""
        self._settling = False
        self._world.check_settled(self)
        self._report(self.sender.source_ended)

    def work(self) -> None:
        """Carry out the slow effect under way."""
        match self._jobs.pop(0):
            case Validate():
                self._validate()
            case RecordIntent(expected):
                self.record_intent(expected)
                self._report(self.sender.intent_recorded)

    def record_intent(self, expected: Committed) -> None:
        """Make durable what COMMITTED must say."""
        store = self._world.store
        store.record(SenderRecord(store.view.base, expected))

    def _validate(self) -> None:
        source = self._world.source
        self.image = source.image
        if self.source_is_valid():
            self._world.claimed[self.goal] = source.image
            self._report(self.sender.validated)
        else:
            self.fail(Code.SOURCE, "the source changed while it was read")

    def source_is_valid(self) -> bool:
        """Tell whether the source is what it was when the session began."""
        return self._world.source.generation == self._generation

    def tick(self) -> None:
        """Let time pass."""
        self._report(lambda: self.sender.tick(self._world.now))

    # Events in, effects out.

    def fail(self, code: Code, text: str) -> None:
        """Tell the session of an error; it is over."""
        self._world.tell("sender fails, %s: %s", code.name, text)
        self.perform(self.sender.failed(code, text))
        # A refusal has ended the conversation already; the error is what is left of it.
        self.finish = self.finish or Finish(code, text)

    def _report(self, event: Callable[[], list[Effect]]) -> None:
        try:
            effects = event()
        except RemoteProtocolError as error:
            self.fail(error.code, str(error))
        else:
            self.perform(effects)

    def perform(self, effects: list[Effect]) -> None:
        """Execute effects in order."""
        for effect in effects:
            match effect:
                case Send(message):
                    self._outlet.send(message)
                case Stream(frames):
                    self._start_stream(frames)
                case Validate() | RecordIntent():
                    self._jobs.append(effect)
                case Finish():
                    self._finish(effect)
                case _:
                    raise TypeError(effect)

    def _start_stream(self, frames: int) -> None:
        self._next, self._resume = 0, frames
        if frames and self.may_trust():
            before = self._world.source.frames[:frames]
            self.promised.update(enumerate(piece.pieces for piece in before))
            self._next = frames
            covered = sum(piece.covered for piece in before)
            self._report(lambda: self.sender.trusted(covered))

    def may_trust(self) -> bool:
        """Tell whether the source is surely the one that gave what the receiver holds."""
        return self._world.trusted and not self._world.command.continued

    def _finish(self, effect: Finish) -> None:
        self._next = None
        self._settling = False
        self._jobs.clear()
        if effect.code == 0 and self._world.duplex:
            self._world.advance(self.goal, self.image)
        self.finish = effect
