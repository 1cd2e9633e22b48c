"""A plugin of nbdkit: disks that do as they are told, badly.

Serves the files of a folder as exports. The file `orders` there holds a JSON object; it is read
again whenever it changes, and counting begins anew then:

    fail      what fails: "write" (zeroing included), "flush" or "read"
    at        the number of the first request of that kind that fails, from 1
    times     how many fail from there on; 1 if not given
    errno     what they fail with
    drop      the number of the write that is dropped without a word
    bad       first byte of a sector of 512 that cannot be read
    keeps     1: trim is accepted and ignored
    slow      how many seconds each flush takes

With log=1 every write, zeroing and flush is appended to the file `log` before it is done.
"""

import errno
import json
import os
import struct
import time
from pathlib import Path
from typing import Any

import nbdkit  # type: ignore[import-not-found]  # only inside nbdkit

API_VERSION = 2
ENTRY = struct.Struct("<ccQI")  # export, what, offset, length; then the bytes of a write

folder = Path()
log = -1
orders: dict[str, Any] = {}
orders_seen = (0, 0)
counts: dict[str, int] = {}


def config(key: str, value: str) -> None:
    global folder, log
    if key == "folder":
        folder = Path(value)
    elif key == "log":
        log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)


def thread_model() -> Any:
    return nbdkit.THREAD_MODEL_SERIALIZE_ALL_REQUESTS


def open(readonly: bool) -> tuple[bytes, int]:  # noqa: A001  # nbdkit's name
    name = str(nbdkit.export_name())
    return name[:1].encode(), os.open(folder / name, os.O_RDWR)


def get_size(handle: tuple[bytes, int]) -> int:
    return os.fstat(handle[1]).st_size


def can_flush(handle: tuple[bytes, int]) -> bool:
    return True


def can_fua(handle: tuple[bytes, int]) -> Any:
    return nbdkit.FUA_NONE


def pread(handle: tuple[bytes, int], buffer: bytearray, offset: int, flags: int) -> None:
    _count("read")
    bad = orders.get("bad")
    if bad is not None and offset < bad + 512 and bad < offset + len(buffer):
        _fail(errno.EIO)
    os.preadv(handle[1], [buffer], offset)


def pwrite(handle: tuple[bytes, int], buffer: bytes, offset: int, flags: int) -> None:
    number = _count("write")
    if number == orders.get("drop"):
        _hit()
        return
    _note(handle[0], b"W", offset, len(buffer), bytes(buffer))
    os.pwrite(handle[1], buffer, offset)


def zero(handle: tuple[bytes, int], count: int, offset: int, flags: int) -> None:
    number = _count("write")
    if number == orders.get("drop"):
        _hit()
        return
    _note(handle[0], b"Z", offset, count)
    os.pwrite(handle[1], bytes(count), offset)


def trim(handle: tuple[bytes, int], count: int, offset: int, flags: int) -> None:
    if orders.get("keeps"):
        _hit()
        return
    zero(handle, count, offset, flags)


def flush(handle: tuple[bytes, int], flags: int) -> None:
    _count("flush")
    if "slow" in orders:
        _hit()
        time.sleep(orders["slow"])
    _note(handle[0], b"F", 0, 0)


def _note(export: bytes, what: bytes, offset: int, length: int, data: bytes = b"") -> None:
    if log >= 0:
        os.write(log, ENTRY.pack(export, what, offset, length) + data)


def _count(what: str) -> int:
    """Count a request, and fail it if that was ordered."""
    global orders, orders_seen
    info = (folder / "orders").stat()
    seen = (info.st_ino, info.st_mtime_ns)
    if seen != orders_seen:
        orders, orders_seen = json.loads((folder / "orders").read_text()), seen
        counts.clear()
        (folder / "hits").unlink(missing_ok=True)
    number = counts[what] = counts.get(what, 0) + 1
    first = orders.get("at", 1)
    if orders.get("fail") == what and first <= number < first + orders.get("times", 1):
        _fail(orders["errno"])
    return number


def _fail(code: int) -> None:
    _hit()
    nbdkit.set_error(code)
    raise OSError(code, os.strerror(code))


def _hit() -> None:
    path = folder / "hits"
    path.write_text(str(int(path.read_text()) + 1 if path.exists() else 1))
