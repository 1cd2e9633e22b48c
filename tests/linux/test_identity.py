"""A disk is known by what it is, never by its path; and what shares its bytes is found."""

import contextlib
import fcntl
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from blockstream.linux import identity
from blockstream.linux.identity import (
    Identity,
    Node,
    identity_of,
    lock_holder_of,
    node_of,
    nodes_below,
    share_bytes,
    users_of,
)
from tests.devices import loop_device, mounted, partitions, run

MIB = 1 << 20


@contextlib.contextmanager
def opened(path: str | Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY)
    try:
        yield fd
    finally:
        os.close(fd)


def known(path: str | Path) -> Identity:
    with opened(path) as fd:
        return identity_of(fd)


def node(path: str | Path) -> Node:
    with opened(path) as fd:
        return node_of(fd)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(8 * MIB))
    return path


@pytest.fixture
def partitioned(image: Path) -> Iterator[tuple[str, list[str]]]:
    """Give a loop device and its two partitions."""
    with loop_device(image) as device, partitions(device, (MIB, 2 * MIB), (4 * MIB, MIB)) as parts:
        yield device, parts


# Files.


def test_a_file_is_the_same_after_a_rename(image: Path) -> None:
    before = known(image)
    assert before.lasting
    assert known(image.rename(image.with_name("other.img"))) == before


def test_a_file_is_the_same_after_a_write(image: Path) -> None:
    before = known(image)
    image.write_bytes(b"changed")
    assert known(image) == before


def test_another_file_of_the_same_name_is_another(image: Path) -> None:
    before = known(image)
    image.unlink()
    image.write_bytes(bytes(8 * MIB))
    assert known(image) != before


