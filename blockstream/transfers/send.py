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
from blockstream.errors import InterruptedTransferError, OutcomeUnknownError, UsageError
from blockstream.extents import ExtentMap
from blockstream.formats.extent_lists import ExtentList, Meaning, parse_extent_list
from blockstream.interfaces import Source
from blockstream.linux.identity import described
from blockstream.linux.streams import widen_pipe
from blockstream.locations import is_nbd, vmdk_path
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


@dataclass(slots=True)
class SendRequest:
    """What to send, and how.

    Attributes:
        source: Location of the disk.
        state_dir: Where the sender remembers what it sent.
        base: State that the target holds; empty for a full copy; `last` for the newest that is
            confirmed of `target`.
        goal: Name of the state that is sent; a random one if empty.
        extents: File with the ranges to send; `-` is not possible.
        resume: Token of an unfinished transfer.
        compression: Codec and level.
        limiter: Limit on wire bytes.
        receipt_seconds: How long to wait for `confirm`; 0 for not at all.
        changes: The ranges to send, where no file holds them.
        listing: What `extents` holds, where that was read already.
        name: What a policy of `serve` calls the target.
        bitmap: Of an NBD export, the dirty bitmap that says what changed.
        target: Where it goes, for whoever asks what that held last; empty over a pipe.
        moment: When the source held what is sent, in nanoseconds since 1970, UTC; None where
            nobody knows.
    """

    source: str
    state_dir: Path
    base: str = ""
    goal: str = ""
    extents: str = ""
    resume: ResumeToken | None = None
    compression: CompressionChoice = field(default_factory=lambda: CompressionChoice(None))
    limiter: Limiter = field(default_factory=lambda: Limiter(None))
    receipt_seconds: float = 0.0
    changes: ExtentList | None = None
    listing: bytes | None = None
    name: str = ""
    bitmap: str = ""
    target: str = ""
    moment: int | None = None


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


def planned(request: SendRequest, source: Source) -> SendPlan:
    """Work out what would be sent.

    Raises:
        UsageError: If the options contradict each other.
        SourceError: If the list of changes does not fit the source.
    """
    base, goal = _states(request)
    extents = _extents(request, source, base)
    plan = extents.plan()
    token = request.resume
    opening = Open(
        size=source.size,
        base=base,
        goal=goal,
        plan=plan.digest(blake3.blake3).hex(),
        ranges=len(plan),
        total=plan.total,
        name=request.name,
        frames=token.frames if token else 0,
        chain=token.chain if token and token.frames else "",
    )
    if token and opening.identity(blake3.blake3).hex() != token.transfer:
        raise UsageError(
            "the resume token belongs to another transfer: source, size or list of changes are not "
            "those it was made with; nothing was sent; start a new transfer without --resume"
        )
    return SendPlan(opening, plan, extents, tuple(source.warnings), request.moment)


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


async def send(request: SendRequest, source: Source, fd: int, run: Run) -> SendResult:
    """Write the stream to `fd`.

    Raises:
        BlockstreamError: If it could not all be sent, or with --require-receipt was not confirmed.
    """
    return await run.carry(lambda: _sent(request, source, fd, run))


def _sent(request: SendRequest, source: Source, fd: int, run: Run) -> SendResult:
    progress = run.count_anew()
    # Our end of the pipe is closed with the outlet: the receiver waits for the end of input.
    with contextlib.closing(PipeSink(fd, request.limiter, progress)) as outlet:
        what = planned(request, source)
        sent = SentTransfers(request.state_dir)
        sent.prepare()

        def record_intent(expected: Committed) -> None:
            source = absolute(request.source)
            sent.record(Intent(expected, source, what.opening.base, target=request.target))

        widen_pipe(fd)
        progress.size, progress.total = source.size, what.opening.total
        session = one_way(what, source)
        options = SendOptions(
            compression=request.compression, record_intent=record_intent, last_checkpoint=True
        )
        engine = SendEngine(session, source, what.extents, outlet, progress, options)

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
    if request.receipt_seconds:
        _hang_up(fd)
    confirmed = _wait_for_receipt(sent, finish.committed, request.receipt_seconds, run)
    return SendResult(finish.committed, progress.snapshot(), seconds, confirmed, what.moment)


def _states(request: SendRequest) -> tuple[str, str]:
    """Return base and goal."""
    if request.resume is not None:
        if request.base or request.goal:
            raise UsageError("--resume knows base and goal; leave --base and --goal out")
        return request.resume.base, request.resume.goal
    base = request.base
    if base == "last":
        sent = SentTransfers(request.state_dir)
        base = sent.last_confirmed(absolute(request.source), request.target)
    goal = request.goal or new_goal(request.moment)
    for option, text in (("--base", base), ("--goal", goal)):
        if text and not is_id(text):
            raise UsageError(
                f"{option} takes up to 256 printable ASCII characters, no blank at either end"
            )
    if base == goal:
        raise UsageError("base and goal are the same state: there is nothing to send")
    return base, goal


def new_goal(moment: int | None) -> str:
    """Return a name for a state that nobody named: its moment, or else now, and random letters."""
    seconds = time.time() if moment is None else moment // 1_000_000_000
    letters = "".join(secrets.choice(string.ascii_lowercase) for _ in range(_GOAL_LETTERS))
    return f"{time_text(seconds)}-{letters}"


def absolute(location: str) -> str:
    """Return a name that means the same in every directory."""
    if is_nbd(location):
        return location
    image = vmdk_path(location)
    return str(Path(location).absolute()) if image is None else f"vmdk:{Path(image).absolute()}"


def _extents(request: SendRequest, source: Source, base: str) -> ExtentMap:
    """Return what to send: the list of changes, or the whole device."""
    if request.changes is not None:
        found = request.changes
    elif request.extents:
        listing = listing_of(request.extents) if request.listing is None else request.listing
        found = parse_extent_list(listing, source.size)
    else:
        if base:
            raise UsageError(
                "an increment needs to know what changed since its base: give --extents FILE; "
                "`blockstream extents NEW --since OLD` makes one from two disks"
            )
        return source.extents()
    if base and found.meaning is not Meaning.CHANGED:
        raise UsageError(
            f"{request.extents} ({found.origin}) says what is allocated, not what changed since "
            f"{base!r}; nothing was sent; as an increment it would leave old data behind"
        )
    if not base and found.meaning is Meaning.CHANGED:
        raise UsageError(
            f"{request.extents} ({found.origin}) is a list of changes, so --base must name the "
            "state that they start from; nothing was sent"
        )
    if base:
        return found.extents.rounded(source.alignment).coarsened()
    # What an allocation map does not mention is read, never taken for zeros.
    return found.extents.rounded(source.alignment).filled(Kind.DATA)


def listing_of(path: str) -> bytes:
    """Read a file that holds a list of extents.

    Raises:
        UsageError: If it cannot be read.
    """
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}; nothing was sent") from error


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
