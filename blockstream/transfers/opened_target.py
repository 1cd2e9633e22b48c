"""A target with its journal, open and locked: where every job that changes a target begins."""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import blake3

from blockstream.errors import (
    BlockstreamError,
    BusyError,
    NotFoundError,
    RefusedError,
)
from blockstream.linux.block import data_ranges, is_locked
from blockstream.linux.state_directory import JournalFiles, target_folder
from blockstream.locations.local import open_target
from blockstream.pipeline.journal import SLOT_BYTES, Journal
from blockstream.pipeline.samples import evidence
from blockstream.pipeline.target_status import (
    SPOOL_JOURNAL,
    SPOOL_NAME,
    UNDO_ASIDE,
    UNDO_NAME,
    read_status,
)
from blockstream.targets.disk import DiskTarget
from blockstream_protocol import Clean, Dirty, Plan, TargetState, Unknown

T = TypeVar("T")

LOCK_POLL_SECONDS = 0.2


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

    @property
    def unfinished(self) -> TargetState | None:
        """What waits to be continued: the spool, CLEAN when it is whole, else a DIRTY target."""
        if self.spool_complete or isinstance(self.spool.state, Dirty):
            return self.spool.state
        return self.journal.state if isinstance(self.journal.state, Dirty) else None

    def drop_spool(self) -> None:
        """Forget the spool, after it was applied or given up."""
        if not isinstance(self.spool.state, Unknown):
            self.spool.record(Unknown(), {})
        self.spool_path.unlink(missing_ok=True)

    def drop_undo(self) -> None:
        """Forget the undo log."""
        self.undo_path.unlink(missing_ok=True)

    @property
    def _undo_aside(self) -> Path:
        return self.folder / UNDO_ASIDE

    def set_undo_aside(self) -> None:
        """Keep an undo log out of the way until the first write, which makes it worthless."""
        self.put_undo_back()
        if isinstance(self.journal.state, Clean) and self.undo_path.exists():
            self.undo_path.replace(self._undo_aside)

    def put_undo_back(self) -> None:
        """Take back what was set aside, also by a run that was killed before it wrote anything."""
        if not isinstance(self.journal.state, Clean):
            self.forget_undo_aside()  # what it leads back from is no more
        elif self._undo_aside.exists():
            self._undo_aside.replace(self.undo_path)

    def forget_undo_aside(self) -> None:
        """Forget what was set aside."""
        self._undo_aside.unlink(missing_ok=True)


def absolute_path(location: str) -> str:
    """Return a path for a journal, which is read in other directories."""
    return str(Path(location).absolute())


def folder_of(state_dir: Path, target: DiskTarget) -> Path:
    """Return the state directory of a target, by what it is and not by its path."""
    return target_folder(state_dir, target.identity)


def made_before(location: str, state_dir: Path, same: Callable[[Clean], bool]) -> bool:
    """Tell whether --create meets the file that an earlier run of the same command made.

    Args:
        location: What is to be made.
        state_dir: Where journals lie.
        same: Tells whether a whole state is what the command leads to.

    Raises:
        RefusedError: If it exists and is not that, or may not be made there.
    """
    path = Path(location)
    if not path.exists() and not path.is_symlink():
        _check_place(path)
        return False
    if path.is_file():
        with contextlib.closing(open_target(location)) as target:
            folder = folder_of(state_dir, target)
        try:
            state: TargetState = read_status(folder).state
        except NotFoundError:
            state = Unknown()
        # Without a journal it was never ours.
        empty = isinstance(state, Unknown) and (folder / "journal").exists() and _is_hole(path)
        if empty or isinstance(state, Dirty) or (isinstance(state, Clean) and same(state)):
            return True
    raise RefusedError(
        f"{location} exists already, and --create only makes new files; nothing was written"
    )


def _is_hole(path: Path) -> bool:
    """Tell whether nothing was ever written to a file."""
    with path.open("rb") as file:
        return not any(data_ranges(file.fileno(), path.stat().st_size))


def _check_place(path: Path) -> None:
    """Refuse to make files where devices are: a mistyped name would fill the memory."""
    folder = path.parent.resolve()
    if folder.is_relative_to("/dev") and not folder.is_relative_to("/dev/shm"):  # noqa: S108
        raise RefusedError(
            f"{path} does not exist, and a file there would lie in memory; nothing was made; check "
            "the name of the device"
        )


def patiently(
    use: Callable[[], T], seconds: float, wait: Callable[[float], None] = time.sleep
) -> T:
    """Do something with a target, again and again while somebody else uses it.

    Args:
        use: Does it.
        seconds: How long to go on trying.
        wait: Waits for so many seconds.

    Raises:
        BusyError: If somebody still does after so many seconds.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            return use()
        except BusyError:
            if time.monotonic() >= deadline:
                raise
            # The kernel tells nobody when a lock is free, but who blocks until then.
            wait(LOCK_POLL_SECONDS)


def wait_for_receiver(device: str, seconds: float) -> None:
    """Wait until no receiver writes to a device; one whose sender was killed ends by itself.

    What else uses it is not waited for.

    Raises:
        BusyError: If one still does after so many seconds.
    """

    def look() -> None:
        if is_locked(device):
            raise BusyError(
                f"{device} is written by another transfer, also after {seconds:.0f} s; wait for "
                "it to end, or end it there"
            )

    patiently(look, seconds)


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
def opened_or_removed(target: DiskTarget, state_dir: Path) -> Iterator[OpenedTarget]:
    """Open the journals; a file that was made for nothing is removed again. See `opened`."""
    with contextlib.ExitStack() as stack:
        try:
            everything = stack.enter_context(opened(target, state_dir))
        except BlockstreamError:
            target.remove_made()
            raise
        try:
            yield everything
        except BlockstreamError:
            touched = everything.unfinished or isinstance(everything.journal.state, Clean)
            if not touched:
                target.remove_made()
            raise


@contextlib.contextmanager
def opened_at(
    location: str, state_dir: Path, *, force_in_use: bool = False
) -> Iterator[OpenedTarget]:
    """Open an existing target and its journals; see `opened`."""
    target = open_target(location, force_in_use=force_in_use)
    with opened(target, state_dir) as everything:
        yield everything


def record_adopted(everything: OpenedTarget, location: str, state_id: str) -> None:
    """Record that an open target holds a state, whatever it was before."""
    # Both belong to what the target held before.
    everything.drop_spool()
    everything.drop_undo()
    everything.journal.facts = {"path": absolute_path(location), "apply": "adopted"}
    found = evidence(everything.target)
    everything.journal.record(
        Clean(
            id=state_id,
            prev="",
            plan=Plan.whole(0),
            transfer="",
            frames=0,
            chain="",
            samples=found.samples,
        ),
        trace=found.trace,
    )
