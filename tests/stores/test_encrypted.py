"""What lies in an encrypted store tells nothing, and nothing of it can be altered unnoticed."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from blockstream.errors import StoreDamagedError
from blockstream.stores.encrypted import (
    SEGMENT_BYTES,
    EncryptedObjects,
    plain_size,
    sealed_size,
)
from blockstream.stores.folder import FolderObjects

KEY = bytes(range(32))
SIZES = [0, 1, 100, *(n * SEGMENT_BYTES + d for n in (1, 2, 3) for d in (-1, 0, 1))]
TAG, HEADER = 16, 40


@pytest.fixture
def folder(tmp_path: Path) -> FolderObjects:
    return FolderObjects(tmp_path)


@pytest.fixture
def objects(folder: FolderObjects) -> EncryptedObjects:
    return EncryptedObjects(folder, KEY)


def noise(size: int) -> bytes:
    return random.Random(size).randbytes(size)  # noqa: S311


def put(objects: EncryptedObjects, key: str, data: bytes) -> None:
    objects.put(key, data)


def put_new(objects: EncryptedObjects, key: str, data: bytes) -> None:
    assert objects.put_new(key, data)


def upload(objects: EncryptedObjects, key: str, data: bytes) -> None:
    rng, at = random.Random(len(data)), 0  # noqa: S311
    under_way = objects.upload(key)
    while at < len(data):
        count = rng.choice([1, 1000, SEGMENT_BYTES, 3 * SEGMENT_BYTES])
        under_way.write([memoryview(data)[at : at + count]])
        at += count
    under_way.finish()


WAYS = [put, put_new, upload]
Way = Callable[[EncryptedObjects, str, bytes], None]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("way", WAYS)
def test_any_range_of_any_size_comes_back(objects: EncryptedObjects, way: Way, size: int) -> None:
    data = noise(size)
    way(objects, "a", data)
    assert objects.read_whole("a", 1 << 30) == data
    info = objects.info("a")
    assert info is not None
    assert info.size == size
    edges = {0, 1, size // 2, size - 1, size, SEGMENT_BYTES - 1, SEGMENT_BYTES, SEGMENT_BYTES + 1}
    inside = sorted(each for each in edges if 0 <= each <= size)
    for start in inside:
        for end in inside:
            if start <= end:
                assert objects.read("a", start, end - start) == data[start:end]


@pytest.mark.parametrize("size", SIZES)
def test_the_sizes_are_those_of_the_specification(
    folder: FolderObjects, objects: EncryptedObjects, size: int
) -> None:
    objects.put("a", noise(size))
    info = folder.info("a")
    assert info is not None
    assert info.size == sealed_size(size) == HEADER + size + TAG * max(1, -(-size // SEGMENT_BYTES))
    assert plain_size(info.size) == size


@pytest.mark.parametrize("way", WAYS)
def test_nothing_of_the_content_is_seen(
    folder: FolderObjects, objects: EncryptedObjects, way: Way
) -> None:
    way(objects, "a", bytes(2 * SEGMENT_BYTES))
    way(objects, "b", bytes(2 * SEGMENT_BYTES))
    first, second = folder.read_whole("a", 1 << 30), folder.read_whole("b", 1 << 30)
    assert bytes(16) not in first
    pieces = {
        bytes(each[at : at + 16]) for each in (first, second) for at in range(40, 1 << 17, 16)
    }
    assert len(pieces) == 2 * ((1 << 17) - 40 + 15) // 16  # no block like another


def test_what_the_first_version_wrote_is_read(folder: FolderObjects) -> None:
    sealed = (
        "42535345414c3100"
        "6465666768696a6b6c6d6e6f707172737475767778797a7b7c7d7e7f80818283"
        "6690bb349edbf0654e3ff7863edffdcb9eee3a2a7e09cec0e2c2ea"
    )
    folder.put("bs1/disk/vm/a", bytes.fromhex(sealed))
    assert EncryptedObjects(folder, KEY).read_whole("bs1/disk/vm/a", 1 << 30) == b"blockstream"


def test_another_key_opens_nothing(folder: FolderObjects, objects: EncryptedObjects) -> None:
    objects.put("a", b"secret")
    other = EncryptedObjects(folder, bytes(32))
    refusal = "a is damaged, or was not encrypted with this"
    with pytest.raises(StoreDamagedError, match=refusal):
        other.read_whole("a", 6)
    with pytest.raises(StoreDamagedError, match=refusal):
        other.read("a", 0, 6)


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def test_every_altered_byte_is_noticed(folder: FolderObjects, objects: EncryptedObjects) -> None:
    objects.put("a", b"0123456789")
    sealed = folder.read_whole("a", 1 << 30)
    for at in range(len(sealed)):
        folder.put("a", flipped(sealed, at))
        fresh = EncryptedObjects(folder, KEY)
        with pytest.raises(StoreDamagedError):
            fresh.read_whole("a", 1 << 30)
        with pytest.raises(StoreDamagedError):
            fresh.read("a", 0, 10)


SEALED = SEGMENT_BYTES + TAG
# Name, and what becomes of a header and three segments; the last one is full, too.
DAMAGES: list[tuple[str, Callable[[bytes], bytes]]] = [
    ("cut within a segment", lambda data: data[:-1]),
    ("cut between segments", lambda data: data[:-SEALED]),
    ("only a header", lambda data: data[:HEADER]),
    ("no whole header", lambda data: data[: HEADER - 1]),
    ("empty", lambda data: b""),
    ("a segment left out", lambda data: data[:HEADER] + data[HEADER + SEALED :]),
    ("a segment twice", lambda data: data + data[-SEALED:]),
    ("longer", lambda data: data + b"x"),
    (
        "two exchanged",
        lambda data: (
            data[:HEADER]
            + data[HEADER + SEALED : HEADER + 2 * SEALED]
            + data[HEADER : HEADER + SEALED]
            + data[HEADER + 2 * SEALED :]
        ),
    ),
]


@pytest.mark.parametrize("damage", [pytest.param(damage, id=name) for name, damage in DAMAGES])
def test_every_moved_or_missing_segment_is_noticed(
    folder: FolderObjects, objects: EncryptedObjects, damage: Callable[[bytes], bytes]
) -> None:
    size = 3 * SEGMENT_BYTES
    objects.put("a", noise(size))
    folder.put("a", damage(folder.read_whole("a", 1 << 30)))
    fresh = EncryptedObjects(folder, KEY)
    with pytest.raises(StoreDamagedError):
        fresh.read_whole("a", 1 << 30)
    with pytest.raises(StoreDamagedError):
        b"".join(fresh.read("a", start, SEGMENT_BYTES) for start in range(0, size, SEGMENT_BYTES))


def test_an_object_does_not_stand_in_for_another(
    folder: FolderObjects, objects: EncryptedObjects
) -> None:
    objects.put("a", b"of a")
    folder.put("b", folder.read_whole("a", 1 << 30))
    with pytest.raises(StoreDamagedError):
        objects.read_whole("b", 1 << 30)


@pytest.mark.parametrize("way", [put, upload])
def test_what_is_overwritten_is_read_anew(objects: EncryptedObjects, way: Way) -> None:
    objects.put("a", noise(SEGMENT_BYTES))
    assert objects.read("a", 0, 10) == noise(SEGMENT_BYTES)[:10]
    way(objects, "a", b"0123456789")
    assert objects.read("a", 0, 10) == b"0123456789"
