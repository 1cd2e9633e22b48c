"""A file is replaced whole and durably, or stays the old one."""

import errno
import os
from pathlib import Path

import pytest

from blockstream.linux.files import kept_file, write_durably


def test_a_file_is_replaced_whole_and_durably(tmp_path: Path, synced: list[str]) -> None:
    path = tmp_path / "plan"
    write_durably(path, b"one")
    write_durably(path, b"two")
    assert path.read_bytes() == b"two"
    assert list(tmp_path.iterdir()) == [path]
    assert synced == [str(path) + ".new", str(tmp_path)] * 2


def test_a_file_that_cannot_be_written_stays_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "plan"
    write_durably(path, b"old")

    def full(_fd: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_durably(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_nothing_is_written_through_a_link_that_somebody_planted(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    path = tmp_path / "receipt"
    path.with_name("receipt.new").symlink_to(victim)
    write_durably(path, b"ours")
    assert path.read_bytes() == b"ours"
    assert not path.is_symlink()
    (tmp_path / "lock").symlink_to(victim)
    with pytest.raises(OSError, match="symbolic links"):
        kept_file(tmp_path / "lock")
    assert victim.read_bytes() == b"precious"
