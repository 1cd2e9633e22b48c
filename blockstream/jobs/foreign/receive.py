"""Streams of other tools: taken onto a target by the rules of our own, and made for them."""

import contextlib
import os
import uuid
from dataclasses import dataclass, replace

from blockstream.captures.interface import Captured
from blockstream.errors import (
    BaseMismatchError,
    BusyError,
    InterruptedTransferError,
    NotFoundError,
    RefusedError,
    SourceError,
    UsageError,
)
from blockstream.formats.extent_lists import ExtentList, Meaning
from blockstream.formats.foreign.events import Format
from blockstream.formats.foreign.table import HEAD_BYTES, chosen
from blockstream.formats.foreign.wrappings import wrapping
from blockstream.jobs.foreign.expected_digest import can_digest, foretold
from blockstream.jobs.foreign.options import ForeignOptions
from blockstream.linux.streams import widen_pipe
from blockstream.locations.local import open_target
from blockstream.pipeline.target_status import status_at
from blockstream.run import Run
from blockstream.sources.foreign_stream import ForeignStream, StreamContents
from blockstream.sources.layered import LayeredSource
from blockstream.transfers.copy import copy
from blockstream.transfers.dry_run import rehearsed_here
from blockstream.transfers.opened_target import LOCK_POLL_SECONDS, patiently
from blockstream.transfers.receive import ReceiveResult
from blockstream.transfers.receive_options import ReceiveRequest
from blockstream.transfers.send import TransferOptions, planned
from blockstream_protocol import Clean, Dirty, TargetState, Unknown, is_id

# What a target is called whose content nobody ever checked.
UNVERIFIED = "unverified"


@dataclass(frozen=True, slots=True)
class ForeignResult:
    """What became of a stream of another tool.

    Attributes:
        received: As for any stream.
        how: Its format.
        taken: What was found in it; counts.
        unchecked: What nobody can check.
        open_ended: Whether nothing says that it was whole.
        compared: Name of a digest of the whole disk that was compared; empty for none.
    """

    received: ReceiveResult
    how: Format
    taken: StreamContents
    unchecked: tuple[str, ...]
    open_ended: bool
    compared: str


async def receive_foreign(
    request: ReceiveRequest, wish: ForeignOptions, fd: int, head: bytes, run: Run
) -> ForeignResult:
    """Take a stream of another tool onto a target.

    All of it is seen before anything is written; then it is a copy on this host, with the rules of
    every copy.

    Args:
        request: Where it goes.
        wish: What it does not say itself.
        fd: Where it comes from.
        head: What was read from `fd` already, by `beginning`.
        run: Counts, and stops it.

    Raises:
        BlockstreamError: If it is cut, damaged, or does not fit; or as for any copy.
    """
    packed = wrapping(head)
    widen_pipe(fd)
    tell = run.progress.look
    made = ForeignStream(fd, ahead=head, wrapping=packed, folder=request.state_dir, tell=tell)
    with contextlib.closing(made) as intake:
        seen = await run.carry(lambda: _looked_through(request, wish, intake, packed, run))
        how, taken, what = seen.how, seen.taken, seen.what
        if request.dry_run:
            plan = planned(what, TransferOptions(request.state_dir))
            result = await rehearsed_here(plan, what.source, request, run)
        else:
            result = await _copied(what, seen.request, run)
    based, open_ended = bool(taken.base), seen.open_ended
    unchecked = () if seen.compared else _unchecked(how, wish, based=based, open_ended=open_ended)
    return ForeignResult(result, how, taken, unchecked, open_ended, seen.compared)


@dataclass(frozen=True, slots=True)
class _Seen:
    """A stream that was read to its end, and is to be copied now.

    Attributes:
        how: Its format.
        taken: What was found in it.
        request: Where it goes.
        what: What is copied.
        open_ended: Whether nothing says that it was whole.
        compared: Name of a digest of the whole disk that was compared; empty for none.
    """

    how: Format
    taken: StreamContents
    request: ReceiveRequest
    what: Captured
    open_ended: bool
    compared: str


