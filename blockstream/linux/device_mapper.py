"""The one question that we have to device-mapper: whether a volume is thin."""

import fcntl
import os
import struct
from pathlib import Path

# linux/dm-ioctl.h
_DM_TABLE_STATUS = 0xC138FD0C
_STATUS_TABLE_FLAG = 1 << 4
_BUFFER_FULL_FLAG = 1 << 8
_HEAD = struct.Struct("=3I I I I i I I I Q 128s 129s 7s")
_TARGET = struct.Struct("=Q Q i I 16s")  # start, length, status, next, type
_ROOM = 16 << 10
_CONTROL = Path("/dev/mapper/control")


def is_thin(device: int) -> bool:
    """Tell whether a block device, by number, is a thin volume and nothing else.

    False where it cannot be told, which costs no more than space: zeros are written then.
    """
    if not Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/dm").is_dir():
        return False
    try:
        with _CONTROL.open("rb") as control:
            answer = bytearray(_question(device))
            fcntl.ioctl(control, _DM_TABLE_STATUS, answer, True)
    except OSError:
        return False
    return set(_types(answer)) == {"thin"}


def _question(device: int) -> bytes:
    head = _HEAD.pack(
        4, 0, 0, _ROOM, _HEAD.size, 0, 0, _STATUS_TABLE_FLAG, 0, 0, device, b"", b"", b""
    )
    return head.ljust(_ROOM, b"\0")


def _types(answer: bytearray) -> list[str]:
    """Return the type of every target in a table; none if the answer was cut."""
    head = _HEAD.unpack_from(answer)
    start, count, flags = head[4], head[5], head[7]
    if flags & _BUFFER_FULL_FLAG:
        return []
    types, position = [], 0
    for _ in range(count):
        *_, following, name = _TARGET.unpack_from(answer, start + position)
        types.append(name.rstrip(b"\0").decode(errors="replace"))
        position = following  # from the start of the data (drivers/md/dm-ioctl.c)
    return types
