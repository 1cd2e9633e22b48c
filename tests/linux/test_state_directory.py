"""State is locked, preallocated and durable before anybody relies on it."""

import contextlib
import os
import socket
import stat
from pathlib import Path

import pytest

from blockstream.errors import BusyError, RefusedError
from blockstream.linux.state_directory import (
    JournalFiles,
    default_state_directory,
    locked,
    make_directory,
)
from tests.devices import tmpfs

SLOT = 8192


@pytest.mark.parametrize(
    ("environment", "user", "wanted"),
    [
        ({"BLOCKSTREAM_STATE_DIR": "/chosen"}, 0, "/chosen"),
        ({}, 0, "/var/lib/blockstream"),
        ({"XDG_STATE_HOME": "/xdg"}, 1000, "/xdg/blockstream"),
        ({"HOME": "/home/me"}, 1000, "/home/me/.local/state/blockstream"),
    ],
)
def test_state_lies_where_the_user_expects_it(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], user: int, wanted: str
) -> None:
    for name in ("BLOCKSTREAM_STATE_DIR", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(os, "geteuid", lambda: user)
    assert default_state_directory() == Path(wanted)


def test_a_directory_is_made_durably_and_for_the_owner_only(
    tmp_path: Path, synced: list[str]
) -> None:
    folder = tmp_path / "a" / "b" / "c"
    make_directory(folder)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert synced[:3] == [str(tmp_path), str(tmp_path / "a"), str(tmp_path / "a" / "b")]


def test_a_directory_that_somebody_made_and_did_not_sync_is_synced(
    tmp_path: Path, synced: list[str]
) -> None:
    (tmp_path / "folder").mkdir()
    make_directory(tmp_path / "folder")
    assert str(tmp_path) in synced


def test_a_directory_that_cannot_be_made_is_a_refusal(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RefusedError, match=r"cannot be made.*nothing was written.*--state-dir"):
        make_directory(tmp_path / "file" / "folder")


def test_a_lock_is_held_until_the_end(tmp_path: Path) -> None:
    with (
        locked(tmp_path / "lock", "the thing"),
        pytest.raises(BusyError),
        locked(tmp_path / "lock", "the thing"),
    ):
        pass
    with locked(tmp_path / "lock", "the thing"):
        pass


def test_who_is_busy_is_named(tmp_path: Path) -> None:
    wanted = (
        rf"the thing is busy: process {os.getpid()} on {socket.gethostname()} works on it; "
        "nothing was written; wait"
    )
    with (
        locked(tmp_path / "lock", "the thing"),
        pytest.raises(BusyError, match=wanted),
        locked(tmp_path / "lock", "the thing"),
    ):
        pass


def test_a_lock_that_cannot_be_made_is_a_refusal(tmp_path: Path) -> None:
    with (
        pytest.raises(RefusedError, match="nothing was written"),
        locked(tmp_path / "none" / "lock", "the thing"),
    ):
        pass


def test_a_journal_is_preallocated_and_its_name_durable(tmp_path: Path, synced: list[str]) -> None:
    folder = tmp_path / "target"
    with JournalFiles.opened(folder, SLOT):
        journal = folder / "journal"
        assert journal.stat().st_size == 2 * SLOT
        assert journal.stat().st_blocks * 512 >= 2 * SLOT
        assert {str(journal), str(folder), str(tmp_path)} <= set(synced)


def test_a_journal_that_somebody_made_and_did_not_sync_is_synced(
    tmp_path: Path, synced: list[str]
) -> None:
    with JournalFiles.opened(tmp_path, SLOT):
        synced.clear()
    with JournalFiles.opened(tmp_path, SLOT):
        assert str(tmp_path) in synced


def test_slots_come_back_as_they_were_written(tmp_path: Path) -> None:
    with JournalFiles.opened(tmp_path, SLOT) as files:
        assert files.read_slot(0) == files.read_slot(1) == bytes(SLOT)
        files.write_slot(1, b"1" * SLOT)
        files.write_slot(0, b"0" * SLOT)
        files.flush()
    with JournalFiles.opened(tmp_path, SLOT) as files:
        assert files.read_slot(0) == b"0" * SLOT
        assert files.read_slot(1) == b"1" * SLOT


def test_plans_are_kept_and_dropped_by_name(tmp_path: Path) -> None:
    with (
        JournalFiles.opened(tmp_path, SLOT) as files,
        JournalFiles.opened(tmp_path, SLOT, "spool") as spool,
    ):
        for name in ("a", "b"):
            files.write_plan(name, name.encode())
            spool.write_plan(name, b"spool")
        files.drop_plans(keep="b")
        assert files.read_plan("b") == b"b"
        assert spool.read_plan("a") == b"spool"
        with pytest.raises(FileNotFoundError):
            files.read_plan("a")


def test_there_is_one_receiver_a_target(tmp_path: Path) -> None:
    with JournalFiles.opened(tmp_path, SLOT):
        with (
            pytest.raises(BusyError, match=f"state lies in {tmp_path}"),
            JournalFiles.opened(tmp_path, SLOT),
        ):
            pass
        with JournalFiles.opened(tmp_path, SLOT, "spool"):
            pass


def test_no_descriptor_is_left(tmp_path: Path) -> None:
    before = sum(1 for _ in Path("/proc/self/fd").iterdir())
    with (
        JournalFiles.opened(tmp_path, SLOT),
        contextlib.suppress(BusyError),
        JournalFiles.opened(tmp_path, SLOT),
    ):
        pass
    assert sum(1 for _ in Path("/proc/self/fd").iterdir()) == before


@pytest.mark.root
@pytest.mark.parametrize("room", [0, 4096, SLOT])
def test_a_full_disk_is_a_refusal_before_anything_is_written(tmp_path: Path, room: int) -> None:
    with tmpfs(tmp_path / "small", "64k") as place:
        make_directory(place / "target")
        size = 64 * 1024 - room
        with (place / "filler").open("wb") as file, contextlib.suppress(OSError):
            for _ in range(size // 4096):
                os.write(file.fileno(), bytes(4096))
        with (
            pytest.raises(RefusedError, match=r"cannot be made: No space.*nothing was written"),
            JournalFiles.opened(place / "target", SLOT),
        ):
            pass
        (place / "filler").unlink()
        with JournalFiles.opened(place / "target", SLOT) as files:
            files.write_slot(1, b"1" * SLOT)


@pytest.mark.root
def test_a_read_only_file_system_is_a_refusal(tmp_path: Path) -> None:
    from tests.devices import run

    with tmpfs(tmp_path / "small", "64k") as place:
        make_directory(place / "target")
        run("mount", "-o", "remount,ro", place)
        with (
            pytest.raises(RefusedError, match=r"Read-only file system; nothing was written"),
            JournalFiles.opened(place / "target", SLOT),
        ):
            pass
