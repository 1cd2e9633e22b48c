"""What a target is known to hold, and whether a transfer may go onto it (SPEC 7)."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import Enum

from blockstream_protocol._messages import Open
from blockstream_protocol._plan import Plan


@dataclass(frozen=True, slots=True)
class Unknown:
    """Nothing is known of the target: only a full copy may go onto it."""


@dataclass(frozen=True, slots=True)
class Clean:
    """The target holds one whole state.

    Attributes:
        id: That state.
        prev: The state it came from by an increment; empty after a full copy.
        plan: What was written since `prev`.
        transfer: Identity of the transfer that made it; empty when adopted.
        frames: How many frames that transfer had.
        chain: Its final chain, hex; empty when adopted.
        samples: Digest of sampled ranges, taken at the commit, hex.
        moment: When the source held that state, in nanoseconds since 1970, UTC; None where nobody
            said it.
    """

    id: str
    prev: str
    plan: Plan
    transfer: str
    frames: int
    chain: str
    samples: str
    moment: int | None = None


@dataclass(frozen=True, slots=True)
class Dirty:
    """A transfer has begun and is not finished: the target is neither base nor goal.

    Attributes:
        base: State before; empty for a full copy.
        goal: State that the transfer leads to.
        plan: Everything that may have been written since `base`.
        transfer: Identity of the transfer, hex.
        frames: How many of its frames are durable.
        chain: The chain after those, hex.
        end: The first byte after the last durable extent.
        covered: Bytes of the device that the durable frames cover.
    """

    base: str
    goal: str
    plan: Plan
    transfer: str
    frames: int
    chain: str
    end: int
    covered: int


TargetState = Unknown | Clean | Dirty


class Verdict(Enum):
    """What the receiver does with an opening."""

    APPLY = "write it"
    SKIM = "check that it is what is there already, writing nothing"
    REFUSE = "write nothing"


@dataclass(frozen=True, slots=True)
class Decision:
    """A verdict with its reason.

    Attributes:
        verdict: What to do.
        reason: For REFUSE, a sentence for people.
        samples: For what is done only if nobody wrote to the target since its commit, the digest
            that its samples must still have. If somebody did, SKIM becomes APPLY where that is
            possible.
    """

    verdict: Verdict
    reason: str = ""
    samples: str = ""


def decide(opening: Open, plan: Plan, state: TargetState, *, force_base: bool = False) -> Decision:
    """Say whether `plan` may be applied to a target in `state` (SPEC 7.2).

    Args:
        opening: What the sender announced.
        plan: Its plan, whole.
        state: What the journal says of the target.
        force_base: Believe that the target is the base, whatever the journal says.
    """
    if isinstance(state, Clean) and state.id == opening.goal:
        if state.chain:
            return Decision(Verdict.SKIM, samples=state.samples)
        if not opening.full:
            return Decision(Verdict.REFUSE, f"the target was adopted as {state.id!r} already")
    if opening.full:
        return Decision(Verdict.APPLY)
    match state:
        case Clean() if state.id == opening.base or continues(opening, plan, state):
            return Decision(Verdict.APPLY, samples="" if force_base else state.samples)
        case Dirty() if supersedes(opening, plan, state):
            return Decision(Verdict.APPLY)
        case _ if force_base:
            return Decision(Verdict.APPLY)
    return Decision(Verdict.REFUSE, _why_not(opening, state))


def continues(opening: Open, plan: Plan, state: Clean) -> bool:
    """Tell whether a sender that never heard COMMITTED may start again from the old base."""
    return bool(state.prev) and state.prev == opening.base and plan.covers(state.plan)


def supersedes(opening: Open, plan: Plan, state: Dirty) -> bool:
    """Tell whether a transfer makes good everything that an unfinished one may have written."""
    return bool(state.base) and state.base == opening.base and plan.covers(state.plan)


def told(state: TargetState) -> dict[str, object]:
    """Return what HELLO tells a sender of the target's state (SPEC 4.1)."""
    match state:
        case Clean():
            known = {} if state.moment is None else {"moment": state.moment}
            return {"state": "clean", "id": state.id, **known}
        case Dirty():
            return {"state": "dirty", "base": state.base, "goal": state.goal}
    return {"state": "unknown"}


def goal_to_continue(target: Mapping[str, object], base: str, begun: Collection[str]) -> str | None:
    """Return the goal of an unfinished transfer that a new sender may go on with, or None.

    The chain tells whether it goes on with the same content; but what nobody has read yet may be
    another disk's, so a name that somebody else gave, or chose, is never taken for it.

    Args:
        target: What the receiver's HELLO tells of its target.
        base: The state that the sender starts from.
        begun: Goals that this sender invented for this very disk, from this base, and of whose
            commit it does not know.
    """
    goal = None
    if target.get("state") == "dirty" and target.get("base") == base:
        goal = target.get("goal")
    elif target.get("state") == "clean":
        goal = target.get("id")
    return goal if isinstance(goal, str) and goal in begun and goal != base else None


def _why_not(opening: Open, state: TargetState) -> str:
    want = f"the increment starts from base {opening.base!r}"
    match state:
        case Clean():
            return f"{want}, but the target holds {state.id!r}"
        case Dirty(base=""):
            return f"{want}, but the target is in the middle of a full copy to {state.goal!r}"
        case Dirty() if state.base == opening.base:
            return (
                f"{want}, but an unfinished transfer to {state.goal!r} wrote ranges that this one "
                "does not cover; `blockstream abort` gives that one up, and then a full copy helps"
            )
        case Dirty():
            return f"{want}, but the target is on its way from {state.base!r} to {state.goal!r}"
    return f"{want}, but nothing is known of what the target holds"