def test_an_inode_used_again_is_told_by_its_birth(
    image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = known(image)
    monkeypatch.setattr(identity, "_birth_of", lambda _fd: 7)
    assert known(image) != before


def test_a_hard_link_is_the_same_file(image: Path, tmp_path: Path) -> None:
    (tmp_path / "link").hardlink_to(image)
    assert known(tmp_path / "link") == known(image)
    assert share_bytes(node(tmp_path / "link"), node(image))


# Loop devices.


@pytest.mark.root
def test_a_loop_device_is_its_backing_file_on_whatever_node(image: Path, tmp_path: Path) -> None:
    with loop_device(image) as device:
        first, before = device, known(device)
    assert before.lasting
    other = tmp_path / "other.img"
    other.write_bytes(bytes(MIB))
    with loop_device(other) as taken, loop_device(image) as device:
        assert taken == first
        assert device != first
        assert known(device) == before
        assert known(taken) != before


@pytest.mark.root
def test_a_window_of_a_file_is_not_the_file(image: Path) -> None:
    device = run("losetup", "-f", "--show", "-o", "1048576", image).strip()
    try:
        shifted = known(device)
    finally:
        run("losetup", "-d", device)
    with loop_device(image) as device:
        assert known(device) != shifted
        assert known(device).key != known(image).key


@pytest.mark.root
def test_a_loop_device_whose_file_is_gone_is_not_known_for_long(image: Path) -> None:
    with loop_device(image) as device:
        image.unlink()
        assert not known(device).lasting


@pytest.mark.root
@pytest.mark.parametrize("name", [b"two words ", b"new\nline", b"caf\xe9"])
def test_a_backing_file_may_have_any_name(image: Path, name: bytes) -> None:
    path = image.with_name(os.fsdecode(name))
    image.rename(path)
    with loop_device(path) as device:
        assert known(device).lasting
        assert share_bytes(node(device), node(path))
        assert users_of(node(path)) == [f"it backs {device}"]


# What shares bytes.


def test_a_file_shares_bytes_with_itself_and_not_with_its_neighbour(
    image: Path, tmp_path: Path
) -> None:
    (tmp_path / "other").touch()
    assert share_bytes(node(image), node(image))
    assert not share_bytes(node(image), node(tmp_path / "other"))


@pytest.mark.root
def test_a_loop_device_shares_bytes_with_its_file(image: Path, tmp_path: Path) -> None:
    (tmp_path / "other").touch()
    with loop_device(image) as device:
        assert share_bytes(node(device), node(image))
        assert share_bytes(node(image), node(device))
        assert not share_bytes(node(device), node(tmp_path / "other"))


@pytest.mark.root
def test_two_loop_devices_over_one_file_lie_on_the_same(image: Path) -> None:
    with loop_device(image) as one, loop_device(image) as other:
        assert nodes_below(node(one)) == nodes_below(node(other))
        assert node(image) in nodes_below(node(one))


@pytest.mark.root
def test_a_loop_device_over_a_loop_device_shares_bytes_with_both(image: Path) -> None:
    with loop_device(image) as lower, loop_device(Path(lower)) as upper:
        for other in (lower, image):
            assert share_bytes(node(upper), node(other))
            assert share_bytes(node(other), node(upper))
        assert users_of(node(lower)) == [f"it backs {upper}"]


@pytest.mark.root
@pytest.mark.needs("addpart")
def test_a_partition_shares_bytes_with_its_disk_and_not_with_its_sibling(
    partitioned: tuple[str, list[str]], image: Path
) -> None:
    disk, (one, two) = partitioned
    for whole in (disk, image):
        assert share_bytes(node(one), node(whole))
        assert share_bytes(node(whole), node(two))
    assert not share_bytes(node(one), node(two))
    assert len({known(path).key for path in (disk, one, two)}) == 3


@pytest.mark.root
@pytest.mark.needs("mkfs.ext4")
def test_a_file_lies_on_the_device_of_its_file_system(image: Path, tmp_path: Path) -> None:
    run("mkfs.ext4", "-q", image)
    with loop_device(image) as device, mounted(device, tmp_path / "place") as place:
        file, neighbour = place / "file", place / "neighbour"
        file.touch()
        neighbour.touch()
        assert share_bytes(node(file), node(device))
        assert share_bytes(node(image), node(file))
        assert not share_bytes(node(file), node(neighbour))


# Users.


def test_an_idle_file_has_no_users(image: Path) -> None:
    assert users_of(node(image)) == []


@pytest.mark.root
def test_an_idle_device_has_no_users(image: Path) -> None:
    with loop_device(image) as device:
        assert users_of(node(device)) == []


@pytest.mark.root
@pytest.mark.needs("mkfs.ext4")
@pytest.mark.parametrize("name", ["place", "two words", "café\\x"])
def test_a_mount_is_named(image: Path, tmp_path: Path, name: str) -> None:
    run("mkfs.ext4", "-q", image)
    with loop_device(image) as device, mounted(device, tmp_path / name) as place:
        assert users_of(node(device)) == [f"{Path(device).name} is mounted on {place}"]


@pytest.mark.root
@pytest.mark.needs("addpart", "mkfs.ext4")
def test_a_disk_is_used_by_whoever_uses_its_partition(
    partitioned: tuple[str, list[str]], tmp_path: Path
) -> None:
    disk, (one, two) = partitioned
    run("mkfs.ext4", "-q", one)
    with mounted(one, tmp_path / "place") as place:
        wanted = [f"{Path(one).name} is mounted on {place}"]
        assert users_of(node(disk)) == users_of(node(one)) == wanted
        assert users_of(node(two)) == []


@pytest.mark.root
@pytest.mark.needs("mkswap", "swapon")
def test_swap_is_named(image: Path) -> None:
    image.chmod(0o600)
    with loop_device(image) as device:
        run("mkswap", device)
        run("swapon", device)
        try:
            assert users_of(node(device)) == [f"{device} is swap"]
        finally:
            run("swapoff", device)


@pytest.mark.root
@pytest.mark.needs("mkswap", "swapon")
def test_a_swap_file_is_named(tmp_path: Path) -> None:
    place = next(path for path in (Path("/var/tmp"), Path.cwd()))  # noqa: S108
    path = place / f"swap file {os.getpid()}"
    path.write_bytes(bytes(MIB))
    path.chmod(0o600)
    try:
        run("mkswap", path)
        run("swapon", path)
        try:
            assert users_of(node(path)) == [f"{path} is swap"]
        finally:
            run("swapoff", path)
    finally:
        path.unlink()


def test_a_holder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = tmp_path / "sdx"
    (disk / "holders" / "dm-3").mkdir(parents=True)
    (disk / "sdx1" / "holders" / "md0").mkdir(parents=True)
    (disk / "sdx1" / "partition").write_text("1\n")
    (disk / "sdx1" / "dev").write_text("259:77\n")
    monkeypatch.setattr(identity, "sysfs_node", lambda _device: disk)
    assert users_of(Node("block", os.makedev(259, 76))) == [
        "sdx is held by dm-3",
        "sdx1 is held by md0",
    ]


def test_stable_names_of_the_hardware_come_first(
    image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = tmp_path / "dm-0"
    (disk / "dm").mkdir(parents=True)
    (disk / "device").mkdir()
    monkeypatch.setattr(identity, "sysfs_node", lambda _device: disk)
    monkeypatch.setattr(stat, "S_ISBLK", lambda _mode: True)
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert not known(image).lasting
    assert boot in known(image).key
    for name, wanted in (
        ("device/wwid", "wwn:t10.ATA disk"),
        ("wwid", "wwn:eui.0025"),
        ("dm/uuid", "dm:LVM-abc"),
    ):
        (disk / name).write_text(wanted.partition(":")[2] + "\n")
        assert known(image) == Identity(wanted, lasting=True)


# Locks.


def test_the_holder_of_a_lock_is_named(image: Path) -> None:
    with opened(image) as one, opened(image) as other:
        assert lock_holder_of(other) == ""
        fcntl.flock(one, fcntl.LOCK_EX)
        command = Path("/proc/self/comm").read_text().strip()
        assert lock_holder_of(other) == f"process {os.getpid()} ({command})"


# Files.


@pytest.mark.root
@pytest.mark.needs("mkfs.ext4", "mkfs.xfs")
@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_a_file_is_the_same_after_a_remount_under_another_number(tmp_path: Path, kind: str) -> None:
    """The order of disks had changed, and each target was a new one."""
    image, spare = tmp_path / "image", tmp_path / "spare"
    for path, size in ((image, 320 << 20), (spare, 1 << 20)):
        with path.open("wb") as file:
            file.truncate(size)
    run(f"mkfs.{kind}", "-q", image)
    found = []
    for other in (False, True):
        with contextlib.ExitStack() as stack:
            if other:
                stack.enter_context(loop_device(spare))
            device = stack.enter_context(loop_device(image))
            place = stack.enter_context(mounted(device, tmp_path / "mnt"))
            (place / "disk").touch()
            number = (place / "disk").stat().st_dev
            found.append((number, known(place / "disk")))
    (number, before), (other_number, after) = found
    assert number != other_number
    assert before.key == after.key
    assert f"file:{number}:" in before.others[-1]
    assert after.is_known_as(before.key)
    assert not after.is_known_as(before.others[-1])


def test_a_file_is_known_as_earlier_versions_knew_it(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.touch()
    found, info = known(path), path.stat()
    former = (found.key, *found.others)[-1]
    assert former.startswith(f"file:{info.st_dev}:{info.st_ino}:")
    assert found.is_known_as(former)
