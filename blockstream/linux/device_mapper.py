"""What device-mapper alone knows of a thin volume."""

import fcntl
import os
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

# linux/dm-ioctl.h
_DM_TABLE_STATUS = 0xC138FD0C
_STATUS_TABLE_FLAG = 1 << 4
_BUFFER_FULL_FLAG = 1 << 8
_HEAD = struct.Struct("=3I I I I i I I I Q 128s 129s 7s")
_TARGET = struct.Struct("=Q Q i I 16s")  # start, length, status, next, type
_ROOM = 16 << 10
_CONTROL = Path("/dev/mapper/control")


@dataclass(frozen=True, slots=True)
class Thin:
    """A thin volume.

    Attributes:
        chunk: Bytes of what its pool gives out at once.
        shows_old: Whether the pool does so as it is: of a chunk that is written in part, the rest
            shows what lay there before, of whatever volume.
    """

    chunk: int
    shows_old: bool


@dataclass(frozen=True, slots=True)
class _Target:
    """One line of a table: its type, and its parameters as words."""

    kind: str
    words: Sequence[str]


def thin_at(device: int) -> Thin | None:
    """Return what there is to know of a block device, by number, that is a thin volume alone.

    None where it cannot be told, which costs no more than space: zeros are written then.
    """
    table = _table_of(device)
    if not table or {each.kind for each in table} != {"thin"}:
        return None
    # `thin POOL ID`, `thin-pool METADATA DATA SECTORS LOW COUNT FEATURE...`
    # (Documentation/admin-guide/device-mapper/thin-provisioning.rst)
    pools = _table_of(_number(table[0].words[0])) if table[0].words else []
    pool = pools[0] if pools else _Target("", ())
    if pool.kind != "thin-pool" or len(pool.words) < 5 or not pool.words[2].isdecimal():
        return Thin(0, shows_old=False)
    return Thin(int(pool.words[2]) * 512, shows_old="skip_block_zeroing" in pool.words[5:])


def _number(text: str) -> int:
    """Return the device that `MAJOR:MINOR` names; 0 for none."""
    found = re.fullmatch(r"(\d+):(\d+)", text)
    return os.makedev(int(found[1]), int(found[2])) if found else 0


def _table_of(device: int) -> Sequence[_Target]:
    """Return the table of a device; empty where it has none, or cannot be asked."""
    if not Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/dm").is_dir():
        return ()
    try:
        with _CONTROL.open("rb") as control:
            answer = bytearray(_question(device))
            fcntl.ioctl(control, _DM_TABLE_STATUS, answer, True)
    except OSError:
        return ()
    return _parsed(answer)


def _question(device: int) -> bytes:
    head = _HEAD.pack(
        4, 0, 0, _ROOM, _HEAD.size, 0, 0, _STATUS_TABLE_FLAG, 0, 0, device, b"", b"", b""
    )
    return head.ljust(_ROOM, b"\0")


def _parsed(answer: bytearray) -> Sequence[_Target]:
    """Return every target in a table; none if the answer was cut."""
    head = _HEAD.unpack_from(answer)
    start, count, flags = head[4], head[5], head[7]
    if flags & _BUFFER_FULL_FLAG:
        return ()
    found, position = [], 0
    for _ in range(count):
        *_, following, name = _TARGET.unpack_from(answer, start + position)
        words = answer[start + position + _TARGET.size :].split(b"\0", 1)[0]
        found.append(_Target(name.rstrip(b"\0").decode(errors="replace"), words.decode().split()))
        position = following  # from the start of the data (drivers/md/dm-ioctl.c)
    return found
