"""`recv`: a stream from a pipe onto a target."""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import blake3

from blockstream.errors import (
    BlockstreamError,
    ConnectionLostError,
    ForeignStreamError,
    InterruptedTransferError,
    RefusedError,
    StaleViewError,
)
from blockstream.linux.identity import described_here
from blockstream.linux.streams import WakeableReader, widen_pipe
from blockstream.locations.local import open_target
from blockstream.pipeline.error_map import code_of, translated
from blockstream.pipeline.frame_sink import PipeSink
from blockstream.pipeline.limiter import Limiter
from blockstream.pipeline.progress import Progress, Snapshot
from blockstream.pipeline.receiver import Applying, FrameReader, ReceiveEngine
from blockstream.pipeline.staged import StagedApplier
from blockstream.pipeline.token import ResumeToken
from blockstream.run import Run
from blockstream.targets.disk import DiskTarget
from blockstream.transfers.apply_modes import applier_for, why_undo_lost
from blockstream.transfers.opened_target import (
    OpenedTarget,
    absolute_path,
    made_before,
    opened_or_removed,
    patiently,
)
from blockstream.transfers.receive_options import ReceiveRequest
from blockstream.transfers.stored_stream import finish_staged, new_receiver
from blockstream_protocol import (
    DEVICE_BYTES,
    IDLE_SECONDS,
    TEXT_BYTES,
    Abort,
    Clean,
    Code,
    Committed,
    Dirty,
    Hello,
    Message,
    Open,
    Plan,
    Refuse,
    RemoteProtocolError,
    Unknown,
    Verdict,
    decide,
    told,
)

T = TypeVar("T")


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
        sampled: Why only samples told that nobody wrote to its base; empty where the kernel did,
            or nothing had to.
        moment: When the source held it, in nanoseconds since 1970, UTC; None where nobody said it.
        undo_lost: Why it cannot be undone, although that was wished; empty if it can.
    """

    opening: Open
    committed: Committed | None
    written: bool
    counts: Snapshot
    seconds: float
    untouched_tail: int
    sampled: str = ""
    moment: int | None = None
    undo_lost: str = ""

    @property
    def state(self) -> str:
        """The state that the target holds; empty where nothing was committed."""
        return self.committed.goal if self.committed is not None else ""

    def check(self) -> None:
        """End with what has to be looked at, although all was done.

        Raises:
            StaleViewError: If it cannot be undone.
        """
        if self.undo_lost:
            raise StaleViewError(self.undo_lost)


class Answering:
    """The way back to a sender. It may be gone at any time, which its own direction tells."""

    def __init__(self, fd: int) -> None:
        """Write to `fd`, which stays the caller's."""
        self._outlet = PipeSink(fd, Limiter(None), Progress())
        self._said_all = False
        self._lock = threading.Lock()

    def send(self, message: Message) -> None:
        """Say something, if anybody still listens; nothing follows the last word of a session."""
        with self._lock, contextlib.suppress(InterruptedTransferError):
            if not self._said_all:
                self._said_all = isinstance(message, Refuse | Abort | Committed)
                self._outlet.send(message)

    def explain(self, error: BlockstreamError) -> None:
        """Say why nothing comes of it, where the session itself did not."""
        if not self._said_all:
            code, text = code_of(error), str(error)[:TEXT_BYTES]
            self.send(Refuse(code, text) if code is Code.REFUSED else Abort(code, text))

    def close(self) -> None:
        """Give our own descriptors back."""
        self._outlet.close()


async def receive(
    request: ReceiveRequest,
    fd: int,
    run: Run,
    answer_fd: int | None = None,
    lanes: Sequence[int] = (),
) -> ReceiveResult:
    """Take a stream from `fd`; with `answer_fd`, in a session with its sender.

    Args:
        request: Where it goes.
        fd: Where it comes from.
        run: Counts, and stops it.
        answer_fd: Where answers go.
        lanes: Further descriptors that it comes from, in turn.

    Raises:
        ForeignStreamError: If it is not one of ours; it was read up to the bytes in the error.
        BlockstreamError: With the state of the target and what to do next in its message.
    """
    return await run.carry(lambda: received(request, fd, run, answer_fd, lanes))


