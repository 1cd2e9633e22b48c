"""Dumps and snapbacks of lvmsync, PROTO[3]: a banner, then records until the stream ends.

A record is u64 offset, u32 length, both big-endian, and the bytes. Where the disk ends inside a
record, its bytes end there, too, although the header says more.
"""

import struct
from collections.abc import Iterator

import numpy as np

from blockstream.errors import RefusedError
from blockstream.formats.foreign.events import Data, Format, Head, Many, Reading, Take, Window
from blockstream_protocol import DEVICE_BYTES

BANNER = b"lvmsync PROTO[3]"
_HEADER = struct.Struct(">QI")
# A multiple of every chunk size, well below what a u32 can say, and what lvmsync holds in memory.
_RECORD_BYTES = 1 << 20
_FEWEST = 4
# To look at a window costs as much as a hundred records; where few are alike, it is rarely done.
_SINGLES = 256


def read(size: int | None) -> Reading:
    """Read a dump."""
    banner = yield Take(len(BANNER) + 1)
    if banner.endswith(b"\r"):
        yield Take(1)
    singles, short = 0, False
    while True:
        if not singles:
            alike = _alike((yield Window()), size)
            if alike is not None:
                yield alike
                continue
            singles = _SINGLES
        singles -= 1
        header = yield Take(_HEADER.size, or_end=True)
        if not header:
            return
        offset, length = _HEADER.unpack(header)
        if not length and short:
            raise RefusedError(
                "a dump of lvmsync has bytes past the end of the disk, which has "
                f"{size} bytes; nothing was written; the disk must be as large as its source"
            )
        if size is not None and offset < size < offset + length:
            # Where more of it follows, its zeros look like records without bytes.
            length, short = size - offset, True
        if length:
            yield Data(offset, length)


def _alike(window: bytes, size: int | None) -> Many | None:
    """Return the records at the start of a window that are of one length, if there are many.

    A dump is made of chunks of one snapshot, often of 4 KiB: one by one they take longer to read
    than to write.
    """
    if len(window) < _HEADER.size:
        return None
    _, length = _HEADER.unpack_from(window)
    stride = _HEADER.size + length
    count = len(window) // stride
    if not length or count < _FEWEST:
        return None
    rows = np.frombuffer(window, np.uint8, count * stride).reshape(count, stride)
    lengths = np.ascontiguousarray(rows[:, 8:12]).view(">u4")[:, 0]
    offsets = np.ascontiguousarray(rows[:, :8]).view(">u8")[:, 0]
    last = (size if size is not None else DEVICE_BYTES) - length
    fits = (lengths == length) & (offsets <= max(last, 0))
    if not fits.all():
        offsets = offsets[: int(fits.argmin())]
    if last < 0 or len(offsets) < _FEWEST:
        return None
    return Many(offsets.astype(np.int64), length, stride, _HEADER.size)


class LvmsyncWriter:
    """Writes a dump that `lvmsync --apply` takes."""

    def begin(self, head: Head) -> bytes:
        """Return the banner."""
        return BANNER + b"\n"

    def data(self, offset: int, length: int) -> Iterator[tuple[bytes, int]]:
        """Give one header for each record."""
        end = offset + length
        while offset < end:
            step = min(end - offset, _RECORD_BYTES)
            yield _HEADER.pack(offset, step), step
            offset += step

    zero = data  # it has no zeros but as bytes

    def end(self) -> bytes:
        """Return nothing: it has no end mark."""
        return b""


FORMAT = Format(
    name="lvmsync",
    title="a dump of lvmsync",
    read=read,
    ends=False,
    based=False,
    sizeless=True,
    unchecked=("that it is whole", "its base", "its bytes"),
    write=LvmsyncWriter,
    lost=(
        "base and goal",
        "the size of the disk",
        "checksums",
        "an end mark, so that a cut is not noticed",
        "zeros, other than as bytes",
    ),
)
