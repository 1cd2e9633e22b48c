"""LVM by its own commands: what volumes there are, snapshots of them, and what changed in a pool.

`lvs` tells a volume's whole story in one call; device-mapper is asked only for what LVM does not
know. Source: lvs(8), dmsetup(8), drivers/md/dm-snap.c, drivers/md/dm-thin.c of Linux.
"""

import contextlib
import fcntl
import json
import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from blockstream.errors import NotFoundError, RefusedError, SourceError
from blockstream.linux.block import read_text
from blockstream.linux.files import kept_file

_FIELDS = (
    *("vg_name", "lv_name", "lv_uuid", "lv_attr", "lv_size", "lv_path", "lv_dm_path", "lv_tags"),
    *("origin", "origin_size", "chunk_size", "snap_percent", "pool_lv", "thin_id"),
    *("lv_merging", "lv_suspended", "lv_time", "transaction_id"),
)
_SECONDS = 60.0
_NAME = re.compile(r"[A-Za-z0-9+_.][A-Za-z0-9+_.-]*")
_UUID_PREFIX = "LVM-"


@dataclass(frozen=True, slots=True)
class Volume:
    """A logical volume, as `lvs` tells of it.

    Attributes:
        group: Its volume group.
        name: Its name there.
        uuid: What it is known by for ever.
        attributes: The ten letters of `lv_attr`.
        lv_size: What LVM calls its size, in bytes: of a classic snapshot, its store's.
        origin: Name of what it is a snapshot of; empty for none.
        origin_size: Bytes of what a classic snapshot is of; 0 for anything else.
        chunk: Bytes of a chunk, of a classic snapshot or a pool; else 0.
        filled: How full its store is, in per cent; None where it has none, or it is invalid.
        pool: The pool of a thin volume.
        thin_id: Its number there.
        merging: Whether it is being merged into its origin.
        suspended: Whether reads of it hang.
        dm_path: The path below /dev/mapper.
        path: The path below /dev.
        tags: Its tags.
        created: When it was made, in seconds since 1970.
        transaction: Of a thin volume, the change of its pool that made it; else 0.
    """

    group: str
    name: str
    uuid: str
    attributes: str
    lv_size: int
    origin: str
    origin_size: int
    chunk: int
    filled: float | None
    pool: str
    thin_id: int
    merging: bool
    suspended: bool
    dm_path: str
    path: str
    tags: frozenset[str]
    created: int
    transaction: int

    def __str__(self) -> str:
        return f"{self.group}/{self.name}"

    @property
    def is_thin(self) -> bool:
        """Whether it is a volume of a thin pool."""
        return self.attributes[:1] == "V"

    @property
    def is_snapshot(self) -> bool:
        """Whether it is a classic snapshot."""
        return self.attributes[:1] in {"s", "S"}

    @property
    def is_active(self) -> bool:
        """Whether there is a device for it."""
        return self.attributes[4:5] in {"a", "s", "I", "S"}

    @property
    def is_open(self) -> bool:
        """Whether somebody has it open."""
        return self.attributes[5:6] == "o"

    @property
    def is_invalid(self) -> bool:
        """Whether it is a snapshot that overflowed."""
        return self.attributes[4:5] in {"I", "S"}

    @property
    def is_written(self) -> bool:
        """Whether it may be written."""
        return self.attributes[1:2] == "w"

    def lies_after(self, other: "Volume") -> bool:
        """Tell whether it was made after another snapshot of the same volume, for certain."""
        if self.is_thin and other.is_thin:
            return self.transaction > other.transaction
        return self.created > other.created

    @property
    def size(self) -> int:
        """Bytes of the disk that it shows."""
        return self.origin_size if self.is_snapshot else self.lv_size


