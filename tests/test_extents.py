"""An extent map says of every byte: data, zeros or nothing. All algebra agrees with that."""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from blockstream import extents as module
from blockstream.extents import Column, ExtentMap, Kinds, Piece
from blockstream_protocol import DATA_BYTES, DEVICE_BYTES, Extent, Kind, Plan, RemoteProtocolError

DATA, ZERO = Kind.DATA, Kind.ZERO
Cells = list[int]  # the kind of every byte; 0 where it is not listed
MAX_SIZE = 40

CELLS = st.lists(st.sampled_from([0, 0, 1, 2]), max_size=MAX_SIZE).flatmap(
    # Runs, so that extents are longer than one byte.
    lambda kinds: st.lists(st.integers(1, 6), min_size=len(kinds), max_size=len(kinds)).map(
        lambda lengths: [
            kind for kind, length in zip(kinds, lengths, strict=True) for _ in range(length)
        ][:MAX_SIZE]
    )
)


def runs(cells: Cells) -> list[Extent]:
    found, place = [], 0
    for kind, run in itertools.groupby(cells):
        length = len(list(run))
        if kind:
            found.append(Extent(place, length, kind))
        place += length
    return found


def map_of(cells: Cells, size: int | None = None) -> ExtentMap:
    return from_rows(runs(cells), len(cells) if size is None else size)


def columns(rows: list[Extent]) -> tuple[Column, Column, Kinds]:
    table = np.array(rows, np.int64).reshape(len(rows), 3)
    return table[:, 0], table[:, 1], table[:, 2].astype(np.uint8)


def from_rows(rows: list[Extent], size: int) -> ExtentMap:
    return ExtentMap.from_columns(*columns(rows), size)


def cells_of(extents: ExtentMap) -> Cells:
    """Return the bytes of a map, after checking that it is sorted, disjoint and coalesced."""
    cells = [0] * extents.size
    end, before = -1, 0
    for offset, length, kind in extents:
        assert length > 0
        assert offset + length <= extents.size
        assert offset > end or (offset == end and kind != before), "neither overlaps nor touches"
        end, before = offset + length, kind
        cells[offset:end] = [kind] * length
    return cells


# Making maps.


@st.composite
def untidy(draw: st.DrawFn) -> tuple[Cells, list[Extent]]:
    """Draw bytes, and rows for them: out of order, in pieces, doubled, overlapping, empty."""
    cells = draw(CELLS)
    rows = []
    for offset, length, kind in runs(cells):
        cuts = sorted(draw(st.sets(st.integers(0, length), max_size=3)) | {0, length})
        for start, stop in itertools.pairwise(cuts):
            low = draw(st.integers(0, start))
            rows.append(Extent(offset + low, stop - low, kind))
        rows.append(Extent(offset, 0, kind))
    return cells, draw(st.permutations(rows))


@settings(max_examples=40)
@given(untidy())
def test_columns_in_any_order_and_pieces_are_the_same_map(case: tuple[Cells, list[Extent]]) -> None:
    cells, rows = case
    extents = from_rows(rows, len(cells))
    assert cells_of(extents) == cells
    assert extents == map_of(cells)


@given(CELLS, st.integers(0, MAX_SIZE))
def test_the_end_of_the_device_cuts(cells: Cells, size: int) -> None:
    kept = map_of(cells, size)
    assert cells_of(kept) == (cells + [0] * size)[:size]


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20), st.sampled_from(Kind))))
def test_different_kinds_must_not_overlap(rows: list[tuple[int, int, Kind]]) -> None:
    kinds: dict[int, set[int]] = {}
    for offset, length, kind in rows:
        for place in range(offset, min(offset + length, 30)):
            kinds.setdefault(place, set()).add(kind)
    clash = any(len(both) > 1 for both in kinds.values())
    try:
        extents = from_rows([Extent(*row) for row in rows], 30)
    except ValueError:
        assert clash
    else:
        assert not clash
        assert cells_of(extents) == [next(iter(kinds.get(place, {0}))) for place in range(30)]


@pytest.mark.parametrize("row", [Extent(-1, 5, 1), Extent(0, -1, 1)])
def test_negative_numbers_are_refused(row: Extent) -> None:
    with pytest.raises(ValueError, match="negative"):
        from_rows([row], 10)


def test_one_kind_may_stand_for_all() -> None:
    offsets, lengths = np.array([5, 0]), np.array([2, 3])
    assert list(ExtentMap.from_columns(offsets, lengths, ZERO, 10)) == [(0, 3, 2), (5, 2, 2)]


