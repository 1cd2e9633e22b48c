"""Undo: what a transfer is about to overwrite, kept as a stored stream that leads back."""

import contextlib
import os
import uuid
from pathlib import Path

import blake3
import numpy as np

from blockstream.errors import (
    InterruptedTransferError,
    NotFoundError,
    RefusedError,
    SourceError,
    WrittenSinceError,
)
from blockstream.extents import ExtentMap
from blockstream.linux.files import new_file, sync_directory
from blockstream.linux.streams import WakeableReader
from blockstream.locations.local import LocalDisk
from blockstream.pipeline.compression import CompressionChoice
from blockstream.pipeline.error_map import translated
from blockstream.pipeline.frame_sink import PipeSink
from blockstream.pipeline.limiter import Limiter
from blockstream.pipeline.progress import Progress
from blockstream.pipeline.receiver import FrameReader
from blockstream.pipeline.sender import SendEngine, SendOptions
from blockstream.transfers.opened_target import OpenedTarget
from blockstream.transfers.stored_stream import apply_stored
from blockstream_protocol import (
    Clean,
    Dirty,
    Kind,
    Open,
    Plan,
    ReceiverPolicy,
    RemoteProtocolError,
    Sender,
    TargetState,
)


def save_undo(everything: OpenedTarget, opening: Open, plan: Plan, *, resumed: bool) -> None:
    """Make the pre-images of `plan` durable, before the first of them is overwritten.

    Only the first pre-image of a range leads back. So when another transfer takes the place of an
    unfinished one, the target is brought back to its base first.

    Raises:
        RefusedError: If there is no room for them; the target was not touched.
    """
    state = everything.journal.state
    if isinstance(state, Dirty):
        if resumed and everything.undo_path.exists():
            return
        if everything.undo_path.exists():
            undo(everything)
        else:
            raise RefusedError(
                f"{everything.target.name} is half-written and nothing was kept of what it held, "
                "so this transfer could not be undone; nothing was written; use --apply direct"
            )
    _write_log(everything, opening, plan)


def undo(everything: OpenedTarget, progress: Progress | None = None) -> str:
    """Bring the target back to what it held before the last transfer; return that state's id.

    Raises:
        NotFoundError: If nothing was kept.
        BlockstreamError: As for any stream; it can be tried again.
    """
    everything.put_undo_back()
    if not everything.undo_path.exists():
        raise NotFoundError(
            f"there is no undo log for {everything.target.name}: the last transfer was not made "
            "with --apply undo; nothing was written"
        )
    goal, state = _goal_of(everything.undo_path), everything.journal.state
    if isinstance(state, Clean) and state.id == goal:
        # Killed after the log was saved and before DIRTY, or after the undo and before this.
        everything.drop_undo()
        return goal
    policy = ReceiverPolicy(allow_larger=True)
    try:
        committed = apply_stored(everything, everything.undo_path, policy=policy, progress=progress)
    except WrittenSinceError as error:
        raise WrittenSinceError(
            f"{error}; nothing was written to {everything.target.name}: what others wrote is not "
            f"in the undo log; send a full copy of {goal}"
        ) from error
    everything.drop_undo()
    return committed.goal


def _goal_of(path: Path) -> str:
    """Return the state that an undo log leads to.

    Raises:
        BlockstreamError: If it is damaged.
    """
    with path.open("rb") as file, contextlib.closing(WakeableReader(file.fileno())) as reader:
        try:
            return FrameReader(reader).opening().goal
        except RemoteProtocolError as error:
            raise translated(error) from error


def _write_log(everything: OpenedTarget, opening: Open, plan: Plan) -> None:
    """Stream the plan's ranges out of the target into the log; base and goal are the base."""
    rows = np.frombuffer(plan.rows(), "<i8").reshape(-1, 2).astype(np.int64)
    size = opening.size
    extents = ExtentMap.from_columns(rows[:, 0], rows[:, 1], Kind.DATA, size)
    back = Open(
        size=size,
        base=opening.base,
        goal=opening.base or _former(everything.journal.state),
        plan=opening.plan,
        ranges=opening.ranges,
        total=opening.total,
    )
    path = everything.undo_path
    temporary = path.with_suffix(".new")
    try:
        with new_file(temporary, 0o600) as file:
            _stream(everything, back, plan, extents, file.fileno())
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_directory(path.parent)
    except (OSError, SourceError, InterruptedTransferError) as error:
        temporary.unlink(missing_ok=True)
        raise RefusedError(
            f"what the transfer would overwrite cannot be kept in {path}: {error}; nothing was "
            "written; make room, or use --apply direct"
        ) from error


def _former(state: TargetState) -> str:
    """Return the id that a full copy's undo leads back to."""
    return state.id if isinstance(state, Clean) else f"before-{uuid.uuid4()}"


def _stream(
    everything: OpenedTarget, opening: Open, plan: Plan, extents: ExtentMap, fd: int
) -> None:
    progress = Progress()
    with (
        contextlib.closing(LocalDisk(everything.target.name).open_source()) as source,
        contextlib.closing(PipeSink(fd, Limiter(None), progress)) as outlet,
    ):
        state = everything.journal.state
        moment = state.moment if isinstance(state, Clean) else None
        session = Sender(opening, plan, new_digest=blake3.blake3, duplex=False, moment=moment)
        options = SendOptions(compression=CompressionChoice(1))
        SendEngine(session, source, extents, outlet, progress, options).run()