def volumes(group: str = "") -> list[Volume]:
    """Return the volumes of a group, or all, hidden ones too.

    Raises:
        NotFoundError: If LVM, or the group, is not there.
    """
    words = ["lvs", "--reportformat", "json", "--units", "b", "--nosuffix", "-a"]
    words += ["--config", 'report { time_format="%s" }']
    said = _run(*words, "-o", ",".join(_FIELDS), *([group] if group else []))
    try:
        rows = json.loads(said)["report"][0]["lv"]
        return [_volume(row) for row in rows]
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise SourceError(f"lvs said something that is not understood: {error}") from error


def volume_at(path: str) -> Volume | None:
    """Return the volume whose device `path` is, or that VG/LV names; None for anything else.

    Raises:
        SourceError: If LVM fails.
    """
    uuid = _uuid_of(path)
    found = None
    if uuid:
        found = next((each for each in volumes() if each.uuid.replace("-", "") == uuid), None)
    elif not path.startswith("/") and path.count("/") == 1 and not Path(path).exists():
        group, name = path.split("/")
        if _NAME.fullmatch(group) and _NAME.fullmatch(name):
            with contextlib.suppress(NotFoundError, SourceError):  # a file that is not there
                found = find(group, name)
    return found


def find(group: str, name: str) -> Volume:
    """Return a volume by its names.

    Raises:
        NotFoundError: If there is none.
    """
    for each in volumes(group):
        if each.name == name:
            return each
    raise NotFoundError(f"there is no volume {group}/{name}; nothing was done")


def again(volume: Volume) -> Volume:
    """Look at a volume again, which must still be what it was.

    Raises:
        NotFoundError: If somebody removed it.
        RefusedError: If somebody renamed it, or merges something into it, or it into something.
    """
    there = volumes(volume.group)
    found = next((each for each in there if each.uuid == volume.uuid), None)
    if found is None:
        raise NotFoundError(f"{volume} is not there any more: somebody removed it")
    if found.name != volume.name:
        raise RefusedError(f"{volume} is called {found} now: somebody renamed it")
    merging = [each for each in there if each.merging and volume.name in {each.origin, each.name}]
    if merging:
        raise RefusedError(
            f"{merging[0]} is being merged into {merging[0].origin}, now or when that is activated "
            "next: somebody asked for it"
        )
    return found


def of_origin(volume: Volume, word: str) -> Volume:
    """Return the snapshot of `volume` that `word` names: its name, VG/LV, or a path.

    Raises:
        NotFoundError: If there is no such volume.
        RefusedError: If it is a snapshot of something else.
    """
    name = word.rpartition("/")[2]
    by_path = volume_at(word) if word.startswith("/") else None
    found = by_path or find(volume.group, name)
    if found.origin != volume.name or found.group != volume.group:
        raise RefusedError(f"{found} is no snapshot of {volume}; nothing was sent")
    return found


