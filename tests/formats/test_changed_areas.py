"""Pages of a change tracker become the map of what changed, or are not believed."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockstream.extents import ExtentMap
from blockstream.formats.changed_areas import ChangeMapError, Page, TrackedState, pages

KIB = 1024
SIZE = 1000 * KIB
STATE = TrackedState("5029-aa", 2000, "6000C29", SIZE, "52 de c0-61 d5/81")


def put_together(answers: list[Page]) -> tuple[ExtentMap, list[int]]:
    """Return the map, and from where each page was asked for."""
    asking = pages(SIZE)
    asked = [next(asking)]
    try:
        for answer in answers:
            asked += [asking.send(answer)]
    except StopIteration as end:
        return end.value, asked
    raise AssertionError(f"more is asked for, from {asked[-1]} on")


@given(
    st.lists(st.tuples(st.integers(0, 60), st.integers(1, 60)), max_size=30),
    st.lists(st.integers(1, 999), max_size=8, unique=True),
)
def test_however_it_is_cut_the_map_is_the_same(
    gaps: list[tuple[int, int]], cuts: list[int]
) -> None:
    areas, at = [], 0
    for gap, length in gaps:
        if at + gap + length <= 1000:
            areas.append((at + gap, length))
            at += gap + length
    bounds = [0, *sorted(cuts), 1000]
    answers = []
    for start, end in itertools.pairwise(bounds):
        inside = [(max(a, start), min(a + n, end)) for a, n in areas if a < end and a + n > start]
        inside_bytes = [(a * KIB, (b - a) * KIB) for a, b in inside]
        answers.append(Page(start * KIB, (end - start) * KIB, inside_bytes))
    found, asked = put_together(answers)
    assert asked == [bound * KIB for bound in bounds[:-1]]
    assert found.total() == sum(length for _, length in areas) * KIB
    assert {block for e in found for block in range(e.offset, e.offset + e.length, KIB)} == {
        block * KIB for a, n in areas for block in range(a, a + n)
    }


def test_an_empty_page_in_the_middle_is_no_end() -> None:
    answers = [Page(0, KIB, []), Page(KIB, KIB, []), Page(2 * KIB, SIZE - 2 * KIB, [(SIZE - 1, 1)])]
    found, _ = put_together(answers)
    assert (len(found), found.total()) == (1, 1)


@pytest.mark.parametrize(
    ("page", "words"),
    [
        (Page(KIB, KIB, []), "begins at 1024, and 0 was asked for"),
        (Page(0, 0, []), "a page of 0 bytes"),
        (Page(0, -KIB, []), "a page of -1024 bytes"),
        (Page(0, SIZE + 1, []), "on a disk of"),
        (Page(0, SIZE, [(2 * KIB, KIB), (0, KIB)]), "out of order"),
        (Page(0, SIZE, [(0, 2 * KIB), (KIB, KIB)]), "out of order"),
        (Page(0, KIB, [(0, 2 * KIB)]), "outside its page"),
        (Page(0, KIB, [(-1, 2)]), "outside its page"),
        (Page(0, SIZE, [(0, 0)]), "an area of 0 bytes"),
        (Page(0, SIZE, [(KIB, -1)]), "an area of -1 bytes"),
    ],
)
def test_a_page_that_cannot_be_true_is_not_believed(page: Page, words: str) -> None:
    with pytest.raises(ChangeMapError, match=words):
        put_together([page])


def test_pages_that_lead_nowhere_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("blockstream.formats.changed_areas._LEAST_PAGES", 5)
    with pytest.raises(ChangeMapError, match="5 pages do not cover"):
        put_together([Page(n, 1, []) for n in range(6)])


def test_the_id_of_a_state_tells_all_of_it() -> None:
    assert TrackedState.parse(str(STATE)) == STATE


@pytest.mark.parametrize("text", ["", "monday", "cbt:", "cbt:a:b:c:d:e", f"{STATE}:more"])
def test_another_id_is_none_of_ours(text: str) -> None:
    assert TrackedState.parse(text) is None


@pytest.mark.parametrize(
    ("held", "words"),
    [
        (STATE, ""),
        (TrackedState("5029-aa", 2000, "6000C29", SIZE, "52 de c0-61 d5/7f"), ""),
        (TrackedState("other", 2000, "6000C29", SIZE, STATE.change), "another disk"),
        (TrackedState("5029-aa", 2001, "6000C29", SIZE, STATE.change), "another disk"),
        (TrackedState("5029-aa", 2000, "new", SIZE, STATE.change), "replaced"),
        (TrackedState("5029-aa", 2000, "6000C29", SIZE - 512, STATE.change), "bytes and has"),
        (TrackedState("5029-aa", 2000, "6000C29", SIZE, "52 de c0-61 d6/81"), "was reset"),
    ],
)
def test_what_the_tracker_cannot_know_is_told(held: TrackedState, words: str) -> None:
    why = STATE.why_not_since(held)
    assert words in why
    assert bool(why) == bool(words)
