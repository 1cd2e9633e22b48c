"""What people do to a target's state between transfers: adopt, abort, apply, list."""

import contextlib
import shutil
from pathlib import Path

from blockstream.errors import NotFoundError, RefusedError, UsageError
from blockstream.linux.state_directory import JournalFiles
from blockstream.pipeline.journal import SLOT_BYTES
from blockstream.pipeline.target_status import TargetStatus, read_status, status_at
from blockstream.transfers.opened_target import (
    OpenedTarget,
    absolute_path,
    opened_at,
    record_adopted,
)
from blockstream.transfers.stored_stream import finish_staged
from blockstream_protocol import Clean, Dirty, Unknown, is_id


def adopt(location: str, state_id: str, state_dir: Path, *, force_base: bool) -> None:
    """Record that a target holds a state, although it came there by other means.

    Raises:
        UsageError: If the id cannot be one.
        RefusedError: If the target is half-written, or in use.
    """
    if not is_id(state_id):
        raise UsageError("--id takes up to 256 printable ASCII characters, no blank at either end")
    with opened_at(location, state_dir) as everything:
        state = everything.journal.state
        if isinstance(state, Dirty) and not force_base:
            raise RefusedError(
                f"{location} is half-written, on its way to {state.goal!r}, so it holds no state "
                "that could have an id; finish it, or send a full copy; nothing was recorded"
            )
        record_adopted(everything, location, state_id)


def abort(location: str, state_dir: Path) -> str:
    """Give up an unfinished transfer; return what the target is now, in words.

    Raises:
        NotFoundError: If nothing is unfinished.
    """
    with opened_at(location, state_dir) as everything:
        spooled = everything.spool_path.exists()
        state = everything.journal.state
        everything.drop_spool()
        if isinstance(state, Dirty):
            everything.journal.record(Unknown())
            everything.drop_undo()
            return (
                f"{location} is half-written and now UNKNOWN: only a full copy makes it whole again"
            )
        if not spooled:
            raise NotFoundError(f"nothing is unfinished on {location}; nothing was done")
        return f"what had arrived for {location} was dropped; the target is as it was"


def apply_spool(location: str, state_dir: Path) -> str:
    """Bring a complete spool onto its target, without the sender; return the goal.

    Raises:
        NotFoundError: If there is no complete spool.
    """
    with opened_at(location, state_dir) as everything:
        waiting = everything.spool.state
        if not everything.spool_complete or not isinstance(waiting, Clean):
            raise NotFoundError(
                f"no complete stream waits for {location}; nothing was written; `blockstream "
                "status` shows what is there"
            )
        finish_staged(everything)
        return waiting.id


def status(location: str, state_dir: Path) -> TargetStatus:
    """Return what is known of one target.

    Raises:
        NotFoundError: If nothing is known of it.
        RefusedError: If it cannot be opened.
    """
    return status_at(location, state_dir)


def all_statuses(state_dir: Path) -> list[TargetStatus]:
    """Return what is known of every target, as recorded; targets are not opened."""
    found = []
    for folder in sorted((state_dir / "targets").glob("*")):
        try:
            found.append(read_status(folder))
        except NotFoundError:
            continue
    return found


def undo_target(location: str, state_dir: Path) -> str:
    """Undo the last transfer; return the id of the state that the target holds again."""
    from blockstream.transfers.undo import undo

    with opened_at(location, state_dir) as everything:
        _check_undo(everything)
        return undo(everything)


def _check_undo(everything: OpenedTarget) -> None:
    """Refuse an undo that a later transfer made wrong."""
    if isinstance(everything.journal.state, Unknown) and everything.undo_path.exists():
        raise RefusedError(
            f"{everything.target.name} is UNKNOWN, so the undo log may not belong to what it "
            "holds; nothing was written"
        )


def forget(location: str, state_dir: Path, *, force_base: bool) -> list[Path]:
    """Forget what is known of a target, which may be gone; only a full copy may go onto it then.

    Args:
        location: The target, or the path under which it was known.
        state_dir: Where journals lie.
        force_base: Also where something could still be finished or taken back.

    Returns:
        The folders that were removed.

    Raises:
        NotFoundError: If nothing is known of it.
        BusyError: If somebody writes it now.
        RefusedError: If something of it could still be finished or taken back.
    """
    path = absolute_path(location)
    found = {one.folder: one for one in all_statuses(state_dir) if one.location == path}
    with contextlib.suppress(NotFoundError, RefusedError):
        one = status_at(location, state_dir)
        found[one.folder] = one
    if not found:
        raise NotFoundError(f"nothing is known of {location} in {state_dir}; nothing was forgotten")
    for one in found.values():
        if not force_base and (one.staged or one.undo or isinstance(one.state, Dirty)):
            raise RefusedError(
                f"of {location} something is unfinished, staged, or could be taken back, as "
                "`blockstream status` shows; nothing was forgotten; --force-base forgets it too"
            )
    for folder in found:
        with JournalFiles.opened(folder, SLOT_BYTES):
            shutil.rmtree(folder)
    return sorted(found)
