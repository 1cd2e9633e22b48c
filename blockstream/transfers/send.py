"""`send`: one disk, whole or its changes, as a stream."""

import contextlib
import os
import secrets
import string
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import blake3

from blockstream import __version__
from blockstream.captures.interface import Captured
from blockstream.errors import InterruptedTransferError, OutcomeUnknownError, UsageError
from blockstream.extents import ExtentMap
from blockstream.formats.extent_lists import Meaning
from blockstream.interfaces import Source
from blockstream.linux.identity import described
from blockstream.linux.streams import widen_pipe
from blockstream.pipeline.compression import CompressionChoice
from blockstream.pipeline.frame_sink import PipeSink
from blockstream.pipeline.limiter import Limiter
from blockstream.pipeline.progress import Snapshot
from blockstream.pipeline.sender import SendEngine, SendOptions
from blockstream.pipeline.token import ResumeToken
from blockstream.run import Run
from blockstream.transfers.sender_journal import Intent, SentTransfers
from blockstream.words import time_text
from blockstream_protocol import Committed, Kind, Open, Plan, Sender, is_id

_RECEIPT_POLL_SECONDS = 0.05
_LAST_CHECKPOINT_SECONDS = 3.0
# Of two states in one second, two have the same name once in 309 million times.
_GOAL_LETTERS = 6


@dataclass(frozen=True, slots=True)
class TransferOptions:
    """How a disk travels.

    Attributes:
        state_dir: Where the sender remembers what it sent.
        compression: Codec and level.
        limiter: Limit on wire bytes.
        resume: Token of an unfinished transfer.
        receipt_seconds: How long to wait for `confirm`; 0 for not at all.
        target: What the sender remembers it under; empty over a pipe.
        name: What a policy of `serve` calls the target.
    """

    state_dir: Path
    compression: CompressionChoice = field(default_factory=lambda: CompressionChoice(None))
    limiter: Limiter = field(default_factory=lambda: Limiter(None))
    resume: ResumeToken | None = None
    receipt_seconds: float = 0.0
    target: str = ""
    name: str = ""


@dataclass(frozen=True, slots=True)
class SendPlan:
    """What would be sent, without reading it.

    Attributes:
        opening: The announcement.
        plan: Its plan.
        extents: The map behind it.
        warnings: What people should know.
        moment: When the source held it, in nanoseconds since 1970, UTC; None where nobody knows.
    """

    opening: Open
    plan: Plan
    extents: ExtentMap
    warnings: tuple[str, ...]
    moment: int | None = None

    @property
    def data_bytes(self) -> int:
        """Bytes that will be read; zeros that are found by looking still count."""
        return self.extents.total(Kind.DATA)

    @property
    def zero_bytes(self) -> int:
        """Bytes that are known to be zeros."""
        return self.extents.total(Kind.ZERO)


@dataclass(frozen=True, slots=True)
class SendResult:
    """What was sent.

    Attributes:
        expected: What the receiver must commit.
        counts: Final counters.
        seconds: How long it took.
        confirmed: Whether a receipt came back in time.
        moment: When the source held it, in nanoseconds since 1970, UTC; None where nobody knows.
    """

    expected: Committed
    counts: Snapshot
    seconds: float
    confirmed: bool
    moment: int | None = None

    @property
    def state(self) -> str:
        """The state that was sent."""
        return self.expected.goal


def planned(disk: Captured, options: TransferOptions, goal: str = "") -> SendPlan:
    """Work out what would be sent.

    Args:
        disk: What is sent.
        options: How.
        goal: Name of the state, if the disk has none; empty to give it one.

    Raises:
        UsageError: If no state can be called so, or it belongs to another transfer.
        SourceError: If the list of changes does not fit the source.
    """
    state = disk.state or goal or new_goal(disk.moment)
    _check_names(disk.base, state)
    extents = _extents(disk)
    plan = extents.plan()
    token = options.resume
    opening = Open(
        size=disk.source.size,
        base=disk.base,
        goal=state,
        plan=plan.digest(blake3.blake3).hex(),
        ranges=len(plan),
        total=plan.total,
        name=options.name,
        frames=token.frames if token else 0,
        chain=token.chain if token and token.frames else "",
    )
    if token and opening.identity(blake3.blake3).hex() != token.transfer:
        raise UsageError(
            "the resume token belongs to another transfer: source, size or list of changes are not "
            "those it was made with; nothing was sent; start a new transfer without --resume"
        )
    return SendPlan(opening, plan, extents, tuple(disk.source.warnings), disk.moment)


def one_way(what: SendPlan, source: Source) -> Sender:
    """Return a session that hears no answers."""
    return Sender(
        what.opening,
        what.plan,
        new_digest=blake3.blake3,
        duplex=False,
        software=f"blockstream {__version__}",
        facts=described(source.nodes),
        moment=what.moment,
        now=time.monotonic(),
    )


