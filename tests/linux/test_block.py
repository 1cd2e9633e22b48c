"""Sizes, holes, zeroing and queue limits are what the kernel says they are."""

import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from blockstream.linux import block
from blockstream.linux.block import (
    QueueLimits,
    data_ranges,
    discard,
    diskseq_of,
    is_locked,
    logical_block_of,
    punch_hole,
    queue_limits_of,
    read_number,
    read_path,
    read_text,
    size_of,
    zero_out,
)
from tests.devices import loop_device, partitions

MIB = 1 << 20


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(b"\xff" * MIB)
    return path


@pytest.fixture
def loop(image: Path) -> Iterator[tuple[int, str]]:
    with loop_device(image) as device:
        fd = os.open(device, os.O_RDWR)
        try:
            yield fd, device
        finally:
            os.close(fd)


def test_the_size_of_a_file(image: Path) -> None:
    with image.open("rb") as file:
        assert size_of(file.fileno()) == MIB
        assert logical_block_of(file.fileno()) == 512
        assert diskseq_of(file.fileno()) is None


@pytest.mark.parametrize(("how", "seen"), [(fcntl.LOCK_EX, True), (fcntl.LOCK_SH, False)])
def test_who_keeps_all_others_out_is_seen(image: Path, how: int, seen: bool) -> None:
    with image.open("rb") as file:
        fcntl.flock(file, how)
        assert is_locked(str(image)) == seen
    assert not is_locked(str(image))
    assert not is_locked(f"{image}.gone")


@pytest.mark.root
@pytest.mark.parametrize("sector", [512, 4096])
def test_the_size_of_a_device(image: Path, sector: int) -> None:
    with loop_device(image, sector=sector) as device:
        fd = os.open(device, os.O_RDONLY)
        assert size_of(fd) == MIB
        assert logical_block_of(fd) == sector
        os.close(fd)


@pytest.mark.root
def test_every_life_of_a_device_has_a_number(image: Path) -> None:
    numbers = []
    for _ in range(2):
        with loop_device(image) as device:
            fd = os.open(device, os.O_RDONLY)
            numbers.append(diskseq_of(fd))
            os.close(fd)
    assert None not in numbers
    assert numbers[0] != numbers[1]


# Zeroing.


@pytest.mark.root
@pytest.mark.parametrize("zeroed", [zero_out, punch_hole])
def test_a_range_of_a_device_is_zeroed(
    loop: tuple[int, str], zeroed: Callable[[int, int, int], None]
) -> None:
    fd, _ = loop
    os.pwrite(fd, b"\xee" * 8192, 0)  # dirty in the cache
    zeroed(fd, 512, 4096)
    assert os.pread(fd, 8192, 0) == b"\xee" * 512 + bytes(4096) + b"\xee" * 3584


@pytest.mark.root
@pytest.mark.parametrize(("offset", "length"), [(0, 100), (100, 512), (MIB - 512, 1024)])
def test_a_range_that_is_not_of_whole_blocks_or_not_inside_is_refused(
    loop: tuple[int, str], offset: int, length: int
) -> None:
    with pytest.raises(OSError, match="Invalid argument") as caught:
        zero_out(loop[0], offset, length)
    assert caught.value.errno in block.UNSUPPORTED


@pytest.mark.root
def test_zeroing_a_file_by_ioctl_is_unsupported(image: Path) -> None:
    with image.open("r+b") as file, pytest.raises(OSError, match="ioctl") as caught:
        zero_out(file.fileno(), 0, 512)
    assert caught.value.errno in block.UNSUPPORTED


@pytest.mark.root
def test_a_discard_reaches_the_layer_below(loop: tuple[int, str], image: Path) -> None:
    discard(loop[0], 0, MIB)
    os.fsync(loop[0])
    assert image.stat().st_blocks < MIB // 512


@pytest.mark.parametrize(("offset", "length"), [(0, 4096), (1, 4096), (5000, 3), (0, MIB)])
def test_a_hole_in_a_file_reads_as_zeros(image: Path, offset: int, length: int) -> None:
    wanted = bytearray(image.read_bytes())
    wanted[offset : offset + length] = bytes(length)
    with image.open("r+b") as file:
        punch_hole(file.fileno(), offset, length)
    assert image.read_bytes() == wanted


def test_a_hole_past_the_end_does_not_make_a_file_grow(image: Path) -> None:
    with image.open("r+b") as file:
        punch_hole(file.fileno(), MIB - 4096, 8192)
    assert image.stat().st_size == MIB


def test_a_hole_through_a_descriptor_for_reading_is_an_error(image: Path) -> None:
    with image.open("rb") as file, pytest.raises(OSError, match="Bad file descriptor"):
        punch_hole(file.fileno(), 0, 4096)


