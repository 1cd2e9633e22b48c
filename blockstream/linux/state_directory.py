"""Where state lies: a directory per target, its journal, its lock."""

import contextlib
import fcntl
import hashlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from blockstream.errors import BusyError, RefusedError
from blockstream.linux.files import kept_file, sync_directory, write_durably
from blockstream.linux.identity import Identity

_SLOTS = 2


def default_state_directory() -> Path:
    """Return /var/lib/blockstream for root, else a folder of the user's own."""
    chosen = os.environ.get("BLOCKSTREAM_STATE_DIR")
    if chosen:
        return Path(chosen)
    if os.geteuid() == 0:
        return Path("/var/lib/blockstream")
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state"
    return Path(base) / "blockstream"


def check_owner(path: Path) -> Path:
    """Return a state directory, if it is ours or the administrator's, or not there yet.

    Whoever else owns it could put links and journals of his own there.

    Raises:
        RefusedError: If it belongs to somebody else.
    """
    try:
        owner = path.stat().st_uid
    except OSError:
        return path
    if owner not in {0, os.geteuid()}:
        raise RefusedError(
            f"the state directory {path} belongs to somebody else, the user of number {owner}; "
            "nothing was done; choose another with --state-dir or BLOCKSTREAM_STATE_DIR, or give "
            "it to whom runs this"
        )
    return path


def make_directory(path: Path) -> None:
    """Make a directory and its parents, durably, for the owner only.

    Raises:
        RefusedError: If it cannot be made.
    """
    try:
        for folder in reversed([path, *path.parents]):
            if not folder.is_dir():
                folder.mkdir(mode=0o700, exist_ok=True)
                sync_directory(folder.parent)
        # Whoever made it may have died before its name was durable.
        sync_directory(path.parent)
    except OSError as error:
        raise RefusedError(
            f"the state directory {path} cannot be made: {error.strerror}; nothing was written; "
            "choose another with --state-dir"
        ) from error


class JournalFiles:
    """The journal of one target as files; a `pipeline.journal.Storage`.

    Held under a lock from `opened` to its end, so that there is one receiver a target.
    """

    def __init__(self, folder: Path, fd: int, slot_bytes: int, name: str) -> None:
        """Use `opened` instead."""
        self.folder = folder
        self._fd = fd
        self._slot_bytes = slot_bytes
        self._name = name

    @classmethod
    @contextlib.contextmanager
    def opened(
        cls, folder: Path, slot_bytes: int, name: str = "journal"
    ) -> Iterator["JournalFiles"]:
        """Lock and open the journal in `folder`, making and preallocating it if it is new.

        Raises:
            BusyError: If another process holds it.
            RefusedError: If there is no room for it, or no right.
        """
        make_directory(folder)
        with locked(folder / f"{name}.lock", f"the target whose state lies in {folder}"):
            path = folder / name
            try:
                fd = kept_file(path)
            except OSError as error:
                raise _no_room(path, error) from error
            try:
                _preallocate(fd, _SLOTS * slot_bytes, path)
                yield cls(folder, fd, slot_bytes, name)
            finally:
                os.close(fd)

    def read_slot(self, index: int) -> bytes:
        """Return the bytes of a slot."""
        return os.pread(self._fd, self._slot_bytes, index * self._slot_bytes)

    def write_slot(self, index: int, data: bytes) -> None:
        """Write a slot; durable only after `flush`."""
        view, offset = memoryview(data), index * self._slot_bytes
        while view:
            written = os.pwrite(self._fd, view, offset)
            view, offset = view[written:], offset + written

    def flush(self) -> None:
        """Make the slots durable."""
        os.fdatasync(self._fd)

    def read_plan(self, name: str) -> bytes:
        """Return a plan's rows."""
        return self._plan_path(name).read_bytes()

    def write_plan(self, name: str, rows: bytes) -> None:
        """Make a plan's rows durable."""
        write_durably(self._plan_path(name), rows)

    def drop_plans(self, keep: str) -> None:
        """Remove all plans but one."""
        for path in self.folder.glob(f"{self._name}-plan-*"):
            if path != self._plan_path(keep):
                path.unlink(missing_ok=True)

    def _plan_path(self, name: str) -> Path:
        return self.folder / f"{self._name}-plan-{name}"


def _preallocate(fd: int, size: int, path: Path) -> None:
    """Reserve the journal's room before the target changes, so that a full disk is a refusal."""
    try:
        if os.fstat(fd).st_size < size:
            os.posix_fallocate(fd, 0, size)
            os.fsync(fd)
        # Always: whoever made it may have died before its name was durable.
        sync_directory(path.parent)
    except OSError as error:
        raise _no_room(path, error) from error


def _no_room(path: Path, error: OSError) -> RefusedError:
    return RefusedError(
        f"the file {path} cannot be made: {error.strerror}; nothing was written; make room, or "
        "choose another place with --state-dir"
    )


@contextlib.contextmanager
def locked(path: Path, what: str) -> Iterator[None]:
    """Hold an exclusive lock on `path`, which tells others who holds it.

    Raises:
        BusyError: If somebody else does.
        RefusedError: If it cannot be made.
    """
    try:
        fd = kept_file(path)
    except OSError as error:
        raise _no_room(path, error) from error
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(fd, 200, 0).decode(errors="replace").strip() or "another process"
            raise BusyError(
                f"{what} is busy: {holder} works on it; nothing was written; wait for it to end"
            ) from None
        with contextlib.suppress(OSError):  # a full disk: the lock holds without its text
            os.ftruncate(fd, 0)
            os.pwrite(fd, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
        yield
    finally:
        os.close(fd)


def target_folder(state_dir: Path, identity: Identity) -> Path:
    """Return where the state lies, or would; it may lie under what it was known by before."""
    folders = [_named(state_dir, key) for key in (identity.key, *identity.others)]
    return next((folder for folder in folders if folder.is_dir()), folders[0])


def _named(state_dir: Path, key: str) -> Path:
    return state_dir / "targets" / hashlib.sha256(key.encode()).hexdigest()[:32]
