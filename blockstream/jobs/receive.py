"""`recv`: a stream from a pipe onto a target."""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

import blake3

from blockstream.errors import (
    BlockstreamError,
    InterruptedTransferError,
    RefusedError,
)
from blockstream.jobs.stored import finish_staged, new_receiver, spool_facts, undo_dropper
from blockstream.jobs.supervision import Reporter, Work, supervised
from blockstream.jobs.targets import OpenedTarget, made_before, opened_or_removed
from blockstream.linux.identity import described_here
from blockstream.linux.streams import WakeableReader, widen_pipe
from blockstream.locations import open_target
from blockstream.pipeline.direct import DirectApplier
from blockstream.pipeline.faults import translated
from blockstream.pipeline.progress import Progress, Snapshot
from blockstream.pipeline.receiver import Applier, Applying, FrameReader, ReceiveEngine
from blockstream.pipeline.staged import StagedApplier
from blockstream.pipeline.token import ResumeToken
from blockstream.targets.disk import DiskTarget
from blockstream_protocol import (
    Clean,
    Committed,
    Dirty,
    Hello,
    Open,
    Plan,
    ReceiverPolicy,
    RemoteProtocolError,
    TargetState,
)


class ApplyMode(StrEnum):
    """How a stream comes onto the target."""

    DIRECT = "direct"
    UNDO = "undo"
    STAGE = "stage"


@dataclass(frozen=True, slots=True)
class ReceiveRequest:
    """Where a stream goes, and what is allowed.

    Attributes:
        target: Location of the target.
        state_dir: Where journals lie.
        create: Make the target, a sparse file.
        apply: How it is applied.
        verify: Read everything back from the medium before it is called durable.
        dry_run: Check everything, write nothing.
        force_in_use: Write although somebody uses the target.
        force_larger: Take a target that is larger than the source.
        force_base: Believe that the target is the base.
    """

    target: str
    state_dir: Path
    create: bool = False
    apply: ApplyMode = ApplyMode.DIRECT
    verify: bool = False
    dry_run: bool = False
    force_in_use: bool = False
    force_larger: bool = False
    force_base: bool = False

    @property
    def policy(self) -> ReceiverPolicy:
        """The same, as the session understands it."""
        return ReceiverPolicy(
            force_base=self.force_base,
            allow_larger=self.force_larger,
            read_back=self.verify,
            dry_run=self.dry_run,
        )


@dataclass(frozen=True, slots=True)
class ReceiveResult:
    """What became of a stream.

    Attributes:
        opening: What was announced.
        committed: What the target holds now; None after a dry run.
        written: Whether anything was written; False when the target held the goal already.
        counts: Final counters.
        seconds: How long it took.
        untouched_tail: Bytes of a larger target behind the end of the source.
    """

    opening: Open
    committed: Committed | None
    written: bool
    counts: Snapshot
    seconds: float
    untouched_tail: int


def receive(
    request: ReceiveRequest, fd: int, progress: Progress, reporters: list[Reporter]
) -> ReceiveResult:
    """Take a stream from `fd`.

    Raises:
        BlockstreamError: With the state of the target and what to do next in its message.
    """
    widen_pipe(fd)
    with contextlib.closing(WakeableReader(fd)) as reader:
        frames = FrameReader(reader)
        with _opened(request, frames) as everything:
            return _received(request, everything, frames, progress, reporters)


@contextlib.contextmanager
def _opened(request: ReceiveRequest, frames: FrameReader) -> Iterator[OpenedTarget]:
    """Open the target, or make it."""
    target, made = _target(request, frames)
    with opened_or_removed(target, request.state_dir, made=made) as everything:
        yield everything


def _target(request: ReceiveRequest, frames: FrameReader) -> tuple[DiskTarget, bool]:
    if not request.create:
        return open_target(request.target, force_in_use=request.force_in_use), False
    opening = _looked_ahead(frames)
    transfer = opening.identity(blake3.blake3).hex()
    if made_before(request.target, request.state_dir, lambda clean: clean.transfer == transfer):
        return open_target(request.target, force_in_use=request.force_in_use), False
    if request.dry_run:
        raise RefusedError(
            f"with -n nothing is made: {request.target} would be a sparse file of {opening.size} "
            "bytes"
        )
    return open_target(request.target, create=opening.size), True


