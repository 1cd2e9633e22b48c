"""A file or device is read as it is, warned about, and the page cache stays as it was."""

import errno
import mmap
import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from blockstream.errors import NotFoundError, SourceError
from blockstream.linux.buffers import aligned_buffer
from blockstream.linux.page_cache import CacheView
from blockstream.locations.registry import disk_of
from blockstream.sources import disk as source_module
from blockstream.sources.disk import DiskSource
from tests.devices import loop_device, mounted, rigged, run

PAGE = mmap.PAGESIZE
PAGES = 256


@pytest.fixture
def folder() -> Iterator[Path]:
    """Give a folder whose files have pages that can be dropped: one not in memory."""
    for place in (Path("/var/tmp"), Path.cwd()):  # noqa: S108
        kind = run("stat", "--file-system", "--format=%T", place).strip()
        if kind not in {"tmpfs", "ramfs", "overlayfs"}:
            with TemporaryDirectory(dir=place) as name:
                yield Path(name)
            return
    pytest.skip("everything here lies in memory")


@pytest.fixture
def cold(folder: Path) -> Path:
    """Give a file none of whose pages is cached."""
    path = folder / "disk.img"
    with path.open("wb") as file:
        file.write(os.urandom(PAGES * PAGE - 100))
        file.flush()
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    assert cached(path) == []
    return path