# Holes.


def ranges(path: Path) -> list[tuple[int, int]]:
    with path.open("rb") as file:
        return list(data_ranges(file.fileno(), path.stat().st_size))


def sparse(path: Path, size: int, *written: int) -> Path:
    with path.open("wb") as file:
        file.truncate(size)
        for offset in written:
            os.pwrite(file.fileno(), b"x" * 4096, offset)
        os.fsync(file.fileno())
    return path


def test_a_full_file_is_one_range(image: Path) -> None:
    assert ranges(image) == [(0, MIB)]


@pytest.mark.parametrize(
    ("size", "written", "found"),
    [
        (0, [], []),
        (MIB, [], []),
        (MIB, [0], [(0, 4096)]),
        (MIB, [65536, 131072], [(65536, 69632), (131072, 135168)]),
        (MIB, [MIB - 4096], [(MIB - 4096, MIB)]),
        (1234567, [], []),
    ],
)
def test_only_what_is_no_hole_is_given(
    tmp_path: Path, size: int, written: list[int], found: list[tuple[int, int]]
) -> None:
    assert ranges(sparse(tmp_path / "sparse", size, *written)) == found


def test_data_goes_up_to_the_size_that_was_asked_for(image: Path) -> None:
    with image.open("rb") as file:
        assert list(data_ranges(file.fileno(), 5000)) == [(0, 5000)]


def test_a_file_system_that_does_not_know_holes_gives_one_range(
    image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(*_: object) -> int:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(os, "lseek", unknown)
    assert ranges(image) == [(0, MIB)]


def test_a_failing_disk_is_not_taken_for_a_hole(
    image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "lseek", broken)
    with pytest.raises(OSError, match="Input/output"):
        ranges(image)


@pytest.mark.root
def test_a_device_is_one_range(loop: tuple[int, str]) -> None:
    assert list(data_ranges(loop[0], MIB)) == [(0, MIB)]


# Sysfs.


def fake_disk(folder: Path, **limits: int) -> Path:
    queue = folder / "sdx" / "queue"
    queue.mkdir(parents=True)
    for name, value in limits.items():
        (queue / name).write_text(f"{value}\n")
    return folder / "sdx"


LIMITS = {"write_zeroes_max_bytes": 65536, "discard_max_bytes": MIB, "discard_granularity": 4096}


def test_queue_limits_are_read_from_the_disk(
    tmp_path: Path, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = fake_disk(tmp_path, **LIMITS)
    monkeypatch.setattr(block, "sysfs_node", lambda _device: disk)
    with image.open("rb") as file:
        assert queue_limits_of(file.fileno()) == QueueLimits(65536, MIB, 4096)


def test_a_partition_has_the_limits_of_its_disk(
    tmp_path: Path, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    partition = fake_disk(tmp_path, **LIMITS) / "sdx1"
    partition.mkdir()
    monkeypatch.setattr(block, "sysfs_node", lambda _device: partition)
    with image.open("rb") as file:
        assert queue_limits_of(file.fileno()) == QueueLimits(65536, MIB, 4096)


def test_what_sysfs_does_not_tell_is_zero(
    tmp_path: Path, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = fake_disk(tmp_path, discard_max_bytes=7)
    monkeypatch.setattr(block, "sysfs_node", lambda _device: disk)
    with image.open("rb") as file:
        assert queue_limits_of(file.fileno()) == QueueLimits(0, 7, 0)
        monkeypatch.setattr(block, "sysfs_node", lambda _device: tmp_path / "none" / "such")
        assert queue_limits_of(file.fileno()) == QueueLimits()


@pytest.mark.root
@pytest.mark.needs("addpart")
def test_real_limits_of_a_disk_and_its_partition_are_the_same(image: Path) -> None:
    with loop_device(image) as device, partitions(device, (4096, 8192)) as parts:
        limits = []
        for path in (device, *parts):
            fd = os.open(path, os.O_RDONLY)
            limits.append(queue_limits_of(fd))
            os.close(fd)
        assert limits[0].discard_max > 0
        assert limits == [limits[0]] * 2


def test_files_of_sysfs_are_read_whatever_they_hold(tmp_path: Path) -> None:
    path = tmp_path / "file"
    assert (read_text(path), read_number(path), read_path(path)) == ("", 0, "")
    path.write_bytes(b"  a \xff name \nmore\n")
    assert read_text(path) == "a \ufffd name"
    assert read_number(path) == 0
    assert os.fsencode(read_path(path)) == b"  a \xff name \nmore"
    path.write_bytes(b"4096\n")
    assert read_number(path) == 4096
