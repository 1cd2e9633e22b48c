"""What the kernel knows of writes to a disk, so that somebody else's are noticed.

Of a block device it counts them, for as long as the host runs and the device is attached. Of a file
it keeps the time of the last one. A loop device's own counters say nothing of writes into the file
that it lies on, so that is looked at instead. Writes to what a logical volume lies on pass it by.
"""

import json
import os
import stat
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from blockstream.linux.block import (
    diskseq_of,
    logical_block_of,
    read_path,
    read_text,
    sysfs_node,
)
from blockstream.linux.buffers import aligned_buffer
from blockstream.linux.files import file_system_of

# Fields of /sys/block/*/stat, from 0.
_MOST_FIELDS = 17
_READS = 0
_SECTORS = (6, 13)  # not their writes: a flush, our own as well, is one of no sectors
_NAMES = ("sectors written", "sectors discarded")
_LOOKS = 5  # until counters of several devices are of one moment
_LONGEST_TICK_SECONDS = 0.05
# linux/magic.h and the like: NFS, CIFS, SMB2, 9p, FUSE, Ceph.
_FAR = frozenset({0x6969, 0xFF534D42, 0xFE534D42, 0x01021997, 0x65735546, 0x00C36400})
_CLOCK_REALTIME_COARSE = 5  # linux/time.h; Python has no name for it
Trace = Mapping[str, object]


class Verdict(Enum):
    """What two traces of one disk say."""

    UNTOUCHED = "nobody wrote"
    WRITTEN = "somebody wrote"
    UNKNOWN = "the kernel does not know"


@dataclass(frozen=True, slots=True)
class Compared:
    """What two traces say, and why.

    Attributes:
        verdict: What they say.
        reason: How they differ, or why they cannot be compared.
    """

    verdict: Verdict
    reason: str = ""


def trace_of(fd: int) -> str:
    """Return what the kernel knows of writes to an open disk, as text; empty for nothing.

    Args:
        fd: The disk. What is in the cache is flushed: it counts only then.

    Raises:
        OSError: If it cannot be flushed.
    """
    os.fsync(fd)
    found = _trace_of(fd)
    return json.dumps(found, sort_keys=True) if found else ""


def compared(then: str, now: str) -> Compared:
    """Say whether somebody wrote to a disk between two traces of it."""
    if not then:
        return Compared(Verdict.UNKNOWN, "nothing was noted of it")
    if not now:
        return Compared(Verdict.UNKNOWN, "the kernel does not count writes to it")
    try:
        before, after = json.loads(then), json.loads(now)
        if before["kind"] != after["kind"] or before["life"] != after["life"]:
            return Compared(Verdict.UNKNOWN, _other_life(before, after))
        compare = _compared_files if before["kind"] == "file" else _compared_devices
        return compare(before, after)
    except (ValueError, TypeError, KeyError, AttributeError):
        return Compared(Verdict.UNKNOWN, "what was noted of it is of another version")


