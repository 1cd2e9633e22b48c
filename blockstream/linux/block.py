"""Requests that only the kernel answers: sizes, ids, zeroing, discards, holes."""

import ctypes
import errno
import fcntl
import os
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# linux/fs.h; the numbers are the same on all 64-bit architectures that Debian has.
_BLKROGET = 0x125E
_BLKGETSIZE64 = 0x80081272
_BLKSSZGET = 0x1268
_BLKZEROOUT = 0x127F
_BLKDISCARD = 0x1277
_BLKGETDISKSEQ = 0x80081280

# linux/falloc.h
_KEEP_SIZE = 0x01
_PUNCH_HOLE = 0x02

# What a device or file system says when it cannot do a request at all.
UNSUPPORTED = frozenset({errno.EOPNOTSUPP, errno.EINVAL, errno.ENOTTY, errno.ENOSYS, errno.ENODEV})

_libc = ctypes.CDLL(None, use_errno=True)
_fallocate = _libc.fallocate
_fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


def size_of(fd: int) -> int:
    """Return the size of an open device or file, in bytes."""
    info = os.fstat(fd)
    if stat.S_ISBLK(info.st_mode):
        (size,) = struct.unpack("Q", fcntl.ioctl(fd, _BLKGETSIZE64, bytes(8)))
        return int(size)
    return info.st_size


def is_read_only(fd: int) -> bool:
    """Tell whether the kernel lets nobody write an open block device."""
    (flag,) = struct.unpack("i", fcntl.ioctl(fd, _BLKROGET, bytes(4)))
    return bool(flag)


def logical_block_of(fd: int) -> int:
    """Return the smallest unit of direct I/O, in bytes; 512 where a file does not tell."""
    if not stat.S_ISBLK(os.fstat(fd).st_mode):
        return 512
    (block,) = struct.unpack("i", fcntl.ioctl(fd, _BLKSSZGET, bytes(4)))
    return int(block)


def diskseq_of(fd: int) -> int | None:
    """Return the number of this life of a device; None before Linux 5.15."""
    try:
        (seq,) = struct.unpack("Q", fcntl.ioctl(fd, _BLKGETDISKSEQ, bytes(8)))
    except OSError:
        return None
    return int(seq)


def is_locked(path: str) -> bool:
    """Tell whether a process holds the lock that keeps all others from a file or device.

    A shared one, such as udev holds while it probes, is none. What is not there is not locked.

    Raises:
        OSError: If it cannot be opened.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def zero_out(fd: int, offset: int, length: int) -> None:
    """Zero a range of a block device, by writing if the device has nothing better.

    Raises:
        OSError: EINVAL where the range is not aligned to logical blocks.
    """
    fcntl.ioctl(fd, _BLKZEROOUT, struct.pack("QQ", offset, length))


def discard(fd: int, offset: int, length: int) -> None:
    """Discard a range of a block device. What it reads as afterwards is anybody's guess."""
    fcntl.ioctl(fd, _BLKDISCARD, struct.pack("QQ", offset, length))


def punch_hole(fd: int, offset: int, length: int) -> None:
    """Unmap a range of a file or device so that it reads as zeros.

    The kernel clips a range past the end without a word: check it before.

    Raises:
        OSError: EOPNOTSUPP where that cannot be promised; nothing has changed then.
    """
    if _fallocate(fd, _KEEP_SIZE | _PUNCH_HOLE, offset, length) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def data_ranges(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """Give (first, after last) of every range that is not a hole, ascending.

    A block device is one range. So is a file on a file system that does not know.
    """
    if stat.S_ISBLK(os.fstat(fd).st_mode):
        yield 0, size
        return
    end = 0
    while end < size:
        try:
            start = os.lseek(fd, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole is left
                return
            if error.errno != errno.EINVAL:
                raise
            yield end, size
            return
        if start >= size:
            return
        end = min(os.lseek(fd, start, os.SEEK_HOLE), size)
        yield start, end


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """What sysfs says of a device's request queue.

    Attributes:
        write_zeroes_max: Longest zeroing that the device does itself, in bytes; 0 for none.
        discard_max: Longest discard, in bytes; 0 for none.
        discard_granularity: Unit of discards, in bytes.
    """

    write_zeroes_max: int = 0
    discard_max: int = 0
    discard_granularity: int = 0


def queue_limits_of(fd: int) -> QueueLimits:
    """Return the queue limits of an open block device; of a partition, its disk's."""
    node = sysfs_node(os.fstat(fd).st_rdev)
    queue = next((q for q in (node / "queue", node.parent / "queue") if q.is_dir()), None)
    if queue is None:
        return QueueLimits()
    return QueueLimits(
        write_zeroes_max=read_number(queue / "write_zeroes_max_bytes"),
        discard_max=read_number(queue / "discard_max_bytes"),
        discard_granularity=read_number(queue / "discard_granularity"),
    )


def sysfs_node(device: int) -> Path:
    """Return the sysfs directory of a block device number."""
    return Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}").resolve()


def read_text(path: Path) -> str:
    """Return the first line of a sysfs or proc file; empty where there is none."""
    try:
        return path.read_text(errors="replace").split("\n", 1)[0].strip()
    except OSError:
        return ""


def read_path(path: Path) -> str:
    """Return the path in a sysfs file, of any bytes, blanks included; empty where there is none."""
    try:
        return os.fsdecode(path.read_bytes().removesuffix(b"\n"))
    except OSError:
        return ""


def read_number(path: Path) -> int:
    """Return the number in a sysfs file; 0 where there is none."""
    text = read_text(path)
    return int(text) if text.isdecimal() else 0