@given(
    st.lists(st.integers(0, 9), max_size=20),
    st.integers(1, 5),
    st.integers(0, 40),
)
def test_chunks_are_extents(chunks: list[int], chunk_size: int, size: int) -> None:
    column = np.array(chunks, np.int64)
    if any(chunk * chunk_size >= size for chunk in chunks):
        with pytest.raises(ValueError, match="outside the device"):
            ExtentMap.from_chunks(column, chunk_size, size)
        return
    cells = [1 if place // chunk_size in chunks else 0 for place in range(size)]
    assert cells_of(ExtentMap.from_chunks(column, chunk_size, size)) == cells


def test_a_negative_chunk_is_refused() -> None:
    with pytest.raises(ValueError, match="outside the device"):
        ExtentMap.from_chunks(np.array([3, -1]), 4, 100)


def test_whole_and_empty() -> None:
    assert list(ExtentMap.whole(7)) == [(0, 7, DATA)]
    assert list(ExtentMap.whole(7, ZERO)) == [(0, 7, ZERO)]
    assert list(ExtentMap.whole(0)) == list(ExtentMap.empty(0)) == []
    assert ExtentMap.whole(0) == ExtentMap.empty(0)
    assert ExtentMap.empty(1) != ExtentMap.empty(2)


# Looking.


@given(CELLS)
def test_totals_count_bytes(cells: Cells) -> None:
    extents = map_of(cells)
    assert extents.total() == sum(kind > 0 for kind in cells)
    assert extents.total(DATA) == cells.count(DATA)
    assert extents.total(ZERO) == cells.count(ZERO)
    assert len(extents) == len(list(extents)) == len(runs(cells))
    assert repr(extents) == (
        f"ExtentMap({len(extents)} extents, {extents.total()} of {extents.size} bytes)"
    )


def test_a_map_is_equal_only_to_a_map_and_is_no_key() -> None:
    extents = ExtentMap.whole(1)
    assert extents != "map"
    assert extents != ExtentMap.whole(1, ZERO)
    assert ExtentMap.whole(1) != from_rows([Extent(0, 1, 1)], 2)
    with pytest.raises(TypeError, match="never used as a key"):
        hash(extents)


def test_iteration_gives_plain_integers_block_by_block() -> None:
    with windows(rows=2, data_bytes=1 << 30):
        rows = list(from_rows([Extent(n * 2, 1, 1) for n in range(5)], 10))
    assert rows == [(n * 2, 1, 1) for n in range(5)]
    assert all(type(number) is int for row in rows for number in row)


# Algebra.


@settings(max_examples=40)
@given(CELLS, CELLS)
def test_overlaid_lets_the_other_win(mine: Cells, theirs: Cells) -> None:
    other = (theirs + [0] * len(mine))[: len(mine)]
    expected = [there or here for here, there in zip(mine, other, strict=True)]
    assert cells_of(map_of(mine).overlaid(map_of(theirs))) == expected


@settings(max_examples=40)
@given(CELLS, CELLS)
def test_intersected_keeps_what_both_list(mine: Cells, theirs: Cells) -> None:
    other = (theirs + [0] * len(mine))[: len(mine)]
    expected = [here if there else 0 for here, there in zip(mine, other, strict=True)]
    assert cells_of(map_of(mine).intersected(map_of(theirs))) == expected


@settings(max_examples=40)
@given(CELLS, CELLS)
def test_without_keeps_what_only_one_lists(mine: Cells, theirs: Cells) -> None:
    other = (theirs + [0] * len(mine))[: len(mine)]
    expected = [0 if there else here for here, there in zip(mine, other, strict=True)]
    assert cells_of(map_of(mine).without(map_of(theirs))) == expected


@settings(max_examples=50)
@given(CELLS, st.sampled_from(Kind))
def test_filled_lists_every_byte(cells: Cells, kind: Kind) -> None:
    assert cells_of(map_of(cells).filled(kind)) == [cell or kind for cell in cells]


@given(CELLS)
def test_coverage_forgets_the_kinds(cells: Cells) -> None:
    assert cells_of(map_of(cells).coverage()) == [1 if cell else 0 for cell in cells]


@settings(max_examples=50)
@given(CELLS, st.integers(1, 9))
def test_rounded_makes_whole_blocks_and_loses_nothing(cells: Cells, alignment: int) -> None:
    extents = map_of(cells)
    rounded = extents.rounded(alignment)
    after = cells_of(rounded)
    for offset, length, _ in rounded:
        end = offset + length
        assert offset % alignment == 0
        assert end % alignment == 0 or end == extents.size
    for start in range(0, len(cells), alignment):
        block = cells[start : start + alignment]
        got = set(after[start : start + alignment])
        if not any(block):
            assert got == {0}, "blocks that nothing touches stay unlisted"
        elif set(block) == {ZERO}:
            assert got == {ZERO}, "a block of zeros stays one"
        else:
            assert got == {DATA}, "any other block is read and sent"


@given(CELLS)
def test_rounding_to_nothing_changes_nothing(cells: Cells) -> None:
    extents = map_of(cells)
    assert extents.rounded(1) is extents
    assert extents.rounded(0) is extents


@settings(max_examples=50)
@given(CELLS, st.integers(1, 6))
def test_coarsened_closes_gaps_until_it_fits(cells: Cells, limit: int) -> None:
    extents = map_of(cells)
    coarse = extents.coarsened(limit)
    after = cells_of(coarse)
    assert len(coarse.coverage()) <= limit
    assert all(
        now == was or (was == 0 and now == DATA) for was, now in zip(cells, after, strict=True)
    )
    if len(extents.coverage()) <= limit:
        assert coarse is extents


def test_coarsened_closes_the_smallest_gaps() -> None:
    cells = [1, 0, 0, 0, 2, 0, 1, 0, 0, 2]
    assert cells_of(map_of(cells).coarsened(3)) == [1, 0, 0, 0, 2, 1, 1, 0, 0, 2]
    assert cells_of(map_of(cells).coarsened(2)) == [1, 0, 0, 0, 2, 1, 1, 1, 1, 2]
    assert cells_of(map_of(cells).coarsened(1)) == [1, 1, 1, 1, 2, 1, 1, 1, 1, 2]


@settings(max_examples=40)
@given(CELLS)
def test_the_plan_covers_exactly_what_is_listed(cells: Cells) -> None:
    scaled = [kind for kind in cells for _ in range(512)]
    plan = map_of(scaled).plan()
    assert isinstance(plan, Plan)
    listed = [0] * len(scaled)
    for start, stop in plan:
        listed[start:stop] = [1] * (stop - start)
    assert listed == [1 if kind else 0 for kind in scaled]


def test_an_unaligned_map_has_no_plan() -> None:
    with pytest.raises(RemoteProtocolError):
        from_rows([Extent(1, 511, 1)], 1024).plan()


# Cutting into frames.


@contextmanager
def windows(*, rows: int, data_bytes: int) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_WINDOW_ROWS", rows)
        patch.setattr(module, "_WINDOW_BYTES", data_bytes)
        yield


def rows_of(pieces: list[Piece]) -> list[Extent]:
    return [
        Extent(int(offset), int(length), int(kind))
        for piece in pieces
        for offset, length, kind in zip(piece.offsets, piece.lengths, piece.kinds, strict=True)
    ]


def check_pieces(extents: ExtentMap, pieces: list[Piece], data_bytes: int, rows: int) -> None:
    for piece in pieces:
        assert 1 <= len(piece.offsets) <= rows
        assert piece.data_bytes <= data_bytes
        assert piece.covered == sum(int(length) for length in piece.lengths)
        kinds_and_lengths = zip(piece.kinds.tolist(), piece.lengths.tolist(), strict=True)
        assert piece.data_bytes == sum(length for kind, length in kinds_and_lengths if kind == DATA)
    cut = rows_of(pieces)
    assert all(length > 0 for _, length, _ in cut)
    ends = [offset + length for offset, length, _ in cut]
    assert all(row.offset >= end for row, end in zip(cut[1:], ends, strict=False))
    assert from_rows(cut, extents.size) == extents, "the union is the same"


@settings(max_examples=40)
@given(CELLS, st.integers(1, 12), st.integers(1, 4))
def test_pieces_are_the_map_cut_within_the_limits(cells: Cells, data_bytes: int, rows: int) -> None:
    extents = map_of(cells)
    check_pieces(extents, list(extents.pieces(data_bytes, rows)), data_bytes, rows)


@settings(max_examples=80)
@given(CELLS, st.integers(1, 12), st.integers(1, 4), st.integers(1, 5), st.integers(1, 6))
# Zeros before, at and after the edge of a window; data across it, and ending at it.
@example([2, 1, 1, 2], 5, 5, 5, 1)
@example([1, 1, 2, 1, 1], 5, 5, 5, 2)
@example([1, 1, 1, 2, 1, 2], 2, 1, 5, 2)
@example([1, 0, 2, 0, 1, 1, 1, 1], 3, 2, 2, 3)
def test_windows_do_not_show(
    cells: Cells, data_bytes: int, rows: int, window_rows: int, window_bytes: int
) -> None:
    extents = map_of(cells)
    with windows(rows=window_rows, data_bytes=window_bytes):
        pieces = list(extents.pieces(data_bytes, rows))
    check_pieces(extents, pieces, data_bytes, rows)


@settings(max_examples=40)
@given(CELLS, st.integers(1, 12), st.integers(1, 4))
def test_the_same_map_is_always_cut_the_same_way(cells: Cells, data_bytes: int, rows: int) -> None:
    again = from_rows(runs(cells)[::-1], len(cells))
    one = [rows_of([piece]) for piece in map_of(cells).pieces(data_bytes, rows)]
    assert [rows_of([piece]) for piece in again.pieces(data_bytes, rows)] == one


@given(CELLS)
def test_full_frames_are_full(cells: Cells) -> None:
    data_only = [1 if kind == DATA else 0 for kind in cells]
    sizes = [piece.data_bytes for piece in map_of(data_only).pieces(data_bytes=4, extents=100)]
    assert all(size == 4 for size in sizes[:-1])


def test_a_long_hole_is_cut_into_frames_of_its_own() -> None:
    """Zeroing 10 TiB in one go heeded no signal, and showed no progress, for hours."""
    step, size = module._ZERO_BYTES, 1 << 45
    holes = ((4096, 3 * step + 512), (4096 + 4 * step, size - 8192 - 4 * step))
    offsets, lengths = (np.array(each, np.int64) for each in zip(*holes, strict=True))
    extents = ExtentMap.from_columns(offsets, lengths, Kind.ZERO, size).filled(Kind.DATA)
    pieces = list(extents.pieces())
    check_pieces(extents, pieces, DATA_BYTES, 4096)
    assert all(int(piece.lengths[piece.kinds == ZERO].sum()) <= step for piece in pieces)


def test_a_short_hole_is_not_cut() -> None:
    extents = ExtentMap.whole(module._ZERO_BYTES, ZERO)
    assert rows_of(list(extents.pieces())) == [(0, module._ZERO_BYTES, ZERO)]


# Near the largest number.

TOP = DEVICE_BYTES


def test_an_extent_whose_end_would_overflow_is_cut_at_the_device() -> None:
    assert list(from_rows([Extent(TOP - 5, TOP, 1)], TOP)) == [(TOP - 5, 5, 1)]
    assert list(from_rows([Extent(0, TOP, 2)], TOP)) == [(0, TOP, 2)]
    assert list(from_rows([Extent(TOP, 1, 1)], TOP)) == []


def test_the_last_chunk_of_the_largest_device_is_cut() -> None:
    last = TOP // 512
    extents = ExtentMap.from_chunks(np.array([last, last - 1, 0]), 512, TOP)
    assert list(extents) == [(0, 512, 1), ((last - 1) * 512, 512 + 511, 1)]


@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize("alignment", [512, 4096, 1 << 40])
def test_rounding_does_not_pass_the_largest_number(kind: Kind, alignment: int) -> None:
    extents = from_rows([Extent(TOP - 5, 5, kind)], TOP)
    start = (TOP - 5) // alignment * alignment
    assert list(extents.rounded(alignment)) == [(start, TOP - start, DATA)]
    assert ExtentMap.whole(TOP, kind).rounded(alignment) == ExtentMap.whole(TOP, kind)


def test_algebra_reaches_the_largest_number() -> None:
    whole, tail = ExtentMap.whole(TOP), from_rows([Extent(TOP - 5, 5, 2)], TOP)
    assert list(whole.overlaid(tail)) == [(0, TOP - 5, 1), (TOP - 5, 5, 2)]
    assert list(whole.without(tail)) == [(0, TOP - 5, 1)]
    assert list(whole.intersected(tail)) == [(TOP - 5, 5, 1)]
    assert list(tail.filled(DATA)) == [(0, TOP - 5, 1), (TOP - 5, 5, 2)]
    assert whole.total() == TOP
    two = from_rows([Extent(0, 1, 1), Extent(TOP - 1, 1, 2)], TOP)
    assert list(two.coarsened(1)) == [(0, TOP - 1, 1), (TOP - 1, 1, 2)]


def test_the_largest_device_is_cut_lazily() -> None:
    first = list(itertools.islice(ExtentMap.whole(TOP).pieces(), 3))
    assert rows_of(first) == [(n << 20, 1 << 20, 1) for n in range(3)]


def test_the_last_piece_of_the_largest_device_ends_with_it() -> None:
    extents = from_rows([Extent(0, 1, 1), Extent(TOP - (1 << 20) - 1, (1 << 20) + 1, 1)], TOP)
    check_pieces(extents, list(extents.pieces()), 1 << 20, 4096)


@pytest.mark.slow
def test_ten_million_chunks_are_cut_in_bounded_pieces() -> None:
    chunks = np.arange(0, 20_000_000, 2)
    extents = ExtentMap.from_chunks(chunks, 4096, 20_000_000 * 4096)
    assert len(extents) == 10_000_000
    assert sum(piece.covered for piece in extents.pieces()) == extents.total()
