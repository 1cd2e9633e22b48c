"""What tests of files have in common."""

import os
from pathlib import Path

import pytest


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Note what is made durable, by name: fsync of files and folders."""
    real, names = os.fsync, []

    def fsync(fd: int) -> None:
        names.append(str(Path(f"/proc/self/fd/{fd}").readlink()))
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    return names
