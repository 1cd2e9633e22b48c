"""What is cached of a file is told exactly, and only believed where the kernel tells it."""

import os
from contextlib import closing
from pathlib import Path

import pytest

from blockstream.linux.page_cache import CacheView, lies_in_memory, may_see_cache


def test_a_file_just_written_is_cached_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(10_000))
    with path.open("rb") as file, closing(CacheView(file.fileno(), 10_000)) as view:
        assert view.absent(0, 10_000) == []
        assert view.absent(5000, 1) == []


def test_absent_pages_are_whole_pages_around_the_range(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    os.truncate(path, 1 << 20)  # a hole is in no cache
    with path.open("rb") as file, closing(CacheView(file.fileno(), 1 << 20)) as view:
        assert view.absent(5000, 100) == [(4096, 4096)]
        assert view.absent(4000, 5000) == [(0, 12288)]
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        os.pread(file.fileno(), 1, 8192)
        assert view.absent(0, 16384) == [(0, 8192), (12288, 4096)]


def test_what_cannot_be_mapped_is_an_error(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    with pytest.raises(OSError, match=r"No such device|Permission"):
        CacheView(fd, 4096)
    os.close(fd)


def test_an_owner_may_see(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    with path.open("rb") as file:
        assert may_see_cache(file.fileno())


@pytest.mark.root
def test_somebody_else_may_not_see_what_he_may_not_write(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch(mode=0o644)
    with path.open("rb") as file:
        child = os.fork()
        if not child:
            os.setresuid(65534, 65534, 65534)
            os._exit(may_see_cache(file.fileno()))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_file_in_memory_is_told_from_one_on_a_disk() -> None:
    with Path("/dev/shm/blockstream-test").open("wb") as file:  # noqa: S108
        Path(file.name).unlink()
        assert lies_in_memory(file.fileno())
    with Path("/proc/self/status").open("rb") as file:
        assert not lies_in_memory(file.fileno())
