"""A target is opened only if nobody else uses it, and zeros are zeros whatever the store thinks."""

import errno
import fcntl
import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from blockstream.errors import BusyError, RefusedError, TargetError
from blockstream.linux import block
from blockstream.linux.aio import Batch
from blockstream.linux.block import QueueLimits
from blockstream.linux.device_mapper import Thin
from blockstream.linux.identity import Node
from blockstream.sources.disk import DiskSource
from blockstream.targets import disk as target_module
from blockstream.targets.disk import DiskTarget
from tests.devices import loop_device, mounted, partitions, rigged, run, tmpfs

MIB = 1 << 20
UNTOUCHED = "nothing was written"


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(b"\xff" * 8 * MIB)
    return path


def sources_of(path: str | Path) -> frozenset[Node]:
    with closing(DiskSource(str(path))) as source:
        return source.nodes


def refuse(path: str | Path, match: str, kind: type[RefusedError] = RefusedError) -> None:
    """Expect a refusal that says that nothing was written, and leaves no descriptor behind."""
    before = sum(1 for _ in Path("/proc/self/fd").iterdir())
    with pytest.raises(kind, match=match) as caught:
        DiskTarget(str(path))
    assert UNTOUCHED in str(caught.value)
    assert sum(1 for _ in Path("/proc/self/fd").iterdir()) == before


# What is there.


def test_a_missing_file_is_refused_and_not_made(tmp_path: Path) -> None:
    refuse(tmp_path / "none", "does not exist; nothing was written; check the name, or .*--create")
    assert not (tmp_path / "none").exists()


def test_a_missing_device_is_refused_and_not_made() -> None:
    refuse("/dev/blockstream-none", "does not exist")
    assert not Path("/dev/blockstream-none").exists()


def test_a_file_among_the_devices_is_not_made_on_demand_either() -> None:
    for path in ("/dev/blockstream-none", "/dev/../dev/blockstream-none"):
        with pytest.raises(RefusedError, match="among the devices; nothing was written"):
            DiskTarget(path, create=4096)
    assert not Path("/dev/blockstream-none").exists()


def test_what_is_no_disk_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    refuse(tmp_path, "neither a block device nor a regular file")
    refuse(tmp_path / "fifo", "neither a block device nor a regular file")
    refuse("/dev/null", "neither a block device nor a regular file")


def test_a_link_to_a_file_is_refused_with_the_name_of_the_file(image: Path) -> None:
    link = image.with_name("link")
    link.symlink_to(image)
    refuse(link, f"symbolic link to a file; nothing was written; give .* {image}")


@pytest.mark.root
def test_a_link_to_a_device_is_what_names_of_devices_are(image: Path) -> None:
    link = image.with_name("link")
    with loop_device(image) as device:
        link.symlink_to(device)
        with closing(DiskTarget(str(link))) as target:
            assert target.size == 8 * MIB


def test_a_link_to_nothing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "none")
    refuse(tmp_path / "link", "does not exist")


# Making a file.


def test_a_made_file_is_sparse_of_that_size_and_for_the_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "new"
    with closing(DiskTarget(str(path), create=1234567)) as target:
        assert target.size == 1234567
    info = path.stat()
    assert (info.st_size, info.st_blocks, stat.S_IMODE(info.st_mode)) == (1234567, 0, 0o600)


def test_the_name_of_a_made_file_is_durable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(target_module, "sync_directory", synced.append)
    monkeypatch.chdir(tmp_path)
    DiskTarget("new", create=4096).close()
    assert synced == [tmp_path]


def test_what_exists_is_not_made_again(image: Path) -> None:
    with pytest.raises(RefusedError, match=r"exists already.*nothing was written"):
        DiskTarget(str(image), create=4096)
    assert image.stat().st_size == 8 * MIB


