"""KDMV files (extent type SPARSE): Workstation's, qemu's, and streamOptimized ones of exports."""

import struct
import zlib
from dataclasses import dataclass
from typing import Final

import numpy as np

from blockstream.errors import VmdkError
from blockstream.extents import Column
from blockstream.formats.steps import Steps
from blockstream.formats.vmdk.descriptor import MOST_BYTES, SECTOR
from blockstream.formats.vmdk.grains import (
    ZEROS,
    Entries,
    GrainMap,
    check_inside,
    check_tables,
    exactly,
    geometry,
)

MAGIC: Final = b"KDMV"
_HEADER: Final = struct.Struct("<4sIIQQQQIQQQB4sH")
_NEWLINES: Final = b"\n \r\n"
_VERSIONS: Final = range(1, 4)  # 3 is of a disk with changed block tracking, and the same
_MOST_ENTRIES: Final = 512
_MOST_GRAIN: Final = 1 << 21  # sectors
# An inflated grain is held whole; everybody writes 64 KiB.
_MOST_INFLATED: Final = 4 << 20
_AT_THE_END: Final = (1 << 64) - 1
_TEST_NEWLINES, _SECOND_DIRECTORY, _ZEROS = 1, 2, 4
_COMPRESSED, _MARKERS = 0x10000, 0x20000
_DEFLATE: Final = 1

MARKER: Final = struct.Struct("<QII")  # of a grain, what is the type here are its first bytes
GRAIN_MARKER_BYTES: Final = 12
END, TABLE, DIRECTORY, FOOTER, PROGRESS = range(5)
_TAIL_BYTES: Final = 3 * SECTOR  # marker of the footer, footer, end of the stream


@dataclass(frozen=True, slots=True)
class Header:
    """What the header of a KDMV file says, in bytes.

    Attributes:
        size: Bytes of the disk; 0 where a descriptor stands in for everything else.
        grain: Bytes of a grain.
        entries: Entries of a table.
        tables: How many tables the disk takes.
        descriptor: Where the descriptor begins; 0 for none.
        descriptor_bytes: How much room it has.
        directory: Where the directory begins; None if the footer tells.
        overhead: Where data begins.
        zeros: Whether an entry of 1 means zeros.
        compressed: Whether grains are deflated, each behind a marker.
        unclean: Whether it was not closed.
    """

    size: int
    grain: int
    entries: int
    tables: int
    descriptor: int
    descriptor_bytes: int
    directory: int | None
    overhead: int
    zeros: bool
    compressed: bool
    unclean: bool


@dataclass(frozen=True, slots=True)
class Hosted:
    """What a KDMV file holds.

    Attributes:
        descriptor: The descriptor that is embedded in it; empty for none.
        map: Its grains; None where its descriptor names other files.
        warnings: What people should know.
    """

    descriptor: bytes
    map: GrainMap | None
    warnings: tuple[str, ...] = ()


def read_hosted(file: int) -> Steps[Hosted]:
    """Read header, descriptor and directory of a file of so many bytes.

    Raises:
        VmdkError: If it contradicts itself or the file.
    """
    if file < SECTOR:
        raise VmdkError("it is shorter than a header")
    header = parse_header((yield [(0, SECTOR)]))
    descriptor = b""
    if header.descriptor_bytes:
        check_inside("descriptor", header.descriptor, header.descriptor_bytes, file)
        descriptor = yield [(header.descriptor, header.descriptor_bytes)]
    if not header.size:
        return Hosted(descriptor, None)
    if header.directory is None:
        header = yield from _footer(file)
    grains = yield from _grains(header, file)
    notes = ("it was not closed after it was written last",) if header.unclean else ()
    return Hosted(descriptor, grains, notes)


def parse_header(head: bytes) -> Header:
    """Parse a header, or the footer that replaces it.

    Raises:
        VmdkError: If it is none, or nothing that we could hold.
    """
    fields = _HEADER.unpack_from(exactly(head, SECTOR))
    magic, version, flags, capacity, grain, descriptor, descriptor_sectors, entries = fields[:8]
    second, first, overhead, unclean, newlines, algorithm = fields[8:]
    if magic != MAGIC or version not in _VERSIONS:
        raise VmdkError(f"it begins with {magic!r}, version {version}; known are {MAGIC!r}, 1 to 3")
    if flags & _TEST_NEWLINES and newlines != _NEWLINES:
        raise VmdkError("line ends were changed in it: it was copied as if it were text")
    compressed = bool(flags & _COMPRESSED)
    if compressed and (algorithm != _DEFLATE or not flags & _MARKERS):
        raise VmdkError(f"it is compressed by algorithm {algorithm}; known is deflate, by markers")
    if not 0 < entries <= _MOST_ENTRIES:
        raise VmdkError(f"its tables have {entries} entries, not 1 to {_MOST_ENTRIES}")
    descriptor_bytes = descriptor_sectors * SECTOR if descriptor else 0
    if descriptor_bytes > MOST_BYTES + 1:
        raise VmdkError(f"its descriptor is longer than {MOST_BYTES} bytes")
    size = grain_bytes = tables = 0
    if capacity or not descriptor_bytes:
        most = _MOST_INFLATED // SECTOR if compressed else _MOST_GRAIN
        size, grain_bytes, tables = geometry(capacity, grain, entries, most)
    directory = second if flags & _SECOND_DIRECTORY and second else first
    return Header(
        size=size,
        grain=grain_bytes,
        entries=entries,
        tables=tables,
        descriptor=descriptor * SECTOR,
        descriptor_bytes=descriptor_bytes,
        directory=None if directory == _AT_THE_END else directory * SECTOR,
        overhead=overhead * SECTOR,
        zeros=bool(flags & _ZEROS),
        compressed=compressed,
        unclean=bool(unclean),
    )


