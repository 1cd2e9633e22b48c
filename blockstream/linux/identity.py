"""Who a device or file is, across renames, reboots and reused nodes."""

import contextlib
import ctypes
import fcntl
import hashlib
import os
import re
import stat
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from blockstream.linux.block import diskseq_of, read_path, read_text, sysfs_node
from blockstream.linux.files import file_system_of

_AT_EMPTY_PATH = 0x1000
_STATX_BTIME = 0x800
_BTIME_OFFSET = 0x50  # in struct statx: stx_btime, s64 seconds then u32 nanoseconds
_GETFSUUID = 0x80111500  # linux/fs.h: FS_IOC_GETFSUUID, since Linux 6.9
_XFS_GEOMETRY = 0x80705864  # libxfs/xfs_fs.h: XFS_IOC_FSGEOMETRY_V1
# Whose f_fsid is made of the id, and not of the device's number: ext4, btrfs, f2fs, ZFS.
_FSID_LASTS = frozenset({0xEF53, 0x9123683E, 0xF2F52010, 0x2FC12FC1})
_NODE = re.compile(r"(block|file):(\d{1,15}):(\d{1,20})")
_MOST_NODES = 16  # a source names itself; more is not ours
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Identity:
    """What a disk is known by.

    Attributes:
        key: Text that no other disk has.
        lasting: Whether the key outlives a reboot; if not, the state is UNKNOWN after one.
        others: What it was known by on other kernels, or to earlier versions.
    """

    key: str
    lasting: bool
    others: tuple[str, ...] = ()

    def is_known_as(self, text: str) -> bool:
        """Tell whether a text is one that it is, or was, known by."""
        return text == self.key or text in self.others

    @classmethod
    def of_file(cls, form: str, keys: Sequence[str]) -> "Identity":
        """Return the identity of what is known by a file; `form` has `{}` for what that is."""
        first, *others = (form.format(key) for key in keys)
        return cls(first, lasting=True, others=tuple(others))


@dataclass(frozen=True, slots=True, order=True)
class Node:
    """A thing that bytes lie on: a block device by number, or a file by its inode."""

    kind: str
    device: int
    inode: int = 0


def identity_of(fd: int) -> Identity:
    """Return the identity of an open device or regular file.

    A device is known by its device-mapper UUID, WWN or partition UUID, a loop device by its
    backing file, a file by its file system, inode and birth time, anything else by the number of
    this life of the device.
    """
    info = os.fstat(fd)
    if not stat.S_ISBLK(info.st_mode):
        return Identity.of_file("file:{}", _file_keys(fd, info))
    sysfs = sysfs_node(info.st_rdev)
    for name, prefix in (("dm/uuid", "dm"), ("wwid", "wwn"), ("device/wwid", "wwn")):
        text = read_text(sysfs / name)
        if text:
            return Identity(f"{prefix}:{text}", lasting=True)
    backing = read_path(sysfs / "loop/backing_file")
    if backing:
        return _loop_identity(sysfs, backing)
    partition = _partition_uuid(info.st_rdev)
    if partition:
        return Identity(f"partuuid:{partition}", lasting=True)
    boot = read_text(Path("/proc/sys/kernel/random/boot_id"))
    life = diskseq_of(fd)
    return Identity(f"seq:{boot}:{info.st_rdev}:{life}", lasting=False)