def cached(path: Path) -> list[int]:
    """Return the numbers of the pages that are in the cache."""
    size = path.stat().st_size
    with path.open("rb") as file, closing(CacheView(file.fileno(), size)) as view:
        absent = {
            offset // PAGE + page
            for offset, length in view.absent(0, size)
            for page in range(length // PAGE)
        }
    return [page for page in range(-(-size // PAGE)) if page not in absent]


def touch(path: Path, *pages: int) -> None:
    """Bring single pages into the cache, as another process would."""
    fd = os.open(path, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
    for page in pages:
        os.pread(fd, 1, page * PAGE)
    os.close(fd)


def read_all_of(path: Path, step: int = 1 << 16) -> bytes:
    parts = []
    with closing(DiskSource(str(path))) as source:
        for start in range(0, source.size, step):
            length = min(step, source.size - start)
            buffer = aligned_buffer(length)
            source.read_into([start], [length], buffer)
            parts.append(bytes(buffer))
    return b"".join(parts)


@pytest.mark.parametrize("step", [pytest.param(512, marks=pytest.mark.slow), 1 << 16, 1 << 20])
def test_a_cold_file_is_cold_afterwards(cold: Path, step: int) -> None:
    content = read_all_of(cold, step)
    assert cached(cold) == []
    assert content == cold.read_bytes()


@pytest.mark.parametrize("pages", [[0], [5, 6, 200], [PAGES - 1], list(range(0, PAGES, 2))])
def test_pages_that_were_cached_stay(cold: Path, pages: list[int]) -> None:
    touch(cold, *pages)
    assert cached(cold) == pages
    content = read_all_of(cold)
    assert cached(cold) == pages
    assert content == cold.read_bytes()


def test_a_warm_file_is_warm_afterwards(cold: Path) -> None:
    cold.read_bytes()
    read_all_of(cold)
    assert cached(cold) == list(range(PAGES))


def test_bytes_that_are_not_on_the_medium_yet_are_read_too(cold: Path) -> None:
    fd = os.open(cold, os.O_WRONLY)
    os.pwrite(fd, b"new" * 100, 10 * PAGE)
    assert read_all_of(cold)[10 * PAGE :][:300] == b"new" * 100
    os.close(fd)


def test_where_the_cache_cannot_be_seen_everything_read_is_dropped(
    cold: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source_module, "may_see_cache", lambda _fd: False)
    read_all_of(cold)
    assert cached(cold) == []


@pytest.mark.root
def test_a_device_is_read_past_the_cache(folder: Path) -> None:
    file = folder / "disk.img"
    file.write_bytes(b"old" * 4096 * 16)
    with loop_device(file) as device, closing(DiskSource(device)) as source:
        before = Path(device).read_bytes()  # the device's own cache holds the old bytes now
        fd = os.open(file, os.O_WRONLY)
        os.pwrite(fd, b"new!" * 1024, 0)
        os.fsync(fd)
        os.close(fd)
        buffer = aligned_buffer(4096)
        source.read_into([0], [4096], buffer)
        assert Path(device).read_bytes() == before
        assert bytes(buffer) == b"new!" * 1024


def test_nothing_there_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="does not exist; nothing was sent"):
        DiskSource(str(tmp_path / "nothing"))


def test_what_is_no_disk_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path, tmp_path / "fifo", Path("/dev/null")):
        with pytest.raises(SourceError, match="neither a file nor a block device"):
            DiskSource(str(path))


def test_a_file_in_the_place_of_a_folder_is_an_error_of_the_source(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(SourceError, match="cannot be opened: Not a directory; nothing was sent"):
        DiskSource(str(tmp_path / "file" / "disk"))


def test_a_file_that_was_written_is_not_valid(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(4096))
    os.utime(path, ns=(0, 0))
    with closing(DiskSource(str(path))) as source:
        source.validate()
        with path.open("r+b") as file:
            file.write(b"x")
        with pytest.raises(SourceError, match=r"was written while it was read.*END was not sent"):
            source.validate()


def test_a_file_that_became_shorter_is_no_disk_any_more(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(8192))
    with closing(DiskSource(str(path))) as source:
        os.truncate(path, 4096)
        with pytest.raises(SourceError, match="shorter than its 8192 bytes"):
            source.read_into([4096], [4096], aligned_buffer(4096))


def test_a_range_that_cannot_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(8192))

    def broken(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(source_module, "read_all", broken)
    with (
        closing(DiskSource(str(path))) as source,
        pytest.raises(SourceError, match="512 bytes at offset 4096 cannot be read: Input/output"),
    ):
        source.read_into([4096], [512], aligned_buffer(512))


@pytest.mark.root
@pytest.mark.needs("nbdkit:python", "nbdfuse")
def test_a_bad_sector_of_a_device_is_named_and_nothing_put_in_its_place(tmp_path: Path) -> None:
    image = tmp_path / "t"
    image.write_bytes(bytes(1 << 20))
    with rigged(tmp_path, image) as rig, closing(DiskSource(rig.devices["t"])) as source:
        rig.order(bad=70_000)
        source.read_into([0], [65536], aligned_buffer(65536))
        with pytest.raises(SourceError, match="4096 bytes at offset 69632 cannot be read: Input"):
            source.read_into([69632], [4096], aligned_buffer(4096))


@pytest.mark.root
@pytest.mark.needs("mkfs.ext4")
def test_a_mounted_device_is_warned_about(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(1 << 20))
    run("mkfs.ext4", "-q", image)
    with (
        loop_device(image) as device,
        mounted(device, tmp_path / "a b"),
        closing(DiskSource(device)) as source,
    ):
        assert f"is mounted on {tmp_path}/a b" in source.warnings[0]
        assert "a snapshot would be" in source.warnings[0]


@pytest.mark.root
def test_a_device_that_changed_its_size_is_not_valid(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(1 << 20))
    with loop_device(image) as device, closing(DiskSource(device)) as source:
        source.validate()
        os.truncate(image, 2 << 20)
        run("losetup", "--set-capacity", device)
        with pytest.raises(SourceError, match="changed its size"):
            source.validate()


@pytest.mark.parametrize(
    ("head", "instead"),
    [
        (b"KDMV\1\0\0\0", "vmdk:FILE"),
        (b"# Disk DescriptorFile\n", "vmdk:FILE"),
        (b"QFI\xfb\0\0\0\3", "nbd+unix:///"),
        (b"\xef\xbb\xbf# Disk DescriptorFile\n", "vmdk:FILE"),
        (bytes(512) + b"conectix", "-f vpc"),
        (b"box.ovf".ljust(257, b"\0") + b"ustar", "vmdk:FILE"),
    ],
)
def test_a_disk_in_another_form_is_warned_of(tmp_path: Path, head: bytes, instead: str) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(head.ljust(1024, b"\0"))
    with closing(disk_of(str(path)).open_source()) as source:
        (warning,) = source.warnings
    with closing(DiskSource(str(path))) as part_of_another:
        assert part_of_another.warnings == []
    assert "is sent as the file that it is" in warning
    assert instead in warning


def test_a_disk_as_it_is_is_not_warned_of(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(b"\xeb\x63\x90".ljust(1024, b"\0"))
    with closing(disk_of(str(path)).open_source()) as source:
        assert source.warnings == []