def parse_footer(tail: bytes) -> Header:
    """Parse the last three sectors of a stream.

    Raises:
        VmdkError: If they are not what they must be.
    """
    _, size, kind = MARKER.unpack_from(exactly(tail, _TAIL_BYTES))
    if size or kind != FOOTER:
        raise VmdkError("its end is missing: there is no footer, which tells where everything is")
    if any(MARKER.unpack_from(tail, 2 * SECTOR)):
        raise VmdkError("its footer is not the end of it")
    footer = parse_header(tail[SECTOR : 2 * SECTOR])
    if footer.directory is None or not footer.size:
        raise VmdkError("its footer does not tell where the directory is")
    return footer


def _footer(file: int) -> Steps[Header]:
    if file < SECTOR + _TAIL_BYTES:
        raise VmdkError("its end is missing: there is no room for a footer")
    return parse_footer((yield [(file - _TAIL_BYTES, _TAIL_BYTES)]))


def _grains(header: Header, file: int) -> Steps[GrainMap]:
    if not SECTOR <= header.overhead <= file:
        raise VmdkError(f"its data would begin at {header.overhead}, in a file of {file} bytes")
    where = header.directory or 0
    check_inside("directory", where, header.tables * 4, file)
    data = exactly((yield [(where, header.tables * 4)]), header.tables * 4)
    tables = np.frombuffer(data, "<u4").astype(np.int64) * SECTOR
    return GrainMap(
        kind="sparse",
        file=file,
        size=header.size,
        grain=header.grain,
        entries=header.entries,
        tables=check_tables(tables, header.entries * 4, SECTOR, file),
        least=header.overhead,
        wanted=GRAIN_MARKER_BYTES if header.compressed else header.grain,
        raw="<u4",
        decode=_positions_or_zeros if header.zeros else _positions,
        compressed=header.compressed,
    )


def _positions(entries: Entries) -> Column:
    return entries.astype(np.int64) * SECTOR


def _positions_or_zeros(entries: Entries) -> Column:
    return np.where(entries == 1, ZEROS, entries.astype(np.int64) * SECTOR)


def read_grain(grains: GrainMap, position: int, number: int) -> Steps[bytes]:
    """Read a compressed grain.

    Args:
        grains: The map that it is of.
        position: Where its marker is in the file.
        number: Which grain of the disk it has to be.

    Raises:
        VmdkError: If it is another, or not what was deflated.
    """
    room = min(grains.file - position, SECTOR + grains.grain)
    if room < GRAIN_MARKER_BYTES:
        raise VmdkError("it ends within a grain")
    data = exactly((yield [(position, room)]), room)
    start, size, _ = MARKER.unpack_from(data.ljust(MARKER.size, b"\0"))
    end = GRAIN_MARKER_BYTES + size
    if start * SECTOR != number * grains.grain or not 0 < size <= 2 * grains.grain:
        raise VmdkError(f"where grain {number} should be is another, or none")
    if end > grains.file - position:
        raise VmdkError("it ends within a grain")
    if end > room:
        data += exactly((yield [(position + room, end - room)]), end - room)
    return inflated(data[GRAIN_MARKER_BYTES:end], grains.grain, grains.size - number * grains.grain)


def inflated(data: bytes, grain: int, rest: int) -> bytes:
    """Return the bytes of a grain; never more than a grain is held.

    Args:
        data: What was deflated, as zlib does.
        grain: Bytes of a grain.
        rest: Bytes of the disk from this grain on.

    Raises:
        VmdkError: If it is damaged, or no grain.
    """
    inflater = zlib.decompressobj()
    try:
        found = inflater.decompress(data, grain)
        more = b"" if inflater.eof else inflater.decompress(inflater.unconsumed_tail, 1)
    except zlib.error as error:
        raise VmdkError(f"a grain is damaged: {error}") from error
    if more or not inflater.eof:
        raise VmdkError("a grain is cut, or larger than a grain")
    if len(found) < min(grain, rest):
        raise VmdkError(f"a grain has {len(found)} bytes, not {min(grain, rest)}")
    return found[:rest]
