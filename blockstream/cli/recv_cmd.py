"""`blockstream recv`."""

import functools
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from blockstream.cli.foreground import done
from blockstream.cli.foreign import show_foreign
from blockstream.cli.grouped_help import GroupedCommand
from blockstream.cli.joined import meeting_of
from blockstream.cli.location_types import DISK_HERE
from blockstream.cli.option_groups import with_groups
from blockstream.cli.options import (
    ProgressWish,
    refuse_terminal,
    reporters,
    warn,
    with_progress,
    with_state_dir,
)
from blockstream.cli.received_output import sampled_text, show_received
from blockstream.cli.recv_options import RecvGroups
from blockstream.errors import (
    ForeignStreamError,
    InterruptedTransferError,
    StaleViewError,
    UsageError,
)
from blockstream.formats.foreign.wrappings import wrapping
from blockstream.jobs.foreign.detect import beginning, is_ours
from blockstream.jobs.foreign.options import ForeignOptions
from blockstream.linux.files import write_durably
from blockstream.run import Run
from blockstream.transfers.receive import ReceiveResult, receive, receive_sessions
from blockstream.transfers.receive_options import ReceiveRequest

if TYPE_CHECKING:
    from blockstream.jobs.foreign.receive import ForeignResult

_STDIN = 0
_STDOUT = 1


@click.command("recv", cls=GroupedCommand, short_help="Take a stream onto a disk.")
@click.argument("target", type=DISK_HERE)
@with_groups(RecvGroups)
@with_progress
@with_state_dir
def command(
    target: str,
    options: RecvGroups,
    state_dir: Path,
    as_json: bool,
    quiet: bool,
    progress: ProgressWish,
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
    _check(options)
    is_session, receipt = options.session.session, options.take.receipt
    if receipt == "-" or is_session:
        refuse_terminal(_STDOUT, "standard output")
    quiet = quiet or is_session
    shown = [] if is_session else reporters("recv", as_json=as_json, quiet=quiet, progress=progress)
    request = replace(
        options.write.onto(target, state_dir),
        dry_run=options.take.dry_run,
        lock_wait=options.take.lock_wait,
    )
    run = Run()
    if options.session.standing:
        done(receive_sessions(request, _STDIN, _STDOUT, run), run, shown)
        return
    result, found = done(_taken(request, options, run), run, shown)
    if is_session:
        _tell_starter(result, target, as_json=as_json)
    else:
        show_received(result, target, as_json=as_json, quiet=quiet)
    if receipt and result.committed is not None:
        _write_receipt(receipt, result)
    if found is not None:
        show_foreign(found, as_json=as_json, quiet=quiet)
    result.check()


def _check(options: RecvGroups) -> None:
    """An option without effect is an error.

    Raises:
        UsageError: If one has none.
    """
    session = options.session
    if session.session and options.take.receipt:
        raise UsageError("--receipt has no effect in a session: its sender is told")
    if session.standing and (not session.session or session.meeting or options.take.dry_run):
        raise UsageError("--standing needs --session, over one connection, and no -n")
    said = _said(options)
    if said and session.session:
        raise UsageError(f"{said} is for streams of other tools")


def _said(options: RecvGroups) -> str:
    """Return the first option that was given of a stream of another tool; empty for none."""
    return options.given_of(ForeignOptions)


async def _taken(
    request: ReceiveRequest, options: RecvGroups, run: Run
) -> "tuple[ReceiveResult, ForeignResult | None]":
    """Take a stream of anybody's, or a session's."""
    session = options.session
    async with run.within(meeting_of(session.meeting), harmless=True) as guests:
        lanes = [reading for reading, _ in guests]
        if _said(options):
            found = await _foreign(request, options, run)
            return found.received, found
        if session.session or lanes:
            answers = _STDOUT if session.session else None
            return await receive(request, _STDIN, run, answers, lanes), None
        return await _anybodys(request, options, run)


def _tell_starter(result: ReceiveResult, target: str, *, as_json: bool) -> None:
    """Say what whoever started us must hear of, although all went well."""
    if result.sampled:
        warn(sampled_text(target, result.sampled), as_json=as_json)


async def _anybodys(
    request: ReceiveRequest, options: RecvGroups, run: Run
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
        found = await _foreign(request, options, run, head)
        return found.received, found


async def _foreign(
    request: ReceiveRequest, options: RecvGroups, run: Run, head: bytes = b""
) -> "ForeignResult":
    said = options.foreign
    head = await run.ask(functools.partial(beginning, _STDIN, head, given=bool(said.format)))
    if is_ours(head, said.format):
        flag = _said(options)
        if flag:
            raise UsageError(
                f"{flag} has no effect: this is a stream of ours, which says that itself; nothing "
                "was written"
            )
        raise InterruptedTransferError("the stream was cut before it said what it is")
    from blockstream.jobs.foreign.receive import receive_foreign  # numpy, and rarely used

    return await receive_foreign(request, said, _STDIN, head, run)


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
