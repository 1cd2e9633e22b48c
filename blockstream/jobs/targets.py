"""A target with its journal, open and locked: where every job that changes a target begins."""

import contextlib
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import blake3

from blockstream.errors import NotFoundError
from blockstream.linux.state_directory import JournalFiles
from blockstream.locations import open_target
from blockstream.pipeline.journal import SLOT_BYTES, Journal
from blockstream.pipeline.token import ResumeToken
from blockstream.targets.disk import DiskTarget
from blockstream_protocol import Clean, Dirty, TargetState, Unknown

UNDO_NAME = "undo.bsx"
SPOOL_NAME = "spool.bsx"
SPOOL_JOURNAL = "spool"


@dataclass(frozen=True, slots=True)
class OpenedTarget:
    """A target that we alone may change.

    Attributes:
        target: The disk.
        folder: Its state directory.
        journal: What it holds.
        spool: The journal of its spool.
    """

    target: DiskTarget
    folder: Path
    journal: Journal
    spool: Journal

    @property
    def undo_path(self) -> Path:
        """Where the undo log lies, if there is one."""
        return self.folder / UNDO_NAME

    @property
    def spool_path(self) -> Path:
        """Where a staged stream lies, if there is one."""
        return self.folder / SPOOL_NAME

    @property
    def spool_complete(self) -> bool:
        """Whether a whole verified stream waits to be applied."""
        return isinstance(self.spool.state, Clean) and self.spool_path.exists()

    def drop_spool(self) -> None:
        """Forget the spool, after it was applied or given up."""
        self.spool.record(Unknown(), {})
        self.spool_path.unlink(missing_ok=True)

    def drop_undo(self) -> None:
        """Forget the undo log."""
        self.undo_path.unlink(missing_ok=True)


def folder_of(state_dir: Path, target: DiskTarget) -> Path:
    """Return the state directory of a target, by what it is and not by its path."""
    key = hashlib.sha256(target.identity.key.encode()).hexdigest()[:32]
    return state_dir / "targets" / key


@contextlib.contextmanager
def opened(target: DiskTarget, state_dir: Path) -> Iterator[OpenedTarget]:
    """Open the journals of an open target; closes the target, too, at the end.

    Raises:
        BusyError: If another process works on it.
        RefusedError: If the journal cannot be made or read.
    """
    with contextlib.closing(target), contextlib.ExitStack() as stack:
        folder = folder_of(state_dir, target)
        files = stack.enter_context(JournalFiles.opened(folder, SLOT_BYTES))
        spool = stack.enter_context(JournalFiles.opened(folder, SLOT_BYTES, SPOOL_JOURNAL))
        yield OpenedTarget(
            target,
            folder,
            Journal(files, blake3.blake3, target.size),
            Journal(spool, blake3.blake3, target.size),
        )


@contextlib.contextmanager
def opened_at(
    location: str, state_dir: Path, *, force_in_use: bool = False
) -> Iterator[OpenedTarget]:
    """Open an existing target and its journals; see `opened`."""
    target = open_target(location, force_in_use=force_in_use)
    with opened(target, state_dir) as everything:
        yield everything


@dataclass(frozen=True, slots=True)
class TargetStatus:
    """What is known of a target.

    Attributes:
        location: Where it was last seen.
        size: Its size in bytes.
        state: What it holds.
        token: What `send --resume` takes; empty if nothing is unfinished.
        staged: State that a complete spool leads to; empty if there is none.
        undo: Whether what the last transfer overwrote was kept.
        folder: Where this was read.
    """

    location: str
    size: int
    state: TargetState
    token: str
    staged: str
    undo: bool
    folder: Path


def status_of(opened_target: OpenedTarget) -> TargetStatus:
    """Return the status of an open target."""
    return _status(
        opened_target.folder,
        opened_target.journal,
        opened_target.spool,
        opened_target.target.name,
    )


def read_status(folder: Path) -> TargetStatus:
    """Read the status from a state directory alone, without the target and without a lock.

    Raises:
        NotFoundError: If there is no journal.
    """
    if not (folder / "journal").is_file():
        raise NotFoundError(f"there is no journal in {folder}")
    journal = Journal(_ReadOnly(folder, "journal"), blake3.blake3, 0)
    spool = Journal(_ReadOnly(folder, SPOOL_JOURNAL), blake3.blake3, 0)
    return _status(folder, journal, spool, journal.entry.facts.get("path", "?"))


def _status(folder: Path, journal: Journal, spool: Journal, location: str) -> TargetStatus:
    state, waiting = journal.state, spool.state
    unfinished = next((s for s in (waiting, state) if isinstance(s, Dirty)), None)
    complete = isinstance(waiting, Clean) and (folder / SPOOL_NAME).exists()
    return TargetStatus(
        location=location,
        size=journal.entry.size,
        state=state,
        token=str(ResumeToken.of(unfinished)) if unfinished else "",
        staged=waiting.id if complete and isinstance(waiting, Clean) else "",
        undo=(folder / UNDO_NAME).exists(),
        folder=folder,
    )


class _ReadOnly:
    """The journal files of a folder, for looking."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._name = name

    def read_slot(self, index: int) -> bytes:
        try:
            data = (self._folder / self._name).read_bytes()
        except FileNotFoundError:
            return b""
        return data[index * SLOT_BYTES : (index + 1) * SLOT_BYTES]

    def read_plan(self, name: str) -> bytes:
        return (self._folder / f"{self._name}-plan-{name}").read_bytes()

    def write_slot(self, index: int, data: bytes) -> None:
        """Settle nothing: who only looks acts on nothing."""

    def write_plan(self, name: str, rows: bytes) -> None:
        raise NotImplementedError

    def drop_plans(self, keep: str) -> None:
        raise NotImplementedError

    def flush(self) -> None:
        """Settle nothing."""
