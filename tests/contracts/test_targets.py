"""Whatever is written keeps the promises of `interfaces.Target`."""

import random
import resource
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from blockstream.errors import TargetError
from blockstream.interfaces import Target
from blockstream.linux.traces import Verdict, compared
from blockstream.targets.disk import DiskTarget
from tests.contracts.disks import DISKS, Disk, Maker, in_empty_file, open_descriptors


@pytest.fixture(params=DISKS)
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Disk]:
    make: Maker = request.param
    with make(tmp_path) as disk:
        yield disk


@pytest.fixture
def target(disk: Disk) -> Iterator[Target]:
    with closing(DiskTarget(disk.path)) as target:
        yield target


def write(target: Target, *ranges: tuple[int, bytes]) -> None:
    buffer = b"".join(data for _, data in ranges)
    offsets, lengths = [offset for offset, _ in ranges], [len(data) for _, data in ranges]
    target.write_from(offsets, lengths, memoryview(buffer))


def whole(target: Target) -> bytes:
    target.flush()
    return target.read_medium(0, target.size)


def test_it_is_called_by_the_name_that_people_gave(disk: Disk, target: Target) -> None:
    assert target.name == disk.path


def test_its_size_is_in_bytes(disk: Disk, target: Target) -> None:
    assert target.size == len(disk.content)


def test_its_identity_is_the_same_when_it_is_opened_again(disk: Disk) -> None:
    with closing(DiskTarget(disk.path)) as target:
        first = target.identity
    with closing(DiskTarget(disk.path)) as target:
        assert target.identity == first


def test_opening_writes_nothing(disk: Disk, target: Target) -> None:
    assert whole(target) == disk.content


def test_ranges_are_written_one_after_the_other(disk: Disk, target: Target) -> None:
    wanted = bytearray(disk.content)
    tail = b"!" * 700
    ranges = [(512, b"a" * 512), (8192, b"b" * 5120), (len(wanted) - len(tail), tail)]
    for offset, data in ranges:
        wanted[offset : offset + len(data)] = data
    write(target, *ranges)
    assert whole(target) == wanted


def test_nothing_is_written_by_nothing(disk: Disk, target: Target) -> None:
    write(target)
    target.zero(0, 0)
    assert whole(target) == disk.content


def test_the_buffer_is_the_callers_again(target: Target) -> None:
    buffer = bytearray(b"x" * 4096)
    target.write_from([0], [4096], memoryview(buffer))
    buffer[:] = b"y" * 4096
    target.flush()
    assert target.read_medium(0, 4096) == b"x" * 4096


def test_several_threads_write_and_zero_at_once(disk: Disk, target: Target) -> None:
    step = 12288
    wanted = bytearray(disk.content)
    for start in range(0, target.size, step):
        end = min(start + step, target.size)
        wanted[start:end] = bytes(end - start) if start % 3 else b"%16d" % start * (step // 16)
        wanted = wanted[: target.size]

    def part(start: int) -> None:
        data = bytes(wanted[start : start + step])
        if data.strip(b"\0"):
            write(target, (start, data))
        else:
            target.zero(start, len(data))

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(part, range(0, target.size, step)))
    assert whole(target) == wanted


@pytest.mark.parametrize("inside", [0, 4096], ids=["begins past", "crosses"])
def test_a_write_past_the_end_is_an_error_with_its_offset(
    disk: Disk, target: Target, inside: int
) -> None:
    offset = target.size - inside
    with pytest.raises(TargetError, match=rf"offset {offset}\b"):
        write(target, (offset, b"x" * 8192))
    assert disk.file.stat().st_size == len(disk.content)


def test_zeroing_past_the_end_is_an_error_with_its_offset(disk: Disk, target: Target) -> None:
    offset = max(0, target.size - 4096)
    with pytest.raises(TargetError, match=rf"offset {offset}\b"):
        target.zero(offset, 8192)
    assert whole(target) == disk.content


def test_a_short_write_that_cannot_be_continued_is_an_error_with_its_offset(
    disk: Disk, target: Target
) -> None:
    if disk.path != str(disk.file):
        return  # only files have this limit
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        with pytest.raises(TargetError, match="16384 bytes at offset 4096 could not be written"):
            write(target, (4096, b"x" * 16384))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("length", [1, 512, 4095, 4096, 4097, 65536, 300_000])
def test_any_range_can_be_zeroed_and_its_neighbours_stay(
    disk: Disk, target: Target, length: int
) -> None:
    wanted = bytearray(disk.content)
    for offset in (0, 1, 20_992, 20_999, 28_672, target.size - length):
        target.zero(offset, length)
        wanted[offset : offset + length] = bytes(length)
        assert whole(target) == wanted


def test_zeros_over_bytes_still_in_the_cache_win(target: Target) -> None:
    write(target, (0, b"x" * 65536))
    target.zero(4096, 8192)
    write(target, (8192, b"y" * 512))
    assert whole(target)[:65536] == b"x" * 4096 + bytes(4096) + b"y" * 512 + bytes(3584) + (
        b"x" * (65536 - 12288)
    )


def test_any_range_can_be_read_from_the_medium(disk: Disk, target: Target) -> None:
    seeded = random.Random(3)  # noqa: S311  # not secrets
    for _ in range(40):
        first, last = sorted((seeded.randint(0, target.size), seeded.randint(0, target.size)))
        assert target.read_medium(first, last - first) == disk.content[first:last]


def test_reading_past_the_end_is_an_error_with_its_offset(target: Target) -> None:
    offset = target.size // 4096 * 4096
    with pytest.raises(TargetError, match=rf"offset {offset}\b"):
        target.read_medium(offset, 8192)


def test_flushing_nothing_succeeds(target: Target) -> None:
    target.flush()
    target.flush()


def test_closing_gives_every_descriptor_back(disk: Disk) -> None:
    before = open_descriptors()
    DiskTarget(disk.path).close()
    assert open_descriptors() == before


def test_an_empty_disk_is_one_too(tmp_path: Path) -> None:
    with in_empty_file(tmp_path) as disk, closing(DiskTarget(disk.path)) as target:
        write(target)
        target.zero(0, 0)
        assert whole(target) == b""


def test_what_was_written_is_whole_and_leaves_a_trace(disk: Disk, target: Target) -> None:
    target.begin()
    write(target, (0, b"x" * 4096), (8192, b"y" * 4096))
    target.zero(4096, 4096)
    target.flush()
    target.check_whole()
    before = target.trace()
    assert compared(before, target.trace()).verdict is Verdict.UNTOUCHED
    write(target, (0, b"z" * 4096))
    assert compared(before, target.trace()).verdict is Verdict.WRITTEN


def test_the_trace_is_the_same_when_it_is_opened_again(disk: Disk) -> None:
    with closing(DiskTarget(disk.path)) as target:
        before = target.trace()
    with closing(DiskTarget(disk.path)) as target:
        target.read_medium(0, 4096)
        assert compared(before, target.trace()).verdict is Verdict.UNTOUCHED