def test_a_file_made_in_vain_is_removed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def locked(*_: object) -> None:
        raise BlockingIOError(errno.EWOULDBLOCK, "locked")

    monkeypatch.setattr(fcntl, "flock", locked)
    with pytest.raises(BusyError):
        DiskTarget(str(tmp_path / "new"), create=4096)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("other", ["file", "folder", "linked folder"])
def test_what_took_the_place_of_a_made_file_is_not_removed(tmp_path: Path, other: str) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    path = folder / "made"
    with closing(DiskTarget(str(path), create=4096)) as target:
        if other == "linked folder":
            folder.rename(tmp_path / "away")
            (tmp_path / "others").mkdir()
            folder.symlink_to("others")
        else:
            path.rename(tmp_path / "away")
        if other == "folder":
            path.mkdir()
        else:
            path.write_bytes(b"precious")
        target.remove_made()
        assert path.exists()


def test_a_file_larger_than_the_file_system_takes_is_refused_and_removed(tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match=r"cannot have .* bytes: .*nothing was written"):
        DiskTarget(str(tmp_path / "new"), create=(1 << 63) - 1)
    assert list(tmp_path.iterdir()) == []


# Many small writes.


def test_a_write_that_failed_in_a_batch_is_named_and_not_tried_again(
    image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(_self: Batch, _fd: int, _offsets: object, lengths: list[int], _data: object) -> Any:
        return [*lengths[:-1], -errno.EIO]

    monkeypatch.setattr(Batch, "write", failing)
    before = image.read_bytes()
    with closing(DiskTarget(str(image))) as target:
        offsets = [number * 8192 for number in range(5)]
        with pytest.raises(TargetError, match="4096 bytes at offset 32768 could not be written: I"):
            target.write_from(offsets, [4096] * 5, memoryview(bytes(5 * 4096)))
    assert image.read_bytes() == before


def test_what_a_batch_left_undone_is_done_by_itself(
    image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def some(_self: Batch, _fd: int, offsets: list[int], *_others: object) -> list[int]:
        return [number % 2 * 100 for number in range(len(offsets))]

    monkeypatch.setattr(Batch, "write", some)
    image.write_bytes(b"x" * 65536)
    content = os.urandom(5 * 4096)
    with closing(DiskTarget(str(image))) as target:
        target.write_from([0, 8192, 16384, 24576, 32768], [4096] * 5, memoryview(content))
    held = image.read_bytes()
    for number in range(5):
        done = number % 2 * 100
        start, begin = number * 8192, number * 4096
        assert held[start : start + done] == b"x" * done
        assert held[start + done : start + 4096] == content[begin + done : begin + 4096]


# Who uses it.


def test_a_locked_file_is_busy_and_its_holder_named(image: Path) -> None:
    with closing(DiskTarget(str(image))):
        refuse(image, rf"is locked by process {os.getpid()} \(.*wait for it to end", BusyError)
        DiskTarget(str(image), force_in_use=True).close()
    DiskTarget(str(image)).close()


@pytest.mark.root
def test_a_file_under_a_loop_device_is_busy(image: Path) -> None:
    with loop_device(image) as device:
        refuse(image, f"it backs {device}; nothing was written; stop .*--force-in-use", BusyError)
        DiskTarget(str(image), force_in_use=True).close()


@pytest.mark.root
def test_a_device_under_a_loop_device_is_busy(image: Path) -> None:
    with loop_device(image) as lower, loop_device(Path(lower)) as upper:
        refuse(lower, f"it backs {upper}", BusyError)


@contextmanager
def exclusive(path: str) -> Iterator[None]:
    fd = os.open(path, os.O_RDONLY | os.O_EXCL)
    try:
        yield
    finally:
        os.close(fd)


@contextmanager
def swap(path: str) -> Iterator[None]:
    run("mkswap", path)
    run("swapon", path)
    try:
        yield
    finally:
        run("swapoff", path)


@pytest.mark.root
def test_a_mounted_device_is_busy(image: Path, tmp_path: Path) -> None:
    with loop_device(image) as device:
        run("mkfs.ext4", "-q", device)
        with mounted(device, tmp_path / "place") as place:
            refuse(device, f"in use: {device[5:]} is mounted on {place}; nothing", BusyError)
            DiskTarget(device, force_in_use=True).close()
        DiskTarget(device).close()


@pytest.mark.root
@pytest.mark.needs("mkswap", "swapon")
def test_swap_is_busy(image: Path) -> None:
    image.chmod(0o600)
    with loop_device(image) as device, swap(device):
        refuse(device, f"in use: {device} is swap", BusyError)


@pytest.mark.root
def test_a_device_that_somebody_has_for_himself_is_busy(image: Path) -> None:
    with loop_device(image) as device, exclusive(device):
        refuse(device, "somebody has it open for himself", BusyError)


@pytest.mark.root
def test_another_receiver_is_named(image: Path) -> None:
    with loop_device(image) as device, closing(DiskTarget(device)):
        refuse(device, rf"process {os.getpid()} \(.*\) has locked it", BusyError)


@pytest.mark.root
@pytest.mark.needs("addpart")
def test_a_disk_is_busy_while_its_partition_is(image: Path, tmp_path: Path) -> None:
    with loop_device(image) as device, partitions(device, (MIB, MIB), (4 * MIB, MIB)) as parts:
        run("mkfs.ext4", "-q", parts[0])
        with mounted(parts[0], tmp_path / "place"):
            refuse(device, f"{parts[0][5:]} is mounted on", BusyError)
            refuse(parts[0], f"{parts[0][5:]} is mounted on", BusyError)
            DiskTarget(parts[1]).close()


@pytest.mark.root
def test_what_we_hold_can_be_neither_mounted_nor_opened_again(image: Path, tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    with loop_device(image) as device:
        run("mkfs.ext4", "-q", device)
        with closing(DiskTarget(device)):
            tried = subprocess.run(["mount", device, place], capture_output=True, check=False)  # noqa: S603, S607
            assert tried.returncode == 32
            with pytest.raises(OSError, match="busy"), exclusive(device):
                pass
        with mounted(device, place):
            pass


# The source.


def test_the_source_itself_is_refused_whatever_is_forced(image: Path) -> None:
    for forced in (False, True):
        with pytest.raises(RefusedError, match=f"is the source itself.*{UNTOUCHED}"):
            DiskTarget(str(image), force_in_use=forced, sources=sources_of(image))


def test_another_file_is_not_the_source(image: Path, tmp_path: Path) -> None:
    (tmp_path / "other").touch()
    DiskTarget(str(image), sources=sources_of(tmp_path / "other")).close()


@pytest.mark.root
def test_the_source_through_a_loop_device_is_refused(image: Path) -> None:
    with loop_device(image) as device:
        for source, target in ((image, device), (device, image), (device, device)):
            with pytest.raises(RefusedError, match="is the source itself"):
                DiskTarget(str(target), force_in_use=True, sources=sources_of(source))


@pytest.mark.root
@pytest.mark.needs("addpart")
def test_the_disk_of_the_source_is_refused_and_its_sibling_is_not(image: Path) -> None:
    with loop_device(image) as device, partitions(device, (MIB, MIB), (4 * MIB, MIB)) as parts:
        with pytest.raises(RefusedError, match="is the source itself"):
            DiskTarget(device, sources=sources_of(parts[0]))
        with pytest.raises(RefusedError, match="is the source itself"):
            DiskTarget(parts[0], sources=sources_of(device))
        DiskTarget(parts[1], sources=sources_of(parts[0])).close()


# Zeros.


@pytest.mark.root
@pytest.mark.needs("nbdkit:python", "nbdfuse")
@pytest.mark.parametrize("keeps", [False, True], ids=["trims", "ignores trim"])
def test_a_discard_counts_as_zeros_only_where_it_reads_as_zeros(
    tmp_path: Path, image: Path, monkeypatch: pytest.MonkeyPatch, keeps: bool
) -> None:
    limits = QueueLimits(write_zeroes_max=0, discard_max=1 << 30, discard_granularity=65536)
    monkeypatch.setattr(target_module, "queue_limits_of", lambda _fd: limits)
    monkeypatch.setattr(target_module, "thin_at", lambda _device: Thin(65536, shows_old=False))
    discarded: list[tuple[int, int]] = []

    def discard(fd: int, offset: int, length: int) -> None:
        discarded.append((offset, length))
        block.discard(fd, offset, length)

    monkeypatch.setattr(target_module, "discard", discard)
    with rigged(tmp_path, image) as rig, closing(DiskTarget(rig.devices[image.name])) as target:
        rig.order(keeps=int(keeps))
        wanted = bytearray(image.read_bytes())
        for offset, length in ((512, 1024), (3 * MIB - 512, MIB), (5 * MIB, 65536 + 4096)):
            target.zero(offset, length)
            wanted[offset : offset + length] = bytes(length)
        target.flush()
        assert target.read_medium(0, target.size) == wanted
        assert rig.image(image.name).read_bytes() == wanted
        assert rig.hits() == (2 if keeps else 0)
    assert discarded == [(3 * MIB, MIB - 65536), (5 * MIB, 65536)]


@pytest.mark.root
@pytest.mark.parametrize(
    ("limits", "thin"),
    [
        (QueueLimits(write_zeroes_max=0, discard_max=1 << 30), False),
        (QueueLimits(write_zeroes_max=1 << 20, discard_max=1 << 30), True),
        (QueueLimits(), True),
    ],
    ids=["disk without zeroing", "zeroes itself", "no discard"],
)
def test_nothing_else_is_discarded(
    image: Path, monkeypatch: pytest.MonkeyPatch, limits: QueueLimits, thin: bool
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("a discard is no content")

    monkeypatch.setattr(target_module, "queue_limits_of", lambda _fd: limits)
    known = Thin(65536, shows_old=False) if thin else None
    monkeypatch.setattr(target_module, "thin_at", lambda _device: known)
    monkeypatch.setattr(target_module, "discard", never)
    with loop_device(image) as device, closing(DiskTarget(device)) as target:
        target.zero(0, MIB)
        target.flush()
        assert target.read_medium(0, MIB) == bytes(MIB)


@pytest.mark.parametrize("code", [errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS])
def test_where_zeros_cannot_be_asked_for_they_are_written(
    image: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(target_module, "punch_hole", unsupported)
    with closing(DiskTarget(str(image))) as target:
        target.zero(100, 3 * MIB)
    assert image.read_bytes() == b"\xff" * 100 + bytes(3 * MIB) + b"\xff" * (5 * MIB - 100)


def test_a_failing_request_for_zeros_is_not_tried_in_another_way(
    image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(target_module, "punch_hole", broken)
    with (
        closing(DiskTarget(str(image))) as target,
        pytest.raises(TargetError, match=r"4096 bytes at offset 512 could not be zeroed.*DIRTY"),
    ):
        target.zero(512, 4096)


# Errors.


@pytest.mark.root
def test_a_full_file_system_is_named_with_the_offset(tmp_path: Path) -> None:
    with (
        tmpfs(tmp_path / "small", "64k") as place,
        closing(DiskTarget(str(place / "new"), create=MIB)) as target,
        pytest.raises(TargetError, match=r"at offset 0 could .*No space left.*pool or"),
    ):
        target.write_from([0], [MIB], memoryview(bytes(MIB)))


@pytest.mark.root
@pytest.mark.needs("nbdkit:python", "nbdfuse")
def test_a_flush_that_failed_is_an_error_of_the_target(tmp_path: Path, image: Path) -> None:
    with rigged(tmp_path, image) as rig, closing(DiskTarget(rig.devices[image.name])) as target:
        rig.order(fail="flush", errno=errno.EIO)
        target.write_from([0], [4096], memoryview(bytes(4096)))
        with pytest.raises(TargetError, match=r"could not be flushed: Input/output.*same command"):
            target.flush()


@pytest.mark.root
@pytest.mark.needs("nbdkit:python", "nbdfuse")
def test_an_error_of_this_run_is_not_left_to_the_next(tmp_path: Path, image: Path) -> None:
    with rigged(tmp_path, image) as rig:
        with closing(DiskTarget(rig.devices[image.name])) as target:
            target.write_from([0], [4096], memoryview(bytes(4096)))
            rig.order(fail="write", errno=errno.EIO)
        assert rig.hits() == 1
        rig.order()
        with closing(DiskTarget(rig.devices[image.name])) as target:
            target.flush()


@pytest.mark.root
@pytest.mark.needs("nbdkit:python", "nbdfuse")
def test_reading_the_medium_does_not_eat_the_error_of_the_flush(
    tmp_path: Path, image: Path
) -> None:
    """A direct read writes back what is dirty in its range, and meets the error first."""
    with rigged(tmp_path, image) as rig, closing(DiskTarget(rig.devices[image.name])) as target:
        rig.order(fail="write", errno=errno.EIO)
        target.write_from([0], [4096], memoryview(bytes(4096)))
        with pytest.raises(TargetError, match="cannot be read back"):
            target.read_medium(0, 4096)
        with pytest.raises(TargetError, match="could not be flushed"):
            target.flush()


@pytest.mark.root
def test_the_medium_is_read_and_not_the_cache(image: Path) -> None:
    with loop_device(image) as device, closing(DiskTarget(device)) as target:
        fd = os.open(device, os.O_RDONLY)
        assert os.pread(fd, 4096, 0) == b"\xff" * 4096  # cached now
        below = os.open(image, os.O_WRONLY)
        os.pwrite(below, b"new!" * 1024, 0)
        os.fsync(below)
        os.close(below)
        assert os.pread(fd, 4096, 0) == b"\xff" * 4096
        os.close(fd)
        assert target.read_medium(0, 4096) == b"new!" * 1024


def test_where_the_cache_cannot_be_passed_it_is_dropped(
    image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DiskTarget, "_open_medium", lambda _self: -1)
    with closing(DiskTarget(str(image))) as target:
        target.write_from([100], [4], memoryview(b"data"))
        target.flush()
        assert target.read_medium(99, 6) == b"\xffdata\xff"


@pytest.mark.slow
def test_a_lock_ends_with_the_process_that_held_it(image: Path) -> None:
    text = f"from blockstream.targets.disk import DiskTarget; DiskTarget({str(image)!r})"
    subprocess.run([sys.executable, "-c", text], check=True)  # noqa: S603
    DiskTarget(str(image)).close()


@pytest.mark.root
def test_a_read_only_device_is_refused(image: Path) -> None:
    with loop_device(image) as device:
        run("blockdev", "--setro", device)
        refuse(device, "is read-only; nothing was written; `blockdev --setrw")
        run("blockdev", "--setrw", device)
        with closing(DiskTarget(device)):
            pass


# Somebody changes it meanwhile.


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """Return a file of somebody else's, at which a name is made to point."""
    path = tmp_path / "victim"
    path.write_bytes(b"v" * 8 * MIB)
    return path


@pytest.mark.parametrize("kind", ["link", "file", "fifo"])
@pytest.mark.parametrize("moment", range(8))
def test_a_name_that_is_exchanged_between_two_looks_is_refused_or_was_never_followed(
    image: Path, victim: Path, monkeypatch: pytest.MonkeyPatch, kind: str, moment: int
) -> None:
    """Root's other file was overwritten."""
    calls = 0
    system = {name: getattr(os, name) for name in ("open", "fstat", "stat", "lstat")}

    def exchanging(name: str) -> Any:
        def call(*words: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == moment + 1:
                image.rename(image.with_name("kept"))
                if kind == "link":
                    image.symlink_to(victim)
                elif kind == "fifo":
                    os.mkfifo(image)
                else:
                    image.write_bytes(victim.read_bytes())
            return system[name](*words, **options)

        return call

    with monkeypatch.context() as patched:
        for name in system:
            patched.setattr(os, name, exchanging(name))
        try:
            target = DiskTarget(str(image))
        except RefusedError as error:
            assert UNTOUCHED in str(error)  # noqa: PT017  # or it may be taken
            return
    # Exchanged before the first look, or after the last.
    with closing(target):
        held = os.fstat(target._fd)
        assert held.st_ino != victim.stat().st_ino
        if calls <= moment or not os.path.samestat(held, image.lstat()):
            target.write_from([0], [4096], memoryview(bytes(4096)))
        if not os.path.samestat(held, image.lstat()):
            with pytest.raises(RefusedError, match=UNTOUCHED):
                target.begin()
    assert victim.read_bytes() == b"v" * 8 * MIB


def changed_name(image: Path) -> None:
    image.rename(image.with_name("kept"))
    image.write_bytes(b"\xff" * 8 * MIB)


def linked(image: Path) -> None:
    image.with_name("other").hardlink_to(image)


def holed(image: Path) -> None:
    with image.open("r+b") as file:
        block.punch_hole(file.fileno(), 2 * MIB, 32_768)


def freed(image: Path) -> None:
    os.truncate(image, 0)
    os.truncate(image, 8 * MIB)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (changed_name, "stands for another disk"),
        (Path.unlink, "is no name of it any more"),
        (lambda image: os.truncate(image, 5 * MIB), "it has 5242880 bytes now"),
        (lambda image: os.truncate(image, 9 * MIB), "it has 9437184 bytes now"),
        (linked, "the file has 2 names now"),
        (holed, "there is a hole at offset 2097152"),
        (freed, "there is a hole at offset 1048576"),
    ],
)
def test_a_target_that_somebody_changed_meanwhile_is_not_whole(
    image: Path, change: Callable[[Path], object], said: str
) -> None:
    with closing(DiskTarget(str(image))) as target:
        target.begin()
        data = memoryview(b"d" * MIB)
        target.write_from([4 * MIB], [MIB], data)
        target.write_from([MIB], [MIB], data)
        target.write_from([2 * MIB], [MIB], data)
        target.flush()
        target.check_whole()
        change(image)
        with pytest.raises(TargetError, match=said) as caught:
            target.check_whole()
        assert "marked DIRTY" in str(caught.value)


def test_a_hole_is_no_loss_where_no_data_was_written(image: Path) -> None:
    with closing(DiskTarget(str(image))) as target:
        target.write_from([0], [MIB], memoryview(b"d" * MIB))
        target.begin()  # another transfer
        target.zero(0, 2 * MIB)
        target.write_from([2 * MIB], [MIB], memoryview(b"d" * MIB))
        target.write_from([7 * MIB], [MIB], memoryview(b"d" * MIB))
        target.zero(4 * MIB, MIB)
        target.flush()
        # Short runs of zeros travel as data, and ZFS makes holes of them.
        block.punch_hole(target._fd, 2 * MIB + 4096, 28_672)
        target.check_whole()


@pytest.mark.root
def test_a_device_that_got_another_size_or_name_is_not_whole(image: Path, tmp_path: Path) -> None:
    with loop_device(image) as device:
        name = tmp_path / "by-id"
        name.symlink_to(device)
        with closing(DiskTarget(str(name))) as target:
            target.check_whole()
            with image.open("ab") as file:
                file.write(bytes(MIB))
            run("losetup", "--set-capacity", device)
            with pytest.raises(TargetError, match="it has 9437184 bytes now, and had 8388608"):
                target.check_whole()
        with closing(DiskTarget(str(name))) as target:
            name.unlink()
            name.symlink_to("/dev/null")
            with pytest.raises(TargetError, match="stands for something else"):
                target.check_whole()
