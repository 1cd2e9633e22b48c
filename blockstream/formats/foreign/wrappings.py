"""What a stream may be compressed with, told by how it begins."""

from typing import Final

_GZIP: Final = b"\x1f\x8b"
_ZSTD: Final = b"\x28\xb5\x2f\xfd"
# A frame of zstd that holds nothing to unpack: pzstd begins with one (RFC 8878, 3.1.2).
_SKIPPABLE: Final = b"\x2a\x4d\x18"


def wrapping(head: bytes) -> str:
    """Return what a stream is compressed with, `zstd` or `gzip`; empty for anything else.

    What unwraps these is not in here; the format is told from what comes out.
    """
    if head.startswith(_GZIP):
        return "gzip"
    skips = head[:1] and head[0] & 0xF0 == 0x50 and head[1:4] == _SKIPPABLE
    return "zstd" if head.startswith(_ZSTD) or skips else ""
