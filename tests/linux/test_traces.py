"""Somebody else's write leaves a trace, and nothing else does."""

import json
import mmap
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from blockstream.linux import traces
from blockstream.linux.traces import Verdict, compared, trace_of
from tests.devices import loop_device, partitions, run

MIB = 1 << 20


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    path.write_bytes(b"x" * 8 * MIB)
    return path


@contextmanager
def opened(path: str | Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def traced(path: str | Path) -> str:
    with opened(path) as fd:
        return trace_of(fd)


def write(path: str | Path, offset: int = 5 * MIB) -> None:
    """Write one block, the same as is there."""
    with opened(path) as fd:
        os.pwrite(fd, os.pread(fd, 512, offset), offset)


def mapped_write(path: Path) -> None:
    with opened(path) as fd, closing(mmap.mmap(fd, 8 * MIB)) as memory:
        memory[5 * MIB] = memory[5 * MIB]


def replace(path: Path) -> None:
    shutil.copy2(path, path.with_name("other"))
    path.with_name("other").rename(path)


def read(path: Path) -> None:
    assert path.read_bytes()
    os.utime(path, ns=(0, path.stat().st_mtime_ns))


def nothing(_path: Path) -> None:
    """Do nothing."""


def truncate(path: Path) -> None:
    os.truncate(path, 1)


def write_again(path: Path) -> None:
    path.write_bytes(path.read_bytes())


def touch(path: Path) -> None:
    os.utime(path, (0, 0))


def change_mode(path: Path) -> None:
    path.chmod(0o640)


def rename(path: Path) -> None:
    path.rename(path.with_name("other"))
    path.with_name("other").rename(path)


UNTOUCHED, WRITTEN, UNKNOWN = Verdict.UNTOUCHED, Verdict.WRITTEN, Verdict.UNKNOWN


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        (nothing, UNTOUCHED),
        (Path.read_bytes, UNTOUCHED),
        (write, WRITTEN),
        (mapped_write, WRITTEN),
        (truncate, WRITTEN),
        (write_again, WRITTEN),
        (touch, WRITTEN),
        (change_mode, UNKNOWN),
        (rename, UNKNOWN),
        (read, UNKNOWN),
        (replace, UNKNOWN),
    ],
)
def test_a_file(image: Path, change: Callable[[Path], object], verdict: Verdict) -> None:
    before = traced(image)
    change(image)
    found = compared(before, traced(image))
    assert found.verdict is verdict
    assert bool(found.reason) is (verdict is not UNTOUCHED)


def test_who_writes_in_the_same_moment_leaves_a_trace(image: Path) -> None:
    """Times of files have the grain of a tick."""
    for _ in range(20):
        write(image)
        before = traced(image)
        write(image)
        assert compared(before, traced(image)).verdict is WRITTEN


@pytest.mark.root
def test_a_loop_device_is_as_its_file(image: Path) -> None:
    """Its own counters say nothing of a write into that."""
    with loop_device(image) as device:
        before = traced(device)
        assert Path(device).read_bytes()
        assert compared(before, traced(device)).verdict is UNTOUCHED
    with loop_device(image) as device:
        assert compared(before, traced(device)).verdict is UNTOUCHED  # attached anew
        for change in (
            lambda: write(device),
            lambda: write(image),
            lambda: run("blkdiscard", "-o", "4096", "-l", "4096", device),
            lambda: run("blkdiscard", "-z", "-o", "8192", "-l", "4096", device),
        ):
            change()
            assert compared(before, traced(device)).verdict is WRITTEN
            before = traced(device)
    other = image.with_name("other")
    shutil.copy2(image, other)
    with loop_device(other) as device:
        assert compared(before, traced(device)).verdict is UNKNOWN


@pytest.mark.root
def test_a_partition_of_a_loop_device_is_as_the_file_below(image: Path) -> None:
    with loop_device(image) as device, partitions(device, (MIB, 4 * MIB)) as (part,):
        before = traced(part)
        assert compared(before, traced(part)).verdict is UNTOUCHED
        write(device, 7 * MIB)
        assert compared(before, traced(part)).verdict is WRITTEN


# Devices whose kernel files are made up here; `tests/lab` has real ones.


class Sysfs:
    """The kernel's files of a disk with two partitions, and of a mapped device on one."""

    def __init__(self, folder: Path) -> None:
        self.disk = folder / "sda"
        self.parts = [self.disk / "sda1", self.disk / "sda2"]
        self.mapped = folder / "dm-0"
        for node in (self.disk, *self.parts, self.mapped):
            (node / "holders").mkdir(parents=True)
            self.count(node, 100)
        for part in self.parts:
            (part / "partition").write_text("1\n")
        self.count(self.disk, 250)
        (self.mapped / "dm").mkdir()
        (self.mapped / "dm/uuid").write_text("CRYPT-x\n")
        (self.mapped / "slaves").mkdir()
        (self.mapped / "slaves/sda1").symlink_to(self.parts[0])
        (self.parts[0] / "holders/dm-0").symlink_to(self.mapped)

    def count(self, node: Path, written: int, discarded: int = 0) -> None:
        words = [0] * 17
        words[6], words[13] = written, discarded
        (node / "stat").write_text(" ".join(map(str, words)) + "\n")

    def trace(self, node: Path) -> str:
        counts = traces._counts([node, *traces._alone_below(node)])
        return json.dumps({"kind": "device", "life": "boot:7", "counts": counts})


