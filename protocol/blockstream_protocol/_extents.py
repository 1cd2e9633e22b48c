"""The payload of an EXTENTS frame: a table, then the bytes of its DATA extents (SPEC 4.4)."""

import functools
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

from blockstream_protocol._digests import Buffer
from blockstream_protocol._errors import RemoteProtocolError
from blockstream_protocol._limits import DATA_BYTES, DEVICE_BYTES, FRAME_EXTENTS

_COUNT = struct.Struct("<I")
ROW = struct.Struct("<QQI")


class Kind(IntEnum):
    """What a range holds. Never 0, so that a zeroed table is no table."""

    DATA = 1
    ZERO = 2


class Extent(NamedTuple):
    """One row of a table: a hot path, hence a tuple with names.

    Attributes:
        offset: First byte, from the start of the device.
        length: Size in bytes; never zero.
        kind: A `Kind`: bytes follow, or the range must read as zeros.
    """

    offset: int
    length: int
    kind: int


# Bound once: these are looked up for every row that arrives.
_DATA, _ZERO = int(Kind.DATA), int(Kind.ZERO)
_as_extent = functools.partial(tuple.__new__, Extent)


@dataclass(frozen=True, slots=True)
class Table:
    """What one EXTENTS frame says.

    Attributes:
        extents: Its rows, ascending.
        data: The bytes of the DATA rows, one after the other.
    """

    extents: list[Extent]
    data: memoryview


def table_bytes(count: int) -> int:
    """Return how long a table of `count` rows is."""
    return _COUNT.size + ROW.size * count


def encode_table(extents: Iterable[Extent]) -> bytes:
    """Return the table; the data follows it in the payload."""
    rows = [ROW.pack(*extent) for extent in extents]
    return _COUNT.pack(len(rows)) + b"".join(rows)


def parse_table(raw: Buffer) -> Table:
    """Parse an unpacked payload whose digest has been checked.

    Only the table's own arithmetic is checked here; order and place are the receiver's.

    Raises:
        RemoteProtocolError: If the table does not describe exactly the bytes that follow it.
    """
    view = memoryview(raw).cast("B")
    if len(view) < _COUNT.size:
        raise RemoteProtocolError("an extents frame has no table")
    (count,) = _COUNT.unpack_from(view)
    start = table_bytes(count)
    if not 1 <= count <= FRAME_EXTENTS or start > len(view):
        raise RemoteProtocolError(f"an extents frame claims a table of {count} rows")
    extents = list(map(_as_extent, ROW.iter_unpack(view[_COUNT.size : start])))
    data = 0
    for offset, length, kind in extents:
        if not length or offset + length > DEVICE_BYTES:
            raise RemoteProtocolError(f"an extent of {length} bytes at offset {offset}")
        if kind == _DATA:
            data += length
        elif kind != _ZERO:
            raise RemoteProtocolError(f"an extent of unknown kind {kind} at offset {offset}")
    if data != len(view) - start or data > DATA_BYTES:
        raise RemoteProtocolError(
            f"a table describes {data} bytes of data, {len(view) - start} follow it"
        )
    return Table(extents, view[start:])
