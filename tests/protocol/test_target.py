"""What may go onto a target: the table of SPEC 7.2, row by row."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockstream_protocol import (
    Clean,
    Dirty,
    Plan,
    TargetState,
    Unknown,
    Verdict,
    decide,
    goal_to_continue,
    told,
)
from tests.protocol.host import opening_of, sectors

SIZE = 4096
SMALL, LARGE, OTHER = sectors(1, size=SIZE), sectors(1, 2, size=SIZE), sectors(5, size=SIZE)
HEX = "1" * 64


def clean(id_: str, prev: str = "", plan: Plan = SMALL, chain: str = HEX) -> Clean:
    return Clean(id_, prev, plan, HEX, 1, chain, samples="samples")


def dirty(base: str, goal: str = "h", plan: Plan = SMALL) -> Dirty:
    return Dirty(base, goal, plan, HEX, 1, HEX, 1024, 512)


ROWS: list[tuple[str, TargetState, str, Plan, bool, Verdict, str]] = [
    # name, state, base of the transfer, its plan, forced, verdict, start of the reason
    ("the goal is there", clean("g"), "b", SMALL, False, Verdict.SKIM, "samples"),
    ("the goal is there, full", clean("g"), "", SMALL, False, Verdict.SKIM, "samples"),
    ("the goal is there, forced", clean("g"), "b", SMALL, True, Verdict.SKIM, "samples"),
    ("adopted", clean("g", chain=""), "b", SMALL, False, Verdict.REFUSE, "the target was adopted"),
    ("adopted, full", clean("g", chain=""), "", SMALL, False, Verdict.APPLY, ""),
    ("full onto unknown", Unknown(), "", SMALL, False, Verdict.APPLY, ""),
    ("full onto clean", clean("x"), "", SMALL, False, Verdict.APPLY, ""),
    ("full onto dirty", dirty("x"), "", SMALL, False, Verdict.APPLY, ""),
    ("the base is there", clean("b"), "b", SMALL, False, Verdict.APPLY, "samples"),
    ("the base is there, forced", clean("b"), "b", SMALL, True, Verdict.APPLY, ""),
    ("prev is the base, covered", clean("x", "b"), "b", LARGE, False, Verdict.APPLY, "samples"),
    ("prev is the base, not covered", clean("x", "b", LARGE), "b", SMALL, False, Verdict.REFUSE,
     "the increment starts from base 'b', but the target holds 'x'"),
    ("prev is another", clean("x", "y"), "b", LARGE, False, Verdict.REFUSE, "the increment starts"),
    ("no prev", clean("x"), "b", LARGE, False, Verdict.REFUSE, "the increment starts"),
    ("another base, forced", clean("x"), "b", SMALL, True, Verdict.APPLY, ""),
    ("unfinished, same plan", dirty("b"), "b", SMALL, False, Verdict.APPLY, ""),
    ("unfinished, covered", dirty("b"), "b", LARGE, False, Verdict.APPLY, ""),
    ("unfinished, not covered", dirty("b"), "b", OTHER, False, Verdict.REFUSE,
     "the increment starts from base 'b', but an unfinished transfer to 'h' wrote ranges"),
    ("unfinished, other base", dirty("x"), "b", LARGE, False, Verdict.REFUSE,
     "the increment starts from base 'b', but the target is on its way from 'x' to 'h'"),
    ("unfinished full copy", dirty(""), "b", LARGE, False, Verdict.REFUSE,
     "the increment starts from base 'b', but the target is in the middle of a full copy to 'h'"),
    ("unfinished, not covered, forced", dirty("b"), "b", OTHER, True, Verdict.APPLY, ""),
    ("unknown", Unknown(), "b", SMALL, False, Verdict.REFUSE,
     "the increment starts from base 'b', but nothing is known of what the target holds"),
    ("unknown, forced", Unknown(), "b", SMALL, True, Verdict.APPLY, ""),
]  # fmt: skip


@pytest.mark.parametrize("row", ROWS, ids=[row[0].replace(" ", "-") for row in ROWS])
def test_row(row: tuple[str, TargetState, str, Plan, bool, Verdict, str]) -> None:
    _, state, base, plan, forced, verdict, detail = row
    opening = opening_of(plan, size=SIZE, base=base)
    decision = decide(opening, plan, state, force_base=forced)
    assert decision.verdict is verdict
    if verdict is Verdict.REFUSE:
        assert decision.reason.startswith(detail)
    else:
        assert (decision.reason, decision.samples) == ("", detail)


IDS = st.sampled_from(["a", "b", "g"])
PLANS = st.sampled_from([SMALL, LARGE, OTHER, Plan.whole(0), Plan.whole(SIZE)])
STATES: st.SearchStrategy[TargetState] = st.one_of(
    st.just(Unknown()),
    st.builds(clean, IDS, IDS | st.just(""), PLANS, st.sampled_from(["", HEX])),
    st.builds(dirty, IDS | st.just(""), IDS, PLANS),
)


@given(STATES, IDS, PLANS)
def test_an_increment_is_never_applied_where_an_unfinished_one_wrote_more(
    state: TargetState, base: str, plan: Plan
) -> None:
    decision = decide(opening_of(plan, size=SIZE, base=base), plan, state)
    if decision.verdict is Verdict.APPLY:
        assert isinstance(state, Clean | Dirty)
        at_base = isinstance(state, Clean) and state.id == base
        assert at_base or plan.covers(state.plan)


@pytest.mark.parametrize(
    ("state", "base", "goal"),
    [
        (Unknown(), "b", None),
        (dirty("b"), "b", "h"),
        (dirty(""), "", "h"),
        (dirty("b"), "", None),
        (dirty("b"), "other", None),
        (dirty("b", goal="b"), "b", None),
        (dirty("b", goal="monday"), "b", None),
        (clean("sent", "b"), "b", "sent"),
        (clean("b"), "b", None),
        (clean("of somebody"), "b", None),
    ],
)
def test_only_what_was_begun_from_the_same_base_is_continued(
    state: TargetState, base: str, goal: str | None
) -> None:
    assert goal_to_continue(told(state), base, ["h", "sent", "b"]) == goal


@pytest.mark.parametrize("goal", [None, 7, [], "", " blank", "x" * 257, "\x1b[2J"])
def test_what_a_hostile_target_says_is_no_goal(goal: object) -> None:
    target = {"state": "dirty", "base": "b", "goal": goal}
    assert goal_to_continue(target, "b", ["h"]) is None
