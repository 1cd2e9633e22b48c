"""A receiver that may still write to a target is waited for, and nobody else."""

import fcntl
import hashlib
from pathlib import Path

import pytest

from blockstream.errors import BusyError, NotFoundError, RefusedError
from blockstream.jobs.target_admin import adopt, forget
from blockstream.linux.block import is_locked
from blockstream.linux.identity import identity_of
from blockstream.pipeline.target_status import UNDO_NAME, status_at
from blockstream.transfers import opened_target
from blockstream.transfers.opened_target import wait_for_receiver


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

        monkeypatch.setattr(opened_target, "is_locked", look)
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


def test_a_journal_of_an_earlier_version_is_found_again(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(1 << 16))
    with disk.open("rb") as file:
        known = identity_of(file.fileno())
    if not known.others:
        pytest.fail("this file system has no id of its own; the folder for tests needs one")
    adopt(str(disk), "a", tmp_path / "state", force_base=False)
    new = status_at(str(disk), tmp_path / "state").folder
    old = new.with_name(hashlib.sha256(known.others[-1].encode()).hexdigest()[:32])
    new.rename(old)
    assert status_at(str(disk), tmp_path / "state").folder == old
    adopt(str(disk), "b", tmp_path / "state", force_base=False)
    assert [path.name for path in old.parent.iterdir()] == [old.name]


def test_a_target_that_is_gone_can_be_forgotten(tmp_path: Path) -> None:
    disk, state = tmp_path / "disk", tmp_path / "state"
    disk.write_bytes(bytes(1 << 16))
    adopt(str(disk), "a", state, force_base=False)
    folder = status_at(str(disk), state).folder
    disk.unlink()
    with pytest.raises(NotFoundError, match="nothing was forgotten"):
        forget(str(tmp_path / "other"), state, force_base=False)
    assert forget(str(disk), state, force_base=False) == [folder]
    assert not folder.exists()
    with pytest.raises(NotFoundError):
        forget(str(disk), state, force_base=False)


def test_what_could_be_taken_back_is_forgotten_only_by_force(tmp_path: Path) -> None:
    disk, state = tmp_path / "disk", tmp_path / "state"
    disk.write_bytes(bytes(1 << 16))
    adopt(str(disk), "a", state, force_base=False)
    (status_at(str(disk), state).folder / UNDO_NAME).touch()
    with pytest.raises(RefusedError, match="could be taken back"):
        forget(str(disk), state, force_base=False)
    assert len(forget(str(disk), state, force_base=True)) == 1
