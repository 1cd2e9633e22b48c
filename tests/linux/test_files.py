"""A file is replaced whole and durably, or stays the old one."""

import errno
import os
from pathlib import Path

import pytest

from blockstream.linux.files import write_durably


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
