"""Whatever lies in an index gives extents of its disk, each in a frame, or is refused.

The input is the index before it is packed.
"""

import zstandard

from tests.fuzz.engine import fuzz, instrumented

with instrumented("blockstream.formats"):
    from blockstream.errors import StoreDamagedError
    from blockstream.formats.point_index import PointIndex
    from blockstream.formats.point_map import merged

_COMPRESSOR = zstandard.ZstdCompressor(level=1)


def check(data: bytes) -> None:
    """Take one input."""
    for packed in (_COMPRESSOR.compress(data), data):
        try:
            index = PointIndex.decode(packed)
            found = merged([index])
        except StoreDamagedError:
            continue
        end = 0
        for offset, length in zip(found.offset.tolist(), found.length.tolist(), strict=True):
            if offset != end or length <= 0:
                raise AssertionError((offset, length, end))
            end = offset + length
        if end != index.size:
            raise AssertionError((end, index.size))


if __name__ == "__main__":
    fuzz(check)