def _trace_of(fd: int) -> Trace:
    info = os.fstat(fd)
    if stat.S_ISREG(info.st_mode):
        return _file_trace(fd)
    node = sysfs_node(info.st_rdev)
    backing = read_path(node / "loop/backing_file") or read_path(node.parent / "loop/backing_file")
    if not backing:
        return _device_trace(fd, info.st_rdev)
    try:
        below = os.open(backing, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:  # deleted, or in another mount namespace
        return {}
    try:
        return _trace_of(below)
    finally:
        os.close(below)


def _file_trace(fd: int) -> Trace:
    if file_system_of(fd) in _FAR:
        return {}  # whose server may set times when it likes
    info = os.fstat(fd)
    # Times have the grain of a tick: who writes within the same one would leave no trace.
    until = time.monotonic() + _LONGEST_TICK_SECONDS
    while _coarse_now() <= max(info.st_mtime_ns, info.st_ctime_ns) and time.monotonic() < until:
        time.sleep(0.001)
    info = os.fstat(fd)
    return {
        "kind": "file",
        "life": f"{info.st_dev}:{info.st_ino}",
        "size": info.st_size,
        "written": info.st_mtime_ns,
        "changed": info.st_ctime_ns,
    }


def _coarse_now() -> int:
    """Return the time as file systems take it, in nanoseconds."""
    return time.clock_gettime_ns(_CLOCK_REALTIME_COARSE)


def _compared_files(before: Trace, after: Trace) -> Compared:
    if before["size"] != after["size"]:
        reason = f"it has {after['size']} bytes, and had {before['size']}"
        return Compared(Verdict.WRITTEN, reason)
    if before["written"] != after["written"]:
        return Compared(Verdict.WRITTEN, "its file was written at another time than ours")
    if before["changed"] != after["changed"]:
        return Compared(Verdict.UNKNOWN, "its file was renamed, or given to somebody else")
    return Compared(Verdict.UNTOUCHED)


def _device_trace(fd: int, device: int) -> Trace:
    node = sysfs_node(device)
    watched = [node, *_alone_below(node)]
    if not _are_counted(watched, lambda: _read_block(fd)):
        return {}
    boot = read_text(Path("/proc/sys/kernel/random/boot_id"))
    for _ in range(_LOOKS):
        counts = _counts(watched)
        if counts == _counts(watched):
            return {"kind": "device", "life": f"{boot}:{diskseq_of(fd)}", "counts": counts}
    return {}  # its neighbours on the same disk are written all the time


def _are_counted(nodes: Sequence[Path], read: Callable[[], None]) -> bool:
    """Tell whether the kernel counts what goes through devices, by reading something.

    `queue/iostats` does not tell: device mapper counts although it says 0 there.
    """
    before = [_fields(node)[_READS] for node in nodes]
    read()
    return all(_fields(node)[_READS] > count for node, count in zip(nodes, before, strict=True))


def _read_block(fd: int) -> None:
    """Read the first block of a device past the cache."""
    with suppress(OSError):
        direct = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT)
        try:
            os.preadv(direct, [aligned_buffer(logical_block_of(fd))], 0)
        finally:
            os.close(direct)


def _counts(watched: Sequence[Path]) -> dict[str, list[int]]:
    """Return the counters that a write to a device changes.

    Whoever writes into a partition through its disk leaves that only in the disk's counters: what
    these have more than all partitions together.

    Args:
        watched: The device, and those on which it lies alone.
    """
    node, *below = watched
    found = {"": _counters(node)} | {each.name: _counters(each) for each in below}
    if (node / "partition").exists():
        parts = sorted(path.parent for path in node.parent.glob("*/partition"))
        sums = [sum(each) for each in zip(*map(_counters, parts), strict=True)]
        whole = _counters(node.parent)
        found[" ".join(path.name for path in parts)] = [
            one - other for one, other in zip(whole, sums, strict=True)
        ]
    return found


def _counters(node: Path) -> list[int]:
    """Return a device's counters; of a kernel that does not count discards, 0 for these."""
    words = _fields(node)
    return [words[at] for at in _SECTORS]


def _fields(node: Path) -> list[int]:
    """Return what the kernel counts of a device."""
    words = [int(word) for word in read_text(node / "stat").split()]
    return words + [0] * (_MOST_FIELDS - len(words))


def _alone_below(node: Path) -> list[Path]:
    """Return the device on which an encrypted one lies, if nothing else does.

    Others write below themselves what is theirs: volume groups their records, arrays and mirrors
    their bitmaps, after a flush as well.
    """
    if not read_text(node / "dm/uuid").startswith("CRYPT-"):
        return []
    with suppress(OSError):
        slaves = [slave.resolve() for slave in (node / "slaves").iterdir()]
        if len(slaves) == 1 and len(list((slaves[0] / "holders").iterdir())) == 1:
            return slaves
    return []


def _compared_devices(before: Trace, after: Trace) -> Compared:
    then, now = before["counts"], after["counts"]
    if not isinstance(then, dict) or not isinstance(now, dict) or then.keys() != now.keys():
        return Compared(Verdict.UNKNOWN, "other devices belong to it now")
    for place, counts in then.items():
        for name, old, new in zip(_NAMES, counts, now[place], strict=True):
            if old != new:
                where = f" around {place}" if " " in place else f" of {place}" if place else ""
                reason = f"the kernel counts {new - old} {name}{where} since"
                return Compared(Verdict.WRITTEN, reason)
    return Compared(Verdict.UNTOUCHED)


def _other_life(before: Trace, after: Trace) -> str:
    if before["kind"] != after["kind"] or before["kind"] == "file":
        return "it lies on another file"
    boots = [str(each["life"]).partition(":")[0] for each in (before, after)]
    return "this host was started anew" if boots[0] != boots[1] else "the device was attached anew"
