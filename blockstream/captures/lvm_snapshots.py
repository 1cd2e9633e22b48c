"""The snapshots that we make of logical volumes: named, made, found again, removed.

One is named `blockstream_ID_NUMBER`, where ID stands for the volume and the target, so that whoever
goes on with an unfinished transfer finds it again.
"""

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from blockstream.errors import BlockstreamError, BusyError, SourceError
from blockstream.linux import lvm
from blockstream.linux.files import kept_file
from blockstream.linux.lvm import Volume
from blockstream.linux.state_directory import make_directory

_PREFIX = "blockstream_"
_OURS = re.compile(r"blockstream_([0-9a-f]{8})_(\d+)")
# Of a classic snapshot's origin, this much may change before it overflows, if nobody says more.
_STORE_PART = 5
_LEAST_STORE = 8 << 20
_UUID_BYTES = 64
_EXTENT = 4 << 20  # LVM rounds up to its own extents


def volume_at(path: str) -> Volume | None:
    """Return the volume that is meant, where LVM is there and we may ask it."""
    if os.geteuid() != 0 or shutil.which("lvs") is None:
        return None
    return lvm.volume_at(path)


def why_no_volume() -> str:
    """Say why nothing is asked of LVM, or what it said."""
    if os.geteuid() != 0:
        return "is not asked of LVM, which needs root"
    if shutil.which("lvs") is None:
        return "is not asked of LVM, which is not installed"
    return "is no logical volume"


def make_ours(volume: Volume, ident: str, store: int = 0) -> Volume:
    """Make a snapshot of ours.

    Args:
        volume: What it is of.
        ident: What is in its name.
        store: Bytes for what a classic one keeps; 0 to decide by the volume's size.

    Raises:
        SourceError: If LVM cannot, for lack of room most of all.
    """
    taken = [number_of(each) for each in lvm.volumes(volume.group) if is_ours(each, ident)]
    name = name_of(ident, max(taken, default=0) + 1)
    room = 0 if volume.is_thin else room_for(volume, store)
    if isinstance(room, str):
        raise SourceError(
            f"{room}; nothing was sent; give it some, or stop who writes the volume and use "
            "--quiesced"
        )
    return lvm.make_snapshot(volume, name, room)


def room_for(volume: Volume, store: int) -> int | str:
    """Return the bytes that a classic snapshot gets, or why it cannot have them."""
    free = lvm.free_bytes(volume.group)
    room = store or min(max(volume.size // _STORE_PART, _LEAST_STORE), free)
    if not store:
        room -= room % _EXTENT
    if _EXTENT <= room <= free:
        return room
    return (
        f"a snapshot of {volume} needs room in {volume.group}, which has {free} bytes free of "
        f"{store or _LEAST_STORE}"
    )


def moment_of(snapshot: Volume) -> int:
    """Return when a snapshot was made, in nanoseconds since 1970: LVM counts seconds."""
    return snapshot.created * 1_000_000_000


def ident_of(volume: Volume, target: str) -> str:
    """Return what our snapshots of a volume for a target have in their names."""
    return hashlib.blake2s(f"{volume.uuid} {target}".encode(), digest_size=4).hexdigest()


def name_of(ident: str, number: int) -> str:
    """Return the name of a snapshot of ours."""
    return f"{_PREFIX}{ident}_{number}"


def is_ours(volume: Volume, ident: str = "") -> bool:
    """Tell whether a snapshot is one of ours, with that id if one is given."""
    found = _OURS.fullmatch(volume.name)
    return found is not None and ident in {"", found[1]}


def number_of(volume: Volume) -> int:
    """Return the number in the name of a snapshot of ours."""
    found = _OURS.fullmatch(volume.name)
    return int(found[2]) if found else 0


def not_removed(snapshots: list[Volume]) -> dict[Volume, BlockstreamError]:
    """Remove snapshots; return those that stay, and why."""
    left = {}
    for each in snapshots:
        try:
            lvm.remove(each)
        except BlockstreamError as error:
            left[each] = error
    return left


def remembered(state_dir: Path, ident: str) -> str:
    """Return the uuid of the snapshot that a target held last; empty for none."""
    try:
        return (state_dir / "lvm" / f"volume-{ident}").read_text()
    except FileNotFoundError:
        return ""


@contextlib.contextmanager
def volume_held(volume: Volume, state_dir: Path, *, alone: bool) -> Iterator[None]:
    """Send a volume, perhaps to several targets, or move it, but not both at once.

    Args:
        volume: The volume.
        state_dir: Where journals lie.
        alone: Whether it is moved.

    Raises:
        BusyError: If somebody is at work who cannot share it.
    """
    folder = state_dir / "lvm"
    make_directory(folder)
    fd = kept_file(folder / f"held-{volume.uuid}")
    try:
        try:
            fcntl.flock(fd, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except BlockingIOError:
            what = "sends or moves" if alone else "moves"
            raise BusyError(f"another blockstream {what} {volume} now; nothing was done") from None
        yield
    finally:
        os.close(fd)


class Memory:
    """Which snapshot the target held last; a file that nobody else may use meanwhile."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.last = os.pread(fd, _UUID_BYTES, 0).decode(errors="replace")

    def note(self, uuid: str) -> None:
        """Make it durable."""
        os.pwrite(self._fd, uuid.encode(), 0)
        os.ftruncate(self._fd, len(uuid))
        os.fsync(self._fd)
        self.last = uuid


@contextlib.contextmanager
def remembering(state_dir: Path, ident: str) -> Iterator[Memory]:
    """Let nobody else make or remove snapshots of this volume for this target meanwhile.

    Raises:
        BusyError: If somebody does.
    """
    folder = state_dir / "lvm"
    make_directory(folder)
    # Not for appending, which would ignore where something is written.
    fd = kept_file(folder / f"volume-{ident}")
    with os.fdopen(fd, "r+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BusyError(
                "another blockstream sends this volume to this target; nothing was sent"
            ) from None
        yield Memory(file.fileno())
