"""Deltas of blocksync-fast 1.07: a header of 512 bytes, then u64 offset and a block each.

Numbers are in the byte order of the host that made it; only little-endian ones are read.
"""

import struct

from blockstream.errors import RefusedError
from blockstream.formats.foreign.events import Data, Format, Reading, Size, Take, malformed

MAGIC = b"!BSF#DELTA"
_TITLE = "a delta of blocksync-fast"
_HEADER_BYTES = 512
_HEADER = struct.Struct("<16s8sQQQ")
_OFFSET = struct.Struct("<Q")
_VERSION = b"1.07"
_PLAUSIBLE = 1 << 48
_BLOCK_BYTES = 1 << 32


def read(_size: int | None) -> Reading:
    """Read a delta."""
    header = yield Take(_HEADER_BYTES)
    _magic, version, size, block, blocks = _HEADER.unpack_from(header)
    if version.rstrip(b"\0") != _VERSION:
        text = version.rstrip(b"\0").decode("ascii", "replace")
        raise RefusedError(
            f"this delta of blocksync-fast is of version {text!r}, only 1.07 is read; nothing was "
            "written"
        )
    if not 0 < block <= _BLOCK_BYTES or size >= _PLAUSIBLE or blocks != -(-size // block):
        raise malformed(_TITLE, f"{blocks} blocks of {block} bytes cannot be {size} bytes")
    yield Size(size)
    reached = 0
    while record := (yield Take(_OFFSET.size, or_end=True)):
        (offset,) = _OFFSET.unpack(record)
        if offset % block or not reached <= offset < size:
            raise malformed(_TITLE, f"the block at {offset} is out of order or past the end")
        reached = min(offset + block, size)
        yield Data(offset, reached - offset)


FORMAT = Format(
    name="blocksync-fast",
    title=_TITLE,
    read=read,
    ends=False,
    based=False,
    unchecked=("that it is whole", "its base", "its bytes"),
)
