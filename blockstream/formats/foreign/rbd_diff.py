"""Differences of Ceph's rbd, v1 and v2: tagged records, little-endian, ended by `e`.

In v2 every record but the end has an u64 with its size after the tag. See doc/dev/rbd-diff.rst;
`p` in v2 is in src/tools/rbd/action/Export.cc only.
"""

import struct
from collections.abc import Iterator

from blockstream.errors import RefusedError
from blockstream.formats.foreign.events import (
    Base,
    Data,
    Format,
    Goal,
    Head,
    Looking,
    Reading,
    Size,
    Take,
    Whole,
    Zero,
    malformed,
    skipped,
)

BANNER_1 = b"rbd diff v1\n"
BANNER_2 = b"rbd diff v2\n"
_TITLE = "a diff of rbd"
_NAME_BYTES = 4096  # src/tools/rbd/Utils.cc
_LENGTH = struct.Struct("<I")
_NUMBER = struct.Struct("<Q")
_RANGE = struct.Struct("<QQ")


class _Diff:
    """What one diff has said so far."""

    def __init__(self, *, sized: bool, before: bytes | None) -> None:
        self._sized = sized
        self._before = before
        self._size: int | None = None
        self._from: bytes | None = None
        self._to: bytes | None = None
        self._reached = 0
        self._in_data = False

    def read(self) -> Looking:
        """Read the records, to the end mark; return the name of the goal, if it has one."""
        while (tag := (yield Take(1))) != b"e":
            count = None
            if self._sized:
                (count,) = _NUMBER.unpack((yield Take(_NUMBER.size)))
            yield from self._record(tag, count)
        if self._size is None:
            raise malformed(_TITLE, "it does not say how large the disk is")
        yield from self._facts_done()
        return self._to or b""

    def _record(self, tag: bytes, count: int | None) -> Reading:
        if tag in {b"w", b"z"}:
            yield from self._facts_done()
            yield from self._range(tag, count)
        elif self._in_data:
            raise malformed(_TITLE, f"a record {tag!r} follows the data")
        elif tag in {b"f", b"t"}:
            yield from self._named(tag, count)
        elif tag == b"s":
            if self._size is not None or count not in {None, _NUMBER.size}:
                raise malformed(_TITLE, "it tells the size of the disk twice, or not as it should")
            (self._size,) = _NUMBER.unpack((yield Take(_NUMBER.size)))
        elif count is not None:
            yield from skipped(count)  # v2 says how much to skip, so that it can grow
        else:
            raise malformed(_TITLE, f"it has a record of the unknown kind {tag!r}")

    def _facts_done(self) -> Reading:
        """Say what was learnt before the first range."""
        if self._in_data:
            return
        if self._size is None:
            raise malformed(_TITLE, "data comes before the size of the disk")
        self._in_data = True
        if self._before is not None and self._from != self._before:
            raise malformed(_TITLE, "it does not begin where the one before it leads")
        if self._from is None:
            yield Whole()
        if self._to is None:
            yield Goal("")  # the image itself, whatever a diff before it has led to
        yield Size(self._size)

    def _named(self, tag: bytes, count: int | None) -> Reading:
        name = yield from _name(count)
        text = name.decode("utf-8", "replace")
        if tag == b"f":
            if self._from is not None:
                raise malformed(_TITLE, "it names its base twice")
            self._from = name
            yield Base(text)
        else:
            if self._to is not None:
                raise malformed(_TITLE, "it names its goal twice")
            self._to = name
            yield Goal(text)

    def _range(self, tag: bytes, count: int | None) -> Reading:
        offset, length = _RANGE.unpack((yield Take(_RANGE.size)))
        wanted = _RANGE.size + (length if tag == b"w" else 0)
        if count not in {None, wanted}:
            raise malformed(_TITLE, f"the record at {offset} claims {count} bytes")
        if offset < self._reached:
            raise malformed(_TITLE, f"the record at {offset} comes after one that ends later")
        if offset + length > (self._size or 0):
            raise malformed(_TITLE, f"the record at {offset} reaches past the end of the disk")
        self._reached = offset + length
        if length:
            yield Data(offset, length) if tag == b"w" else Zero(offset, length)


def _name(count: int | None) -> Looking:
    (length,) = _LENGTH.unpack((yield Take(_LENGTH.size)))
    if length > _NAME_BYTES or count not in {None, _LENGTH.size + length}:
        raise malformed(_TITLE, f"a name of {length} bytes")
    return (yield Take(length)) if length else b""


def read(_size: int | None) -> Reading:
    """Read a diff that stands alone."""
    yield from read_one()
    if (yield Take(1, or_end=True)):
        raise malformed(_TITLE, "bytes follow its end")


def read_one(before: bytes | None = None) -> Looking:
    """Read a diff, of either version, to its end mark.

    Args:
        before: Name of the state that the diff before it leads to; None if it is the first.

    Returns:
        The name of the state that it leads to; empty for the image itself.
    """
    banner = yield Take(len(BANNER_1))
    if banner not in {BANNER_1, BANNER_2}:
        raise malformed(_TITLE, "it does not begin with its banner")
    return (yield from _Diff(sized=banner == BANNER_2, before=before).read())


class RbdDiffWriter:
    """Writes a v1 diff, which `rbd import-diff` and `rbd merge-diff` take."""

    def begin(self, head: Head) -> bytes:
        """Return banner, names and size."""
        named = b""
        for tag, name in ((b"f", head.base), (b"t", head.goal)):
            if name:
                named += tag + _LENGTH.pack(len(name)) + name.encode()
        if head.base and head.base == head.goal:
            raise RefusedError("a diff of rbd cannot lead back to its own base; nothing was made")
        return BANNER_1 + named + b"s" + _NUMBER.pack(head.size)

    def data(self, offset: int, length: int) -> Iterator[tuple[bytes, int]]:
        """Give the head of a range."""
        yield b"w" + _RANGE.pack(offset, length), length

    def zero(self, offset: int, length: int) -> Iterator[tuple[bytes, int]]:
        """Give the head of zeros."""
        yield b"z" + _RANGE.pack(offset, length), 0

    def end(self) -> bytes:
        """Return the end mark."""
        return b"e"


FORMAT = Format(
    name="rbd",
    title=_TITLE,
    read=read,
    ends=True,
    based=True,
    unchecked=("its bytes",),
    write=RbdDiffWriter,
    lost=("checksums",),
)
