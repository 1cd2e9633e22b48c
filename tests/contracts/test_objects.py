"""Wherever objects lie, they keep the promises of `interfaces.Objects`."""

import errno
import os
import random
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from blockstream.errors import StoreDamagedError
from blockstream.interfaces import Objects
from blockstream.stores.encrypted import EncryptedObjects
from blockstream.stores.folder import FolderObjects
from blockstream.stores.s3 import s3_objects
from tests.s3_servers import S3Server

MIB = 1 << 20
SOURCE = random.Random(1).randbytes(21 * MIB + 13)  # noqa: S311  # the same each time
SLOW = [pytest.mark.slow, pytest.mark.timeout(200)]


def in_folder(tmp_path: Path, _request: pytest.FixtureRequest) -> Objects:
    return FolderObjects(tmp_path / "store")


def without_links(tmp_path: Path, request: pytest.FixtureRequest) -> Objects:
    """As on FAT, where the kernel cannot copy all of a file either."""

    def refused(*_words: object, **_options: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    copy_some = os.copy_file_range

    def copied_some(source: int, target: int, count: int, offset: int) -> int:
        if offset % 2:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        return copy_some(source, target, min(count, 1001), offset)

    request.getfixturevalue("monkeypatch").setattr(os, "link", refused)
    request.getfixturevalue("monkeypatch").setattr(os, "copy_file_range", copied_some)
    return in_folder(tmp_path, request)


def encrypted(tmp_path: Path, request: pytest.FixtureRequest) -> Objects:
    return EncryptedObjects(in_folder(tmp_path, request), bytes(range(32)))


def in_bucket(tmp_path: Path, request: pytest.FixtureRequest) -> Objects:
    server = request.getfixturevalue(request.param[1])
    for name, value in server.environment.items():
        request.getfixturevalue("monkeypatch").setenv(name, value)
    return s3_objects(f"s3://contracts/{tmp_path.name}", server.url)


@pytest.fixture(
    params=[
        (in_folder, ""),
        (without_links, ""),
        (encrypted, ""),
        pytest.param((in_bucket, "radosgw"), marks=[pytest.mark.needs("radosgw"), *SLOW]),
        pytest.param((in_bucket, "localstack"), marks=SLOW),
    ],
    ids=["folder", "folder without links", "encrypted", "radosgw", "localstack"],
)
def objects(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Objects]:
    with closing(request.param[0](tmp_path, request)) as objects:
        yield objects


def keys(objects: Objects, folder: str, depth: int = 1) -> list[str]:
    return [info.key for info in objects.listed(folder, depth) if not info.stray]


def strays(objects: Objects, folder: str, depth: int = 1) -> list[str]:
    return [info.key for info in objects.listed(folder, depth) if info.stray]


def sizes(objects: Objects, folder: str) -> list[int]:
    return [info.size for info in objects.listed(folder)]


def put(objects: Objects, key: str, data: bytes) -> None:
    upload = objects.upload(key)
    upload.write([memoryview(data)])
    upload.finish()


def test_what_was_put_is_read(objects: Objects) -> None:
    objects.put("a/b/c", b"0123456789")
    assert objects.read_whole("a/b/c", 10) == b"0123456789"
    assert objects.read("a/b/c", 3, 4) == b"3456"
    assert objects.read("a/b/c", 10, 0) == b""
    objects.put("a/b/c", b"other")
    assert objects.read_whole("a/b/c", 100) == b"other"


def test_what_is_larger_than_it_may_be_is_not_read(objects: Objects) -> None:
    for size in (0, 1, 100_000):
        objects.put("a/b", bytes(size))
        assert objects.read_whole("a/b", size) == bytes(size)
        if size:
            with pytest.raises(StoreDamagedError, match="a/b"):
                objects.read_whole("a/b", size - 1)


def test_what_is_new_is_written_once(objects: Objects) -> None:
    assert objects.put_new("a/one", b"first")
    assert not objects.put_new("a/one", b"second")
    assert objects.read_whole("a/one", 100) == b"first"


def test_of_many_writers_one_wins(objects: Objects) -> None:
    with ThreadPoolExecutor(16) as pool:
        for turn in range(10):
            won = list(pool.map(lambda n: objects.put_new(f"race/{turn}", b"%d" % n), range(16)))  # noqa: B023
            assert won.count(True) == 1
            assert objects.read_whole(f"race/{turn}", 100) == b"%d" % won.index(True)


def test_what_is_not_there_or_too_short_is_said(objects: Objects) -> None:
    with pytest.raises(StoreDamagedError, match="a/none"):
        objects.read_whole("a/none", 100)
    objects.put("a/short", b"0123")
    for offset, length in ((0, 5), (3, 2), (5, 1)):
        with pytest.raises(StoreDamagedError, match="a/short"):
            objects.read("a/short", offset, length)


def test_they_are_listed_in_order(objects: Objects) -> None:
    for key in ("p/2", "p/10", "p/1", "p/3/deep", "p/3/er", "pq/1", "o/9"):
        objects.put(key, b"x" * len(key))
    assert keys(objects, "p/") == ["p/1", "p/10", "p/2"]
    assert strays(objects, "p/") == ["p/3/"]
    assert sizes(objects, "p/")[:3] == [3, 4, 3]
    assert keys(objects, "nothing/") == strays(objects, "nothing/") == []


def test_a_listing_is_so_many_folders_deep(objects: Objects) -> None:
    """As `pack/ID/NUMBER.pack`; what lies elsewhere is named, and nothing below it."""
    for key in ("p/b-c/1", "p/b/2", "p/b/1", "p/b/in/1", "p/b/in/2", "p/file"):
        objects.put(key, b"x")
    assert keys(objects, "p/", 2) == ["p/b-c/1", "p/b/1", "p/b/2"]
    assert strays(objects, "p/", 2) == ["p/b/in/", "p/file"]
    assert sorted(objects.folders("p/")) == ["b", "b-c"]
    assert list(objects.folders("nothing/")) == []


def test_one_is_asked_for(objects: Objects) -> None:
    objects.put("a/b", b"x" * 5)
    objects.put("a/bc", b"y" * 6)
    found = objects.info("a/b")
    assert found is not None
    assert (found.key, found.size, found.stray) == ("a/b", 5, False)
    assert abs(found.modified - time.time()) < 3600
    assert objects.info("a/") is objects.info("a/c") is objects.info("b/c/d") is None


def test_what_was_deleted_is_gone(objects: Objects) -> None:
    objects.put("a/b", b"x")
    objects.delete("a/b")
    objects.delete("a/b")
    assert keys(objects, "a/") == []
    assert objects.put_new("a/b", b"y")


def test_nothing_is_locked_that_nobody_locked(objects: Objects) -> None:
    objects.put("a/b", b"x")
    assert not objects.locked("a/b")
    assert not objects.locked("a/none")


@pytest.mark.root
@pytest.mark.needs("chattr")
@pytest.mark.parametrize("flag", ["i", "a"])
def test_a_file_that_nobody_may_remove_is_locked(tmp_path: Path, flag: str) -> None:
    def change(sign: str, path: Path) -> bool:
        words = ["chattr", sign + flag, str(path)]
        return subprocess.run(words, check=False).returncode == 0  # noqa: S603  # as written

    objects = FolderObjects(tmp_path)
    objects.put("a/b", b"x")
    if not change("+", tmp_path / "a/b"):
        pytest.skip("this file system has no such flags, or a container may not set them")
    try:
        assert objects.locked("a/b")
    finally:
        assert change("-", tmp_path / "a/b")
    assert not objects.locked("a/b")


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_what_a_bucket_retains_is_locked(
    localstack: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S3 would hide it behind a marker, and say that it was deleted."""
    localstack.make_bucket("retaining", lock=True)
    for name, value in localstack.environment.items():
        monkeypatch.setenv(name, value)
    with closing(s3_objects("s3://retaining/x", localstack.url)) as objects:
        for key in ("held", "until", "free"):
            objects.put(key, b"x")
        localstack.hold("retaining", "x/held", held=True)
        localstack.retain("retaining", "x/until", 3600)
        assert [objects.locked(key) for key in ("held", "until", "free")] == [True, True, False]
        localstack.hold("retaining", "x/held", held=False)
        assert not objects.locked("held")


def test_an_upload_is_seen_when_it_is_finished(objects: Objects) -> None:
    upload = objects.upload("big/one")
    piece = bytes(range(256)) * 4096
    for _ in range(20):
        buffer = bytearray(piece)
        upload.write([memoryview(buffer)[:10], memoryview(buffer)[10:]])
        buffer[:] = bytes(len(buffer))  # ours again
    assert keys(objects, "big/") == []
    upload.finish()
    assert keys(objects, "big/") == ["big/one"]
    assert objects.read_whole("big/one", 32 * MIB) == piece * 20


def test_an_upload_that_is_given_up_leaves_nothing(objects: Objects) -> None:
    upload = objects.upload("big/two")
    upload.write([memoryview(b"x" * (1 << 20))])
    upload.abort()
    upload.abort()
    assert keys(objects, "big/") == []


def test_uploads_that_nobody_finished_are_given_up(objects: Objects) -> None:
    data = bytes(9 << 20)
    dead = [objects.upload(f"dead/{number}") for number in range(3)]
    other = objects.upload("alive/one")
    for upload in (*dead, other):
        upload.write([memoryview(data)])
    assert objects.forget_unfinished("dead/", 1, time.time() - 3600) == 0
    assert objects.forget_unfinished("dead/", 1, time.time() + 60) == 3
    assert objects.forget_unfinished("dead/", 1, time.time() + 60) == 0
    other.finish()
    assert keys(objects, "alive/") == ["alive/one"]
    assert keys(objects, "dead/") == []
    for upload in dead:
        upload.abort()


def test_an_empty_upload_is_an_empty_object(objects: Objects) -> None:
    objects.upload("big/none").finish()
    assert objects.read_whole("big/none", 0) == b""


Copied = bytes | tuple[int, int]


@pytest.mark.parametrize(
    "parts",
    [
        [(3, 10)],
        [(1, 6 * MIB)],
        [(4096, 5 * MIB)],
        [b"head", (1, 12 * MIB), b"tail"],
        [b"x" * (9 * MIB), (1, 6 * MIB), b"y" * (6 * MIB), (2, 6 * MIB)],
        [b"head", (1, 6 * MIB), (MIB, 16 * MIB), (5, 5), b"tail"],
        [b"", (7, 0), (0, 0)],
        [(10, 100), (200, 100), (100, 50), (20 * MIB, 100), (10 * MIB, 5000), (300, 1)],
        [(len(SOURCE) - 7, 7), b"between", (len(SOURCE) - 7 * MIB, 7 * MIB)],
        [(0, len(SOURCE)), (0, len(SOURCE))],
    ],
    ids=[
        "short",
        "long",
        "as long as the least part",
        "between bytes",
        "after parts",
        "after too little for a part",
        "nothing",
        "many that are short",
        "to the end",
        "all of it",
    ],
)
def test_ranges_of_another_object_are_appended(objects: Objects, parts: list[Copied]) -> None:
    put(objects, "source/one", SOURCE)
    upload, want = objects.upload("big/copy"), b""
    for part in parts:
        if isinstance(part, bytes):
            upload.write([memoryview(part)])
            want += part
        else:
            upload.copy("source/one", *part)
            want += SOURCE[part[0] : sum(part)]
    assert keys(objects, "big/") == []
    upload.finish()
    assert objects.read_whole("big/copy", 64 * MIB) == want
    assert sizes(objects, "big/") == [len(want)]


def test_ranges_of_several_objects_are_appended(objects: Objects) -> None:
    put(objects, "source/one", SOURCE)
    put(objects, "source/other", SOURCE[::-1])
    upload = objects.upload("big/copy")
    for key, offset, length in (
        ("source/one", 100, 10),
        ("source/other", 100, 10),
        ("source/one", 105, 10),
        ("source/other", 3, 6 * MIB),
        ("source/one", 3, 6 * MIB),
    ):
        upload.copy(key, offset, length)
    upload.finish()
    other = SOURCE[::-1]
    short = SOURCE[100:110] + other[100:110] + SOURCE[105:115]
    assert (
        objects.read_whole("big/copy", 64 * MIB)
        == short + other[3:][: 6 * MIB] + SOURCE[3:][: 6 * MIB]
    )


@pytest.mark.parametrize(
    ("key", "offset", "length"),
    [
        ("source/one", len(SOURCE) - 1, 2),
        ("source/one", len(SOURCE) + 5, 1),
        ("source/one", 0, len(SOURCE) + 1),
        ("source/one", len(SOURCE) - 6 * MIB, 7 * MIB),
        ("source/on", 0, 1),
        ("source/on", 0, 6 * MIB),
        ("none", 0, 1),
    ],
)
def test_a_range_that_is_not_there_is_said(
    objects: Objects, key: str, offset: int, length: int
) -> None:
    put(objects, "source/one", SOURCE)
    upload = objects.upload("big/copy")
    upload.write([memoryview(b"head")])
    with pytest.raises(StoreDamagedError, match=key):
        upload.copy(key, offset, length)
    upload.abort()
    assert keys(objects, "big/") == []
