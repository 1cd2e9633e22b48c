"""The receiver's rules: when a byte may be written, and when it may be called durable (SPEC 7)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from blockstream_protocol._digests import NewDigest, link
from blockstream_protocol._effects import (
    CheckBase,
    Effect,
    Finish,
    Flush,
    Prepare,
    ReadBack,
    Record,
    Send,
    TakeSamples,
    Verify,
    Write,
)
from blockstream_protocol._errors import (
    Code,
    Grounds,
    LocalProtocolError,
    RefusedError,
    RemoteProtocolError,
)
from blockstream_protocol._extents import Extent
from blockstream_protocol._limits import (
    ALIGNMENT,
    DEVICE_BYTES,
    IDLE_SECONDS,
    OWED_SECONDS,
    PING_SECONDS,
    PROVED_BYTES_PER_SECOND,
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
from blockstream_protocol._plan import Plan, PlanBuilder, is_aligned
from blockstream_protocol._states import RECEIVER, State
from blockstream_protocol._target import Clean, Dirty, TargetState, Verdict, decide

# Failures after which the device can still be trusted, so that what it holds may be recorded.
_KEEPABLE = frozenset({Code.INTERRUPTED, Code.INTEGRITY, Code.SOURCE})


@dataclass(frozen=True, slots=True)
class ReceiverPolicy:
    """What the receiver's side allows; nothing that the peer sends can widen it.

    Attributes:
        force_base: Take an increment whatever the journal says of the target.
        allow_larger: Take a target that is larger than the source.
        read_back: Read everything back from the medium before it is acknowledged.
        dry_run: Decide, then finish without a change.
        name: Name that an opening must give the target; None for any.
        largest: Most bytes that a source may have.
        bases: States that a stream may start from, "" for a full copy; None for any.
    """

    force_base: bool = False
    allow_larger: bool = False
    read_back: bool = False
    dry_run: bool = False
    name: str | None = None
    largest: int = DEVICE_BYTES
    bases: frozenset[str] | None = None


@dataclass(frozen=True, slots=True)
class Mark:
    """A place in the stream, after a whole frame.

    Attributes:
        frames: How many EXTENTS frames lie before it.
        chain: The chain after those.
        end: First byte after their last extent.
        covered: Bytes of the device that they cover.
    """

    frames: int
    chain: bytes
    end: int
    covered: int


class Receiver:
    """Takes events, gives effects; does nothing itself.

    Events are the public methods; each returns effects to be executed in order. A
    `RemoteProtocolError` out of any of them is reported back with `failed`, and so is every
    error of an executor. Not thread-safe: callers hold a lock.
    """

    def __init__(
        self,
        *,
        size: int,
        state: TargetState,
        new_digest: NewDigest,
        policy: ReceiverPolicy | None = None,
        facts: Mapping[str, object] | None = None,
        software: str = "",
        now: float = 0.0,
    ) -> None:
        """Start before the first message.

        Args:
            size: Bytes of the target.
            state: What its journal says.
            new_digest: BLAKE3-256.
            policy: What is allowed.
            facts: What HELLO tells a duplex peer of the target.
            software: For the peer's people.
            now: A clock that never goes back, in seconds.
        """
        self._size = size
        self._target = state
        self._new_digest = new_digest
        self._policy = policy or ReceiverPolicy()
        self._facts = facts or {}
        self._software = software
        self._state = State.GREET
        self._duplex = False
        self._moment: int | None = None
        self._opening: Open | None = None
        self._plan = PlanBuilder(0)
        self._whole_plan = Plan.whole(0)
        self._transfer = b""
        self._cursor = 0
        start = Mark(0, b"", 0, 0)
        self._admitted = start  # its end and covered count verified frames only
        self._chains: dict[int, bytes] = {}
        self._verified = start
        self._finished: dict[int, Mark] = {}
        self._in_flight: dict[int, Mark] = {}
        self._prefix = start
        self._checkpoints: set[int] = set()  # confirmed counts that the prefix has not reached
        self._confirmed = start
        self._durable = start
        self._barrier: Mark | None = None
        self._end: End | None = None
        self._sealed = False
        self._committing = False
        self._failure: tuple[Code, str] | None = None
        self._touched = False
        self._verdict = Verdict.REFUSE
        self._skimming = False
        self._draining = False
        self._heard = self._spoke = self._owed = now
        self._to_prove = 0  # bytes that the sender reads again before its first frame

    # What others may ask.

    @property
    def opening(self) -> Open | None:
        """The peer's opening, once it came."""
        return self._opening

    @property
    def moment(self) -> int | None:
        """When the source held the goal, as the peer says; None where it does not."""
        return self._moment

    @property
    def target(self) -> TargetState:
        """The state as last recorded."""
        return self._target

    @property
    def durable(self) -> Mark:
        """How far the transfer is durable."""
        return self._durable

    @property
    def awaits_checkpoint(self) -> bool:
        """Whether frames came that no CHECKPOINT has confirmed yet: they would be lost."""
        return self._admitted.frames > self._confirmed.frames

    @property
    def state(self) -> State:
        """Where the conversation stands."""
        return self._state

    # Events: the peer.

    def receive(self, message: Message, now: float = 0.0) -> list[Effect]:
        """Take one message, in the order of the stream.

        Raises:
            RemoteProtocolError: If it breaks a rule, or must be refused.
        """
        self._heard = max(self._heard, now)
        if isinstance(message, Ping):
            return []
        if isinstance(message, Abort):
            raise RemoteProtocolError(
                f"the sender gave up: {plain_text(message.text)}", Code.INTERRUPTED
            )
        following = RECEIVER.get(self._state, {}).get(type(message))
        if following is None:
            raise RemoteProtocolError(
                f"a message of type {type(message).__name__} came when {self._state.value}"
            )
        self._state = following
        if not isinstance(message, Checkpoint | Moment):  # neither is owed
            self._owed = max(self._owed, now)
        return self._dispatch(message)

    def _dispatch(self, message: Message) -> list[Effect]:
        match message:
            case Extents():
                return self._on_extents(message)
            case Checkpoint():
                return self._on_checkpoint(message)
            case Hello():
                return self._on_hello(message)
            case Moment():
                return self._on_moment(message)
            case Open():
                return self._on_open(message)
            case PlanRows():
                return self._on_plan(message)
            case End():
                return self._on_end(message)
        raise LocalProtocolError(f"no handler for {type(message).__name__}")

    def end_of_stream(self) -> list[Effect]:
        """Take the end of input: the seal of a one-way stream, a cut anywhere else.

        Raises:
            RemoteProtocolError: If the stream was not complete.
        """
        if self._state is State.DONE:
            return []
        if self._state is State.ENDING and not self._duplex:
            self._sealed = True
            return self._next_barrier()
        if self._state is State.GREET:
            raise RemoteProtocolError("the input is empty", Code.INTERRUPTED)
        raise RemoteProtocolError("the stream was cut before its end", Code.INTERRUPTED)

    def heard(self, now: float) -> None:
        """Take the news that bytes came: a frame on a slow line may take longer than the limit."""
        self._heard = max(self._heard, now)

    def busy(self, now: float) -> None:
        """Take the news that nobody here could listen: whatever is missing may lie there."""
        self._heard, self._owed = max(self._heard, now), max(self._owed, now)

    def tick(self, now: float) -> list[Effect]:
        """Let time pass: pings, the idle limit, and the limit on what the sender owes.

        Raises:
            RemoteProtocolError: If a duplex peer was silent too long, or does not go on.
        """
        if not self._duplex or self._state is State.DONE:
            return []
        if not self._is_owed:
            self._owed = max(self._owed, now)
        patience = OWED_SECONDS + self._to_prove / PROVED_BYTES_PER_SECOND
        if now - self._owed >= patience:
            raise RemoteProtocolError(
                f"the sender is there, but for {patience:.0f} s nothing came of what it owes",
                Code.INTERRUPTED,
            )
        if now - self._heard >= IDLE_SECONDS:
            raise RemoteProtocolError(
                f"the sender was silent for {IDLE_SECONDS:.0f} s", Code.INTERRUPTED
            )
        if now - self._spoke >= PING_SECONDS:
            self._spoke = now
            return [Send(Ping())]
        return []

    @property
    def _is_owed(self) -> bool:
        """Whether the next step is the sender's, and nothing that it may have to wait for."""
        if self._state is State.STREAM:  # END may wait for the other disks of a set
            return self._verified.covered < self._whole_plan.total
        return self._state in {State.OPENING, State.PLANNING}

    # Events: what executors report.

    def base_checked(self, written: str) -> list[Effect]:
        """Take the result of `CheckBase`.

        Args:
            written: How it shows that somebody wrote to the target; empty if nothing does.

        Raises:
            RemoteProtocolError: If somebody wrote to the target since its commit, and the transfer
                does not write all of it.
        """
        self._expect(State.DECIDING)
        return self._decided(written)

    def prepared(self) -> list[Effect]:
        """Take the end of `Prepare`: mark the target DIRTY."""
        self._expect(State.DECIDING)
        return [Record(self._dirty(self._durable))]

    def verified(self, seq: int, extents: Sequence[Extent]) -> list[Effect]:
        """Take a frame whose digest matched; frames come in order.

        Raises:
            RemoteProtocolError: If an extent is out of order, out of place or not planned.
        """
        if seq != self._verified.frames:
            raise LocalProtocolError(f"frame {seq} was verified before {self._verified.frames}")
        mark = self._place(extents, self._chains.pop(seq))
        self._verified = mark
        self._in_flight[seq] = mark
        if self._skimming:
            return self.written(seq)
        self._touched = True
        return [Write(seq, list(extents))]

    def written(self, seq: int) -> list[Effect]:
        """Take the end of a write, in any order."""
        self._finished[seq] = self._in_flight.pop(seq)
        while self._prefix.frames in self._finished:
            self._prefix = self._finished.pop(self._prefix.frames)
            self._confirm()
        return self._next_barrier()

    def flushed(self) -> list[Effect]:
        """Take the success of `Flush`; a failure goes to `failed`."""
        barrier = self._current_barrier()
        if self._policy.read_back and barrier.frames > self._durable.frames:
            return [ReadBack(self._durable.frames, barrier.frames)]
        return self._after_flush(barrier)

    def read_back(self) -> list[Effect]:
        """Take the success of `ReadBack`."""
        return self._after_flush(self._current_barrier())

    def samples_taken(self, samples: str) -> list[Effect]:
        """Take the digest of the target's samples: the last thing before CLEAN."""
        opening, end = self._opening, self._end
        if opening is None or end is None:
            raise LocalProtocolError("nothing to commit")
        return [
            Record(
                Clean(
                    id=opening.goal,
                    prev=opening.base,
                    plan=self._whole_plan,
                    transfer=self._transfer.hex(),
                    frames=end.frames,
                    chain=end.chain,
                    samples=samples,
                    moment=self._moment,
                )
            )
        ]

    def recorded(self, state: TargetState) -> list[Effect]:
        """Take the success of `Record`: only now may anybody be told."""
        self._target = state
        if isinstance(state, Clean):
            return self._commit()
        if self._state is State.DECIDING:
            self._state = State.STREAM
            return self._ack()
        self._durable = self._current_barrier()
        self._barrier = None
        if self._failure is not None:
            return self._give_up() if self._draining else []
        return self._ack() + self._next_barrier()

    def failed(self, code: Code, text: str) -> list[Effect]:
        """Take an error, of a rule or of an executor.

        Afterwards only what was in flight may still be reported, its errors included, and then
        `drained`. A failed write or flush is final, even if another error came first: nothing more
        is flushed, because a second flush would succeed without meaning it.
        """
        if self._failure is None or (self._failure[0] in _KEEPABLE and code not in _KEEPABLE):
            self._failure = (code, text)
        return []

    def stop(self, reason: str) -> list[Effect]:
        """Take the wish of the people here to end; what has arrived is kept."""
        return self.failed(Code.INTERRUPTED, reason)

    def drained(self) -> list[Effect]:
        """After `failed`: nothing is being verified, written, flushed or recorded any more.

        What was confirmed is kept by one last barrier. If that fails too, report it with `failed`
        and call this again.
        """
        if self._failure is None:
            raise LocalProtocolError("drained without a failure")
        if self._state is State.DONE:
            return []
        again, self._draining = self._draining, True
        self._barrier = None
        keep = self._failure[0] in _KEEPABLE and not again
        if keep and self._confirmed.frames > self._durable.frames and self._touched:
            self._barrier = self._confirmed
            return [Flush()]
        return self._give_up()

    # The opening.

    def _on_hello(self, hello: Hello) -> list[Effect]:
        check_hello(hello)
        self._duplex = hello.duplex
        if not hello.duplex:
            return []
        answer = Hello(duplex=True, software=self._software, target=self._facts)
        return [Send(answer)]

    def _on_moment(self, message: Moment) -> list[Effect]:
        if self._moment is not None:
            raise RemoteProtocolError("MOMENT came twice")
        self._moment = message.moment
        return []

    def _on_open(self, opening: Open) -> list[Effect]:
        self._opening = opening
        self._transfer = opening.identity(self._new_digest)
        self._check_granted(opening)
        self._check_size(opening)
        self._plan = PlanBuilder(opening.size)
        if opening.full or not opening.ranges:
            plan = Plan.whole(opening.size if opening.full else 0)
            return self._planned(opening, plan)
        return []

    def _check_granted(self, opening: Open) -> None:
        policy = self._policy
        if policy.name not in {None, opening.name}:
            raise RefusedError("the stream is for another target", Grounds.FORBIDDEN)
        if opening.size > policy.largest:
            raise RefusedError(
                f"the source has {opening.size} bytes, {policy.largest} are allowed",
                Grounds.FORBIDDEN,
            )
        if policy.bases is not None and opening.base not in policy.bases:
            what = f"the base {opening.base!r}" if opening.base else "a full copy"
            raise RefusedError(f"{what} is not allowed", Grounds.FORBIDDEN)

    def _check_size(self, opening: Open) -> None:
        if opening.size > self._size:
            raise RefusedError(
                f"the source has {opening.size} bytes, the target only {self._size}",
                Grounds.TOO_SMALL,
            )
        if opening.size < self._size and not self._policy.allow_larger:
            raise RefusedError(
                f"the target has {self._size} bytes, the source only {opening.size}",
                Grounds.TOO_LARGE,
            )

    def _on_plan(self, piece: PlanRows) -> list[Effect]:
        opening = self._known_opening()
        self._plan.add(piece.rows)
        if len(self._plan) < opening.ranges:
            return []
        return self._planned(opening, self._plan.plan())

    def _planned(self, opening: Open, plan: Plan) -> list[Effect]:
        """Decide, now that the plan is whole."""
        given = (len(plan), plan.total, plan.digest(self._new_digest).hex())
        if given != (opening.ranges, opening.total, opening.plan):
            raise RemoteProtocolError("the plan is not the one that the opening announced")
        self._whole_plan = plan
        self._state = State.DECIDING
        decision = decide(opening, plan, self._target, force_base=self._policy.force_base)
        if decision.verdict is Verdict.REFUSE:
            raise RefusedError(decision.reason, Grounds.BASE)
        self._verdict = decision.verdict
        if decision.samples:
            return [CheckBase(decision.samples)]
        return self._decided("")

    def _decided(self, written: str) -> list[Effect]:
        """Act on the verdict, now that it is known how somebody wrote to the target, if so."""
        opening, policy = self._known_opening(), self._policy
        if written and not (opening.full or policy.force_base):
            raise RefusedError(
                f"the target was written since its last commit: {written}", Grounds.WRITTEN
            )
        if policy.dry_run:
            self._state = State.DONE
            return [Finish(0, written=False)]
        if self._verdict is Verdict.SKIM and not written:
            return self._skim(opening)
        return self._prepare()

    def _skim(self, opening: Open) -> list[Effect]:
        """Take a stream to where the target already is; its chain decides."""
        self._start_at(Mark(0, self._transfer, 0, 0))
        if not self._duplex:
            if opening.frames and self._is_committed():
                # Its sender continues what was committed after it was asked: the chain that it says
                # it goes on from leads to the recorded one only if it is that of the same frames.
                self._start_at(Mark(opening.frames, bytes.fromhex(opening.chain), 0, 0))
            else:
                self._check_resume_point(opening)
            self._state = State.SKIM
            self._skimming = True
            return []
        self._state = State.DONE
        committed = self._already()
        return [Send(committed), Finish(0, committed=committed, written=False)]

    def _is_committed(self) -> bool:
        """Tell whether the target holds the goal by this very transfer."""
        state = self._target
        return isinstance(state, Clean) and state.transfer == self._transfer.hex()

    def _prepare(self) -> list[Effect]:
        opening, state = self._known_opening(), self._target
        resumed = isinstance(state, Dirty) and state.transfer == self._transfer.hex()
        mark = Mark(0, self._transfer, 0, 0)
        wants_resume = self._duplex or opening.frames > 0
        if isinstance(state, Dirty) and resumed and wants_resume:
            mark = Mark(state.frames, bytes.fromhex(state.chain), state.end, state.covered)
        self._start_at(mark)
        if not self._duplex:
            self._check_resume_point(opening)
        return [Prepare(self._whole_plan, resumed)]

    def _check_resume_point(self, opening: Open) -> None:
        """Refuse a one-way stream that continues from anywhere but the durable mark."""
        mark = self._durable
        claimed = bytes.fromhex(opening.chain) if opening.frames else mark.chain
        if (opening.frames, claimed) != (mark.frames, mark.chain):
            raise RemoteProtocolError(
                f"the stream continues after {opening.frames} frames of a transfer; here it is "
                f"durable up to {mark.frames} frames",
                Code.REFUSED,
            )

    def _start_at(self, mark: Mark) -> None:
        self._admitted = self._verified = self._prefix = self._confirmed = self._durable = mark
        self._cursor = 0
        self._to_prove = mark.covered

    # Data.

    def _on_extents(self, message: Extents) -> list[Effect]:
        self._to_prove = 0
        seq = self._admitted.frames
        chain = link(self._new_digest, self._admitted.chain, message.frame.digest)
        self._chains[seq] = chain
        self._admitted = replace(self._admitted, frames=seq + 1, chain=chain)
        return [Verify(seq, message.frame)]

    def _place(self, extents: Sequence[Extent], chain: bytes) -> Mark:
        """Check that the extents come in order and that each was planned."""
        size = self._known_opening().size
        mark = self._verified
        end, covered = mark.end, mark.covered
        plan, cursor = self._whole_plan, self._cursor
        first, last = plan[cursor] if cursor < len(plan) else (0, 0)
        for offset, length, _ in extents:
            if offset < end:
                raise RemoteProtocolError(f"an extent at offset {offset} comes after {end}")
            end = offset + length
            while end > last and cursor + 1 < len(plan):
                cursor += 1
                first, last = plan[cursor]
            if offset < first or end > last:
                raise RemoteProtocolError(
                    f"the plan does not hold {length} bytes at offset {offset}"
                )
            if (offset | end) % ALIGNMENT and not is_aligned(offset, end, size):
                raise RemoteProtocolError(
                    f"an extent of {length} bytes at offset {offset} is not aligned to sectors"
                )
            covered += length
        self._cursor = cursor
        return Mark(mark.frames + 1, chain, end, covered)

    def _on_checkpoint(self, checkpoint: Checkpoint) -> list[Effect]:
        self._check_chain(checkpoint.frames, checkpoint.chain)
        return self._next_barrier()

    def _check_chain(self, frames: int, chain: str) -> None:
        """Compare the sender's count and chain with our own: loss, doubling, exchange."""
        if (frames, chain) != (self._admitted.frames, self._admitted.chain.hex()):
            raise RemoteProtocolError(
                f"frames are missing, doubled or exchanged: the sender counts {frames}, here are "
                f"{self._admitted.frames}"
            )
        self._checkpoints.add(frames)
        self._confirm()

    def _confirm(self) -> None:
        """Let the prefix count where the sender's own chain confirmed it.

        Frames that were lost or exchanged on their way show only there. A mark of them in the
        journal could never be continued: the sender has no chain that fits.
        """
        if self._prefix.frames in self._checkpoints:
            self._checkpoints.remove(self._prefix.frames)
            self._confirmed = self._prefix

    def _on_end(self, end: End) -> list[Effect]:
        self._check_chain(end.frames, end.chain)
        self._end = end
        self._sealed = self._duplex
        return self._next_barrier()

    # Barriers: written, flushed, recorded, acknowledged, in this order.

    def _next_barrier(self) -> list[Effect]:
        """Begin a barrier if one is due and none is running."""
        if self._barrier is not None or self._failure is not None:
            return []
        if self._end is not None:
            return self._last_barrier(self._end)
        if self._confirmed.frames == self._durable.frames or self._state is not State.STREAM:
            return []
        self._barrier = self._confirmed
        return [Flush()]

    def _last_barrier(self, end: End) -> list[Effect]:
        if self._prefix.frames < end.frames or not self._sealed:
            return []
        # Of what a skimmed stream continues, nothing was seen.
        covered = end.total if self._skimming else self._prefix.covered
        if not end.total == covered == self._whole_plan.total:
            raise RemoteProtocolError(
                f"the stream covers {self._prefix.covered} of {self._whole_plan.total} bytes that "
                "it planned"
            )
        if self._skimming:
            return self._compare_skimmed(end)
        self._committing = True
        self._barrier = self._prefix
        return [Flush()]

    def _after_flush(self, barrier: Mark) -> list[Effect]:
        # A barrier that began before END was seen is not the last one, even with every frame.
        if self._committing and self._failure is None:
            return [TakeSamples()]
        return [Record(self._dirty(barrier))]

    def _current_barrier(self) -> Mark:
        if self._barrier is None:
            raise LocalProtocolError("no barrier is running")
        return self._barrier

    def _dirty(self, mark: Mark) -> Dirty:
        opening = self._known_opening()
        return Dirty(
            base=opening.base,
            goal=opening.goal,
            plan=self._whole_plan,
            transfer=self._transfer.hex(),
            frames=mark.frames,
            chain=mark.chain.hex(),
            end=mark.end,
            covered=mark.covered,
        )

    def _ack(self) -> list[Effect]:
        if not self._duplex:
            return []
        return [Send(Ack(self._durable.frames, self._durable.chain.hex()))]

    # Ends.

    def _commit(self) -> list[Effect]:
        self._durable = self._current_barrier()
        self._barrier = None
        self._state = State.DONE
        committed = self._already()
        return [Send(committed), Finish(0, committed=committed)]

    def _compare_skimmed(self, end: End) -> list[Effect]:
        committed = self._already()
        if (end.frames, end.chain) != (committed.frames, committed.chain):
            raise RemoteProtocolError(
                f"the target already holds {committed.goal!r}, but by another transfer, or with "
                "another content; nothing was written; give this state another name",
                Code.REFUSED,
            )
        self._state = State.DONE
        return [Finish(0, committed=committed, written=False)]

    def _already(self) -> Committed:
        """Return what the journal says of the goal that the target holds."""
        state = self._target
        if not isinstance(state, Clean):
            raise LocalProtocolError("the target holds no whole state")
        total = self._whole_plan.total
        return Committed(state.transfer, state.id, state.frames, state.chain, total)

    def _give_up(self) -> list[Effect]:
        if self._failure is None:
            raise LocalProtocolError("gave up without a failure")
        code, text = self._failure
        self._state = State.DONE
        message = Refuse(code, text[:1000]) if code is Code.REFUSED else Abort(code, text[:1000])
        return [Send(message), Finish(code, text, written=self._touched)]

    def _known_opening(self) -> Open:
        if self._opening is None:
            raise LocalProtocolError("there is no opening yet")
        return self._opening

    def _expect(self, state: State) -> None:
        if self._state is not state:
            raise LocalProtocolError(f"an event for {state.name} came in {self._state.name}")
