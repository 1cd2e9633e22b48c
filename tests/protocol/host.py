"""Small, honest executors: a receiver's effects on a bytearray, a sender's on a list of bytes."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import zstandard
from blake3 import blake3

from blockstream_protocol import (
    MAGIC,
    Buffer,
    CheckBase,
    Code,
    Codec,
    Effect,
    Extent,
    Extents,
    Finish,
    Flush,
    Frame,
    FrameDecoder,
    FrameType,
    Kind,
    Message,
    NewDigest,
    Open,
    Plan,
    PlanRows,
    Prepare,
    ReadBack,
    Receiver,
    ReceiverPolicy,
    Record,
    RecordIntent,
    RemoteProtocolError,
    Send,
    Sender,
    Stream,
    TakeSamples,
    TargetState,
    Unknown,
    Validate,
    Verify,
    Write,
    control_frame,
    encode,
    encode_table,
    message_of,
    parse_table,
    plain_frame,
    unpacked,
)

SECTOR = 512
new_digest: NewDigest = blake3


def decompress(wire: Buffer, raw_len: int) -> bytes:
    """Unpack as SPEC 3 demands."""
    try:
        head = zstandard.get_frame_parameters(wire)
        if head.content_size != raw_len or head.window_size > 8 << 20 or head.dict_id:
            raise RemoteProtocolError("a packed payload does not fit its frame")
        context = zstandard.ZstdDecompressor(max_window_size=8 << 20)
        return context.decompress(wire, max_output_size=raw_len, allow_extra_data=False)
    except zstandard.ZstdError:
        raise RemoteProtocolError("a packed payload is damaged") from None


# Making streams.


def extents_frame(*extents: Extent, data: bytes = b"") -> Frame:
    """Return the plain frame of some extents."""
    return plain_frame(FrameType.EXTENTS, encode_table(extents) + data, new_digest)


def packed(frame: Frame) -> Frame:
    """Return the same frame, packed."""
    payload = zstandard.ZstdCompressor().compress(bytes(frame.payload))
    return Frame(frame.kind, Codec.ZSTD, frame.raw_len, frame.digest, payload)


def frame_of(message: Message) -> Frame:
    """Return the frame of any message."""
    match message:
        case Extents(frame):
            return frame
        case PlanRows(rows):
            return plain_frame(FrameType.PLAN, bytes(rows), new_digest)
    return control_frame(message, new_digest)


def wire_of(messages: Sequence[Message]) -> bytes:
    """Return a whole stream."""
    return MAGIC + b"".join(encode(frame_of(message)) for message in messages)


def opening_of(
    plan: Plan, *, size: int, base: str = "", goal: str = "g", frames: int = 0, chain: str = ""
) -> Open:
    """Return the opening that announces `plan`."""
    return Open(
        size=size,
        base=base,
        goal=goal,
        plan=plan.digest(new_digest).hex(),
        ranges=len(plan),
        total=plan.total,
        frames=frames,
        chain=chain,
    )


def sectors(*numbers: int, size: int) -> Plan:
    """Return the plan of some sectors of a device; its last may be shorter."""
    rows: list[list[int]] = []
    for number in numbers:
        if rows and rows[-1][0] + rows[-1][1] == number * SECTOR:
            rows[-1][1] += SECTOR
        else:
            rows.append([number * SECTOR, SECTOR])
        rows[-1][1] = min(rows[-1][1], size - rows[-1][0])
    joined = b"".join(
        part.to_bytes(8, "little") for offset, length in rows for part in (offset, length)
    )
    return Plan.from_rows(joined, size)


def frames_of(plan: Plan, image: bytes) -> list[tuple[Frame, int]]:
    """Return one frame a sector, each with the bytes it covers; zero sectors as ZERO."""
    frames = []
    for start, stop in plan:
        for offset in range(start, stop, SECTOR):
            data = image[offset : min(offset + SECTOR, stop)]
            kind = Kind.DATA if any(data) else Kind.ZERO
            extent = Extent(offset, len(data), kind)
            frame = extents_frame(extent, data=data if kind is Kind.DATA else b"")
            frames.append((frame, len(data)))
    return frames


def one_way(opening: Open, plan: Plan, frames: Sequence[tuple[Frame, int]]) -> list[Message]:
    """Return what a one-way sender says, a CHECKPOINT after each third frame included."""
    sender = Sender(opening, plan, new_digest=new_digest, duplex=False, software="test")
    effects = sender.start()
    for number, (frame, covered) in enumerate(frames):
        if number < opening.frames:
            effects += sender.replayed(frame.digest, covered)
        else:
            effects += sender.frame(frame, covered, now=number)
    effects += sender.source_ended() + sender.validated() + sender.intent_recorded()
    return [effect.message for effect in effects if isinstance(effect, Send)]


def whole_stream(image: bytes, goal: str = "g") -> list[Message]:
    """Return the one-way stream of a full copy."""
    plan = Plan.whole(len(image))
    return one_way(opening_of(plan, size=len(image), goal=goal), plan, frames_of(plan, image))


# Receiving.


@dataclass
class Host:
    """Executes what a receiver wants, at once and in order, and keeps what it did.

    Attributes:
        image: The target.
        receiver: The rules under test.
        did: Every effect, in order.
        broken: Types of effect whose execution fails.
    """

    image: bytearray
    receiver: Receiver
    did: list[Effect] = field(default_factory=list)
    broken: frozenset[type[Effect]] = frozenset()
    samples: str = "5" * 64

    @classmethod
    def of(
        cls,
        image: bytes | int,
        state: TargetState | None = None,
        policy: ReceiverPolicy | None = None,
        broken: frozenset[type[Effect]] = frozenset(),
    ) -> "Host":
        """Return the host of a target, given as content or size."""
        target = bytearray(image)
        receiver = Receiver(
            size=len(target), state=state or Unknown(), new_digest=new_digest, policy=policy
        )
        return cls(target, receiver, broken=broken)

    @property
    def sent(self) -> list[Message]:
        """What the receiver said."""
        return [effect.message for effect in self.did if isinstance(effect, Send)]

    @property
    def finish(self) -> Finish:
        """How it ended."""
        (finish,) = (effect for effect in self.did if isinstance(effect, Finish))
        return finish

    @property
    def recorded(self) -> list[TargetState]:
        """The states that became durable."""
        return [effect.state for effect in self.did if isinstance(effect, Record)]

    def take(self, message: Message, now: float = 0.0) -> None:
        """Give the receiver a message and do what it wants."""
        self.run(self.receiver.receive(message, now))

    def run(self, effects: Sequence[Effect]) -> None:
        """Execute effects, and the effects of their reports."""
        waiting = deque(effects)
        while waiting:
            effect = waiting.popleft()
            self.did.append(effect)
            if type(effect) in self.broken:
                waiting.clear()
                waiting.extend(self.receiver.failed(Code.TARGET, "broken on purpose"))
                waiting.extend(self.receiver.drained())
            else:
                waiting.extend(self._execute(effect))

    def _execute(self, effect: Effect) -> list[Effect]:
        receiver = self.receiver
        match effect:
            case CheckBase(samples):
                written = "" if samples == self.samples else "sampled ranges differ"
                return receiver.base_checked(written)
            case Prepare():
                return receiver.prepared()
            case Record(state):
                return receiver.recorded(state)
            case Verify(seq, frame):
                table = parse_table(unpacked(frame, new_digest, decompress))
                effects = receiver.verified(seq, table.extents)
                self._write(effects, table.data)
                return effects
            case Write(seq, _):
                return receiver.written(seq)
            case Flush():
                return receiver.flushed()
            case ReadBack():
                return receiver.read_back()
            case TakeSamples():
                return receiver.samples_taken(self.samples)
        return []

    def _write(self, effects: Sequence[Effect], data: memoryview) -> None:
        for effect in effects:
            if isinstance(effect, Write):
                for offset, length, kind in effect.extents:
                    stored = data[:length] if kind == Kind.DATA else bytes(length)
                    self.image[offset : offset + length] = stored
                    data = data[length:] if kind == Kind.DATA else data

    def feed(self, wire: bytes, cut: int = 1 << 20) -> Finish:
        """Take a whole stream in pieces, then its end; return how the session ended."""
        decoder = FrameDecoder()
        try:
            for start in range(0, len(wire), cut):
                for frame in decoder.feed(wire[start : start + cut]):
                    self.take(message_of(frame, new_digest, decompress))
            decoder.end()
            self.run(self.receiver.end_of_stream())
        except RemoteProtocolError as error:
            self.run(self.receiver.failed(error.code, str(error)))
            self.run(self.receiver.drained())
        return self.finish


# Sending.


@dataclass
class Source:
    """Executes what a sender wants, and keeps what it did.

    Attributes:
        sender: The rules under test.
        frames: Every frame of the plan, with the bytes it covers.
        trusts: Whether the source cannot change, so that frames are not produced again.
        did: Every effect, in order.
    """

    sender: Sender
    frames: Sequence[tuple[Frame, int]]
    trusts: bool = False
    did: list[Effect] = field(default_factory=list)

    @property
    def finish(self) -> Finish:
        """How it ended."""
        (finish,) = (effect for effect in self.did if isinstance(effect, Finish))
        return finish

    @property
    def sent(self) -> list[Message]:
        """What the sender said."""
        return [effect.message for effect in self.did if isinstance(effect, Send)]

    def take(self, message: Message, now: float = 0.0) -> None:
        """Give the sender an answer and do what it wants."""
        self.run(self.sender.receive(message, now))

    def run(self, effects: Sequence[Effect]) -> None:
        """Execute effects, and the effects of their reports."""
        waiting = deque(effects)
        while waiting:
            effect = waiting.popleft()
            self.did.append(effect)
            match effect:
                case Stream(skip):
                    waiting.extend(self._stream(skip))
                case Validate():
                    waiting.extend(self.sender.validated())
                case RecordIntent():
                    waiting.extend(self.sender.intent_recorded())

    def _stream(self, skip: int) -> list[Effect]:
        effects: list[Effect] = []
        if skip and self.trusts:
            effects += self.sender.trusted(sum(covered for _, covered in self.frames[:skip]))
        else:
            for frame, covered in self.frames[:skip]:
                effects += self.sender.replayed(frame.digest, covered)
        for frame, covered in self.frames[skip:]:
            effects += self.sender.frame(frame, covered)
        return effects + self.sender.source_ended()


def converse(source: Source, host: Host, *, swallow: type[Message] | None = None) -> None:
    """Run a duplex session to its end, with every message through its bytes.

    Args:
        source: The sender's side.
        host: The receiver's side.
        swallow: The connection is lost before an answer of this type arrives.
    """
    heard = said = 0
    source.run(source.sender.start())
    while heard < len(source.sent) or said < len(host.sent):
        if heard < len(source.sent):
            host.take(_through_bytes(source.sent[heard]))
            heard += 1
        elif swallow is not None and isinstance(host.sent[said], swallow):
            return
        else:
            source.take(_through_bytes(host.sent[said]))
            said += 1


def _through_bytes(message: Message) -> Message:
    (frame,) = FrameDecoder().feed(MAGIC + encode(frame_of(message)))
    return message_of(frame, new_digest, decompress)
