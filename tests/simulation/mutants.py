"""The protocol with one rule removed, many times: a simulation that misses one is broken.

Each mutant is a small subclass of a shipped class or of its driver, or replaces one function of
the rules; all else is what is shipped.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from types import ModuleType

from blake3 import blake3

from blockstream.pipeline import journal as journal_module
from blockstream.pipeline.journal import Journal
from blockstream.pipeline.samples import BaseCheck, Evidence
from blockstream_protocol import (
    Ack,
    Buffer,
    Code,
    Committed,
    Decision,
    Dirty,
    Effect,
    End,
    Extent,
    Finish,
    Flush,
    Frame,
    Hello,
    Mark,
    Open,
    Plan,
    Receiver,
    Record,
    RemoteProtocolError,
    Send,
    Sender,
    State,
    TargetState,
    Verdict,
    decide,
)
from blockstream_protocol import _receiver as receiver_module
from blockstream_protocol import _target as target_module
from tests.simulation.drivers import ReceiverDriver, SenderDriver
from tests.simulation.simulator import SHIPPED, Rules


@dataclass(frozen=True, slots=True)
class Patch:
    """A function of the rules that a mutant replaces, for as long as it runs."""

    owner: ModuleType | type
    name: str
    value: object


@dataclass(frozen=True, slots=True)
class Mutant:
    """One rule removed.

    Attributes:
        removed: The rule, for people.
        rules: The classes to run.
        patches: What else is replaced.
        covered_by: Other rules that together do the work of this one, so that its loss alone
            changes nothing; empty for a mutant that must be caught.
    """

    removed: str
    rules: Rules = SHIPPED
    patches: tuple[Patch, ...] = ()
    covered_by: str = ""


@contextlib.contextmanager
def applied(mutant: Mutant | None) -> Iterator[Rules]:
    """Give the rules to run, with the mutant's patches in place."""
    if mutant is None:
        yield SHIPPED
        return
    kept = [getattr(patch.owner, patch.name) for patch in mutant.patches]
    for patch in mutant.patches:
        setattr(patch.owner, patch.name, patch.value)
    try:
        yield mutant.rules
    finally:
        for patch, value in zip(mutant.patches, kept, strict=True):
            setattr(patch.owner, patch.name, value)


# The executor of the target.


class NoFsync(ReceiverDriver):
    def flush(self, began: int) -> None:
        pass


class RetriedFsync(ReceiverDriver):
    def flush(self, began: int) -> None:
        try:
            super().flush(began)
        except OSError:
            super().flush(len(self._disk.pending))


class NoDirtyMark(ReceiverDriver):
    def record(self, job: Record) -> None:
        if self.receiver.state is not State.DECIDING:
            super().record(job)


class JournalBeforeFsync(ReceiverDriver):
    def flush(self, began: int) -> None:
        barrier = self.receiver._barrier
        if barrier is not None:
            super().record(Record(self.receiver._dirty(barrier)))
        super().flush(began)


class NoFrameDigest(ReceiverDriver):
    def raw(self, frame: Frame) -> Buffer:
        return frame.payload


class NoSampleCheck(ReceiverDriver):
    def check_base(self, then: Evidence) -> BaseCheck:
        return super().check_base(replace(then, samples=self.evidence().samples))


class NoTraceCheck(ReceiverDriver):
    def check_base(self, then: Evidence) -> BaseCheck:
        return super().check_base(replace(then, trace=""))


class NoReadBack(ReceiverDriver):
    def reads_back(self, first: int, last: int) -> bool:
        return True


class SilentSecondError(ReceiverDriver):
    """Reports the first error only, as an engine does that keeps one."""

    def fail(self, code: Code, text: str) -> None:
        if not self._failing:
            super().fail(code, text)


# The receiver.


class EofIsEnd(Receiver):
    def end_of_stream(self) -> list[Effect]:
        if self.state is State.STREAM:
            mark = self._admitted
            end = End(mark.frames, mark.chain.hex(), mark.covered)
            self._end, self._sealed, self._state = end, True, State.ENDING
            return self._next_barrier()
        return super().end_of_stream()

    def _last_barrier(self, end: End) -> list[Effect]:
        self._whole_plan, kept = _Everything(self._prefix.covered), self._whole_plan
        self._end = End(end.frames, end.chain, self._prefix.covered)
        effects = super()._last_barrier(self._end)
        self._whole_plan = kept
        return effects


