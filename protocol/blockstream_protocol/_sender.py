"""The sender's rules: when a frame may leave, and when the base may advance (SPEC 7)."""

from collections.abc import Iterator, Mapping

from blockstream_protocol._digests import NewDigest, link
from blockstream_protocol._effects import Effect, Finish, RecordIntent, Send, Stream, Validate
from blockstream_protocol._errors import (
    Code,
    LocalProtocolError,
    RemoteProtocolError,
)
from blockstream_protocol._frames import Frame
from blockstream_protocol._limits import (
    CHECKPOINT_BYTES,
    CHECKPOINT_SECONDS,
    IDLE_SECONDS,
    OWED_SECONDS,
    PING_SECONDS,
    PLAN_FRAME_BYTES,
)
from blockstream_protocol._messages import (
    Abort,
    Ack,
    Checkpoint,
    Committed,
    End,
    Extents,
    Hello,
    Message,
    Moment,
    Open,
    Ping,
    PlanRows,
    Refuse,
    check_hello,
    plain_text,
)
from blockstream_protocol._plan import Plan
from blockstream_protocol._states import SENDER, State


class Sender:
    """Takes events, gives effects; does nothing itself. Not thread-safe: callers hold a lock."""

    def __init__(
        self,
        opening: Open,
        plan: Plan,
        *,
        new_digest: NewDigest,
        duplex: bool,
        software: str = "",
        facts: Mapping[str, object] | None = None,
        moment: int | None = None,
        now: float = 0.0,
    ) -> None:
        """Start before the first message.

        Args:
            opening: What will be sent; its resume point is used over a one-way pipe only.
            plan: The plan that the opening announces.
            new_digest: BLAKE3-256.
            duplex: Whether there is a way back.
            software: For the peer's people.
            facts: What HELLO tells of the source, so that a target that is the source is noticed.
            moment: When the source held what is sent, in nanoseconds since 1970, UTC; None where
                nobody knows.
            now: A clock that never goes back, in seconds.
        """
        self._opening = opening
        self._plan = plan
        self._new_digest = new_digest
        self._duplex = duplex
        self._software = software
        self._facts = facts or {}
        self._moment = moment
        self._state = State.GREET
        self._transfer = opening.identity(new_digest)
        self._chain = self._transfer
        self._frames = 0
        self._covered = 0
        self._resume: tuple[int, bytes] = (0, self._transfer)
        self._held: Committed | None = None
        self._expected: Committed | None = None
        self._gave_up = False
        self._acked = 0
        self._unmarked = 0
        self._heard = self._spoke = self._marked = self._began = now

    @property
    def transfer(self) -> str:
        """Identity of the transfer, hex."""
        return self._transfer.hex()

    @property
    def acked(self) -> int:
        """How many frames the receiver called durable."""
        return self._acked

    @property
    def state(self) -> State:
        """Where the conversation stands."""
        return self._state

    # Events: the peer.

    def start(self) -> list[Effect]:
        """Say HELLO, and over a one-way pipe everything up to the first frame."""
        hello = Hello(duplex=self._duplex, software=self._software, target=self._facts)
        if self._duplex:
            return [Send(hello)]
        resume = bytes.fromhex(self._opening.chain) if self._opening.frames else self._transfer
        self._state = State.STREAM
        return [Send(hello), *self._announce(), self._stream(self._opening.frames, resume)]

    def aim(self, opening: Open) -> None:
        """Open with this instead, of the same plan: called before the peer's HELLO is given.

        What that says of the target may tell that an unfinished transfer is to be continued, and
        a transfer is known by its goal.
        """
        if self._state is not State.GREET or opening.plan != self._opening.plan:
            raise LocalProtocolError("it is too late for another opening, or it has another plan")
        self._opening = opening
        self._transfer = self._chain = opening.identity(self._new_digest)
        self._resume = (0, self._transfer)

    def receive(self, message: Message, now: float = 0.0) -> list[Effect]:
        """Take one answer.

        Raises:
            RemoteProtocolError: If it breaks a rule, or says that the transfer is refused or over.
        """
        self._heard = max(self._heard, now)
        if isinstance(message, Ping) or self._gave_up:
            return []  # what was on its way when we gave up changes nothing any more
        if isinstance(message, Abort):
            raise RemoteProtocolError(plain_text(message.text), _code_of(message.code))
        before = self._state
        following = SENDER.get(before, {}).get(type(message))
        if following is None:
            raise RemoteProtocolError(
                f"a message of type {type(message).__name__} came when {before.value}"
            )
        self._state = following
        match message:
            case Hello():
                check_hello(message)
                return self._announce()
            case Ack():
                return self._on_ack(message, first=before is State.OPENING)
            case Committed():
                return self._on_committed(message, first=before is State.OPENING)
            case Refuse():
                raise RemoteProtocolError(plain_text(message.text), Code.REFUSED)
        raise LocalProtocolError(f"no handler for {type(message).__name__}")

    def end_of_stream(self) -> list[Effect]:
        """Take the end of the way back.

        Raises:
            RemoteProtocolError: Unless all was said; after END the outcome is unknown.
        """
        if self._peer_is_done:
            return []
        if self._state is State.ENDING:
            raise RemoteProtocolError(
                "the connection was lost before the receiver said whether it committed",
                Code.UNKNOWN,
            )
        raise RemoteProtocolError("the receiver hung up", Code.INTERRUPTED)

    def tick(self, now: float) -> list[Effect]:
        """Let time pass: pings, the idle limit, and the limit on the HELLO that is owed.

        The receiver owes nothing else in a time: zeroing, applying and flushing take what they
        take.

        Raises:
            RemoteProtocolError: If a duplex peer was silent too long, or does not begin.
        """
        if not self._duplex or self._peer_is_done:
            return []
        if self._state is State.GREET and now - self._began >= OWED_SECONDS:
            raise RemoteProtocolError(
                f"the receiver is there, but did not say HELLO for {OWED_SECONDS:.0f} s",
                Code.INTERRUPTED,
            )
        if now - self._heard >= IDLE_SECONDS:
            code = Code.UNKNOWN if self._state is State.ENDING else Code.INTERRUPTED
            raise RemoteProtocolError(f"the receiver was silent for {IDLE_SECONDS:.0f} s", code)
        if now - self._spoke >= PING_SECONDS:
            self._spoke = now
            return [Send(Ping())]
        return []

    # Events: the source.

    def replayed(self, digest: bytes, covered: int) -> list[Effect]:
        """Take a frame before the resume point, which is not sent.

        Raises:
            RemoteProtocolError: With code SOURCE, if the frames are not those that were sent.
        """
        self._advance(digest, covered)
        if self._frames < self._resume[0]:
            return []
        return self._proved()

    def trusted(self, covered: int) -> list[Effect]:
        """Believe the peer's chain at the resume point: the source cannot have changed."""
        self._frames, self._chain = self._resume
        self._covered = covered
        return self._proved()

    def frame(self, frame: Frame, covered: int, now: float = 0.0) -> list[Effect]:
        """Send one frame; frames come in order.

        Args:
            frame: The frame, packed.
            covered: Bytes of the device that its extents cover.
            now: The time, for the next checkpoint.
        """
        if self._state is not State.STREAM or self._frames < self._resume[0]:
            raise LocalProtocolError("a frame came before the receiver was ready for it")
        self._advance(frame.digest, covered)
        self._unmarked += frame.raw_len
        self._spoke = max(self._spoke, now)
        effects: list[Effect] = [Send(Extents(frame))]
        if self._unmarked >= CHECKPOINT_BYTES or now - self._marked >= CHECKPOINT_SECONDS:
            self._unmarked = 0
            self._marked = now
            effects.append(Send(Checkpoint(self._frames, self._chain.hex())))
        return effects

    def settle(self) -> list[Effect]:
        """Take the end of the plan, but ask only that all of it be durable; see `settled`.

        Raises:
            RemoteProtocolError: As `source_ended` does.
        """
        self._check_whole()
        if self.settled:
            return []
        self._unmarked = 0
        return [Send(Checkpoint(self._frames, self._chain.hex()))]

    def interrupted(self) -> list[Effect]:
        """Take the word that no frame follows, but what was sent can still be made durable."""
        if self._state is not State.STREAM or not self._unmarked:
            return []
        self._unmarked = 0
        return [Send(Checkpoint(self._frames, self._chain.hex()))]

    @property
    def settled(self) -> bool:
        """Whether the receiver holds durably everything that was sent."""
        return self._held is not None or self._acked == self._frames

    def source_ended(self) -> list[Effect]:
        """Take the end of the plan.

        Raises:
            RemoteProtocolError: With code SOURCE, if the source gave less than was planned.
        """
        self._check_whole()
        return [Validate()]

    def validated(self) -> list[Effect]:
        """Take the word that the source is still valid."""
        expected = Committed(
            transfer=self.transfer,
            goal=self._opening.goal,
            frames=self._frames,
            chain=self._chain.hex(),
            total=self._covered,
        )
        self._expected = expected
        if self._held is not None:
            self._state = State.DONE
            return [Finish(0, committed=self._held, written=False)]
        return [RecordIntent(expected)]

    def intent_recorded(self) -> list[Effect]:
        """Take the durability of the intent: END may be said."""
        expected = self._expected
        if expected is None:
            raise LocalProtocolError("END before the source was validated")
        end: Effect = Send(End(expected.frames, expected.chain, expected.total))
        if self._duplex:
            self._state = State.ENDING
            return [end]
        self._state = State.DONE
        return [end, Finish(0, committed=expected)]

    def failed(self, code: Code, text: str) -> list[Effect]:
        """Take any error: tell the peer, and stop."""
        if self._state is State.DONE:
            return []
        self._state = State.DONE
        self._gave_up = True
        return [Send(Abort(code, text[:1000])), Finish(code, text)]

    # Inside.

    def _check_whole(self) -> None:
        if self._covered != self._plan.total or self._frames < self._resume[0]:
            raise RemoteProtocolError(
                f"the source gave {self._covered} of {self._plan.total} planned bytes in "
                f"{self._frames} frames, which is not what this transfer began with",
                Code.SOURCE,
            )

    @property
    def _peer_is_done(self) -> bool:
        """Whether nothing more is expected: a receiver that holds the goal hangs up at once.

        Reading the source again, to compare, may take hours from then on.
        """
        return self._state is State.DONE or self._held is not None

    def _announce(self) -> list[Effect]:
        told: list[Effect] = [] if self._moment is None else [Send(Moment(self._moment))]
        return [*told, Send(self._opening), *map(Send, self._plan_pieces())]

    def _plan_pieces(self) -> Iterator[PlanRows]:
        """Cut the plan into messages; a full copy's plan is known from its size."""
        if self._opening.full:
            return
        rows = memoryview(self._plan.rows())
        for start in range(0, len(rows), PLAN_FRAME_BYTES):
            yield PlanRows(rows[start : start + PLAN_FRAME_BYTES])

    def _stream(self, frames: int, chain: bytes) -> Stream:
        self._resume = (frames, chain)
        return Stream(frames, chain)

    def _advance(self, digest: bytes, covered: int) -> None:
        self._chain = link(self._new_digest, self._chain, digest)
        self._frames += 1
        self._covered += covered

    def _proved(self) -> list[Effect]:
        """Compare what the source gives now with what the receiver holds."""
        if self._chain == self._resume[1]:
            return []
        if self._held is not None:
            raise self._another_content(self._held.goal)
        raise RemoteProtocolError(
            "the source is not what it was when this transfer began; start a new one", Code.SOURCE
        )

    @staticmethod
    def _another_content(goal: str) -> RemoteProtocolError:
        return RemoteProtocolError(
            f"the target already holds {goal!r}, but by another transfer, or with another content; "
            "nothing was written; give this state another name",
            Code.REFUSED,
        )

    def _on_ack(self, ack: Ack, *, first: bool) -> list[Effect]:
        if not first:
            if not self._acked <= ack.frames <= self._frames:
                raise RemoteProtocolError(f"the receiver acknowledged {ack.frames} frames")
            self._acked = ack.frames
            return []
        self._acked = ack.frames
        effect = self._stream(ack.frames, bytes.fromhex(ack.chain))
        if not ack.frames:
            self._proved()
        return [effect]

    def _on_committed(self, committed: Committed, *, first: bool) -> list[Effect]:
        """Believe COMMITTED only for the content that we have."""
        if first:
            if committed.transfer != self.transfer or committed.goal != self._opening.goal:
                raise self._another_content(committed.goal)
            self._state = State.STREAM
            self._held = committed
            return [self._stream(committed.frames, bytes.fromhex(committed.chain))]
        if committed != self._expected:
            raise RemoteProtocolError(
                "the receiver committed something else than what was sent", Code.UNKNOWN
            )
        return [Finish(0, committed=committed)]


def _code_of(number: int) -> Code:
    try:
        return Code(number)
    except ValueError:
        return Code.INTERRUPTED
