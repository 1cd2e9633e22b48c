"""VMDK files of every kind, made by us: nothing that runs here writes COWD and SESparse.

A file is made of grains by number: bytes, or what stands for zeros. Tables lie in the file in a
shuffled order, and so do the grains of a table, so that a parser that relies on an order fails.
"""

import random
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

SECTOR = 512


class Zeros(Enum):
    """Grains that read as zeros, whatever lies below them."""

    ZEROED = 2
    UNMAPPED = 1


Grains = Mapping[int, bytes | Zeros]


@dataclass
class Image:
    """A sparse file, and where its structures are, for those who damage it.

    Attributes:
        data: The file.
        directory: Where its directory is.
        tables: Where the table of each number is.
        places: Where the grain of each number is.
    """

    data: bytearray
    directory: int
    tables: dict[int, int]
    places: dict[int, int]


def overlaid(below: bytes, size: int, grain: int, grains: Grains) -> bytes:
    """Return what a disk of `size` holds that has `grains` over `below`: the model."""
    content = bytearray(below[:size].ljust(size, b"\0"))
    for number, data in grains.items():
        start = number * grain
        length = min(grain, size - start)
        content[start : start + length] = (
            bytes(length) if isinstance(data, Zeros) else data[:length]
        )
    return bytes(content)


def difference(found: bytes, wanted: bytes) -> str:
    """Say where two disks differ, shortly; empty if they do not."""
    if found == wanted:
        return ""
    pairs = enumerate(zip(found, wanted, strict=False))
    first = next((n for n, (a, b) in pairs if a != b), min(len(found), len(wanted)))
    return f"byte {first} differs, of {len(found)} and {len(wanted)}"


