"""The log of `disk_plugin.py`: what reached its disks, in order."""

import struct
from dataclasses import dataclass

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
