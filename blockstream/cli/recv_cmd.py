"""`blockstream recv`."""

import functools
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from blockstream.cli.console import say
from blockstream.cli.foreground import done
from blockstream.cli.foreign import show_foreign, wish_given, with_foreign_options
from blockstream.cli.join_options import meeting_of, with_meeting
from blockstream.cli.location_types import DISK_HERE
from blockstream.cli.options import (
    ProgressWish,
    refuse_terminal,
    reporters,
    with_progress,
    with_state_dir,
)
from blockstream.cli.received_output import sampled_text, show_received
from blockstream.cli.target_options import with_target_options
from blockstream.errors import (
    ForeignStreamError,
    InterruptedTransferError,
    StaleViewError,
    UsageError,
)
from blockstream.formats.foreign.wrappings import wrapping
from blockstream.jobs.foreign.detect import beginning, is_ours
from blockstream.linux.files import write_durably
from blockstream.run import Run
from blockstream.transfers.receive import ReceiveResult, receive, receive_sessions
from blockstream.transfers.receive_options import ApplyMode, ReceiveRequest
from blockstream.words import OURS

if TYPE_CHECKING:
    from blockstream.jobs.foreign.receive import ForeignResult

F = TypeVar("F", bound=Callable[..., Any])


_STDIN = 0
_STDOUT = 1


@click.command("recv", short_help="Take a stream onto a disk.")
@click.argument("target", type=DISK_HERE)
@click.option(
    "--apply",
    type=click.Choice([mode.value for mode in ApplyMode]),
    default=ApplyMode.DIRECT.value,
    show_default=True,
    help="direct: straight in, resumable. undo: keep what is overwritten, for `blockstream undo`. "
    "stage: write nothing until all has arrived and was verified.",
)
@click.option(
    "--receipt",
    metavar="FILE",
    help="Write a receipt for `blockstream confirm`; - is standard output.",
)
@click.option("-n", "--dry-run", is_flag=True, help="Check everything, write nothing.")
@click.option(
    "--lock-wait",
    type=click.FloatRange(min=0),
    default=0.0,
    metavar="SECONDS",
    help="Wait that long for whoever else uses TARGET.",
)
@click.option(
    "--session",
    is_flag=True,
    help="Answer on standard output: what `send` starts on the other host.",
)
@click.option(
    "--standing",
    is_flag=True,
    help="With --session: one after the other, until the sender hangs up.",
)
@with_foreign_options
@with_meeting
@with_target_options
@with_progress
@with_state_dir
def command(  # one an option
    target: str,
    apply: str,
    receipt: str | None,
    dry_run: bool,
    lock_wait: float,
    session: bool,
    standing: bool,
    meeting: int,
    create: bool,
    verify: bool,
    force_in_use: bool,
    force_larger: bool,
    force_base: bool,
    state_dir: Path,
    as_json: bool,
    quiet: bool,
    progress: ProgressWish,
    **foreign: Any,
) -> None:
    """Take a stream from standard input and write it to TARGET, a block device or file.

    Every byte is verified before it is written. Exit status 0 means committed: written, flushed,
    recorded.

    A stream of lvmsync, thin_send, rbd, bdsync, blocksync-fast or virtnbdbackup is recognised, and
    so is the raw image of a disk, also packed with zstd or gzip. All of it is seen before anything
    is written; what it does not tell cannot be checked, and is named.

    \b
    Examples:
      blockstream send /dev/vg/vm | ssh HOST blockstream recv /dev/vg/vm
      blockstream recv --create copy.img < disk.bsx
      blockstream send ... | ssh HOST blockstream recv --receipt - DISK | blockstream confirm -
      ssh OLD lvmsync --stdout /dev/vg/snap | blockstream recv /dev/vg/vm
      rbd export-diff --from-snap a pool/image@b - | blockstream recv /dev/vg/vm
    """  # noqa: D301
    refuse_terminal(_STDIN, "standard input")
    if session and receipt is not None:
        raise UsageError("--receipt has no effect in a session: its sender is told")
    if standing and (not session or meeting or dry_run):
        raise UsageError("--standing needs --session, over one connection, and no -n")
    if receipt == "-" or session:
        refuse_terminal(1, "standard output")
    quiet = quiet or session
    shown = reporters("recv", as_json=as_json, quiet=quiet, progress=progress)
    request = ReceiveRequest(
        target=target,
        state_dir=state_dir,
        create=create,
        apply=ApplyMode(apply),
        verify=verify,
        dry_run=dry_run,
        force_in_use=force_in_use,
        force_larger=force_larger,
        force_base=force_base,
        lock_wait=lock_wait,
    )
    wish = wish_given(foreign)
    if wish and session:
        raise UsageError(f"--{next(iter(wish)).replace('_', '-')} is for streams of other tools")
    run = Run()
    if standing:
        done(receive_sessions(request, _STDIN, _STDOUT, run), run, shown)
        return

    result, found = done(_taken(request, wish, meeting, run, session=session), run, shown)
    show_received(result, target, as_json=as_json, quiet=quiet)
    _tell_starter(result, target, session=session)
    if receipt is not None and result.committed is not None:
        _write_receipt(receipt, result)
    if found is not None:
        show_foreign(found, as_json=as_json, quiet=quiet)
    result.check()


