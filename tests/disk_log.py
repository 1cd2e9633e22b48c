"""The log of `disk_plugin.py`: what reached its disks, in order."""

import random
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

SECTOR = 512
ENTRY = struct.Struct("<ccQI")  # as in disk_plugin.py, which must not import anything of ours


@dataclass(frozen=True, slots=True)
class Logged:
    """One request.

    Attributes:
        disk: First letter of the disk's name.
        what: "W" for a write, "Z" for zeroing, "F" for a flush.
        offset: First byte.
        data: What was written.
    """

    disk: str
    what: str
    offset: int
    data: bytes


def read_log(log: bytes) -> list[Logged]:
    """Parse a log, or the rest of one from a whole entry on."""
    entries, position = [], 0
    while position < len(log):
        disk, what, offset, length = ENTRY.unpack_from(log, position)
        position += ENTRY.size
        data = bytes(length)
        if what == b"W":
            data = log[position : position + length]
            position += length
        entries.append(Logged(disk.decode(), what.decode(), offset, data))
    return entries


def lose_power(
    log: Sequence[Logged], disks: Mapping[str, bytearray], seeded: random.Random
) -> None:
    """Let happen to disks what a log says, and then the power fail.

    What each disk had flushed is there; of the rest each write is whole, torn at a sector, or lost.

    Args:
        log: What reached the disks, up to the cut.
        disks: What they held before, by first letter; changed in place.
        seeded: Chance.
    """
    for name, image in disks.items():
        before = [entry for entry in log if entry.disk == name]
        flushes = [i for i, entry in enumerate(before) if entry.what == "F"]
        durable = flushes[-1] if flushes else 0
        for number, entry in enumerate(before):
            _apply(entry, image, 0.0 if number < durable else seeded.random(), seeded)


def _apply(entry: Logged, image: bytearray, luck: float, seeded: random.Random) -> None:
    """Write an entry: whole below 0.4, some of its sectors below 0.6, else not at all."""
    if luck < 0.4:
        image[entry.offset : entry.offset + len(entry.data)] = entry.data
    elif luck < 0.6:
        for start in range(0, len(entry.data), SECTOR):
            if seeded.random() < 0.5:
                sector = entry.data[start : start + SECTOR]
                image[entry.offset + start : entry.offset + start + len(sector)] = sector
