"""Whatever ranges are written one over the other, the layers show what the model shows."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blockstream.formats.foreign.layers import ZEROS, Layers

SIZE = 60
ranges = st.lists(
    st.tuples(st.integers(0, SIZE + 5), st.integers(1, 20), st.integers(0, 1), st.booleans()),
    max_size=14,
)


@pytest.mark.slow
@given(ranges, st.booleans(), st.integers(1, SIZE + 30))
@settings(max_examples=300, deadline=None)
def test_the_last_or_the_first_range_wins(
    found: list[tuple[int, int, int, bool]], first_wins: bool, size: int
) -> None:
    layers, model, place = Layers(), dict[int, tuple[int, int]](), 1000
    for offset, length, file, zero in found:
        layers.add(offset, length, file, ZEROS if zero else place)
        for step in range(length):
            if offset + step < size and not (first_wins and offset + step in model):
                model[offset + step] = (file, ZEROS if zero else place + step)
        place += length
    placed = layers.flattened(size, first_wins=first_wins)
    seen: dict[int, tuple[int, int]] = {}
    end = 0
    for offset, length, file, start in zip(
        placed.offsets.tolist(),
        placed.lengths.tolist(),
        placed.files.tolist(),
        placed.places.tolist(),
        strict=True,
    ):
        assert offset >= end
        end = offset + length
        for step in range(length):
            seen[offset + step] = (file, ZEROS if start == ZEROS else start + step)
    assert seen == model


@pytest.mark.slow
@pytest.mark.parametrize("last", ["small", "large"])
def test_half_a_million_ranges_over_each_other_take_no_longer_than_side_by_side(last: str) -> None:
    # A thin stream of 28 bytes each: if every range painted all that it covers, it took minutes.
    count = 1 << 18
    small = np.arange(count, dtype=np.int64) * 8192, np.full(count, 4096, np.int64)
    large = np.zeros(count, np.int64), np.full(count, count * 8192, np.int64)
    layers = Layers()
    for offsets, lengths in (small, large) if last == "large" else (large, small):
        layers.add_columns(offsets, lengths, 0, np.arange(count, dtype=np.int64) << 40)
    assert len(layers.flattened(count * 8192).offsets) == (1 if last == "large" else 2 * count)


def test_neighbours_in_disk_and_file_are_one_range() -> None:
    layers = Layers()
    layers.add(0, 512, 0, 100)
    layers.add(512, 512, 0, 612)
    layers.add(1024, 512, 1, 1124)
    layers.add(1536, 512, 1, ZEROS)
    layers.add(2048, 512, 1, ZEROS)
    layers.add(2560, 512, 1, ZEROS + 1024)  # by chance where zeros would go on
    assert len(layers) == 4


@pytest.mark.slow
def test_a_million_records_in_reverse_are_brought_in_order_at_once() -> None:
    count = 1 << 20
    layers = Layers()
    offsets = np.arange(count, dtype=np.int64)[::-1] * 4096
    lengths = np.full(count, 4096, np.int64)
    layers.add_columns(offsets, lengths, 0, np.arange(count, dtype=np.int64) * 4108)
    placed = layers.flattened(count * 4096)
    assert len(placed.extents(count * 4096)) == 1
