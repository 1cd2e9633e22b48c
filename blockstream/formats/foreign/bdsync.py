"""Patches of bdsync 0.3: size, name, records {i64 position, u16 length, data}, end, digest.

Numbers are in the byte order of the host that made it, which the size gives away.
"""

import struct

from blockstream.formats.foreign.events import (
    Data,
    Digest,
    Format,
    Reading,
    Size,
    Take,
    malformed,
    skipped,
)

BANNER = b"BDSYNC 0.3\n"
_TITLE = "a patch of bdsync"
_NAME_BYTES = 16384  # bdsync.c
# No disk is larger, and every size of the other byte order is, unless it is a multiple of 64 KiB
# and above 4 GiB in both.
_PLAUSIBLE = 1 << 48


def read(_size: int | None) -> Reading:
    """Read a patch."""
    yield Take(len(BANNER))
    size_bytes = yield Take(8)
    order = "<" if int.from_bytes(size_bytes, "little") < _PLAUSIBLE else ">"
    (size,) = struct.unpack(f"{order}q", size_bytes)
    if not 0 <= size < _PLAUSIBLE:
        raise malformed(_TITLE, f"its disk would have {size} bytes")
    (length,) = struct.unpack(f"{order}H", (yield Take(2)))
    if length > _NAME_BYTES:
        raise malformed(_TITLE, f"a name of {length} bytes")
    yield from skipped(length)  # a path on the other host: nothing is done with it
    yield Size(size)
    record = struct.Struct(f"{order}qH")
    reached = 0
    while True:
        offset, length = record.unpack((yield Take(record.size)))
        if not length:
            break
        if offset < reached or offset + length > size:
            raise malformed(_TITLE, f"the record at {offset} is out of order or past the end")
        reached = offset + length
        yield Data(offset, length)
    if offset:
        raise malformed(_TITLE, f"the record at {offset} is empty")
    yield from _digest()
    if (yield Take(1, or_end=True)):
        raise malformed(_TITLE, "bytes follow its end")


def _digest() -> Reading:
    """Take the digest of the whole source, which is there if somebody asked for one."""
    (length,) = yield Take(1)
    if length > 127:
        raise malformed(_TITLE, "the name of its digest is too long")
    name = (yield Take(length)) if length else b""
    (length,) = yield Take(1)
    value = (yield Take(length)) if length else b""
    if name:
        yield Digest(name.decode("ascii", "replace"), value)


FORMAT = Format(
    name="bdsync",
    title=_TITLE,
    read=read,
    ends=True,
    based=False,
    unchecked=("its base", "its bytes"),
)
