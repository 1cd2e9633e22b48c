"""What says that there is a store, and who can open it, tells when it was altered."""

from pathlib import Path

import pytest

from blockstream.errors import NotFoundError, StoreDamagedError
from blockstream.repository.keys import StoreHeader, WrappedKey
from blockstream.stores.folder import FolderObjects

HEADER = StoreHeader("0123" * 8, encrypted=True)
KEY = WrappedKey("age1somebody", "c2VjcmV0", "2026-11-20T03:15:00Z")


def altered(data: bytes) -> list[bytes]:
    """Return it cut anywhere, and with bits of each byte flipped."""
    flips = [
        data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :]
        for place in range(len(data))
        for bit in (0, 5)
    ]
    return [*(data[:end] for end in range(len(data))), *flips, data + b" ", b"[]", b"[" * 100_000]


def test_each_byte_of_what_a_store_says_of_itself_counts(tmp_path: Path) -> None:
    objects = FolderObjects(tmp_path)
    with pytest.raises(NotFoundError):
        StoreHeader.read(objects)
    assert HEADER.write(objects, "2026-11-20T03:15:00Z")
    assert StoreHeader.read(objects) == HEADER
    path = tmp_path / "bs1" / "store.json"
    for bad in altered(path.read_bytes()):
        path.write_bytes(bad)
        with pytest.raises(StoreDamagedError, match=r"bs1/store\.json is damaged"):
            StoreHeader.read(objects)


def test_each_byte_of_a_wrapped_key_counts() -> None:
    assert WrappedKey.decode(KEY.encode()) == KEY
    for bad in altered(KEY.encode()):
        with pytest.raises(StoreDamagedError):
            WrappedKey.decode(bad)


def test_an_early_store_has_no_digest(tmp_path: Path) -> None:
    path = tmp_path / "bs1" / "store.json"
    path.parent.mkdir()
    path.write_text(
        '{"created": "x", "format": 1, "id": "8cd561ebce6274d955d3614bab02df16", "needs": []}'
    )
    assert StoreHeader.read(FolderObjects(tmp_path)) == StoreHeader(
        "8cd561ebce6274d955d3614bab02df16", encrypted=False
    )