async def _taken(
    request: ReceiveRequest, wish: Mapping[str, Any], meeting: int, run: Run, *, session: bool
) -> "tuple[ReceiveResult, ForeignResult | None]":
    """Take a stream of anybody's, or a session's."""
    async with run.within(meeting_of(meeting), harmless=True) as guests:
        lanes = [reading for reading, _ in guests]
        if wish:
            found = await _foreign(request, wish, run)
            return found.received, found
        if session or lanes:
            answers = _STDOUT if session else None
            return await receive(request, _STDIN, run, answers, lanes), None
        return await _anybodys(request, run)


def _tell_starter(result: ReceiveResult, target: str, *, session: bool) -> None:
    """Say what whoever started us must hear of, although all went well."""
    if session and result.sampled:
        say(OURS + sampled_text(target, result.sampled))


async def _anybodys(
    request: ReceiveRequest, run: Run
) -> tuple[ReceiveResult, "ForeignResult | None"]:
    """Take a stream that may be another tool's; the target is ours before its first byte comes."""
    try:
        return await receive(request, _STDIN, run), None
    except ForeignStreamError as error:
        begin = error.begin
        head = await run.ask(lambda: beginning(_STDIN, begin))
        packed = ""
        if wrapping(head):
            from blockstream.jobs.foreign.unpacking import packed_ours, unpacking  # rarely used

            packed, head = await run.ask(functools.partial(packed_ours, _STDIN, head))
        if packed:
            async with run.within(unpacking(_STDIN, packed, head)) as fd:
                return await receive(request, fd, run), None
        found = await _foreign(request, {}, run, head)
        return found.received, found


async def _foreign(
    request: ReceiveRequest, wish: Mapping[str, Any], run: Run, head: bytes = b""
) -> "ForeignResult":
    given = "format" in wish
    head = await run.ask(functools.partial(beginning, _STDIN, head, given=given))
    if is_ours(head, wish):
        _refuse_wishes(wish)
        raise InterruptedTransferError("the stream was cut before it said what it is")
    from blockstream.jobs.foreign.receive import (  # numpy, and rarely used
        ForeignWish,
        receive_foreign,
    )

    return await receive_foreign(request, ForeignWish(**wish), _STDIN, head, run)


def _refuse_wishes(wish: Mapping[str, Any]) -> None:
    """An option without effect is an error."""
    for name in wish:
        raise UsageError(
            f"--{name.replace('_', '-')} has no effect: this is a stream of ours, which says that "
            "itself; nothing was written"
        )


def _write_receipt(path: str, result: ReceiveResult) -> None:
    """Write the receipt; the target is committed whether that works or not.

    Raises:
        StaleViewError: If it cannot be written.
    """
    if result.committed is None:
        return
    from blockstream.transfers.sender_journal import receipt_line

    line = receipt_line(result.committed) + "\n"
    try:
        if path == "-":
            sys.stdout.write(line)
            sys.stdout.flush()
        else:
            write_durably(Path(path), line.encode())
    except OSError as error:
        if path == "-":
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        raise StaleViewError(
            f"the target is committed, but the receipt cannot be written to {path}: "
            f"{error.strerror}; the sender does not know; the same stream again says so once more"
        ) from error
