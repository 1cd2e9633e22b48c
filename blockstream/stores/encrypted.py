"""Objects that their store cannot read: AES-256-GCM in segments, a key of its own for each object.

An object is a header and segments of 64 KiB, each with its tag (SPEC 14). A segment's nonce is
its number and whether it is the last, so that none can be moved, left out or cut off unnoticed; and
the object's name goes into its key, so that none can stand in for another.
"""

import contextlib
import secrets
import struct
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from blockstream.errors import StoreDamagedError
from blockstream.interfaces import ObjectInfo, Objects, Upload
from blockstream.stores.ranges import Ranges

SEGMENT_BYTES: Final = 64 << 10
KEY_BYTES: Final = 32
_MAGIC: Final = b"BSSEAL1\0"
_SALT_BYTES: Final = 32
_HEADER_BYTES: Final = len(_MAGIC) + _SALT_BYTES
_TAG_BYTES: Final = 16
_SEALED_BYTES: Final = SEGMENT_BYTES + _TAG_BYTES
_NONCE: Final = struct.Struct(">3xQ?")
_MOST_KNOWN: Final = 4096  # objects whose key and size are remembered


class EncryptedObjects:
    """Objects within other objects. See `interfaces.Objects` for what each method promises."""

    def __init__(self, inner: Objects, key: bytes) -> None:
        """Keep what is written in `inner`, which is closed with this.

        Args:
            inner: Where the encrypted objects lie; their names stay as they are.
            key: The store's key, 32 bytes.
        """
        self.name = inner.name
        self._inner = inner
        self._key = key
        self._known: OrderedDict[str, _Known] = OrderedDict()
        self._lock = threading.Lock()

    def put_new(self, key: str, data: bytes) -> bool:
        """Write an object that nobody has written."""
        return self._inner.put_new(key, self._sealed(key, data))

    def put(self, key: str, data: bytes) -> None:
        """Write an object, in place of an older one."""
        self._inner.put(key, self._sealed(key, data))
        self._forget(key)

    def upload(self, key: str) -> "EncryptedUpload":
        """Begin to write a large object."""
        seal = _Seal.new(self._key, key)
        inner = self._inner.upload(key)
        return EncryptedUpload(inner, seal, Ranges(self), lambda: self._forget(key))

    def read(self, key: str, offset: int, length: int) -> bytes:
        """Return a range of an object."""
        if length == 0:
            return b""
        known = self._met(key)
        if offset + length > known.size:
            raise StoreDamagedError(
                f"{self.name}: {key} ends at byte {known.size}, before {offset + length}"
            )
        first, last = offset // SEGMENT_BYTES, (offset + length - 1) // SEGMENT_BYTES
        start = _HEADER_BYTES + first * _SEALED_BYTES
        end = min(_HEADER_BYTES + (last + 1) * _SEALED_BYTES, sealed_size(known.size))
        sealed = self._inner.read(key, start, end - start)
        with self._damage(key):
            data = known.seal.opened(sealed, first, last=end == sealed_size(known.size))
        return data[offset - first * SEGMENT_BYTES :][:length]

    def read_whole(self, key: str, most: int) -> bytes:
        """Return all of an object."""
        sealed = self._inner.read_whole(key, sealed_size(most))
        with self._damage(key):
            seal = _Seal.of(self._key, key, sealed[:_HEADER_BYTES])
            return seal.opened(sealed[_HEADER_BYTES:], 0, last=True)

    def info(self, key: str) -> ObjectInfo | None:
        """Return what the store says of an object, with the size of what is in it."""
        found = self._inner.info(key)
        return _inside(found) if found is not None else None

    def listed(self, folder: str, depth: int = 1) -> Iterator[ObjectInfo]:
        """Give the objects of a folder, with the sizes of what is in them."""
        yield from map(_inside, self._inner.listed(folder, depth))

    def folders(self, folder: str) -> Iterator[str]:
        """Give the names of the folders in a folder."""
        return self._inner.folders(folder)

    def delete(self, key: str) -> None:
        """Remove an object."""
        self._inner.delete(key)
        self._forget(key)

    def locked(self, key: str) -> bool:
        """Tell whether an object is to be kept yet."""
        return self._inner.locked(key)

    def forget_unfinished(
        self, folder: str, depth: int, before: float, spared: Collection[str] = ()
    ) -> int:
        """Give up uploads of others that nobody finished."""
        return self._inner.forget_unfinished(folder, depth, before, spared)

    def close(self) -> None:
        """Give everything back."""
        self._inner.close()

    def _sealed(self, key: str, data: bytes) -> bytes:
        seal = _Seal.new(self._key, key)
        return seal.header + b"".join(seal.closed(memoryview(data), 0, last=True))

    def _met(self, key: str) -> "_Known":
        """Return an object's key and size, which two small requests tell the first time."""
        with self._lock:
            if key in self._known:
                self._known.move_to_end(key)
                return self._known[key]
        info = self._inner.info(key)
        if info is None:
            raise StoreDamagedError(f"{self.name} has no {key}")
        with self._damage(key):
            seal = _Seal.of(self._key, key, self._inner.read(key, 0, _HEADER_BYTES))
        known = _Known(seal, plain_size(info.size))
        with self._lock:
            self._known[key] = known
            if len(self._known) > _MOST_KNOWN:
                self._known.popitem(last=False)
        return known

    def _forget(self, key: str) -> None:
        with self._lock:
            self._known.pop(key, None)

    @contextlib.contextmanager
    def _damage(self, key: str) -> Iterator[None]:
        try:
            yield
        except InvalidTag as error:
            raise StoreDamagedError(
                f"{self.name}: {key} is damaged, or was not encrypted with this store's key"
            ) from error


