"""What a file system says wrongly, or not at all, costs no object."""

import os
from pathlib import Path

import pytest

from blockstream.errors import StoreError
from blockstream.stores.folder import FolderObjects


@pytest.fixture
def objects(tmp_path: Path) -> FolderObjects:
    return FolderObjects(tmp_path)


def test_a_folder_that_cannot_be_read_is_not_empty(
    objects: FolderObjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    objects.put("a/b/c", b"x")
    scandir = os.scandir

    def failing(path: str) -> object:
        if str(path).endswith("/b"):
            raise OSError(5, "Input/output error")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", failing)
    with pytest.raises(StoreError, match="Input/output error"):
        list(objects.listed("a/"))


def test_a_link_whose_reply_was_lost_is_ours(
    objects: FolderObjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NFS sends it again, and hears that the name is taken."""
    link = os.link

    def twice(source: Path, target: Path) -> None:
        link(source, target)
        link(source, target)

    monkeypatch.setattr(os, "link", twice)
    assert objects.put_new("a/b", b"first")
    assert not objects.put_new("a/b", b"second")
    assert objects.read("a/b") == b"first"