def some_grains(
    size: int, grain: int, seed: int, *, zeros: bool = False
) -> dict[int, bytes | Zeros]:
    """Return grains in runs and alone, the very last always, and of some tables none at all."""
    seeded = random.Random(seed)  # noqa: S311  # the same each time
    count = -(-size // grain)
    found: dict[int, bytes | Zeros] = {}
    for _ in range(12):
        first = seeded.randrange(count)
        for number in range(first, min(first + seeded.choice([1, 1, 2, 7, 40]), count)):
            found[number] = seeded.randbytes(grain)
    for number in seeded.sample(sorted(found), len(found) // 4) if zeros else ():
        found[number] = seeded.choice(list(Zeros))
    found[count - 1] = seeded.randbytes(grain)
    return found


def cowd(
    sectors: int,
    grains: Grains,
    *,
    grain: int = 1,
    directory: int = 4,
    flags: int = 3,
    seed: int = 1,
) -> Image:
    """Return a COWD file: header, directory, then tables and grains."""
    entries = 4096
    count = -(-sectors // (grain * entries))
    data = bytearray((directory + -(-count * 4 // SECTOR)) * SECTOR)
    tables = _laid(data, grains, entries, 32 * SECTOR, seed)
    places = _placed(data, grains, grain * SECTOR, seed)
    for table, start in tables.items():
        struct.pack_into("<I", data, directory * SECTOR + table * 4, start // SECTOR)
    for number, place in places.items():
        table, slot = divmod(number, entries)
        struct.pack_into("<I", data, tables[table] + slot * 4, place // SECTOR)
    free = len(data) // SECTOR
    struct.pack_into("<4s7I", data, 0, b"COWD", 1, flags, sectors, grain, directory, count, free)
    return Image(data, directory * SECTOR, tables, places)


def sesparse(sectors: int, grains: Grains, *, replay: int = 0, seed: int = 1) -> Image:
    """Return an SESparse file in the layout that qemu takes, too."""
    entries, grain, directory = 4096, 8 * SECTOR, 64
    count = -(-sectors // (8 * entries))
    room = -(-count * 8 // SECTOR)
    data = bytearray((directory + room) * SECTOR)
    first_table = len(data)
    tables = _laid(data, grains, entries, 64 * SECTOR, seed)
    bitmap = len(data)
    data += bytes(2 * SECTOR)
    data += bytes(-len(data) % grain)
    first_grain = len(data)
    places = _placed(data, grains, grain, seed)
    for table, start in tables.items():
        entry = 0x1000000000000000 | (start - first_table) // (64 * SECTOR)
        struct.pack_into("<Q", data, directory * SECTOR + table * 8, entry)
    for number, content in grains.items():
        table, slot = divmod(number, entries)
        if isinstance(content, Zeros):
            entry = content.value << 60
        else:
            where = (places[number] - first_grain) // grain
            entry = 0x3000000000000000 | (where & 0xFFF) << 48 | where >> 12
        struct.pack_into("<Q", data, tables[table] + slot * 8, entry)
    header = [0xCAFEBABE, 0x200000001, sectors, 8, 64, 0, 0, 0, 0, 0, 1, 1, 2, 1, 16, 48]
    header += [directory, room, first_table // SECTOR, len(tables) * 64]
    header += [bitmap // SECTOR, 1, bitmap // SECTOR + 1, 1]
    header += [first_grain // SECTOR, (len(data) - first_grain) // SECTOR]
    struct.pack_into(f"<{len(header)}Q", data, 0, *header)
    struct.pack_into("<4Q", data, SECTOR, 0xCAFECAFE, len(tables), 1, replay)
    return Image(data, directory * SECTOR, tables, places)


def hosted(
    sectors: int,
    grains: Grains,
    *,
    grain: int = 128,
    entries: int = 512,
    flags: int = 1 | 4,
    text: str = "",
    seed: int = 1,
) -> Image:
    """Return a KDMV file with that descriptor in it, or none."""
    count = -(-sectors // (grain * entries))
    data = bytearray(SECTOR) + text.encode().ljust(20 * SECTOR, b"\0")
    directory = len(data)
    data += bytes(-(-count * 4 // SECTOR) * SECTOR)
    tables = _laid(data, grains, entries, entries * 4, seed)
    overhead = len(data)
    places = _placed(data, grains, grain * SECTOR, seed)
    for table, start in tables.items():
        struct.pack_into("<I", data, directory + table * 4, start // SECTOR)
    for number, content in grains.items():
        table, slot = divmod(number, entries)
        entry = 1 if isinstance(content, Zeros) else places[number] // SECTOR
        struct.pack_into("<I", data, tables[table] + slot * 4, entry)
    data[:SECTOR] = kdmv_header(
        sectors, grain, entries, flags, bool(text), directory // SECTOR, overhead // SECTOR
    )
    return Image(data, directory, tables, places)


def stream(
    sectors: int, grains: Grains, *, text: str, grain: int = 128, entries: int = 512
) -> Image:
    """Return a streamOptimized file as VMware exports it: the directory behind, then a footer."""
    flags = 0x30001
    packed = {number: data for number, data in grains.items() if not isinstance(data, Zeros)}
    data = bytearray(kdmv_header(sectors, grain, entries, flags, True, (1 << 64) - 1, 128))
    data += text.encode().ljust(127 * SECTOR, b"\0")
    tables: dict[int, int] = {}
    places: dict[int, int] = {}
    for table in sorted({number // entries for number in packed}):
        numbers = sorted(number for number in packed if number // entries == table)
        for number in numbers:
            places[number] = len(data)
            rest = min(grain, sectors - number * grain) * SECTOR
            deflated = zlib.compress(packed[number][:rest])
            data += struct.pack("<QI", number * grain, len(deflated)) + deflated
            data += bytes(-len(data) % SECTOR)
        data += marker(entries * 4 // SECTOR, 1)
        tables[table] = len(data)
        column = [places[number] // SECTOR if number in places else 0 for number in range(
            table * entries, (table + 1) * entries
        )]  # fmt: skip
        data += struct.pack(f"<{entries}I", *column)
    count = -(-sectors // (grain * entries))
    data += marker(-(-count * 4 // SECTOR), 2)
    directory = len(data)
    starts = [tables.get(table, 0) // SECTOR for table in range(count)]
    data += struct.pack(f"<{count}I", *starts)
    data += bytes(-len(data) % SECTOR)
    data += marker(1, 3)
    data += kdmv_header(sectors, grain, entries, flags, True, directory // SECTOR, 128)
    data += bytes(SECTOR)
    return Image(data, directory, tables, places)


def marker(sectors: int, kind: int) -> bytes:
    """Return the sector before metadata."""
    return struct.pack("<QII", sectors, 0, kind).ljust(SECTOR, b"\0")


def kdmv_header(
    sectors: int,
    grain: int,
    entries: int,
    flags: int,
    described: bool,
    directory: int,
    overhead: int,
) -> bytes:
    """Return the header of a KDMV file, whose descriptor has 20 sectors from 1 on."""
    fields = [b"KDMV", 1, flags, sectors, grain, int(described), 20 * described, entries, 0]
    fields += [directory, overhead, 0, b"\n \r\n", flags >> 16 & 1]
    return struct.pack("<4sIIQQQQIQQQB4sH", *fields).ljust(SECTOR, b"\0")


def described(
    *extents: str,
    cid: str = "11111111",
    parent_cid: str = "ffffffff",
    parent: str = "",
    more: str = "",
) -> str:
    """Return a descriptor."""
    kind = "seSparse" if "SESPARSE" in extents[0] else "vmfsSparse"
    kind = kind if "VMFSSPARSE" in extents[0] or "SESPARSE" in extents[0] else "vmfs"
    kind = "monolithicSparse" if " SPARSE " in extents[0] else kind
    lines = ["# Disk DescriptorFile", "version=1", f"CID={cid}", f"parentCID={parent_cid}"]
    lines += [f'createType="{kind}"', *([f'parentFileNameHint="{parent}"'] if parent else [])]
    lines += [
        "",
        "# Extent description",
        *extents,
        "",
        "#DDB",
        'ddb.adapterType = "lsilogic"',
        more,
    ]
    return "\n".join(lines) + "\n"


def write_flat(folder: Path, name: str, content: bytes, **about: str) -> Path:
    """Write a base disk as ESXi keeps it: a descriptor, and the bytes."""
    (folder / f"{name}-flat.vmdk").write_bytes(content)
    path = folder / f"{name}.vmdk"
    path.write_text(described(f'RW {len(content) // SECTOR} VMFS "{name}-flat.vmdk"', **about))
    return path


def write_delta(folder: Path, name: str, image: Image, sectors: int, **about: str) -> Path:
    """Write a delta as ESXi keeps it: a descriptor, and a COWD or SESparse file."""
    kind, suffix = (
        ("VMFSSPARSE", "delta") if image.data[:4] == b"COWD" else ("SESPARSE", "sesparse")
    )
    (folder / f"{name}-{suffix}.vmdk").write_bytes(image.data)
    path = folder / f"{name}.vmdk"
    path.write_text(described(f'RW {sectors} {kind} "{name}-{suffix}.vmdk"', **about))
    return path


def _laid(
    data: bytearray, grains: Grains, entries: int, table_bytes: int, seed: int
) -> dict[int, int]:
    """Make room for the tables that are needed, in no order; return where each begins."""
    numbers = sorted({number // entries for number in grains})
    random.Random(seed).shuffle(numbers)  # noqa: S311
    found = {}
    for number in numbers:
        found[number] = len(data)
        data += bytes(-(-table_bytes // SECTOR) * SECTOR)
    return found


def _placed(data: bytearray, grains: Grains, grain: int, seed: int) -> dict[int, int]:
    """Append grains, some in order and some not; return where each begins."""
    numbers = sorted(number for number, content in grains.items() if not isinstance(content, Zeros))
    seeded = random.Random(seed)  # noqa: S311
    for start in range(0, len(numbers), 16):
        block = numbers[start : start + 16]
        if seeded.random() < 0.5:
            seeded.shuffle(block)
        numbers[start : start + 16] = block
    found = {}
    for number in numbers:
        content = grains[number]
        found[number] = len(data)
        data += content if isinstance(content, bytes) else b""
    return found