def received(
    request: ReceiveRequest,
    fd: int,
    run: Run,
    answer_fd: int | None = None,
    lanes: Sequence[int] = (),
) -> ReceiveResult:
    """Take a stream, in a thread. See `receive`."""
    with _reading(fd, *lanes) as frames:
        if answer_fd is None:
            return receive_frames(request, frames, None, run)
        with _explained(answer_fd) as answering:
            try:
                greeting_in_time(frames, run)
                return receive_frames(request, frames, answering, run)
            except ForeignStreamError as error:
                # While the reader is open: later, nothing would end the waiting for more of it.
                words = frames.foreign_words()
                error.words = lambda: words
                raise


async def receive_sessions(request: ReceiveRequest, fd: int, answer_fd: int, run: Run) -> None:
    """Take one session after the other from `fd`, until the sender hangs up (SPEC 4.6).

    Between two of them it waits as long as the connection lasts, and holds nothing.

    Raises:
        BlockstreamError: As `receive`; no other session follows then.
    """
    while await run.carry(lambda: _received_next(request, fd, answer_fd, run)):
        run.count_anew()


def _received_next(request: ReceiveRequest, fd: int, answer_fd: int, run: Run) -> bool:
    """Take one session; tell whether there was one."""
    with _reading(fd) as frames, _explained(answer_fd) as answering:
        try:
            _greeting(frames, run)
        except ConnectionLostError:
            if frames.wire_bytes:
                raise
            return False
        receive_frames(request, frames, answering, run).check()
    return True


@contextlib.contextmanager
def _reading(*lanes: int) -> Iterator[FrameReader]:
    """Read frames from descriptors, which stay the caller's."""
    with contextlib.ExitStack() as stack:
        readers = []
        for lane in lanes:
            widen_pipe(lane)
            readers.append(stack.enter_context(contextlib.closing(WakeableReader(lane))))
        yield FrameReader(*readers)


@contextlib.contextmanager
def _explained(answer_fd: int) -> Iterator[Answering]:
    """Answer a sender; tell it, too, why nothing comes of it."""
    with contextlib.closing(Answering(answer_fd)) as answering:
        try:
            yield answering
        except BlockstreamError as error:
            answering.explain(error)
            raise


def greeting_in_time(frames: FrameReader, run: Run) -> Hello:
    """Take HELLO in time: nothing of a session runs yet that would notice a silent sender.

    Raises:
        ConnectionLostError: If it does not come.
        BlockstreamError: If something else does.
    """
    impatience = threading.Timer(IDLE_SECONDS, frames.stop)
    impatience.daemon = True
    impatience.start()
    try:
        return _greeting(frames, run)
    finally:
        impatience.cancel()


def receive_frames(
    request: ReceiveRequest,
    frames: FrameReader,
    answering: Answering | None,
    run: Run,
) -> ReceiveResult:
    """Take a stream whose frames may have been looked at already. See `receive`."""
    if request.dry_run and request.create and not os.path.lexists(request.target):
        return _would_make(request, _translating(frames, frames.opening, run))
    with _opened(request, frames, run, duplex=answering is not None) as everything:
        return _received(request, everything, frames, answering, run)


@contextlib.contextmanager
def _opened(
    request: ReceiveRequest, frames: FrameReader, run: Run, *, duplex: bool
) -> Iterator[OpenedTarget]:
    """Open the target, or make it."""
    with contextlib.ExitStack() as stack:

        def open_once() -> OpenedTarget:
            target = _target(request, frames, run, duplex=duplex)
            return stack.enter_context(opened_or_removed(target, request.state_dir))

        yield patiently(open_once, request.lock_wait, run.wait)


def _would_make(request: ReceiveRequest, opening: Open) -> ReceiveResult:
    """Say what a dry run would make.

    Raises:
        RefusedError: If nothing can be made there, or nothing may go onto a new disk.
    """
    folder = Path(request.target).absolute().parent
    if not os.access(folder, os.W_OK):
        raise RefusedError(f"{folder} is not there or cannot be written; nothing was made")
    decision = decide(opening, Plan.whole(0), Unknown(), force_base=request.force_base)
    if decision.verdict is Verdict.REFUSE:
        raise RefusedError(f"{decision.reason}; nothing was made")
    return ReceiveResult(opening, None, False, Progress().snapshot(), 0.0, 0)