class _Everything(Plan):
    """A plan of as many bytes as came, whatever they are."""

    def __init__(self, total: int) -> None:
        self._total = total

    @property
    def total(self) -> int:
        return self._total


class AckBeforeFsync(Receiver):
    def _next_barrier(self) -> list[Effect]:
        effects = super()._next_barrier()
        if self._duplex and effects and isinstance(effects[0], Flush):
            mark = self._current_barrier()
            return [Send(Ack(mark.frames, mark.chain.hex())), *effects]
        return effects


class NoChainHere(Receiver):
    def _check_chain(self, frames: int, chain: str) -> None:
        mark = self._admitted
        super()._check_chain(mark.frames, mark.chain.hex())

    def _on_end(self, end: End) -> list[Effect]:
        mark = self._admitted
        return super()._on_end(End(mark.frames, mark.chain.hex(), end.total))

    def _check_resume_point(self, opening: Open) -> None:
        pass


class NoOrder(Receiver):
    def _place(self, extents: "list[Extent]", chain: bytes) -> Mark:  # type: ignore[override]  # narrower is enough here
        kept = self._verified
        self._verified = Mark(kept.frames, kept.chain, 0, kept.covered)
        self._cursor = 0
        try:
            return super()._place(extents, chain)
        finally:
            self._verified = kept


class NoChainNoOrder(NoChainHere, NoOrder):
    pass


class FirstErrorCounts(Receiver):
    def failed(self, code: Code, text: str) -> list[Effect]:
        if self._failure is None:
            return super().failed(code, text)
        return []


class BarrierRepeated(Receiver):
    def drained(self) -> list[Effect]:
        self._draining = False
        return super().drained()


class UnconfirmedMarks(Receiver):
    def drained(self) -> list[Effect]:
        self._confirmed = self._prefix
        return super().drained()


class AnyBarrierIsLast(Receiver):
    def _after_flush(self, barrier: Mark) -> list[Effect]:
        self._committing = self._end is not None and barrier.frames == self._end.frames
        return super()._after_flush(barrier)


class StaleMoment(Receiver):
    def samples_taken(self, samples: str) -> list[Effect]:
        self._moment = 1 + (self._moment or 0)
        return super().samples_taken(samples)


# The sender and its executor.


class NoChainThere(Sender):
    def _proved(self) -> list[Effect]:
        return []

    def _on_committed(self, committed: Committed, *, first: bool) -> list[Effect]:
        if not first and self._expected is not None:
            self._expected = committed
        return super()._on_committed(committed, first=first)


class CommittedById(Sender):
    def _on_committed(self, committed: Committed, *, first: bool) -> list[Effect]:
        if first and committed.goal == self._opening.goal:
            self._state = State.DONE
            return [Finish(0, committed=committed, written=False)]
        return super()._on_committed(committed, first=first)


class EofEndsComparison(Sender):
    def end_of_stream(self) -> list[Effect]:
        if self._held is not None and self.state is not State.DONE:
            raise RemoteProtocolError("the receiver hung up", Code.INTERRUPTED)
        return super().end_of_stream()


class NoValidation(SenderDriver):
    def source_is_valid(self) -> bool:
        return True


class TrustContinued(SenderDriver):
    def may_trust(self) -> bool:
        return self._world.trusted


class NoSettling(Sender):
    @property
    def settled(self) -> bool:
        return True


class AimAtAnything(SenderDriver):
    """Opens with whatever goal the target is on the way to, or at."""

    def _greeted(self, hello: Hello) -> None:
        goal = str(hello.target.get("goal") or hello.target.get("id") or self.goal)
        self._world.command.continued = True
        self.goal = goal
        self.opening = replace(self.opening, goal=goal)
        self.sender.aim(self.opening)
        self._world.source.rename(goal)


class NoIntent(SenderDriver):
    def record_intent(self, expected: Committed) -> None:
        pass


# Functions.


def decide_without_base(
    opening: Open, plan: Plan, state: TargetState, *, force_base: bool = False
) -> Decision:
    """Let every increment onto every target."""
    decision = decide(opening, plan, state, force_base=force_base)
    return Decision(Verdict.APPLY) if decision.verdict is Verdict.REFUSE else decision


def same_base(opening: Open, plan: Plan, state: Dirty) -> bool:
    """Let every transfer from the same base supersede."""
    return state.base == opening.base


def never(*_given: object) -> bool:
    """Say no."""
    return False


