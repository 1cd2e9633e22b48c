"""Lists of extents from anybody's change tracker, recognised by what they contain.

A new syntax is one file with a `read(data, size)` and one line in the table.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from blockstream.errors import ExtentListError
from blockstream.formats import extent_arrays, extents_json, thin_delta
from blockstream.formats.extent_rows import ExtentList, Meaning
from blockstream.formats.extents_json import written

__all__ = ["ExtentList", "Meaning", "parse_extent_list", "written"]

# The first entry of any list ends well within it.
_HEAD_BYTES: Final = 4096
_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"  # PowerShell's redirection puts it before UTF-8


@dataclass(frozen=True, slots=True)
class _Syntax:
    """How a list begins, and who reads it."""

    begins: re.Pattern[bytes]
    read: Callable[[bytes, int], ExtentList]


def _array_with(key: bytes) -> re.Pattern[bytes]:
    """Return the pattern of a JSON array whose first object has that name."""
    return re.compile(rb'\s*\[\s*\{[^{}]*"' + key + rb'"\s*:')


_SYNTAXES: Final = (
    _Syntax(re.compile(rb"\s*\{"), extents_json.read),
    _Syntax(re.compile(rb"\s*<"), thin_delta.read),
    _Syntax(_array_with(b"exists"), extent_arrays.read_rbd_diff),
    # Two snapshots that are equal; the other two list at least what has not changed.
    _Syntax(re.compile(rb"\s*\[\s*\]"), extent_arrays.read_rbd_diff),
    _Syntax(_array_with(b"type"), extent_arrays.read_nbdinfo_map),
    _Syntax(_array_with(b"zero"), extent_arrays.read_qemu_map),
)

# What people hand over instead: (how it begins, what it is, what to do). Looked at first, because
# some of it would pass for the real thing.
_NEARLY: Final = (
    (re.compile(rb"\s*\d+ +\d+ +\d+ +\S"), "nbdinfo --map for people", "add --json"),
    (_array_with(b"percent"), "nbdinfo --map --totals", "leave out --totals"),
    (re.compile(rb"Offset +Length +Mapped"), "qemu-img map for people", "add --output=json"),
    (re.compile(rb"Offset +Length +Type"), "rbd diff for people", "add --format json"),
    (re.compile(rb"\s*$"), "empty", "see whether the tool that should have made it failed"),
)
_KNOWN: Final = (
    "known are blockstream-extents, thin_delta, rbd diff --format json, "
    "nbdinfo --map --json and qemu-img map --output=json"
)


def parse_extent_list(data: bytes, size: int) -> ExtentList:
    """Parse a list of extents of a device of `size` bytes, whoever made it.

    Needs a few dozen bytes of memory an extent beside `data`, whatever `data` says.

    Raises:
        ExtentListError: If it is none that we know, is cut off or malformed, contradicts itself,
            reaches past the device's end, or tells another size.
    """
    data = data.removeprefix(_BYTE_ORDER_MARK)
    head = data[:_HEAD_BYTES]
    for begins, origin, advice in _NEARLY:
        if begins.match(head):
            raise ExtentListError(origin, "it cannot be read as a list", advice)
    for syntax in _SYNTAXES:
        if syntax.begins.match(head):
            return syntax.read(data, size)
    raise ExtentListError("unknown", f"it begins with {bytes(head[:20])!r}", _KNOWN)