def _looked_through(
    request: ReceiveRequest, wish: ForeignOptions, intake: ForeignStream, packed: str, run: Run
) -> _Seen:
    size = None
    if not request.create:
        size = patiently(lambda: _size_of_target(request), request.lock_wait, run.wait)
    with run.heeding(intake.stop):
        how = chosen(intake.head(HEAD_BYTES), wish.format, force_raw=wish.force_raw)
        if wish.snapback and how.name != "lvmsync":
            raise UsageError(
                f"--snapback is for dumps of lvmsync, and this is {how.title}; nothing was written"
            )
        if request.create and how.sizeless:
            raise UsageError(
                f"{how.title} does not say how large the disk is, so --create cannot make it; "
                "nothing was written; make the target first"
            )
        taken = intake.run(how, size)
    _check_count(how, wish, taken)
    what, source = _prepared(request, wish, how, intake, size)
    open_ended = not _ends(how, wish, taken, size, packed)
    compared = _compared(request, how, taken, source, run)
    request = replace(request, force_base=request.force_base or _blind(request, what))
    what = replace(what, state=_goal(request, wish, how, taken, open_ended=open_ended))
    return _Seen(how, taken, request, what, open_ended, compared)


async def _copied(what: Captured, where: ReceiveRequest, run: Run) -> ReceiveResult:
    """Copy; what continues an unfinished copy and turns out to be another stream begins anew."""
    state, how = await run.carry(lambda: _state_of(where)), TransferOptions(where.state_dir)
    deadline = run.now() + where.lock_wait
    while True:
        try:
            return await copy(what, how, where, run)
        except BusyError:
            if run.now() >= deadline:
                raise
            await run.pause(LOCK_POLL_SECONDS)
        except SourceError:
            if not isinstance(state, Dirty) or state.goal != what.state:
                raise
            # Another transfer, by its name, to a state that is called the same.
            return await copy(what, replace(how, name=str(uuid.uuid4())), where, run)


def _size_of_target(request: ReceiveRequest) -> int:
    """Return the target's size; a target that may not be written is refused before any reading."""
    with contextlib.closing(
        open_target(request.target, force_in_use=request.force_in_use)
    ) as target:
        return target.size


def _compared(
    request: ReceiveRequest,
    how: Format,
    taken: StreamContents,
    source: LayeredSource,
    run: Run,
) -> str:
    """Compare what the target would hold with what the stream says; return by which digest.

    Raises:
        RefusedError: If it would be another disk.
    """
    if taken.digest is None:
        return ""
    name, value = taken.digest.name, taken.digest.value
    if request.force_base or not can_digest(name, len(value)):
        why = "because of --force-base"
        if not request.force_base:
            why, taken.uncompared = "which this host does not know", name
        taken.remarks.append(f"its {name} of the whole disk was not compared, {why}: {value.hex()}")
        return ""
    disk = request.target if os.path.lexists(request.target) else ""
    found = foretold(name, source, disk, run)
    if found != value:
        raise RefusedError(
            f"{how.title} would make another disk of {request.target} than its source was, by "
            f"{name} {found.hex()} in place of {value.hex()}: the target is not the copy that it "
            "was made for, or its bytes were altered; nothing was written; make it again for what "
            "the target holds now, or send a full copy"
        )
    return name


def _state_of(request: ReceiveRequest) -> TargetState:
    if request.create:
        return Unknown()
    try:
        return status_at(request.target, request.state_dir).state
    except NotFoundError:
        return Unknown()


def _check_count(how: Format, wish: ForeignOptions, taken: StreamContents) -> None:
    if wish.expect_bytes is not None and taken.data != wish.expect_bytes:
        raise InterruptedTransferError(
            f"{how.title} has {taken.data} bytes of data in {taken.records} records, and "
            f"{wish.expect_bytes} were expected; nothing was written; send it again"
        )


