"""A plan is a set of bytes with exactly one form; everything else is refused."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockstream_protocol import (
    PLAN_EXTENTS,
    PLAN_FRAME_BYTES,
    ROW_BYTES,
    Plan,
    PlanBuilder,
    RemoteProtocolError,
)
from blockstream_protocol import _plan as plan_module
from tests.protocol.host import new_digest, sectors
from tests.protocol.vectors import Vector, decode_plan, load_vectors, meaning

SECTORS = 12
SIZES = st.sampled_from([SECTORS * 512, SECTORS * 512 - 100])
SETS = st.sets(st.integers(0, SECTORS - 1))


def plan_of(numbers: set[int], size: int) -> Plan:
    ranges: list[tuple[int, int]] = []
    for number in sorted(numbers):
        start, stop = number * 512, min(number * 512 + 512, size)
        if ranges and ranges[-1][1] == start:
            start = ranges.pop()[0]
        ranges.append((start, stop))
    rows = b"".join(struct.pack("<QQ", start, stop - start) for start, stop in ranges)
    return Plan.from_rows(rows, size)


def bytes_of(plan: Plan) -> set[int]:
    return {place for start, stop in plan for place in range(start, stop)}


@given(SETS, SETS, SIZES)
def test_covers_is_the_subset_relation(one: set[int], other: set[int], size: int) -> None:
    assert plan_of(one, size).covers(plan_of(other, size)) is (other <= one)


@given(SETS, SETS, SIZES)
def test_plans_of_the_same_bytes_are_the_same_plan(
    one: set[int], other: set[int], size: int
) -> None:
    mine, theirs = plan_of(one, size), plan_of(other, size)
    assert (mine == theirs) is (one == other)
    assert (mine.digest(new_digest) == theirs.digest(new_digest)) is (one == other)


@given(SETS, SIZES)
def test_a_plan_knows_its_bytes(numbers: set[int], size: int) -> None:
    plan = plan_of(numbers, size)
    assert plan.total == len(bytes_of(plan))
    assert len(plan) == len(list(plan))
    assert [plan[index] for index in range(len(plan))] == list(plan)
    assert Plan.from_rows(plan.rows(), size) == plan
    assert Plan.whole(size).covers(plan)
    assert plan.covers(Plan.whole(0))


@given(SETS, SIZES, st.integers(1, 3))
def test_the_cut_into_frames_does_not_matter(numbers: set[int], size: int, rows: int) -> None:
    plan = plan_of(numbers, size)
    builder = PlanBuilder(size)
    joined = plan.rows()
    for start in range(0, len(joined), rows * ROW_BYTES):
        builder.add(memoryview(joined)[start : start + rows * ROW_BYTES])
    assert len(builder) == len(plan)
    assert builder.plan() == plan


ROWS = st.lists(st.tuples(st.integers(0, 4 * 512), st.integers(0, 4 * 512)), max_size=4)
NEAT_ROWS = st.lists(
    st.tuples(st.integers(0, 5), st.integers(0, 5)).map(lambda row: (row[0] * 512, row[1] * 512)),
    max_size=4,
)


@given(ROWS | NEAT_ROWS)
def test_only_rows_that_keep_every_rule_are_a_plan(rows: list[tuple[int, int]]) -> None:
    size, end, fits = 4 * 512 + 8, -1, True
    for offset, length in rows:
        fits &= offset > end and length > 0 and offset % 512 == 0
        end = offset + length
        fits &= end <= size and (end % 512 == 0 or end == size)
    joined = b"".join(struct.pack("<QQ", *row) for row in rows)
    try:
        plan = Plan.from_rows(joined, size)
    except RemoteProtocolError:
        assert not fits
    else:
        assert fits
        assert list(plan) == [(offset, offset + length) for offset, length in rows]


@pytest.mark.parametrize("vector", load_vectors("plans"), ids=str)
def test_vector(vector: Vector) -> None:
    assert meaning(decode_plan, vector.given) == vector.means


def test_the_whole_device_is_one_range() -> None:
    assert list(Plan.whole(100)) == [(0, 100)]
    assert list(Plan.whole(0)) == []


def test_a_plan_is_equal_only_to_a_plan_and_is_no_key() -> None:
    assert Plan.whole(1) != "plan"
    with pytest.raises(TypeError, match="never used as a key"):
        hash(Plan.whole(1))


@pytest.mark.parametrize("rows", [b"", bytes(15), bytes(17)])
def test_a_frame_holds_whole_rows(rows: bytes) -> None:
    with pytest.raises(RemoteProtocolError, match="whole rows"):
        PlanBuilder(4096).add(rows)


def test_a_plan_has_a_largest_number_of_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_module, "PLAN_EXTENTS", 3)
    assert len(sectors(0, 2, 4, size=4096)) == 3
    with pytest.raises(RemoteProtocolError, match="more than 3 extents"):
        sectors(0, 2, 4, 6, size=4096)


@pytest.mark.slow
def test_the_largest_plan_fits_and_one_range_more_does_not() -> None:
    size = (PLAN_EXTENTS + 1) * 1024
    builder = PlanBuilder(size)
    per_frame = PLAN_FRAME_BYTES // ROW_BYTES
    for start in range(0, PLAN_EXTENTS, per_frame):
        numbers = range(start, start + per_frame)
        builder.add(b"".join(struct.pack("<QQ", number * 1024, 512) for number in numbers))
    assert len(builder) == PLAN_EXTENTS
    with pytest.raises(RemoteProtocolError, match="more than"):
        builder.add(struct.pack("<QQ", PLAN_EXTENTS * 1024, 512))


@pytest.mark.parametrize("byteorder", ["little", "big"])
def test_rows_travel_little_endian_on_any_machine(
    monkeypatch: pytest.MonkeyPatch, byteorder: str
) -> None:
    rows = struct.pack("<4Q", 0, 512, 1024, 512)
    native = Plan.from_rows(rows, 4096)
    swapped = struct.pack(">4Q", 0, 512, 1024, 512)
    monkeypatch.setattr("sys.byteorder", byteorder)
    assert native.rows() == (rows if byteorder == "little" else swapped)
    builder = PlanBuilder(4096)
    builder.add(rows)
    assert builder.plan().rows() == rows


def test_a_plan_is_cut_into_frames_of_bounded_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_module, "PLAN_FRAME_BYTES", 32)
    plan = sectors(0, 2, 4, size=4096)
    pieces = list(plan.pieces())
    assert [len(piece) for piece in pieces] == [32, 16]
    assert b"".join(pieces) == plan.rows()