@pytest.fixture
def sysfs(tmp_path: Path) -> Sysfs:
    return Sysfs(tmp_path)


@pytest.mark.parametrize("more", [(8, 0), (0, 8)])
def test_a_device_is_written_or_discarded(sysfs: Sysfs, more: tuple[int, int]) -> None:
    before = sysfs.trace(sysfs.disk)
    assert compared(before, sysfs.trace(sysfs.disk)).verdict is UNTOUCHED
    sysfs.count(sysfs.disk, 250 + more[0], more[1])
    found = compared(before, sysfs.trace(sysfs.disk))
    assert found.verdict is WRITTEN
    assert found.reason.startswith("the kernel counts 8 sectors ")


def test_a_partition_is_written_through_its_disk(sysfs: Sysfs) -> None:
    """That counts for the disk alone; what is written to its neighbour counts for both."""
    part, other = sysfs.parts
    before = sysfs.trace(part)
    sysfs.count(other, 108)
    sysfs.count(sysfs.disk, 258)
    assert compared(before, sysfs.trace(part)).verdict is UNTOUCHED
    sysfs.count(sysfs.disk, 266)
    found = compared(before, sysfs.trace(part))
    assert found.verdict is WRITTEN
    assert "around sda1 sda2" in found.reason


def test_what_a_device_lies_on_alone_is_looked_at_as_well(sysfs: Sysfs) -> None:
    before = sysfs.trace(sysfs.mapped)
    sysfs.count(sysfs.parts[0], 108)
    found = compared(before, sysfs.trace(sysfs.mapped))
    assert found.verdict is WRITTEN
    assert "of sda1" in found.reason
    (sysfs.parts[0] / "holders/dm-1").mkdir()  # somebody else lies on it now
    assert compared(before, sysfs.trace(sysfs.mapped)).verdict is UNKNOWN


@pytest.mark.parametrize("uuid", ["LVM-x", "mpath-x", ""])
def test_what_others_write_below_themselves_is_no_write_to_them(sysfs: Sysfs, uuid: str) -> None:
    """Records of a volume group, bitmaps of an array or of DRBD."""
    (sysfs.mapped / "dm/uuid").write_text(uuid + "\n")
    before = sysfs.trace(sysfs.mapped)
    sysfs.count(sysfs.parts[0], 108)
    assert compared(before, sysfs.trace(sysfs.mapped)).verdict is UNTOUCHED


def test_what_is_not_counted_is_not_believed(sysfs: Sysfs) -> None:
    """A read tells: `queue/iostats` says 0 of mapped devices, which are counted."""
    nodes = [sysfs.mapped, sysfs.parts[0]]

    def read(*counted: Path) -> None:
        for node in counted:
            words = (node / "stat").read_text().split()
            words[0] = str(int(words[0]) + 1)
            (node / "stat").write_text(" ".join(words))

    assert traces._are_counted(nodes, lambda: read(*nodes))
    assert not traces._are_counted(nodes, lambda: read(nodes[0]))
    assert not traces._are_counted(nodes, lambda: read())
    found = compared(sysfs.trace(sysfs.disk), "")
    assert (found.verdict, "does not count" in found.reason) == (UNKNOWN, True)


DEVICE = {"kind": "device", "life": "boot:7", "counts": {"": [1, 2]}}


@pytest.mark.parametrize(
    ("then", "now", "reason"),
    [
        ("", json.dumps(DEVICE), "nothing was noted"),
        (json.dumps(DEVICE | {"life": "other:7"}), json.dumps(DEVICE), "was started anew"),
        (json.dumps(DEVICE | {"life": "boot:6"}), json.dumps(DEVICE), "was attached anew"),
        (json.dumps(DEVICE | {"counts": {"": [1]}}), json.dumps(DEVICE), "another version"),
        (json.dumps(DEVICE | {"counts": [1]}), json.dumps(DEVICE), "other devices"),
        (json.dumps(DEVICE | {"kind": "file"}), json.dumps(DEVICE), "another file"),
        ("{}", json.dumps(DEVICE), "another version"),
        ("[7", json.dumps(DEVICE), "another version"),
    ],
)
def test_what_cannot_be_compared_is_said(then: str, now: str, reason: str) -> None:
    found = compared(then, now)
    assert (found.verdict, reason in found.reason) == (UNKNOWN, True), found