def _loop_identity(sysfs: Path, backing: str) -> Identity:
    window = f"{read_text(sysfs / 'loop/offset')}+{read_text(sysfs / 'loop/sizelimit')}"
    try:
        fd = os.open(backing, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:  # deleted, or in another mount namespace
        return Identity(f"loop:{backing}:{window}:{read_text(sysfs / 'diskseq')}", lasting=False)
    try:
        return Identity.of_file(f"loop:{{}}:{window}", _file_keys(fd, os.fstat(fd)))
    finally:
        os.close(fd)


def _file_keys(fd: int, info: os.stat_result) -> list[str]:
    """Return what a file is known by, the best first.

    The number of a device changes from one mount to the next, and with the order of disks. The file
    system's own id stays; which of them can be had depends on the kernel.
    """
    places = [*_file_system_ids(fd), str(info.st_dev)]
    return [f"{place}:{info.st_ino}:{_birth_of(fd)}" for place in places]


def _file_system_ids(fd: int) -> Iterator[str]:
    for request, size, first in ((_GETFSUUID, 17, 1), (_XFS_GEOMETRY, 112, 64)):
        with contextlib.suppress(OSError):
            answer = fcntl.ioctl(fd, request, bytes(size))
            if any(uuid := answer[first : first + 16]):
                yield f"uuid-{uuid.hex()}"
                break
    if file_system_of(fd) in _FSID_LASTS:
        yield f"fsid-{os.fstatvfs(fd).f_fsid:x}"


def _birth_of(fd: int) -> int:
    """Return a file's birth time in nanoseconds; 0 where the file system keeps none."""
    buffer = ctypes.create_string_buffer(256)
    if _libc.statx(fd, b"", _AT_EMPTY_PATH, _STATX_BTIME, buffer) != 0:
        return 0
    (mask,) = struct.unpack_from("I", buffer)
    seconds, nanoseconds = struct.unpack_from("qI", buffer, _BTIME_OFFSET)
    return int(seconds) * 10**9 + int(nanoseconds) if mask & _STATX_BTIME else 0


def _partition_uuid(device: int) -> str:
    """Return the UUID of a partition, as udev links it; empty without udev."""
    folder = Path("/dev/disk/by-partuuid")
    if not (sysfs_node(device) / "partition").exists() or not folder.is_dir():
        return ""
    for link in folder.iterdir():
        try:
            if link.stat().st_rdev == device:
                return link.name
        except OSError:
            continue
    return ""


def node_of(fd: int) -> Node:
    """Return what an open device or file is, for comparisons within this moment."""
    info = os.fstat(fd)
    if stat.S_ISBLK(info.st_mode):
        return Node("block", info.st_rdev)
    return Node("file", info.st_dev, info.st_ino)


def nodes_below(node: Node) -> frozenset[Node]:
    """Return everything that `node` keeps its bytes on: slaves, whole disk, backing file.

    A file lies on the device of its file system.
    """
    found: set[Node] = set()
    todo = [node]
    while todo:
        for below in _directly_below(todo.pop()):
            if below not in found:
                found.add(below)
                todo.append(below)
    return frozenset(found)


def _directly_below(node: Node) -> Iterator[Node]:
    sysfs = sysfs_node(node.device)
    if node.kind == "file":
        yield from _node_at(sysfs)
        return
    if (sysfs / "partition").exists():
        yield from _node_at(sysfs.parent)
    slaves = sysfs / "slaves"
    if slaves.is_dir():
        for slave in slaves.iterdir():
            yield from _node_at(slave)
    yield from _backing_of(sysfs)


def _backing_of(sysfs: Path) -> Iterator[Node]:
    """Give what a loop device lies on."""
    backing = read_path(sysfs / "loop/backing_file")
    if not backing:
        return
    try:
        info = Path(backing).stat()
    except OSError:
        return
    if stat.S_ISBLK(info.st_mode):
        yield Node("block", info.st_rdev)
    else:
        yield Node("file", info.st_dev, info.st_ino)


def _node_at(sysfs: Path) -> Iterator[Node]:
    major, _, minor = read_text(sysfs / "dev").partition(":")
    if major.isdecimal() and minor.isdecimal():
        yield Node("block", os.makedev(int(major), int(minor)))


def described(nodes: Iterable[Node]) -> dict[str, object]:
    """Describe nodes for a receiver, which compares them if it runs on this same kernel.

    The boot's id is digested: it is nobody else's business.
    """
    texts = [f"{node.kind}:{node.device}:{node.inode}" for node in nodes]
    return {"host": _this_boot(), "nodes": sorted(texts)[:_MOST_NODES]}


def described_here(facts: Mapping[str, object]) -> frozenset[Node]:
    """Return the nodes that a sender described, if it runs on this kernel; else none."""
    nodes = facts.get("nodes")
    if facts.get("host") != _this_boot() or not isinstance(nodes, list):
        return frozenset()
    found = (_NODE.fullmatch(str(text)) for text in nodes[:_MOST_NODES])
    return frozenset(Node(m[1], int(m[2]), int(m[3])) for m in found if m is not None)


def _this_boot() -> str:
    boot = read_text(Path("/proc/sys/kernel/random/boot_id"))
    return hashlib.sha256(f"blockstream:{boot}".encode()).hexdigest()[:32]


def share_bytes(one: Node, other: Node) -> bool:
    """Tell whether writing to one changes the other: the same, or one lies on the other.

    Two partitions of a disk, or two volumes of a group, do not.
    """
    return one == other or one in nodes_below(other) or other in nodes_below(one)


def users_of(node: Node) -> list[str]:
    """Say, for a message, who seems to use a disk: mounts, swap, holders, loop devices."""
    if node.kind == "file":
        return sorted({*_loops_on(node), *(f"{path} is swap" for path in _swaps({node}))})
    sysfs = sysfs_node(node.device)
    family = {node.device: sysfs.name}
    for child in sysfs.glob("*/partition"):
        for below in _node_at(child.parent):
            family[below.device] = child.parent.name
    users = [f"{family[device]} is mounted on {place}" for device, place in _mounts(family)]
    users += [f"{name} is swap" for name in _swaps({Node("block", d) for d in family})]
    users += [user for device in family for user in _loops_on(Node("block", device))]
    for child in (sysfs, *(sysfs / name for name in family.values())):
        holders = child / "holders"
        if holders.is_dir():
            users += [f"{child.name} is held by {holder.name}" for holder in holders.iterdir()]
    return sorted(set(users))


def _loops_on(node: Node) -> list[str]:
    loops = (path.parent.parent for path in Path("/sys/block").glob("loop*/loop/backing_file"))
    return [f"it backs /dev/{loop.name}" for loop in loops if node in _backing_of(loop)]


def _mounts(family: dict[int, str]) -> Iterator[tuple[int, str]]:
    try:
        lines = Path("/proc/self/mountinfo").read_text(errors="replace").splitlines()
    except OSError:
        return
    for line in lines:
        words = line.split(" ")
        major, _, minor = words[2].partition(":")
        device = os.makedev(int(major), int(minor))
        if device in family:
            yield device, _unescaped(words[4])


def _unescaped(text: str) -> str:
    """Undo the kernel's octal escapes of blanks and backslashes."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def _swaps(nodes: set[Node]) -> Iterator[str]:
    try:
        lines = Path("/proc/swaps").read_text(errors="replace").splitlines()[1:]
    except OSError:
        return
    for line in lines:
        path = _unescaped(line.split()[0])
        try:
            info = Path(path).stat()
        except OSError:
            continue
        if {Node("block", info.st_rdev), Node("file", info.st_dev, info.st_ino)} & nodes:
            yield path


def lock_holder_of(fd: int) -> str:
    """Say which process has locked an open file or device; empty if that cannot be told."""
    info = os.fstat(fd)
    place = f"{os.major(info.st_dev):02x}:{os.minor(info.st_dev):02x}:{info.st_ino}"
    try:
        lines = Path("/proc/locks").read_text().splitlines()
    except OSError:
        return ""
    for line in lines:
        words = line.split()
        if words[1] == "FLOCK" and words[5] == place:
            command = read_text(Path(f"/proc/{words[4]}/comm"))
            return f"process {words[4]} ({command})" if command else f"process {words[4]}"
    return ""