class EncryptedUpload:
    """An object under way. See `interfaces.Upload`."""

    def __init__(
        self, inner: Upload, seal: "_Seal", ranges: Ranges, finished: Callable[[], None]
    ) -> None:
        """Prepare.

        Args:
            inner: What it goes into; nothing of that is written yet.
            seal: Its key.
            ranges: Reads other objects of the store.
            finished: Told of its end.
        """
        self._inner = inner
        self._seal = seal
        self._ranges = ranges
        self._finished = finished
        self._held = bytearray()  # may be the end: the last segment is sealed as such
        self._number = 0
        self._begun = False

    def write(self, parts: Sequence[memoryview]) -> None:
        """Append bytes."""
        for part in parts:
            self._held += part
        count = (len(self._held) - 1) // SEGMENT_BYTES
        if count > 0:
            full = bytes(memoryview(self._held)[: count * SEGMENT_BYTES])
            del self._held[: len(full)]
            self._append(full, last=False)
            self._number += count

    def copy(self, key: str, offset: int, length: int) -> None:
        """Append a range of another object, which must travel: each has a key of its own."""
        for piece in self._ranges.pieces(key, offset, length):
            self.write([piece])

    def finish(self) -> None:
        """Make it visible and durable."""
        self._append(bytes(self._held), last=True)
        self._inner.finish()
        self._finished()

    def abort(self) -> None:
        """Forget it."""
        self._inner.abort()

    def _append(self, data: bytes, *, last: bool) -> None:
        header = [] if self._begun else [self._seal.header]
        sealed = self._seal.closed(memoryview(data), self._number, last=last)
        self._inner.write([memoryview(piece) for piece in (*header, *sealed)])
        self._begun = True


@dataclass(frozen=True, slots=True)
class _Known:
    """What it takes to read a range of an object.

    Attributes:
        seal: Its key.
        size: How many bytes are in it.
    """

    seal: "_Seal"
    size: int


@dataclass(frozen=True, slots=True)
class _Seal:
    """The key of one object.

    Attributes:
        header: What the object begins with.
        cipher: Seals its segments.
    """

    header: bytes
    cipher: AESGCM

    @classmethod
    def new(cls, key: bytes, name: str) -> "_Seal":
        """Return the key of an object that is to be written: a new one each time.

        Two objects of one key would share their nonces, and with these give each other away.
        """
        return cls.of(key, name, _MAGIC + secrets.token_bytes(_SALT_BYTES))

    @classmethod
    def of(cls, key: bytes, name: str, header: bytes) -> "_Seal":
        """Return the key of the object that begins so.

        Raises:
            InvalidTag: If no object does.
        """
        if len(header) != _HEADER_BYTES or not header.startswith(_MAGIC):
            raise InvalidTag
        salt, info = header[len(_MAGIC) :], b"blockstream object " + name.encode()
        return cls(header, AESGCM(HKDF(SHA256(), KEY_BYTES, salt, info).derive(key)))

    def closed(self, data: memoryview, number: int, *, last: bool) -> list[bytes]:
        """Seal bytes.

        Args:
            data: Whole segments; the last of an object may be shorter.
            number: Number of the first segment.
            last: Whether the object ends with them.
        """
        count = max(1, -(-len(data) // SEGMENT_BYTES))
        return [
            self.cipher.encrypt(
                _NONCE.pack(number + each, last and each == count - 1),
                data[each * SEGMENT_BYTES : (each + 1) * SEGMENT_BYTES],
                None,
            )
            for each in range(count)
        ]

    def opened(self, sealed: bytes, number: int, *, last: bool) -> bytes:
        """Return what `closed` was given.

        Raises:
            InvalidTag: If anything of it was altered.
        """
        view = memoryview(sealed)
        count = max(1, -(-len(view) // _SEALED_BYTES))
        return b"".join(
            self.cipher.decrypt(
                _NONCE.pack(number + each, last and each == count - 1),
                view[each * _SEALED_BYTES : (each + 1) * _SEALED_BYTES],
                None,
            )
            for each in range(count)
        )


def _inside(info: ObjectInfo) -> ObjectInfo:
    return replace(info, size=max(0, plain_size(info.size)))


def sealed_size(size: int) -> int:
    """Return the bytes of an object that holds so many."""
    return _HEADER_BYTES + size + max(1, -(-size // SEGMENT_BYTES)) * _TAG_BYTES


def plain_size(size: int) -> int:
    """Return how many bytes an object of that size holds; negative if there is no such object."""
    body = size - _HEADER_BYTES
    return body - -(-body // _SEALED_BYTES) * _TAG_BYTES