def _prepared(
    request: ReceiveRequest,
    wish: ForeignOptions,
    how: Format,
    intake: ForeignStream,
    size: int | None,
) -> tuple[Captured, LayeredSource]:
    """Return what is to be copied."""
    taken = intake.found
    disk = taken.size if taken.size is not None else size or 0
    if taken.whole and wish.base:
        raise UsageError(
            f"{how.title} that is a whole disk needs no --base; nothing was written; leave it out"
        )
    placed = taken.layers.flattened(disk, first_wins=wish.snapback)
    source = LayeredSource(how.title, placed, [intake.fd], disk, intake.before)
    what = Captured(how.title, how.title, source)
    if not taken.whole:
        base = base_of(how.title, taken.base, wish.base) or _held(request, wish) or UNVERIFIED
        changes = ExtentList(source.changes(), Meaning.CHANGED, how.title, disk)
        what = replace(what, base=base, changes=changes)
    return what, source


def base_of(name: str, said: str, wished: str) -> str:
    """Return the state that a stream belongs onto; empty if nobody says it.

    Args:
        name: What people call the stream.
        said: The state that it names.
        wished: The one that people name.

    Raises:
        BaseMismatchError: If they are two.
        RefusedError: If no state here can be called like that.
    """
    if not said or (wished and not is_id(said)):
        return wished
    if not is_id(said):
        raise RefusedError(
            f"{name} belongs onto {said!r}, and states here are called in printable ASCII; nothing "
            "was written; say with --base what that one is called here"
        )
    if wished not in {"", said}:
        raise BaseMismatchError(
            f"{name} belongs onto {said!r}, not onto {wished!r}; nothing was written; leave out "
            "--base"
        )
    return said


def _held(request: ReceiveRequest, wish: ForeignOptions) -> str:
    """Return the state that a stream which names no base goes onto: what is there."""
    state = _state_of(request)
    if isinstance(state, Clean):
        # Where it was before, if it has the goal already: the content tells whether it is the same.
        return state.prev if state.id == wish.goal else state.id
    return state.base if isinstance(state, Dirty) else ""


def _blind(request: ReceiveRequest, what: Captured) -> bool:
    """Tell whether a stream without a base goes onto a target of which nothing is known."""
    return what.base == UNVERIFIED and isinstance(_state_of(request), Unknown)


def _goal(
    request: ReceiveRequest,
    wish: ForeignOptions,
    how: Format,
    taken: StreamContents,
    *,
    open_ended: bool,
) -> str:
    """Return the name of the state that comes of it."""
    if wish.goal or (taken.goal and is_id(taken.goal)):
        return wish.goal or taken.goal
    kind = f"{UNVERIFIED}-{how.name}-" if open_ended else f"{how.name}-"
    state = _state_of(request)
    if isinstance(state, Dirty) and state.goal.startswith(kind):
        return state.goal  # the same stream again, after it was interrupted
    return kind + str(uuid.uuid4())


def _ends(
    how: Format, wish: ForeignOptions, taken: StreamContents, size: int | None, packed: str
) -> bool:
    """Tell whether anything says that a stream was whole."""
    said = wish.accept_open_end or wish.expect_bytes is not None
    return said or told_whole(how, packed, taken.size, size)


def told_whole(how: Format, packed: str, size: int | None, wanted: int | None) -> bool:
    """Tell whether a stream itself says that it is whole.

    What packed a dump ends it well, too, if the tool that made the dump was stopped. An image that
    is packed lies in a file as a rule, and is believed.

    Args:
        how: Its format.
        packed: What it is compressed with; empty for nothing.
        size: Bytes of its disk.
        wanted: Bytes that the disk must have; None if nobody knows.
    """
    image = how.name == "raw" and (bool(packed) or size == wanted)
    return how.ends or image


def _unchecked(
    how: Format, wish: ForeignOptions, *, based: bool, open_ended: bool
) -> tuple[str, ...]:
    texts = how.unchecked
    if not open_ended:
        texts = tuple(text for text in texts if text != "that it is whole")
    if wish.base or based:
        texts = tuple(text for text in texts if text != "its base")
    return texts
