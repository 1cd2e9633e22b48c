"""What a file system says wrongly, or not at all, costs no object."""

import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from blockstream.errors import StoreDamagedError, StoreError
from blockstream.stores.folder import FolderObjects


@pytest.fixture
def objects(tmp_path: Path) -> FolderObjects:
    return FolderObjects(tmp_path)


def test_a_folder_that_cannot_be_read_is_not_empty(
    objects: FolderObjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    objects.put("a/b/c", b"x")
    scandir = os.scandir

    def failing(path: str | int) -> object:
        if str(Path(f"/proc/self/fd/{path}").readlink()).endswith("/b"):
            raise OSError(5, "Input/output error")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", failing)
    with pytest.raises(StoreError, match="Input/output error"):
        list(objects.listed("a/", 2))
    with pytest.raises(StoreError, match="Input/output error"):
        list(objects.folders("a/b/"))


def test_a_link_whose_reply_was_lost_is_ours(
    objects: FolderObjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NFS sends it again, and hears that the name is taken."""
    link = os.link

    def twice(source: str, target: str, **where: Any) -> None:
        link(source, target, **where)
        link(source, target, **where)

    monkeypatch.setattr(os, "link", twice)
    assert objects.put_new("a/b", b"first")
    assert not objects.put_new("a/b", b"second")
    assert objects.read_whole("a/b", 1 << 30) == b"first"


# What somebody else who may write the folder can put in the place of a file.
def link(path: Path, elsewhere: Path) -> None:
    path.symlink_to(elsewhere / "file")


def fifo(path: Path, _elsewhere: Path) -> None:
    os.mkfifo(path)


def unix_socket(path: Path, _elsewhere: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        here = Path.cwd()
        os.chdir(path.parent)  # a name of a socket is short
        try:
            made.bind(path.name)
        finally:
            os.chdir(here)


def folder(path: Path, _elsewhere: Path) -> None:
    path.mkdir()


Plant = Callable[[Path, Path], None]


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """Return a folder with a file in it that is none of the store's."""
    made = tmp_path / "elsewhere"
    (made / "b").mkdir(parents=True)
    for path in (made / "file", made / "b/c", made / "b/.c.0123456789ab.part"):
        path.write_bytes(b"precious")
    return made


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("plant", [link, fifo, unix_socket, folder])
def test_what_is_no_file_is_named_and_neither_read_nor_written(
    tmp_path: Path, elsewhere: Path, plant: Plant
) -> None:
    objects = FolderObjects(tmp_path / "store")
    objects.put("a/b", b"x")
    objects.put("a/z", b"x")
    objects.delete("a/b")
    before = everything(elsewhere)
    plant(tmp_path / "store/a/b", elsewhere)
    found = {info.key.rstrip("/"): info.stray for info in objects.listed("a/")}
    assert found == {"a/b": True, "a/z": False}
    assert objects.info("a/b") is None
    assert not objects.locked("a/b")
    with pytest.raises(StoreDamagedError, match="a/b"):
        objects.read("a/b", 0, 1)
    with pytest.raises(StoreDamagedError, match="a/b"):
        objects.read_whole("a/b", 100)
    assert not objects.put_new("a/b", b"y")
    if plant is not folder:
        objects.put("a/b", b"ours")  # in place of the link, and not where it leads
        assert objects.read_whole("a/b", 100) == b"ours"
    assert everything(elsewhere) == before


def test_no_folder_is_entered_through_a_link(tmp_path: Path, elsewhere: Path) -> None:
    """As root, that would be anybody's files: seen with `prune`."""
    objects = FolderObjects(tmp_path / "store")
    objects.put("a/d/c", b"x")
    (tmp_path / "store/a/b").symlink_to(elsewhere / "b")
    (tmp_path / "store/l").symlink_to(elsewhere)
    before = everything(elsewhere)
    assert [(i.key, i.stray) for i in objects.listed("a/", 2)] == [("a/b", True), ("a/d/c", False)]
    assert list(objects.folders("a/")) == ["d"]
    assert objects.forget_unfinished("a/", 2, 1e12) == 0
    assert objects.forget_unfinished("a/", 1, 1e12) == 0
    reads: list[Callable[[], object]] = [
        lambda: objects.read("a/b/c", 0, 1),
        lambda: objects.read_whole("l/b/c", 100),
        lambda: objects.put("a/b/new", b"x"),
        lambda: objects.put("l/b/c", b"x"),
        lambda: objects.put_new("a/b/new", b"x"),
        lambda: objects.put_new("l/in/new", b"x"),
        lambda: objects.upload("a/b/new"),
        lambda: objects.delete("a/b/c"),
        lambda: objects.delete("l/file"),
        lambda: list(objects.listed("l/")),
        lambda: list(objects.listed("a/b/")),
        lambda: list(objects.folders("l/")),
        lambda: objects.forget_unfinished("l/", 2, 1e12),
    ]
    for each in reads:
        with pytest.raises(StoreDamagedError, match="link"):
            each()
    assert objects.info("a/b/c") is None
    assert everything(elsewhere) == before


@pytest.mark.parametrize("key", ["../x", "a/../../x", "a/..", "a/./../../x", "./.."])
def test_no_key_leads_out(tmp_path: Path, key: str) -> None:
    (tmp_path / "x").write_bytes(b"precious")
    objects = FolderObjects(tmp_path / "store")
    objects.put("a/b", b"y")
    calls: list[Callable[[], object]] = [
        lambda: objects.read_whole(key, 100),
        lambda: objects.put(key, b"z"),
        lambda: objects.put_new(key + "/new", b"z"),
        lambda: objects.upload(key),
        lambda: objects.delete(key),
        lambda: list(objects.listed(key + "/")),
    ]
    for call in calls:
        with pytest.raises(StoreDamagedError):
            call()
    assert everything(tmp_path) == {
        str(tmp_path / "x"): b"precious",
        str(tmp_path / "store/a/b"): b"y",
    }


def test_a_root_that_is_a_link_is_where_it_leads(tmp_path: Path) -> None:
    """Who named it meant that."""
    (tmp_path / "usb").mkdir()
    (tmp_path / "store").symlink_to(tmp_path / "usb")
    objects = FolderObjects(tmp_path / "store")
    objects.put("a/b", b"x")
    assert (tmp_path / "usb/a/b").read_bytes() == b"x"


@pytest.mark.parametrize(("umask", "mode"), [(0o077, 0o600), (0o022, 0o644), (0o002, 0o664)])
def test_who_may_read_it_is_what_the_umask_says(tmp_path: Path, umask: int, mode: int) -> None:
    objects, before = FolderObjects(tmp_path / "store"), os.umask(umask)
    try:
        objects.put("a/put", b"x")
        objects.put_new("a/new", b"x")
        objects.upload("a/upload").finish()
    finally:
        os.umask(before)
    for name in ("put", "new", "upload"):
        assert stat.S_IMODE((tmp_path / "store/a" / name).stat().st_mode) == mode


def test_what_is_not_there_takes_no_memory(tmp_path: Path) -> None:
    objects = FolderObjects(tmp_path / "store")
    objects.put("a/b", b"x")
    with pytest.raises(StoreDamagedError, match="ends at byte 1"):
        objects.read("a/b", 0, 1 << 60)


@pytest.mark.root
def test_folders_on_the_way_need_only_be_searched(tmp_path: Path) -> None:
    """As where disks of a store belong to different users."""
    root = tmp_path / "store"
    objects = FolderObjects(root)
    objects.put("a/b/c", b"x")
    for path in (root, root / "a"):
        path.chmod(0o711)
    for path in (tmp_path, *tmp_path.parents):
        if path.stat().st_mode & 0o001 == 0:
            path.chmod(path.stat().st_mode | 0o011)
    (root / "a/b").chmod(0o777)
    (root / "a/b/c").chmod(0o644)
    os.seteuid(65534)
    try:
        assert objects.read_whole("a/b/c", 1) == b"x"
        assert [info.key for info in objects.listed("a/b/")] == ["a/b/c"]
        objects.put("a/b/d", b"y")
        with pytest.raises(StoreError, match="Permission denied"):
            list(objects.listed("a/"))
    finally:
        os.seteuid(0)