async def send(disk: Captured, options: TransferOptions, fd: int, run: Run) -> SendResult:
    """Write the stream to `fd`.

    Raises:
        BlockstreamError: If it could not all be sent, or with --require-receipt was not confirmed.
    """
    return await run.carry(lambda: _sent(disk, options, fd, run))


def _sent(disk: Captured, options: TransferOptions, fd: int, run: Run) -> SendResult:
    progress = run.count_anew()
    # Our end of the pipe is closed with the outlet: the receiver waits for the end of input.
    with contextlib.closing(PipeSink(fd, options.limiter, progress)) as outlet:
        what = planned(disk, options)
        sent = SentTransfers(options.state_dir)
        sent.prepare()

        def record_intent(expected: Committed) -> None:
            sent.record(Intent(expected, disk.location, disk.base, target=options.target))

        widen_pipe(fd)
        progress.size, progress.total = disk.source.size, what.opening.total
        session = one_way(what, disk.source)
        how = SendOptions(
            compression=options.compression, record_intent=record_intent, last_checkpoint=True
        )
        engine = SendEngine(session, disk.source, what.extents, outlet, progress, how)

        def stop(reason: str) -> None:
            engine.stop(f"{reason}; what was sent is no whole stream, which nobody commits")
            # A frame that is on its way may end, and the last CHECKPOINT follow it.
            outlet.hurry()
            impatience = threading.Timer(_LAST_CHECKPOINT_SECONDS, outlet.stop)
            impatience.daemon = True
            impatience.start()

        began = time.monotonic()
        with run.heeding(stop):
            finish = engine.run()
    if finish.committed is None:
        raise OutcomeUnknownError("the session ended without saying what was sent")
    seconds = time.monotonic() - began
    if options.receipt_seconds:
        _hang_up(fd)
    confirmed = _wait_for_receipt(sent, finish.committed, options.receipt_seconds, run)
    return SendResult(finish.committed, progress.snapshot(), seconds, confirmed, what.moment)


def _check_names(base: str, goal: str) -> None:
    for option, text in (("--base", base), ("--goal", goal)):
        if text and not is_id(text):
            raise UsageError(
                f"{option} takes up to 256 printable ASCII characters, no blank at either end"
            )
    if base == goal:
        raise UsageError("base and goal are the same state: there is nothing to send")


def new_goal(moment: int | None) -> str:
    """Return a name for a state that nobody named: its moment, or else now, and random letters."""
    seconds = time.time() if moment is None else moment // 1_000_000_000
    letters = "".join(secrets.choice(string.ascii_lowercase) for _ in range(_GOAL_LETTERS))
    return f"{time_text(seconds)}-{letters}"


def _extents(disk: Captured) -> ExtentMap:
    """Return what to send: what changed, or the whole device."""
    base, found, source = disk.base, disk.changes, disk.source
    if found is None:
        if base:
            raise UsageError(
                "an increment needs to know what changed since its base: give --extents FILE; "
                "`blockstream extents NEW --since OLD` makes one from two disks"
            )
        return source.extents()
    if base and found.meaning is not Meaning.CHANGED:
        raise UsageError(
            f"the list of extents ({found.origin}) says what is allocated, not what changed since "
            f"{base!r}; nothing was sent; as an increment it would leave old data behind"
        )
    if not base and found.meaning is Meaning.CHANGED:
        raise UsageError(
            f"the list of extents ({found.origin}) says what changed, so --base must name the "
            "state that the changes start from; nothing was sent"
        )
    if base:
        return found.extents.rounded(source.alignment).coarsened()
    # What an allocation map does not mention is read, never taken for zeros.
    return found.extents.rounded(source.alignment).filled(Kind.DATA)


def _hang_up(fd: int) -> None:
    """Give the stream's end to the receiver, which commits only then; `fd` stays a number of ours.

    Raises:
        InterruptedTransferError: If what was written last did not get out.
    """
    nothing = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.dup2(nothing, fd)
    except OSError as error:
        raise InterruptedTransferError(
            f"the stream cannot be ended: {error.strerror}; it may not be complete"
        ) from error
    finally:
        os.close(nothing)


def _wait_for_receipt(sent: SentTransfers, expected: Committed, seconds: float, run: Run) -> bool:
    """Wait until `blockstream confirm` has noted the receipt.

    Raises:
        OutcomeUnknownError: If it did not in time.
    """
    if not seconds:
        return False
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        intent = sent.find(expected.transfer)
        if intent is not None and intent.confirmed:
            return True
        run.wait(_RECEIPT_POLL_SECONDS)
    raise OutcomeUnknownError(
        f"all was sent, but no receipt came within {seconds:.0f} s; whether {expected.goal!r} is "
        "on the target is not known; ask it with `blockstream status TARGET` on its host"
    )
