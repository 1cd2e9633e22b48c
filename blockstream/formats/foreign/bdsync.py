"""Patches of bdsync 0.3: size, name, records {i64 position, u16 length, data}, end, digest.

Numbers are in the byte order of the host that made it, which size and name give away.
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
_HEAD = struct.Struct("<qH")
_TITLE = "a patch of bdsync"
_NAME_BYTES = 16384  # bdsync.c
_PLAUSIBLE = 1 << 48  # no disk is larger


def read(_size: int | None) -> Reading:
    """Read a patch."""
    yield Take(len(BANNER))
    head = yield Take(_HEAD.size)
    order = _order(head)
    size, length = struct.unpack(order + _HEAD.format[1:], head)
    if not 0 <= size < _PLAUSIBLE:
        raise malformed(_TITLE, f"its disk would have {size} bytes")
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


def _order(head: bytes) -> str:
    """Return the byte order of the host that made it.

    A size that is a multiple of 64 KiB may be one in either order; then the name tells, because the
    length of one of less than 256 bytes is larger in the wrong order.
    """
    size, length = _HEAD.unpack(head)
    other_size, other_length = struct.unpack(">" + _HEAD.format[1:], head)
    likely = 0 <= size < _PLAUSIBLE
    if likely and 0 <= other_size < _PLAUSIBLE:
        likely = length <= other_length
    return "<" if likely else ">"


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
