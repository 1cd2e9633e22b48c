"""Streams of thin-send-recv, 1.1 and 1.0: chunks of header and payload.

All numbers are big-endian. All headers of a stream carry the magic of the first, which tells the
version; only 1.1 has a beginning and an end.
"""

import struct
from collections.abc import Iterator

from blockstream.formats.foreign.events import (
    Data,
    Format,
    Head,
    Reading,
    Take,
    Zero,
    malformed,
    skipped,
)

MAGIC_1_1 = bytes.fromhex("24C4F02AAE2E4FA9")
MAGIC_1_0 = bytes.fromhex("CA7F00D5DE7EC7ED")
MAGIC_OLD = bytes.fromhex("E85BC5636CC72A05")
_HEADER = struct.Struct(">8sQQI")
_COUNTS = struct.Struct(">QQQ")
_DATA, _UNMAP, _BEGIN, _END = 0, 1, 2, 3
_OPTIONAL = 1 << 31
_ZERO_BYTES = 1 << 20
_TITLE = "a stream of thin_send"


def read(_size: int | None) -> Reading:
    """Read a stream of either version."""
    magic = b""
    chunks = data = unmapped = 0
    while header := (yield Take(_HEADER.size, or_end=magic != MAGIC_1_1)):
        found, offset, length, command = _HEADER.unpack(header)
        _check(magic, found, command, chunks)
        magic = found
        chunks += 1
        if command & _OPTIONAL and magic == MAGIC_1_1:
            yield from skipped(length)
        elif command == _DATA:
            data += 1
            if length:
                yield Data(offset, length)
        elif command == _UNMAP:
            unmapped += 1
            if length:
                yield Zero(offset, length)
        elif command == _BEGIN:
            if offset or length:
                raise malformed(_TITLE, "its beginning names a range")
        else:
            if (offset, length) != (0, _COUNTS.size):
                raise malformed(_TITLE, "its end mark has another size")
            yield from _ended((chunks, data, unmapped))
            return


def _check(magic: bytes, found: bytes, command: int, chunks: int) -> None:
    """Refuse a header that may not come here."""
    if magic not in {b"", found}:
        raise malformed(_TITLE, f"chunk {chunks} does not begin like the first")
    if found == MAGIC_1_0:
        if command not in {_DATA, _UNMAP}:
            raise malformed(_TITLE, f"chunk {chunks} has the unknown command {command:#x}")
        return
    if (command == _BEGIN) != (chunks == 0):
        raise malformed(_TITLE, "its beginning is missing, or comes twice")
    if command > _END and not command & _OPTIONAL:
        raise malformed(_TITLE, f"chunk {chunks} has the unknown command {command:#x}")


def _ended(counted: tuple[int, int, int]) -> Reading:
    stated = _COUNTS.unpack((yield Take(_COUNTS.size)))
    if stated != counted:
        raise malformed(_TITLE, f"it counts {stated} chunks, data and unmaps, {counted} came")
    if (yield Take(1, or_end=True)):
        raise malformed(_TITLE, "bytes follow its end")


class ThinSendWriter:
    """Writes a stream of version 1.1 that `thin_recv` takes.

    `thin_recv` discards what is unmapped. Of a discard that does not fill a chunk of its pool the
    kernel drops that part, keeps what was there and reports no error (seen with 16 KiB in a pool of
    64 KiB). So zeros are bytes, but for whole chunks of a pool whose chunk size is known.
    """

    def __init__(self) -> None:
        self._data = self._unmapped = self._chunk = 0

    def begin(self, head: Head) -> bytes:
        """Return the first chunk."""
        self._chunk = head.pool_chunk
        return _HEADER.pack(MAGIC_1_1, 0, 0, _BEGIN)

    def data(self, offset: int, length: int) -> Iterator[tuple[bytes, int]]:
        """Give the header of a range."""
        self._data += 1
        yield _HEADER.pack(MAGIC_1_1, offset, length, _DATA), length

    def zero(self, offset: int, length: int) -> Iterator[tuple[bytes, int]]:
        """Give the headers of zeros: of whole chunks, and of the bytes beside them."""
        end = offset + length
        first = last = end
        if self._chunk:
            first = min(end, -(-offset // self._chunk) * self._chunk)
            last = max(first, end // self._chunk * self._chunk)
        yield from self._zero_bytes(offset, first)
        if first < last:
            self._unmapped += 1
            yield _HEADER.pack(MAGIC_1_1, first, last - first, _UNMAP), 0
        yield from self._zero_bytes(last, end)

    def _zero_bytes(self, offset: int, end: int) -> Iterator[tuple[bytes, int]]:
        for start in range(offset, end, _ZERO_BYTES):
            yield from self.data(start, min(end - start, _ZERO_BYTES))

    def end(self) -> bytes:
        """Return the end mark."""
        chunks = 2 + self._data + self._unmapped
        counts = _COUNTS.pack(chunks, self._data, self._unmapped)
        return _HEADER.pack(MAGIC_1_1, 0, _COUNTS.size, _END) + counts


FORMAT = Format(
    name="thin-send",
    title=_TITLE,
    read=read,
    ends=True,
    based=False,
    sizeless=True,
    unchecked=("its base", "its bytes"),
    write=ThinSendWriter,
    lost=("base and goal", "the size of the disk", "checksums"),
    pooled=True,
)
FORMAT_1_0 = Format(
    name="thin-send-1.0",
    title="a stream of thin_send 1.0",
    read=read,
    ends=False,
    based=False,
    sizeless=True,
    unchecked=("that it is whole", "its base", "its bytes"),
)
