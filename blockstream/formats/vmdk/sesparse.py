"""SESparse files: the deltas of ESXi on VMFS 6, and of disks from 2 TiB on (qemu block/vmdk.c)."""

import struct
from typing import Final

import numpy as np

from blockstream.errors import VmdkError
from blockstream.extents import Column
from blockstream.formats.steps import Steps
from blockstream.formats.vmdk.descriptor import SECTOR
from blockstream.formats.vmdk.grains import (
    ABSENT,
    ZEROS,
    Entries,
    GrainMap,
    check_inside,
    check_tables,
    exactly,
    geometry,
)
from blockstream_protocol import DEVICE_BYTES

MAGIC: Final = struct.pack("<Q", 0xCAFEBABE)
_WORDS: Final = struct.Struct("<64Q")
_VERSION: Final = 0x0000000200000001
_VOLATILE_MAGIC: Final = 0xCAFECAFE
_GRAIN: Final = 8  # sectors
_TABLE: Final = 64
_ENTRIES: Final = _TABLE * SECTOR // 8
# Numbers of the words of the header.
_CAPACITY, _GRAIN_SIZE, _TABLE_SIZE, _FLAGS = 2, 3, 4, 5
_VOLATILE, _DIRECTORY, _TABLES, _GRAINS = 10, 16, 18, 24
_PADDING: Final = 26
_REPLAY: Final = 3

_TOP: Final = np.uint64(0xFFFFFFFF00000000)
_THERE: Final = np.uint64(0x1000000000000000)
_LOW: Final = np.uint64(0x00000000FFFFFFFF)


def read_sesparse(file: int) -> Steps[GrainMap]:
    """Read headers and directory of a file of so many bytes.

    Raises:
        VmdkError: If it contradicts itself or the file, or was not closed.
    """
    if file < 2 * SECTOR:
        raise VmdkError("it is shorter than its headers")
    words = _WORDS.unpack(exactly((yield [(0, SECTOR)]), SECTOR))
    _check_header(words)
    where = _bytes(words, _VOLATILE)
    check_inside("second header", where, SECTOR, file)
    _check_volatile(_WORDS.unpack(exactly((yield [(where, SECTOR)]), SECTOR)))
    size, grain, wanted = geometry(words[_CAPACITY], _GRAIN, _ENTRIES, _GRAIN)
    directory, room = _bytes(words, _DIRECTORY), _bytes(words, _DIRECTORY + 1)
    if room < wanted * 8:
        raise VmdkError(f"its directory has {room} bytes, where its capacity takes {wanted * 8}")
    check_inside("directory", directory, wanted * 8, file)
    data = exactly((yield [(directory, wanted * 8)]), wanted * 8)
    numbers = np.frombuffer(data, "<u8")
    first, grains = _bytes(words, _TABLES), _bytes(words, _GRAINS)
    check_inside("tables", first, 0, file)
    check_inside("grains", grains, 0, file)
    tables = check_tables(_table_positions(numbers, first), _ENTRIES * 8, 2 * SECTOR, file)
    return GrainMap(
        kind="seSparse",
        file=file,
        size=size,
        grain=grain,
        entries=_ENTRIES,
        tables=tables,
        least=2 * SECTOR,
        wanted=grain,
        raw="<u8",
        decode=lambda entries: _positions(entries, grains, file),
    )


def _bytes(words: tuple[int, ...], number: int) -> int:
    """Return an offset or size of the header in bytes; what is past any device, as its end."""
    return min(words[number], DEVICE_BYTES // SECTOR) * SECTOR


def _check_header(words: tuple[int, ...]) -> None:
    wanted = {0: 0xCAFEBABE, 1: _VERSION, _GRAIN_SIZE: _GRAIN, _TABLE_SIZE: _TABLE, _FLAGS: 0}
    wanted |= dict.fromkeys((6, 7, 8, 9, *range(_PADDING, len(words))), 0)
    for number, value in wanted.items():
        if words[number] != value:
            raise VmdkError(
                f"word {number} of its header is {words[number]:#x}, where ESXi writes {value:#x}"
            )


def _check_volatile(words: tuple[int, ...]) -> None:
    if words[0] != _VOLATILE_MAGIC or any(words[_REPLAY + 1 :]):
        raise VmdkError("its second header is none")
    if words[_REPLAY]:
        raise VmdkError(
            "its journal was not replayed, and nobody but ESXi knows how: it is in use, or was not "
            "closed; let ESXi open and close it"
        )


def _table_positions(numbers: Entries, first: int) -> Column:
    there = numbers != 0
    if bool(((numbers & _TOP) != _THERE)[there].any()):
        raise VmdkError("its directory has an entry that is none")
    tables = (numbers & _LOW).astype(np.int64) * (_TABLE * SECTOR)
    return np.where(there, tables + first, ABSENT)


def _positions(entries: Entries, grains: int, file: int) -> Column:
    """Return where grains lie; unmapped ones are zeros (type 1), as qemu has it."""
    kinds = entries >> np.uint64(60)
    if bool((kinds > 3).any()) or bool(entries[kinds == 0].any()):
        raise VmdkError("a table of this seSparse file has an entry that is none")
    high = (entries & np.uint64(0x0FFF000000000000)) >> np.uint64(48)
    low = (entries & np.uint64(0x0000FFFFFFFFFFFF)) << np.uint64(12)
    numbers = high | low
    there = kinds == 3
    grain = _GRAIN * SECTOR
    if there.any() and int(numbers[there].max()) > (file - grains) // grain:
        raise VmdkError("a table of this seSparse file points past the file's end")
    found = np.where(there, numbers, np.uint64(0)).astype(np.int64) * grain + grains
    return np.where(there, found, np.where(kinds == 0, ABSENT, ZEROS))
