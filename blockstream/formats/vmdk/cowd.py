"""COWD files (extent type VMFSSPARSE): the deltas of ESXi on VMFS 5 below 2 TiB."""

import struct
from typing import Final

import numpy as np

from blockstream.errors import VmdkError
from blockstream.extents import Column
from blockstream.formats.steps import Steps
from blockstream.formats.vmdk.descriptor import SECTOR
from blockstream.formats.vmdk.grains import (
    Entries,
    GrainMap,
    check_inside,
    check_tables,
    exactly,
    geometry,
)

MAGIC: Final = b"COWD"
_HEADER: Final = struct.Struct("<4s7I")
_HEADER_BYTES: Final = 2048
_VERSION: Final = 1
_FLAGS: Final = 3
_ENTRIES: Final = 4096
_MOST_GRAIN: Final = 2048  # sectors; ESXi makes grains of 1
_DIRECTORY_SECTOR: Final = SECTOR // 4  # entries


def read_cowd(file: int) -> Steps[tuple[GrainMap, tuple[str, ...]]]:
    """Read header and directory of a file of so many bytes.

    Returns:
        The map, and what people should know.

    Raises:
        VmdkError: If it contradicts itself or the file.
    """
    if file < _HEADER_BYTES:
        raise VmdkError("it is shorter than a header")
    head = exactly((yield [(0, _HEADER_BYTES)]), _HEADER_BYTES)
    magic, version, flags, capacity, grain, directory, count, _ = _HEADER.unpack_from(head)
    if magic != MAGIC or version != _VERSION:
        raise VmdkError(f"it begins with {magic!r}, version {version}, not {MAGIC!r}, {_VERSION}")
    size, grain_bytes, wanted = geometry(capacity, grain, _ENTRIES, _MOST_GRAIN)
    # A directory may fill its last sector; more would tell of grains past the end.
    if not wanted <= count <= -(-wanted // _DIRECTORY_SECTOR) * _DIRECTORY_SECTOR:
        raise VmdkError(f"its directory has {count} entries, where its capacity takes {wanted}")
    if directory * SECTOR < _HEADER_BYTES:
        raise VmdkError("its directory lies in the header")
    check_inside("directory", directory * SECTOR, count * 4, file)
    data = exactly((yield [(directory * SECTOR, wanted * 4)]), wanted * 4)
    tables = _positions(np.frombuffer(data, "<u4"))
    found = GrainMap(
        kind="vmfsSparse",
        file=file,
        size=size,
        grain=grain_bytes,
        entries=_ENTRIES,
        tables=check_tables(tables, _ENTRIES * 4, _HEADER_BYTES, file),
        least=_HEADER_BYTES,
        wanted=grain_bytes,
        raw="<u4",
        decode=_positions,
    )
    strange = (f"its flags are {flags}, where ESXi writes {_FLAGS}",) if flags != _FLAGS else ()
    return found, strange


def _positions(entries: Entries) -> Column:
    return entries.astype(np.int64) * SECTOR