def _uuid_of(path: str) -> str:
    """Return the uuid of the volume whose device it is, without hyphens; empty for none."""
    try:
        device = Path(path).stat().st_rdev
    except OSError:
        return ""
    if not device:
        return ""
    text = read_text(Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/dm/uuid"))
    # LVM-, 32 characters of the group, 32 of the volume; hidden ones go on with -real and the like.
    whole = len(_UUID_PREFIX) + 64
    return text[whole - 32 :] if text.startswith(_UUID_PREFIX) and len(text) == whole else ""


def _volume(row: Mapping[str, str]) -> Volume:
    return Volume(
        group=row["vg_name"],
        name=row["lv_name"].strip("[]"),
        uuid=row["lv_uuid"],
        attributes=row["lv_attr"],
        lv_size=_number(row["lv_size"]),
        origin=row["origin"].strip("[]"),
        origin_size=_number(row["origin_size"]),
        chunk=_number(row["chunk_size"]),
        filled=float(row["snap_percent"]) if row["snap_percent"] else None,
        pool=row["pool_lv"].strip("[]"),
        thin_id=_number(row["thin_id"]),
        merging=row["lv_merging"] not in {"", "unknown"},
        suspended=row["lv_suspended"] not in {"", "unknown"},
        dm_path=row["lv_dm_path"].strip("[]"),
        path=row["lv_path"].strip("[]"),
        tags=frozenset(row["lv_tags"].split(",")),
        created=_number(row["lv_time"]),
        transaction=_number(row["transaction_id"]),
    )


def _number(text: str) -> int:
    return int(text) if text.isdecimal() else 0


# Snapshots.


def make_snapshot(volume: Volume, name: str, store: int = 0) -> Volume:
    """Make a snapshot that can be read: a thin one of a thin volume, else a classic one.

    Args:
        volume: What it is of.
        name: What it is called.
        store: Bytes for what a classic one must keep of its origin.

    Raises:
        SourceError: If LVM cannot.
    """
    words = ["lvcreate", "-qq", "-y", "-s", "-pr", "-n", name]
    if volume.is_thin:
        words += ["-kn", "-ay"]
    else:
        words += ["-c", "4k", "-L", f"{store}b"]
    _run(*words, str(volume))
    return find(volume.group, name)


def remove(volume: Volume) -> None:
    """Take a volume away, whatever it is called by now; one that is gone is no error.

    Raises:
        SourceError: If LVM cannot, as while somebody has it open.
    """
    # By its uuid: what took its name is somebody else's.
    _run("lvremove", "-qq", "-f", "-y", "-S", f"lv_uuid={volume.uuid}", volume.group)


def make_volume(group: str, name: str, size: int, *, tag: str, pool: str = "") -> Volume:
    """Make a volume with a tag, of a thin pool if one is named.

    Raises:
        SourceError: If LVM cannot.
    """
    words = ["lvcreate", "-qq", "-y", "-Wy", "--addtag", tag, "-n", name]
    if pool:
        words += ["-V", f"{size}b", "--thinpool", pool, group]
    else:
        words += ["-Zy", "-L", f"{size}b", group]
    _run(*words)
    return find(group, name)


def add_tag(volume: Volume, tag: str) -> None:
    """Give a volume a tag.

    Raises:
        SourceError: If LVM cannot.
    """
    _run("lvchange", "-qq", "--addtag", tag, str(volume))


def drop_tag(volume: Volume, tag: str) -> None:
    """Take a tag from a volume, whatever that is called by now.

    Raises:
        SourceError: If LVM cannot.
    """
    _run("lvchange", "-qq", "--deltag", tag, "-S", f"lv_uuid={volume.uuid}", volume.group)


def free_bytes(group: str) -> int:
    """Return how much of a group no volume has.

    Raises:
        NotFoundError: If there is no such group.
    """
    words = ["vgs", "--units", "b", "--nosuffix", "--noheadings", "-o", "vg_free", group]
    return _number(_run(*words).strip())


@contextlib.contextmanager
def activated(volume: Volume) -> Iterator[Volume]:
    """Let a volume have its device while the block runs; it is put back as it was."""
    if volume.is_active:
        yield volume
        return
    _run("lvchange", "-qq", "-y", "-ay", "-K", str(volume))
    try:
        yield find(volume.group, volume.name)
    finally:
        _run("lvchange", "-qq", "-y", "-an", str(volume))


# Device-mapper.


def snapshot_trouble(dm_path: str) -> str:
    """Return what device-mapper says is wrong with a classic snapshot; empty where it is good.

    Raises:
        SourceError: If there is no such device.
    """
    words = _run("dmsetup", "status", dm_path).split()
    if words[2:3] == ["snapshot-merge"]:
        return "being merged into its origin"
    if words[2:3] != ["snapshot"]:
        return "no snapshot any more"
    return "" if re.fullmatch(r"\d+/\d+", words[3]) else " ".join(words[3:])


def filled(snapshot: Volume) -> float:
    """Return how full a classic snapshot is, in per cent; 0 for a thin one, and for an invalid one.

    Raises:
        SourceError: If there is no such device.
    """
    if snapshot.is_thin:
        return 0.0
    words = _run("dmsetup", "status", snapshot.dm_path).split()
    used, _, all_ = words[3].partition("/") if len(words) > 3 else ("", "", "")
    return 100.0 * int(used) / int(all_) if used.isdecimal() and all_.isdecimal() else 0.0


def shows_external_origin(volume: Volume) -> bool:
    """Tell whether a thin volume shows another one where it maps nothing; it must be active.

    Raises:
        SourceError: If there is no such device.
    """
    words = _run("dmsetup", "table", volume.dm_path).split()
    return words[2:3] == ["thin"] and len(words) > 5


def origin_merges(volume: Volume) -> bool:
    """Tell whether something is being merged into a volume."""
    return "snapshot-merge" in _run("dmsetup", "table", volume.dm_path)


@contextlib.contextmanager
def metadata_reserved(pool: Volume, locks: Path) -> Iterator[None]:
    """Hold a snapshot of a pool's metadata; one at a time, given back whatever happens.

    Args:
        pool: The pool.
        locks: Folder for the lock, and for the note that a reservation is ours.

    Raises:
        RefusedError: If somebody else holds one.
    """
    device = f"{pool.dm_path}-tpool"
    note = locks / f"pool-{pool.uuid}"
    locks.mkdir(mode=0o700, parents=True, exist_ok=True)
    with os.fdopen(kept_file(note), "r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        # Whoever wrote this held the lock that we hold now, so he is dead.
        ours = file.read() == "held"
        if _held_root(device) != "-":
            if not ours:
                raise RefusedError(
                    f"the metadata of {pool} is reserved by somebody else; nothing was sent; where "
                    f"no other tool runs, `dmsetup message {device} 0 release_metadata_snap` "
                    "gives it back"
                )
            _run("dmsetup", "message", device, "0", "release_metadata_snap")
        _noted(file.fileno(), b"held")
        try:
            _run("dmsetup", "message", device, "0", "reserve_metadata_snap")
            try:
                yield
            finally:
                _run("dmsetup", "message", device, "0", "release_metadata_snap")
        finally:
            _noted(file.fileno(), b"")


def _noted(fd: int, text: bytes) -> None:
    os.ftruncate(fd, 0)
    os.pwrite(fd, text, 0)
    os.fsync(fd)


def _held_root(device: str) -> str:
    words = _run("dmsetup", "status", device).split()
    if len(words) < 7:
        raise SourceError(f"the thin pool {device} has failed; nothing was sent")
    return words[6]


def thin_delta(pool: Volume, older: Volume, newer: Volume) -> bytes:
    """Return what thin_delta says of two volumes of a pool whose metadata is reserved.

    Raises:
        SourceError: If it fails.
    """
    ids = ["--snap1", str(older.thin_id), "--snap2", str(newer.thin_id)]
    return _run("thin_delta", "-m", *ids, f"{pool.dm_path}_tmeta").encode()


def _run(*command: str) -> str:
    """Run a command of LVM's; return what it wrote.

    It may outlive us, by moments: one that is ended in the middle could leave volumes suspended.

    Raises:
        NotFoundError: If it is not installed.
        SourceError: If it fails, with what it said.
    """
    try:
        done = subprocess.run(  # noqa: S603  # no shell, and names were taken from LVM itself
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
            env=os.environ | {"LC_ALL": "C"},
        )
    except FileNotFoundError:
        raise NotFoundError(f"{command[0]} is not installed; nothing was done") from None
    except subprocess.TimeoutExpired:
        raise SourceError(
            f"{' '.join(command)} did not end within {_SECONDS:.0f} s; is a volume suspended? "
            "`dmsetup info` tells"
        ) from None
    if done.returncode:
        said = " ".join(line.strip() for line in done.stderr.splitlines()[:3])
        raise SourceError(f"{command[0]} failed: {said or done.returncode}")
    return done.stdout