def _target(request: ReceiveRequest, frames: FrameReader, run: Run, *, duplex: bool) -> DiskTarget:
    if not request.create:
        target = open_target(request.target, force_in_use=request.force_in_use)
        if request.identity and not target.identity.is_known_as(request.identity):
            target.close()
            raise RefusedError("the target is not the disk that was granted; nothing was written")
        return target
    if duplex:
        # The opening comes only after our HELLO, which tells of the target.
        hello = _greeting(frames, run)
        size, goals = _size_in(hello), hello.target.get("goals")
        known = goals if isinstance(goals, list) else []
        made = made_before(request.target, request.state_dir, lambda clean: clean.id in known)
    else:
        opening = _translating(frames, frames.opening, run)
        size, transfer = opening.size, opening.identity(blake3.blake3).hex()
        made = made_before(
            request.target, request.state_dir, lambda clean: clean.transfer == transfer
        )
    if made:
        return open_target(request.target, force_in_use=request.force_in_use)
    return open_target(request.target, create=size)


def _size_in(hello: Hello) -> int:
    size = hello.target.get("size")
    if not isinstance(size, int) or not 0 <= size <= DEVICE_BYTES:
        raise RefusedError("the sender does not say how large its disk is; nothing was made")
    return size


def _greeting(frames: FrameReader, run: Run) -> Hello:
    return _translating(frames, frames.greeting, run)


def _translating(frames: FrameReader, look: Callable[[], T], run: Run) -> T:
    try:
        with run.heeding(lambda _reason: frames.stop()):
            return look()
    except RemoteProtocolError as error:
        run.check("nothing was written")
        if frames.is_foreign:
            text = f"{error}; nothing was written"
            raise ForeignStreamError(text, frames.begin, frames.foreign_words) from error
        raise translated(error) from error


def _received(
    request: ReceiveRequest,
    everything: OpenedTarget,
    frames: FrameReader,
    answering: Answering | None,
    run: Run,
) -> ReceiveResult:
    progress = run.progress
    try:
        everything.target.refuse_source(described_here(_greeting(frames, run).target))
    except BlockstreamError as error:
        _add_next_step(error, everything, duplex=answering is not None)
        raise
    facts = {"path": absolute_path(request.target), "apply": str(request.apply)}
    everything.journal.facts = facts
    if everything.spool_complete and not request.dry_run:
        finish_staged(everything, run)

    def continues(transfer: str) -> bool:
        # A sender that hears is told of the unfinished transfer, and continues it.
        if answering is not None:
            return True
        return transfer == _translating(frames, frames.opening, run).identity(blake3.blake3).hex()

    state, applier = applier_for(request.apply, everything, request.policy, facts, continues, run)
    facts_told = {"size": everything.target.size} | told(state)
    session = new_receiver(everything, state, request.policy, facts_told)
    applying = Applying(
        session,
        applier,
        progress,
        answering.send if answering is not None else None,
        keep_frames=request.verify,
        is_discreet=request.is_discreet,
    )
    engine = ReceiveEngine(applying, frames, progress)
    began = time.monotonic()
    try:
        with run.heeding(engine.stop, engine.tick):
            finish = engine.run()
    except BlockstreamError as error:
        _add_next_step(error, everything, duplex=answering is not None)
        raise
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
        sampled=applying.sampled,
        moment=session.moment,
        undo_lost=why_undo_lost(request.apply, everything) if finish.written else "",
    )


def add_advice(error: RefusedError, target: str) -> None:
    """Add what was not done, and what to do, to a refusal of which only the reason was said."""
    if error.advice:
        error.add(f"nothing was written to {target}", error.advice)


def _add_next_step(error: BlockstreamError, everything: OpenedTarget, *, duplex: bool) -> None:
    """Add the state of the target, and how to go on, to an error."""
    if isinstance(error, ForeignStreamError):
        return  # whoever knows other tools goes on
    unfinished = everything.unfinished
    name = everything.target.name
    if isinstance(error, RefusedError):
        add_advice(error, name)
        return
    if not isinstance(unfinished, Dirty | Clean):
        error.add(f"nothing was written to {name}", "send it again")
        return
    state = "half-written" if isinstance(everything.journal.state, Dirty) else "still at its base"
    if isinstance(unfinished, Clean):
        error.add(
            f"{name} is {state}, but all has arrived: `blockstream apply {name}` finishes it "
            "without the sender"
        )
        return
    error.durable = unfinished.covered
    error.add(
        f"{name} is {state}, {unfinished.covered} of {unfinished.plan.total} bytes are durable",
        "the same command continues from there"
        if duplex
        else f"to continue, send again with\n  --resume {ResumeToken.of(unfinished)}",
    )
