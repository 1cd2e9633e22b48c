"""Whatever lies in a store gives chunks of its origin, each once, or an error that is foreseen.

The first 8 bytes are the size of the origin; the next two say whether a good header is put before
the rest, and how large its chunks are.
"""

import struct

from tests.fuzz.engine import fuzz, instrumented

with instrumented("blockstream.formats"):
    from blockstream.errors import ExceptionStoreError, SnapshotInvalidError
    from blockstream.formats.exception_store import Ranges, exceptions, read_with


def check(data: bytes) -> None:
    """Take one input."""
    origin = int.from_bytes(data[:8], "little") >> 1
    store = data[10:]
    if data[8:9] > b"\x7f":
        sectors = 8 << (data[9] % 8 if len(data) > 9 else 0)
        head = struct.pack("<4I", 0x70416E53, 1, 1, sectors)
        store = head.ljust(sectors * 512, b"\0") + store.ljust(sectors * 1024, b"\0")

    def read(ranges: Ranges) -> bytes:
        for start, length in ranges:
            if start < 0 or start + length > len(store):
                raise AssertionError((start, length, len(store)))
        return b"".join(store[start : start + length] for start, length in ranges)

    try:
        found = read_with(exceptions(len(store), origin), read)
    except (ExceptionStoreError, SnapshotInvalidError):
        return
    end = 0
    for offset, length, _ in found.extents:
        if not end <= offset < offset + length <= origin or offset % found.chunk:
            raise AssertionError((offset, length))
        end = offset + length


if __name__ == "__main__":
    fuzz(check)