def _looked_ahead(frames: FrameReader) -> Open:
    return _beginning(frames)[1]


def _beginning(frames: FrameReader) -> tuple[Hello, Open]:
    try:
        return frames.beginning()
    except RemoteProtocolError as error:
        raise translated(error) from error


def _received(
    request: ReceiveRequest,
    everything: OpenedTarget,
    frames: FrameReader,
    progress: Progress,
    reporters: list[Reporter],
) -> ReceiveResult:
    try:
        everything.target.refuse_source(described_here(_beginning(frames)[0].target))
    except BlockstreamError as error:
        raise _with_next_step(error, everything) from error
    facts = {"path": request.target, "apply": str(request.apply)}
    everything.journal.facts = facts
    if everything.spool_complete and not request.dry_run:
        finish_staged(everything)
    state, applier = _applier(request, everything, frames, facts)
    session = new_receiver(everything, state, request.policy)
    applying = Applying(session, applier, progress, keep_frames=request.verify)
    engine = ReceiveEngine(applying, frames, progress)
    began = time.monotonic()
    try:
        finish = supervised(engine.run, Work(engine.stop, engine.tick), progress, reporters)
    except BlockstreamError as error:
        raise _with_next_step(error, everything) from error
    finally:
        if isinstance(applier, StagedApplier):
            applier.close()
    opening = session.opening
    if opening is None:
        raise InterruptedTransferError("the stream had no opening")
    return ReceiveResult(
        opening=opening,
        committed=finish.committed,
        written=finish.written,
        counts=progress.snapshot(),
        seconds=time.monotonic() - began,
        untouched_tail=everything.target.size - opening.size,
    )


def _applier(
    request: ReceiveRequest, everything: OpenedTarget, frames: FrameReader, facts: dict[str, str]
) -> tuple[TargetState, Applier]:
    """Return the state to decide by, and what executes the effects."""
    target, journal = everything.target, everything.journal
    direct = DirectApplier(target, journal, _undo_saver(request, everything))
    if request.apply is not ApplyMode.STAGE or request.dry_run:
        return journal.state, direct

    def complete() -> None:
        finish_staged(everything)

    staged = StagedApplier(everything.spool_path, everything.spool, direct.samples, complete)
    transfer = _looked_ahead(frames).identity(blake3.blake3).hex()
    everything.spool.facts = facts | spool_facts(request.policy)
    spooled = everything.spool.state
    if isinstance(spooled, Dirty) and spooled.transfer == transfer:
        return spooled, staged
    return _as_spool_sees(journal.state), staged


def _as_spool_sees(state: TargetState) -> TargetState:
    """Return the target's state without a resume point: nothing of the stream is in the spool."""
    if not isinstance(state, Dirty):
        return state
    return replace(state, transfer="", frames=0, chain="", end=0, covered=0)


def _undo_saver(
    request: ReceiveRequest, everything: OpenedTarget
) -> Callable[[Open, Plan, bool], None]:
    """Return what keeps the first pre-images, or what forgets those of an earlier transfer."""

    def save(opening: Open, plan: Plan, resumed: bool) -> None:
        from blockstream.jobs.undo import save_undo  # heavy, and rarely used

        save_undo(everything, opening, plan, resumed=resumed)
        everything.drop_spool()

    return save if request.apply is ApplyMode.UNDO else undo_dropper(everything)


def _with_next_step(error: BlockstreamError, everything: OpenedTarget) -> BlockstreamError:
    """Add the state of the target, and how to go on, to an error's message."""
    unfinished = everything.unfinished
    name = everything.target.name
    if error.advice:
        return type(error)(f"{error}; nothing was written to {name}; {error.advice}")
    if isinstance(error, RefusedError):
        return error
    if not isinstance(unfinished, Dirty | Clean):
        return type(error)(f"{error}; nothing was written to {name}; send it again")
    state = "half-written" if isinstance(everything.journal.state, Dirty) else "still at its base"
    if isinstance(unfinished, Clean):
        return type(error)(
            f"{error}; {name} is {state}, but all has arrived: `blockstream apply {name}` finishes "
            "it without the sender"
        )
    return type(error)(
        f"{error}; {name} is {state}, {unfinished.covered} of {unfinished.plan.total} bytes are "
        "durable; to continue, send again with\n"
        f"  --resume {ResumeToken.of(unfinished)}"
    )
