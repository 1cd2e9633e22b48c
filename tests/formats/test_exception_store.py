"""The table of a classic snapshot: what the kernel writes is read, anything else is refused."""

import json
import random
import struct
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from blockstream.errors import ExceptionStoreError, SnapshotInvalidError
from blockstream.formats.exception_store import Exceptions, Ranges, exceptions, read_with

REAL = Path(__file__).parents[1] / "data" / "lvm"
CHUNK = 4096
PAIRS = CHUNK // 16


def store_of(
    olds: list[int],
    *,
    chunk: int = CHUNK,
    chunks: int = 0,
    valid: int = 1,
    magic: int = 0x70416E53,
    version: int = 1,
    news: dict[int, int] | None = None,
) -> bytearray:
    """Write a store as the kernel does: exceptions in this order, data chunks after each area."""
    pairs = chunk // 16
    areas = len(olds) // pairs + 1
    data = bytearray(chunk * max(chunks, 1 + areas * (pairs + 1)))
    struct.pack_into("<4I", data, 0, magic, valid, version, chunk // 512)
    for index, old in enumerate(olds):
        area, slot = divmod(index, pairs)
        first = 1 + area * (pairs + 1)
        new = (news or {}).get(index, first + 1 + slot)
        if (first + 1) * chunk <= len(data):
            struct.pack_into("<QQ", data, first * chunk + slot * 16, old, new)
    return data


def parsed(store: bytearray, origin: int, asked: list[Ranges] | None = None) -> Exceptions:
    def read(ranges: Ranges) -> bytes:
        if asked is not None:
            asked.append(ranges)
        return b"".join(bytes(store[start : start + length]) for start, length in ranges)

    return read_with(exceptions(len(store), origin), read)


def chunks_of(found: Exceptions) -> set[int]:
    return {
        number
        for offset, length, _ in found.extents
        for number in range(offset // found.chunk, -(-(offset + length) // found.chunk))
    }


@pytest.mark.parametrize("count", [0, 1, PAIRS - 1, PAIRS, PAIRS + 1, 2 * PAIRS, 3 * PAIRS + 7])
@pytest.mark.parametrize("chunk", [4096, 16_384])
def test_every_exception_of_every_area_is_found(count: int, chunk: int) -> None:
    olds = random.Random(count).sample(range(10_000), count)  # noqa: S311  # the same each time
    found = parsed(store_of(olds, chunk=chunk), 10_000 * chunk)
    assert chunks_of(found) == set(olds)
    assert (found.chunk, len(found)) == (chunk, count)
    assert found.areas == count // (chunk // 16) + 1


@given(st.sets(st.integers(0, 999), max_size=600), st.randoms())
def test_order_does_not_matter(olds: set[int], shuffler: random.Random) -> None:
    order = sorted(olds)
    shuffler.shuffle(order)
    assert chunks_of(parsed(store_of(order), 1000 * CHUNK)) == olds


def test_a_table_without_its_end_is_refused_wherever_it_was_cut() -> None:
    """A cut copy was taken for a whole list, and an increment made of it would have been wrong."""
    areas = PAIRS + 1
    for olds in (list(range(PAIRS)), list(range(2 * PAIRS)), list(range(PAIRS + 3))):
        whole = store_of(olds)
        assert chunks_of(parsed(whole, 1000 * CHUNK)) == set(olds)
        ends = 1 + len(olds) // PAIRS * areas + 1  # after the area with the mark, in chunks
        for cut in sorted({2, areas, areas + 1, areas + 2, ends - 1}):
            for more in (0, CHUNK // 2, CHUNK - 1):
                end = cut * CHUNK + more
                if end < ends * CHUNK:
                    with pytest.raises(ExceptionStoreError):
                        parsed(whole[:end], 1000 * CHUNK)


def test_the_last_chunk_is_clipped_to_the_origin() -> None:
    found = parsed(store_of([0, 9]), 9 * CHUNK + 512)
    assert [(e.offset, e.length) for e in found.extents] == [(0, CHUNK), (9 * CHUNK, 512)]


def test_areas_are_read_in_their_order() -> None:
    asked: list[Ranges] = []
    parsed(store_of(list(range(2000))), 4000 * CHUNK, asked)
    offsets = [start for ranges in asked for start, _ in ranges]
    assert offsets == sorted(offsets)
    assert all(start % CHUNK == 0 for start in offsets)


def test_an_invalid_snapshot_is_refused_although_its_table_looks_whole() -> None:
    with pytest.raises(SnapshotInvalidError, match="was filled"):
        parsed(store_of(list(range(100)), valid=0), 1000 * CHUNK)


@pytest.mark.parametrize(
    ("store", "words"),
    [
        (store_of([1], magic=0x12345678), "begins with"),
        (store_of([1], version=2), "version 2"),
        (store_of([5, 6, 5]), "a chunk twice"),
        (store_of([1000]), "past the end of the origin"),
        (store_of([1 << 63]), "past the end of the origin"),
        (store_of([1], news={0: 1 << 40}), "past its own end"),
        (store_of([1], news={0: 1}), "where a part of its table is"),
        (store_of(list(range(300)), news={7: PAIRS + 2}), "where a part of its table is"),
        (bytearray(b"SnAp"), "shorter than a header"),
        (bytearray(), "shorter than a header"),
    ],
)
def test_what_the_kernel_never_writes_is_refused(store: bytearray, words: str) -> None:
    with pytest.raises(ExceptionStoreError, match=words):
        parsed(store, 1000 * CHUNK)


@pytest.mark.parametrize("sectors", [0, 1, 3, 4, 9, 24, 2048, 1 << 31])
def test_a_size_of_chunk_that_lvm_never_makes_is_refused(sectors: int) -> None:
    store = store_of([1])
    struct.pack_into("<I", store, 12, sectors)
    with pytest.raises(ExceptionStoreError, match="sectors, which LVM never makes"):
        parsed(store, 1000 * CHUNK)


@given(st.binary(max_size=20_000), st.integers(0, 1 << 62))
def test_any_bytes_are_read_or_refused(tail: bytes, origin: int) -> None:
    head = struct.pack("<4I", 0x70416E53, 1, 1, 8).ljust(CHUNK, b"\0")
    for store in (bytearray(tail), bytearray(head + tail)):
        try:
            parsed(store, origin)
        except (ExceptionStoreError, SnapshotInvalidError):
            continue


@pytest.mark.parametrize("name", ["4k", "4k-six-areas", "16k", "64k", "256k", "512k"])
def test_stores_of_a_real_kernel_hold_what_was_written(name: str) -> None:
    facts, store = real(name)
    found = parsed(store, facts["origin"])
    per_chunk = found.chunk // 4096
    assert chunks_of(found) == {block // per_chunk for block in facts["blocks"]}
    used, metadata = facts["status"][0].split("/")[0], facts["status"][1]
    assert len(found) * found.chunk == (int(used) - int(metadata)) * 512
    assert int(metadata) * 512 == (1 + found.areas) * found.chunk


def test_a_store_that_a_real_kernel_overflowed_is_refused() -> None:
    facts, store = real("overflowed")
    assert facts["status"] == ["Invalid"]
    with pytest.raises(SnapshotInvalidError):
        parsed(store, facts["origin"])


def real(name: str) -> tuple[dict[str, Any], bytearray]:
    """Return what was done and the store; `scripts/make_stores` made both."""
    facts: dict[str, Any] = json.loads((REAL / f"{name}.json").read_text())
    packed = (REAL / f"{name}.zst").read_bytes()
    data = zstandard.ZstdDecompressor().decompress(packed, max_output_size=1 << 28)
    return facts, bytearray(data)
