"""A target that was written behind our back is noticed, if at a place that we look at."""

from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockstream.pipeline.samples import sample, sampled_ranges
from blockstream.targets.disk import DiskTarget

MIB = 1 << 20
SIZES = st.one_of(st.integers(0, 4 * MIB), st.integers(0, 1 << 62))


@given(SIZES)
def test_every_range_lies_inside_the_disk(size: int) -> None:
    for offset, length in sampled_ranges(size):
        assert 0 <= offset <= offset + length <= size


@given(SIZES)
def test_both_ends_are_sampled(size: int) -> None:
    first, last, *chunks = sampled_ranges(size)
    edge = min(MIB, size)
    assert first == (0, edge)
    assert last == (size - edge, edge)
    assert len(chunks) == (32 if size >= 128 << 10 else 0)


@given(SIZES)
def test_the_same_size_gives_the_same_ranges(size: int) -> None:
    assert sampled_ranges(size) == sampled_ranges(size)


def test_the_ranges_of_a_large_disk_are_spread() -> None:
    tenths = {offset * 10 // (1 << 40) for offset, _ in sampled_ranges(1 << 40)}
    assert len(tenths) >= 8


def test_ranges_never_move_between_versions() -> None:
    """What was sampled at a commit is compared with what a later version samples."""
    assert sampled_ranges(1 << 30)[:5] == [
        (0, MIB),
        (1023 * MIB, MIB),
        (48431104, 65536),
        (94830592, 65536),
        (101974016, 65536),
    ]


def digest(path: Path) -> str:
    with closing(DiskTarget(str(path))) as target:
        return sample(target)


@pytest.mark.parametrize("size", [0, 1, 511, 65536, 1234567, 5 * MIB])
def test_what_was_not_written_has_the_same_digest(tmp_path: Path, size: int) -> None:
    path = tmp_path / "disk"
    path.write_bytes(bytes(range(256)) * (size // 256) + bytes(size % 256))
    assert digest(path) == digest(path)
    copy = tmp_path / "copy"
    copy.write_bytes(path.read_bytes())
    assert digest(copy) == digest(path)


@pytest.mark.parametrize("at", ["first byte", "last byte", "a chunk"])
def test_a_byte_changed_where_we_look_is_noticed(tmp_path: Path, at: str) -> None:
    size = 5 * MIB
    path = tmp_path / "disk"
    path.write_bytes(bytes(size))
    before = digest(path)
    chunk = sampled_ranges(size)[10][0]
    offset = {"first byte": 0, "last byte": size - 1, "a chunk": chunk + 777}[at]
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(b"x")
    assert digest(path) != before