def loosely_decoded(data: bytes, _new_digest: object) -> object:
    """Parse a slot without looking at its digest."""
    if len(data) < journal_module._HEAD.size:
        return None
    _, length, _ = journal_module._HEAD.unpack_from(data)
    payload = data[journal_module._HEAD.size : journal_module._HEAD.size + length]
    head = journal_module._HEAD.pack(b"BSJOURN1", length, blake3(payload).digest())
    return _decoded(head + payload, blake3)


_decoded: Callable[[bytes, object], object] = journal_module._decoded  # type: ignore[assignment]  # its result is passed on only


def nothing(_journal: Journal) -> None:
    """Leave in doubt what was read."""


def _receiver(cls: type[Receiver], sender: type[Sender] = Sender) -> Rules:
    return Rules(receiver=cls, sender=sender)


def _driver(cls: type[ReceiverDriver]) -> Rules:
    return Rules(receiver_driver=cls)


MUTANTS: dict[str, Mutant] = {
    "no-fsync": Mutant("the target is flushed", _driver(NoFsync)),
    "no-dirty-mark": Mutant("DIRTY is durable before the first write", _driver(NoDirtyMark)),
    "eof-is-end": Mutant("the end of the stream is no END", _receiver(EofIsEnd)),
    "no-superset": Mutant(
        "a transfer supersedes only what it covers",
        patches=(Patch(target_module, "supersedes", same_base),),
    ),
    "ack-before-fsync": Mutant("ACK after the flush", _receiver(AckBeforeFsync)),
    "journal-before-fsync": Mutant("the journal after the flush", _driver(JournalBeforeFsync)),
    "fsync-retried": Mutant("a failed flush is final", _driver(RetriedFsync)),
    "no-base-check": Mutant(
        "an increment only onto its base",
        patches=(Patch(receiver_module, "decide", decide_without_base),),
    ),
    "no-frame-digest": Mutant("a frame is checked before it is written", _driver(NoFrameDigest)),
    "no-chain": Mutant("both ends compare the chain", _receiver(NoChainHere, NoChainThere)),
    "no-lineage": Mutant(
        "CLEAN remembers the state before", patches=(Patch(target_module, "continues", never),)
    ),
    "no-journal-digest": Mutant(
        "a torn record is no record",
        patches=(Patch(journal_module, "_decoded", loosely_decoded),),
    ),
    "committed-by-id": Mutant(
        "COMMITTED is believed only for the same content", Rules(sender=CommittedById)
    ),
    "no-order": Mutant("frames ascend", _receiver(NoOrder), covered_by="the chain"),
    "no-chain-no-order": Mutant(
        "both the chain and the order", _receiver(NoChainNoOrder, NoChainThere)
    ),
    "no-sample-check": Mutant("samples show somebody else's write", _driver(NoSampleCheck)),
    "no-trace-check": Mutant("the kernel knows of somebody else's write", _driver(NoTraceCheck)),
    "no-read-back": Mutant("what was written is read back", _driver(NoReadBack)),
    "second-error-unreported": Mutant("the engine reports every error", _driver(SilentSecondError)),
    "first-error-counts": Mutant(
        "a failed flush outranks the error before it", _receiver(FirstErrorCounts)
    ),
    "last-barrier-repeated": Mutant("the last barrier is tried once", _receiver(BarrierRepeated)),
    "unconfirmed-marks": Mutant(
        "only what the sender's chain confirmed is recorded", _receiver(UnconfirmedMarks)
    ),
    "any-barrier-is-last": Mutant(
        "the last barrier begins after the end of a one-way stream", _receiver(AnyBarrierIsLast)
    ),
    "journal-in-doubt": Mutant(
        "a record that was read is made durable", patches=(Patch(Journal, "_settle", nothing),)
    ),
    "eof-ends-comparison": Mutant(
        "a receiver that holds the goal may hang up", Rules(sender=EofEndsComparison)
    ),
    "no-validation": Mutant(
        "the source is validated before END", Rules(sender_driver=NoValidation)
    ),
    "continued-is-trusted": Mutant(
        "what another run began is read again", Rules(sender_driver=TrustContinued)
    ),
    "aim-at-anything": Mutant(
        "only a transfer of the same base is continued",
        Rules(sender_driver=AimAtAnything),
    ),
    "no-settling": Mutant(
        "a set is committed only when all of it is durable", Rules(sender=NoSettling)
    ),
    "stale-moment": Mutant("CLEAN has the moment that the sender said", _receiver(StaleMoment)),
    "no-intent": Mutant("the intent is recorded before END", Rules(sender_driver=NoIntent)),
}
