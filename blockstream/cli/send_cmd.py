"""`blockstream send`."""

import os
from dataclasses import asdict
from pathlib import Path

import click

from blockstream.cli.console import duration_text, event, saving_text, say, size_text
from blockstream.cli.options import (
    cleared,
    refuse_terminal,
    reporters,
    warn,
    with_progress,
    with_state_dir,
)
from blockstream.cli.rates import limiter_for
from blockstream.cli.recv_cmd import show_received, with_target_options
from blockstream.errors import UsageError
from blockstream.jobs.copy import copy
from blockstream.jobs.receive import ApplyMode, ReceiveRequest
from blockstream.jobs.send import SendRequest, SendResult, planned, send
from blockstream.locations import open_source
from blockstream.pipeline.compression import CompressionChoice
from blockstream.pipeline.progress import Progress
from blockstream.pipeline.token import ResumeToken

_STDOUT = 1
_RECEIPT_SECONDS = 60.0


@click.command("send", short_help="Send a disk, or what changed in it.")
@click.argument("source")
@click.argument("target", required=False)
@click.option(
    "--base", default="", help="State that the target holds; `last` is the newest confirmed."
)
@click.option("--goal", default="", help="Name of the state that is sent. [default: a random one]")
@click.option(
    "--extents",
    default="",
    metavar="FILE",
    help="What changed since the base: a list by blockstream, rbd diff, thin_delta or nbdinfo. "
    "Without --base, an allocation map.",
)
@click.option("--resume", default="", metavar="TOKEN", help="Continue an unfinished transfer.")
@click.option(
    "--compress", default="auto", show_default=True, help="auto, none, zstd or zstd:LEVEL."
)
@click.option(
    "--bwlimit",
    metavar="RATE",
    help="Most bytes a second on the wire: 10M; or @FILE, which may change meanwhile.",
)
@click.option(
    "--require-receipt",
    is_flag=True,
    help="Wait for `blockstream confirm`; exit 15 if nothing comes.",
)
@click.option(
    "--receipt-wait",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help=f"How long --require-receipt waits. [default: {_RECEIPT_SECONDS:.0f}]",
)
@click.option(
    "-n", "--dry-run", is_flag=True, help="Say what would be sent; read and send nothing."
)
@with_target_options
@with_progress
@with_state_dir
def command(  # one an option
    source: str,
    target: str | None,
    base: str,
    goal: str,
    extents: str,
    resume: str,
    compress: str,
    bwlimit: str | None,
    require_receipt: bool,
    receipt_wait: float | None,
    dry_run: bool,
    state_dir: Path,
    as_json: bool,
    quiet: bool,
    progress_fd: int | None,
    **target_options: bool | str,
) -> None:
    """Send SOURCE, a file or block device, as a stream to standard output.

    With TARGET, another disk of this host, it is copied there instead, in one process.

    \b
    Examples:
      blockstream send /dev/vg/vm | ssh HOST blockstream recv /dev/vg/vm
      blockstream send disk.img > disk.bsx
      blockstream send --base monday --goal tuesday --extents changed.json disk.img | ...
      blockstream send disk.img copy.img --create
    """  # noqa: D301
    if receipt_wait is not None and not require_receipt:
        raise UsageError("--receipt-wait has no effect without --require-receipt")
    receipt_seconds = (receipt_wait or _RECEIPT_SECONDS) if require_receipt else 0.0
    limiter, followers = limiter_for(bwlimit, as_json=as_json)
    request = SendRequest(
        source=source,
        state_dir=state_dir,
        base=base,
        goal=goal,
        extents=extents,
        resume=ResumeToken.parse(resume) if resume else None,
        compression=CompressionChoice.parse(compress),
        limiter=limiter,
        receipt_seconds=receipt_seconds,
    )
    shown = reporters("send", as_json=as_json, quiet=quiet, progress_fd=progress_fd)
    if target is None and any(value and value != "direct" for value in target_options.values()):
        raise UsageError("options of the target need a TARGET; over a pipe, give them to `recv`")
    if dry_run:
        _show_plan(request, as_json=as_json)
    elif target is not None:
        _refuse_pipe_options(compress, bwlimit, resume, receipt_seconds)
        where = ReceiveRequest(
            target=target,
            state_dir=state_dir,
            create=bool(target_options["create"]),
            apply=ApplyMode.DIRECT,
            verify=bool(target_options["verify"]),
            force_in_use=bool(target_options["force_in_use"]),
            force_larger=bool(target_options["force_larger"]),
            force_base=bool(target_options["force_base"]),
        )
        result = copy(request, where, Progress(), shown)
        cleared(shown)
        show_received(result, target, as_json=as_json, quiet=quiet)
    else:
        refuse_terminal(_STDOUT, "standard output")
        sent = send(request, _STDOUT, Progress(), [*shown, *followers])
        cleared(shown)
        _show_sent(sent, as_json=as_json, quiet=quiet, full=not request.base)


def _refuse_pipe_options(
    compress: str, bwlimit: str | None, resume: str, receipt_seconds: float
) -> None:
    """An option without effect is an error."""
    for name, given in (
        ("--compress", compress != "auto"),
        ("--bwlimit", bwlimit is not None),
        ("--resume", bool(resume)),
        ("--require-receipt", bool(receipt_seconds)),
    ):
        if given:
            raise UsageError(
                f"{name} has no effect on a copy within one host; an interrupted copy continues "
                "by itself when the same command is run again"
            )


def _show_plan(request: SendRequest, *, as_json: bool) -> None:
    source = open_source(request.source)
    try:
        plan = planned(request, source)
    finally:
        source.close()
    for text in plan.warnings:
        warn(text, as_json=as_json)
    if as_json:
        event(
            "plan",
            **asdict(plan.opening),
            extents=len(plan.extents),
            data=plan.data_bytes,
            zeros=plan.zero_bytes,
        )
        return
    opening = plan.opening
    kind = "a full copy" if opening.full else f"the changes from {opening.base} to {opening.goal}"
    say(f"would send {kind} of {request.source} ({size_text(opening.size)}):")
    say(f"  {size_text(plan.data_bytes)} to read, in {len(plan.extents)} extents")
    say(f"  {size_text(plan.zero_bytes)} known to be zeros")
    say(f"  {size_text(opening.size - opening.total)} not touched")


def _show_sent(result: SendResult, *, as_json: bool, quiet: bool, full: bool) -> None:
    if as_json:
        event(
            "sent",
            **asdict(result.expected),
            confirmed=result.confirmed,
            seconds=round(result.seconds, 3),
            counts=asdict(result.counts),
        )
    elif not quiet:
        say(
            f"sent: {saving_text(result.counts, full=full)}, in {duration_text(result.seconds)}, "
            f"as {result.expected.goal}"
        )
        if result.confirmed:
            say("confirmed: the receiver committed it")
        elif not os.isatty(_STDOUT):
            say("sent, not confirmed: the receiver's exit status decides")
