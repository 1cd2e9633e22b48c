"""What this host has seen of stores: one that is older now was rolled back, or replaced.

Whoever can write a store can take away its newest points, or put an old copy in its place. Nothing
within the store tells; but a host that has used it before knows how far it was. Stores that take
turns in one place, as USB disks do, are known by their ids.
"""

import contextlib
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from blake3 import blake3

from blockstream.errors import BusyError, RefusedError, StoreDamagedError
from blockstream.formats.point import Point
from blockstream.linux.files import write_durably
from blockstream.linux.state_directory import locked, make_directory
from blockstream.repository.repository import Repository, StoredDisk

_LOCK_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True)
class Seen:
    """The newest point that was seen of a disk.

    Attributes:
        place: Where: store and disk; for people.
        seq: Its number.
        root: The digest of its history, hex.
    """

    place: str
    seq: int
    root: str


@dataclass(frozen=True, slots=True)
class Memory:
    """What a state directory remembers: for each place, a folder a store, with a file a disk.

    Attributes:
        state_dir: The state directory.
    """

    state_dir: Path

    def doubt(self, disk: StoredDisk) -> str:
        """Say why a disk is older than it was, or not that which it was; empty if it is as it was.

        Raises:
            StoreDamagedError: If its newest manifest is damaged.
        """
        place = f"{disk.objects.name}/{disk.name}"
        if self._is_other(disk):
            return (
                f"{disk.objects.name} is another store than those that this host has used in that "
                "place: a disk that takes its turn there, or one that somebody has put there"
            )
        seen, newest = self._seen(disk), disk.last()
        if seen is None:
            return ""
        before = f"this host has seen its point {seen.seq}"
        same = newest
        if newest is None:
            found = f"{place} has no point, and {before}"
        elif newest.seq < seen.seq:
            found = f"the newest point of {place} is {newest.seq}, and {before}"
        else:
            same = newest if newest.seq == seen.seq else self._again(disk, seen.seq)
            if same is None or same.root == seen.root:
                return ""
            found = f"point {seen.seq} of {place} is another one than this host has seen"
        return f"{found}: the store was rolled back, or replaced"

    def has_used(self, place: str) -> bool:
        """Tell whether this host has used a store in a place."""
        folder = self.state_dir / "seen" / blake3(place.encode()).hexdigest(16)
        try:
            return any(folder.glob("*/*.json"))
        except OSError:
            return False

    def missing(self, store: Repository) -> list[str]:
        """Return the names of disks that this host has seen in a store, and that it has no more."""
        there = set(store.disks())
        try:
            seen = sorted(self._of(store.objects.name, store.id).glob("*.json"))
        except OSError:
            return []
        return [path.stem for path in seen if path.stem not in there]

    def check(self, disk: StoredDisk) -> None:
        """Let nobody write a disk that is older than it was.

        Raises:
            RefusedError: If it is.
        """
        doubt = self.doubt(disk)
        if doubt:
            raise RefusedError(
                f"{doubt}; nothing was done; put back what is missing; if it is right as it is, "
                f"say so with `blockstream store trust {disk.objects.name}`"
            )

    def remember(self, disk: StoredDisk, point: Point | None) -> None:
        """Note the newest point of a disk, if it is newer than what was noted.

        Without a state directory that can be written, nothing is noted: who restores in a rescue
        system must not need one.
        """
        if point is None:
            return
        path = self._path(disk)
        with contextlib.suppress(RefusedError, OSError):
            make_directory(path.parent)
            with self._alone(path.parent / "lock"):
                seen = self._seen(disk)
                if seen is None or seen.seq < point.seq:
                    place = f"{disk.objects.name}/{disk.name}"
                    newest = asdict(Seen(place, point.seq, point.root))
                    write_durably(path, json.dumps(newest, sort_keys=True).encode())

    def trust(self, store: Repository) -> None:
        """Take a store as it is now.

        Raises:
            RefusedError: If that cannot be noted.
        """
        folder = self._of(store.objects.name, store.id)
        make_directory(folder)
        try:
            for path in folder.glob("*.json"):
                path.unlink()
        except OSError as error:
            raise RefusedError(f"{folder} cannot be written: {error.strerror}") from error

    def _is_other(self, disk: StoredDisk) -> bool:
        """Tell whether this host has used other stores in that place, and not this one."""
        folder = self._folder(disk)
        try:
            return folder.parent.is_dir() and not folder.is_dir()
        except OSError:  # somebody else's state directory
            return False

    @contextlib.contextmanager
    def _alone(self, lock: Path) -> Iterator[None]:
        """Hold a lock, and wait for it a moment: two jobs may end at once."""
        until = time.monotonic() + _LOCK_SECONDS
        with contextlib.ExitStack() as stack:
            while True:
                try:
                    stack.enter_context(locked(lock, "what is remembered of the store"))
                    break
                except BusyError:
                    if time.monotonic() > until:
                        raise
                    time.sleep(0.05)
            yield

    def _seen(self, disk: StoredDisk) -> Seen | None:
        try:
            return Seen(**json.loads(self._path(disk).read_bytes()))
        except (OSError, ValueError, TypeError):
            return None

    def _again(self, disk: StoredDisk, seq: int) -> Point | None:
        """Return a point that was seen, if it is there yet and can be read."""
        try:
            return disk.point(seq) if seq in disk.numbers() else None
        except StoreDamagedError:
            return None

    def _path(self, disk: StoredDisk) -> Path:
        return self._folder(disk) / f"{disk.name}.json"

    def _folder(self, disk: StoredDisk) -> Path:
        return self._of(disk.objects.name, disk.store_id)

    def _of(self, place: str, store_id: str) -> Path:
        return self.state_dir / "seen" / blake3(place.encode()).hexdigest(16) / store_id
