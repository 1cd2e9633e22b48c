"""Exports of Ceph's rbd in format 2: facts of the image, then diffs that follow one another.

See doc/dev/rbd-export.rst; the banner before the diffs is in src/tools/rbd/action/Export.cc only.
"""

import struct

from blockstream.formats.foreign.events import Format, Reading, Take, malformed, skipped
from blockstream.formats.foreign.rbd_diff import read_one

BANNER = b"rbd image v2\n"
_DIFFS = b"rbd image diffs v2\n"
_TITLE = "an export of rbd"
_NUMBER = struct.Struct("<Q")


def read(_size: int | None) -> Reading:
    """Read an export; the last diff leads to the image itself."""
    yield Take(len(BANNER))
    while (yield Take(1)) != b"E":
        (count,) = _NUMBER.unpack((yield Take(_NUMBER.size)))
        yield from skipped(count)
    if (yield Take(len(_DIFFS))) != _DIFFS:
        raise malformed(_TITLE, "no diffs follow the facts of its image")
    (diffs,) = _NUMBER.unpack((yield Take(_NUMBER.size)))
    reached: bytes | None = None
    for _ in range(diffs):
        reached = yield from read_one(reached)
    if not diffs:
        raise malformed(_TITLE, "it holds no diff")
    if (yield Take(1, or_end=True)):
        raise malformed(_TITLE, "bytes follow its end")


FORMAT = Format(
    name="rbd-image",
    title=_TITLE,
    read=read,
    ends=True,
    based=True,
    unchecked=("its bytes",),
)
