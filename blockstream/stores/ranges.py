"""Ranges of objects that are read in order to be written again, where a store cannot copy them."""

from collections.abc import Iterator
from typing import Final

from blockstream.errors import StoreDamagedError
from blockstream.interfaces import PART_BYTES, Objects

# A request costs as much as reading this much, and more where the server is far away.
_AHEAD_BYTES: Final = 1 << 20


class Ranges:
    """Reads ranges of objects; those that follow each other closely, in one request.

    Memory: `PART_BYTES`. One thread at a time.
    """

    def __init__(self, objects: Objects) -> None:
        """Read from `objects`; nothing is asked yet."""
        self._objects = objects
        self._sizes: dict[str, int] = {}
        self._key = ""
        self._start = 0
        self._data = b""

    def check(self, key: str, offset: int, length: int) -> None:
        """Ask for an object's size once, and compare a range with it.

        Raises:
            StoreDamagedError: If the object is not there, or ends too early.
        """
        if key not in self._sizes:
            info = self._objects.info(key)
            if info is None:
                raise StoreDamagedError(f"{self._objects.name} has no {key}")
            self._sizes[key] = info.size
        if offset + length > self._sizes[key]:
            raise StoreDamagedError(
                f"{self._objects.name}: {key} ends at byte {self._sizes[key]}, "
                f"before {offset + length}"
            )

    def pieces(self, key: str, offset: int, length: int) -> Iterator[memoryview]:
        """Give a range, in pieces of `PART_BYTES` at most.

        Raises:
            StoreDamagedError: As `check`.
        """
        self.check(key, offset, length)
        end = offset + length
        while offset < end:
            count = min(PART_BYTES, end - offset)
            yield self._piece(key, offset, count)
            offset += count

    def _piece(self, key: str, offset: int, count: int) -> memoryview:
        held = self._key == key and self._start <= offset
        if not held or offset + count > self._start + len(self._data):
            more = min(max(count, _AHEAD_BYTES), self._sizes[key] - offset)
            self._data = self._objects.read(key, offset, more)
            self._key, self._start = key, offset
        return memoryview(self._data)[offset - self._start :][:count]
