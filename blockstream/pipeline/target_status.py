"""What the state directory says of a target, without opening that."""

import os
from dataclasses import dataclass, replace
from pathlib import Path

import blake3

from blockstream.errors import (
    NotFoundError,
    RefusedError,
    UnknownTargetError,
)
from blockstream.linux.identity import identity_of
from blockstream.linux.state_directory import target_folder
from blockstream.pipeline.journal import SLOT_BYTES, Journal
from blockstream.pipeline.token import ResumeToken
from blockstream_protocol import Clean, Dirty, TargetState, Unknown

UNDO_NAME = "undo.bsx"


UNDO_ASIDE = "undo.before"


SPOOL_NAME = "spool.bsx"


SPOOL_JOURNAL = "spool"


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


def status_at(location: str, state_dir: Path) -> TargetStatus:
    """Return the status of what `location` names, also while a transfer runs; changes nothing.

    Raises:
        NotFoundError: If nothing is known of it, or it does not exist.
        RefusedError: If it cannot be opened.
    """
    try:
        fd = os.open(location, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise NotFoundError(
            f"{location} does not exist; `blockstream status` alone shows all that are known"
        ) from None
    except OSError as error:
        raise RefusedError(f"{location} cannot be opened: {error.strerror}") from error
    try:
        folder = target_folder(state_dir, identity_of(fd))
    finally:
        os.close(fd)
    try:
        return replace(read_status(folder), location=location)
    except NotFoundError:
        raise UnknownTargetError(
            f"nothing is known of {location}: no transfer to it was recorded in {state_dir}"
        ) from None


def _has_undo_log(folder: Path, state: TargetState) -> bool:
    """Tell whether the last transfer to a target can be undone."""
    set_aside = isinstance(state, Clean) and (folder / UNDO_ASIDE).exists()
    return set_aside or ((folder / UNDO_NAME).exists() and not isinstance(state, Unknown))


def read_status(folder: Path) -> TargetStatus:
    """Read the status from a state directory alone, without the target and without a lock.

    Raises:
        NotFoundError: If there is no journal.
    """
    if not (folder / "journal").is_file():
        raise NotFoundError(f"there is no journal in {folder}")
    journal = Journal(_ReadOnly(folder, "journal"), blake3.blake3, 0)
    spool = Journal(_ReadOnly(folder, SPOOL_JOURNAL), blake3.blake3, 0)
    if not journal.entry.seq and not spool.entry.seq:
        raise NotFoundError(f"the journal in {folder} has no record")
    return _status(folder, journal, spool, journal.entry.facts.get("path", "?"))


def _status(folder: Path, journal: Journal, spool: Journal, location: str) -> TargetStatus:
    state, waiting = journal.state, spool.state
    complete = isinstance(waiting, Clean) and (folder / SPOOL_NAME).exists()
    candidates = () if complete else (waiting, state)
    unfinished = next((s for s in candidates if isinstance(s, Dirty)), None)
    return TargetStatus(
        location=location,
        size=journal.entry.size,
        state=state,
        token=str(ResumeToken.of(unfinished)) if unfinished else "",
        staged=waiting.id if complete and isinstance(waiting, Clean) else "",
        undo=_has_undo_log(folder, state),
        folder=folder,
    )


class _ReadOnly:
    """The journal files of a folder, for looking."""

    def __init__(self, folder: Path, name: str) -> None:
        self.target_folder = folder
        self._name = name

    def read_slot(self, index: int) -> bytes:
        try:
            data = (self.target_folder / self._name).read_bytes()
        except FileNotFoundError:
            return b""
        return data[index * SLOT_BYTES : (index + 1) * SLOT_BYTES]

    def read_plan(self, name: str) -> bytes:
        return (self.target_folder / f"{self._name}-plan-{name}").read_bytes()

    def write_slot(self, index: int, data: bytes) -> None:
        """Settle nothing: who only looks acts on nothing."""

    def write_plan(self, name: str, rows: bytes) -> None:
        raise NotImplementedError

    def drop_plans(self, keep: str) -> None:
        raise NotImplementedError

    def flush(self) -> None:
        """Settle nothing."""
