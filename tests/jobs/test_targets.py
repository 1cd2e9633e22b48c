"""A receiver that may still write to a target is waited for, and nobody else."""

import fcntl
from pathlib import Path

import pytest

from blockstream.errors import BusyError
from blockstream.jobs import targets
from blockstream.jobs.targets import wait_for_receiver
from blockstream.linux.block import is_locked


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk"
    path.write_bytes(bytes(512))
    return path


def test_a_receiver_that_ends_is_waited_for(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    with disk.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)

        def look(path: str) -> bool:
            seen.append(is_locked(path))
            file.close()
            return seen[-1]

        monkeypatch.setattr(targets, "is_locked", look)
        wait_for_receiver(str(disk), 60)
    assert seen == [True, False]


def test_one_that_does_not_end_is_named(disk: Path) -> None:
    with disk.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(BusyError, match="written by another transfer, also after 0 s"):
            wait_for_receiver(str(disk), 0)


def test_who_only_looks_is_not_waited_for(disk: Path) -> None:
    with disk.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        wait_for_receiver(str(disk), 0)
