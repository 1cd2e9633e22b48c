"""`blockstream send`."""

import contextlib
import functools
import platform
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from blockstream.captures.interface import Capture
from blockstream.captures.options import CaptureOptions, StateOptions
from blockstream.captures.registry import capture_of
from blockstream.captures.together import Together
from blockstream.cli.base_check import refuse_check_base, with_check_base
from blockstream.cli.bwlimit import limiter_for
from blockstream.cli.join_options import meeting_of, with_meeting
from blockstream.cli.lvm_options import (
    lvm_options,
    vmdk_options,
    with_snapshot_options,
    with_vmdk_options,
)
from blockstream.cli.nbd_options import with_export_options
from blockstream.cli.options import (
    ProgressWish,
    cleared,
    refuse_empty,
    refuse_terminal,
    reporters,
    with_progress,
    with_state_dir,
)
from blockstream.cli.other_tool import OtherTool, other_tool, with_other_tool
from blockstream.cli.received_output import show_received
from blockstream.cli.remote_options import peer_options, with_peer_options
from blockstream.cli.send_arguments import SendArguments, check_arguments
from blockstream.cli.send_output import SendOutput, Voice, show_rehearsal
from blockstream.cli.store_access import with_store_access
from blockstream.cli.target_options import TARGET_FLAGS, with_target_options
from blockstream.cli.vsphere_options import machine_capture, with_machine_options
from blockstream.destinations.interface import Destination
from blockstream.errors import UsageError
from blockstream.jobs.transfer import ChangeOptions, rehearse, transfer
from blockstream.locations.local import LocalDisk
from blockstream.locations.ssh import Remote
from blockstream.pipeline.compression import CompressionChoice
from blockstream.pipeline.token import ResumeToken
from blockstream.transfers.receive_options import ApplyMode, ReceiveRequest
from blockstream.transfers.send import TransferOptions

if TYPE_CHECKING:
    from blockstream.captures.vsphere.capture import MachineCapture  # pyVmomi: 0.2 s

_STDIN = 0
_STDOUT = 1
_RECEIPT_SECONDS = 60.0
_NO_EFFECT = "have no effect here: a session with another host confirms and continues by itself"


@click.command("send", short_help="Send a disk, or what changed in it.")
@click.argument("places", nargs=-1, required=True, metavar="SOURCE... [TARGET]")
@click.option(
    "--base",
    default="",
    callback=refuse_empty,
    help="State that the target holds; `last` is what was last confirmed to be on this TARGET.",
)
@click.option(
    "--goal",
    default="",
    callback=refuse_empty,
    help="Name of the state that is sent. [default: its moment and six letters]",
)
@click.option(
    "--extents",
    default="",
    callback=refuse_empty,
    metavar="FILE",
    help="What changed since the base: a list by blockstream, rbd diff, thin_delta or nbdinfo. "
    "Without --base, an allocation map.",
)
@click.option(
    "--resume",
    default="",
    callback=refuse_empty,
    metavar="TOKEN",
    help="Continue an unfinished transfer.",
)
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
    "-n",
    "--dry-run",
    is_flag=True,
    help="Say what would be sent, and ask the TARGET whether it would take it; write nothing.",
)
@click.option(
    "--apply",
    type=click.Choice([mode.value for mode in ApplyMode]),
    default=ApplyMode.DIRECT.value,
    help="How it comes onto TARGET; see `blockstream recv --help`.",
)
@click.option(
    "--compare",
    is_flag=True,
    help="Where nobody tracked: both sides are read whole, and only what differs is sent.",
)
@click.option(
    "--session",
    is_flag=True,
    help="Hear answers on standard input: what a fetching `send` starts on the other host.",
)
@click.option(
    "--on-behalf-of",
    default="",
    hidden=True,
    help="With --session: what the TARGET of the fetching `send` is known as here.",
)
@click.option(
    "--audit",
    type=click.IntRange(min=0),
    default=0,
    metavar="CYCLE",
    help="Into a store: compare what is said not to have changed with the point before, all of it "
    "once in CYCLE increments.",
)
@with_check_base
@with_other_tool
@with_machine_options
@with_store_access
@with_meeting
@with_peer_options
@with_target_options
@with_snapshot_options
@with_export_options
@with_vmdk_options
@with_progress
@with_state_dir
def command(  # one an option
    places: tuple[str, ...],
    base: str,
    goal: str,
    extents: str,
    resume: str,
    compress: str,
    bwlimit: str | None,
    require_receipt: bool,
    receipt_wait: float | None,
    dry_run: bool,
    compare: bool,
    session: bool,
    on_behalf_of: str,
    meeting: int,
    state_dir: Path,
    as_json: bool,
    quiet: bool,
    progress: ProgressWish,
    **options: Any,
) -> None:
    """Send SOURCE, a file, block device or NBD export, to TARGET, or as a stream to stdout.

    TARGET is a disk of this host, or of another one: [USER@]HOST:/PATH or
    ssh://[USER@]HOST[:PORT]/PATH; or STORE/DISK, a disk in a store. SOURCE may be one of another
    host, too, and is fetched then; or STORE/DISK[@POINT], a restore point. Several SOURCEs go to
    HOST:, HOST:/FOLDER/ or STORE as one set: none is committed before all are durable there.

    SOURCE may be a virtual machine of VMware, vsphere://USER@VCENTER/DATACENTER/vm/NAME, and
    TARGET then a folder, HOST:/FOLDER/ or STORE/NAME for all of its disks; only what changed since
    the TARGET's state is sent.

    An export of an NBD server is nbd://HOST[:PORT]/EXPORT, or nbd+unix:///EXPORT?socket=PATH; with
    TLS, which is then required, nbds://... and nbds+unix://...

    SOURCE may be vmdk:FILE, the descriptor of a VMware disk or a sparse file with one in it: the
    whole chain is read. With --delta only FILE itself is, also a -delta.vmdk without descriptor,
    and goes onto a copy of its parent. States are called vmdk:CID by the ids in the descriptors,
    unless --base and --goal name them; `blockstream adopt` names that of a copy made by others.

    \b
    Examples:
      blockstream send /dev/vg/vm root@HOST:/dev/vg/vm
      blockstream send root@HOST:/dev/vg/vm copy.img --create
      blockstream send /dev/vg/vm-root /dev/vg/vm-data root@HOST:
      blockstream send /dev/vg/vm | ssh HOST blockstream recv /dev/vg/vm
      blockstream send disk.img > disk.bsx
      blockstream send --base monday --goal tuesday --extents changed.json disk.img | ...
      blockstream send disk.img copy.img --create
      blockstream send /dev/vg/vm dir:/var/backups/blockstream/vm
      blockstream send /dev/vg/root /dev/vg/data dir:/var/backups/blockstream
      blockstream send dir:/var/backups/blockstream/vm@last s3://bucket/backups/vm
      blockstream send nbd://HOST/vm copy.img --base monday --goal tuesday --bitmap monday
      blockstream send vmdk:vm-000002.vmdk /dev/vg/vm
      blockstream send --delta vmdk:vm-000003.vmdk /dev/vg/vm
      blockstream send --since vm-snap /dev/vg/vm --format thin-send | ssh OLD thin_recv vg/vm
    """  # noqa: D301
    receipt_seconds = _receipt_seconds(receipt_wait, wanted=require_receipt)
    given = SendArguments.of(places, options["tls_certificates"])
    check_arguments(given, options)
    pipe = {
        "--compress": compress != "auto",
        "--bwlimit": bwlimit,
        "--resume": resume,
        "-n": dry_run,
        "--compare": compare,
        "--session": session,
        "--require-receipt": require_receipt,
        "--rotate": options["rotate"],
    }
    other = other_tool(options, given.target, [name for name, is_set in pipe.items() if is_set])
    shown = reporters("send", as_json=as_json, quiet=quiet or session, progress=progress)
    voice = Voice(shown, as_json=as_json, quiet=quiet or session)
    where = ReceiveRequest(
        target=given.target.path if isinstance(given.target, LocalDisk) else "",
        state_dir=state_dir,
        apply=ApplyMode(options["apply"]),
        **{name: options[name] for name in TARGET_FLAGS},
    )
    if given.from_host is not None:
        if receipt_seconds or resume or dry_run or compare:
            raise UsageError(f"--require-receipt, --resume, --compare and -n {_NO_EFFECT}")
        words = _words(base=base, goal=goal, extents=extents, compress=compress, bwlimit=bwlimit)
        words += _words(
            **{name: options[name] for name in ("since", "snapshot_size", "on_lost_base")}
        )
        words += [f"--{name}" for name in ("quiesced", "rotate") if options[name]]
        words += _words(on_behalf_of=f"{platform.node()}:{given.keys[0]}")
        voice.done(_fetch(given.from_host, words, where, options, voice))
        return
    limiter, followers = limiter_for(bwlimit, as_json=as_json)
    voice.shown += followers
    token = ResumeToken.parse(resume) if resume else None
    states = StateOptions(base, goal, extents, token)
    how = TransferOptions(
        state_dir=state_dir,
        compression=CompressionChoice.parse(compress),
        limiter=limiter,
        resume=token,
        receipt_seconds=receipt_seconds,
        target=on_behalf_of,
    )
    _refuse(given, states, where, how, options, compare=compare, dry_run=dry_run, session=session)
    if not dry_run:
        _refuse_pipe_options(given, pipe)
    sending = _Sending(given, states, where, how, other, options, voice, compares=compare)
    if dry_run:
        voice.done(sending.rehearsed())
        return
    if given.target is None:
        refuse_terminal(_STDOUT, "standard output")
        if session:
            refuse_terminal(_STDIN, "standard input")
    output = SendOutput(voice, sending.machine)
    changes = ChangeOptions(compare=compare, recheck=options["verify_cbt"])
    output.done(sending.done(output, changes, session=session, meeting=meeting))


def _receipt_seconds(wait: float | None, *, wanted: bool) -> float:
    """Return how long to wait for a receipt; 0 for not at all."""
    if wait is not None and not wanted:
        raise UsageError("--receipt-wait has no effect without --require-receipt")
    return (wait or _RECEIPT_SECONDS) if wanted else 0.0


def _refuse(
    given: SendArguments,
    states: StateOptions,
    where: ReceiveRequest,
    how: TransferOptions,
    options: Mapping[str, Any],
    *,
    compare: bool,
    dry_run: bool,
    session: bool,
) -> None:
    """An option without effect is an error.

    Raises:
        UsageError: If one has none.
    """
    _refuse_compare(given, states, where, options, compare=compare, dry_run=dry_run)
    refuse_check_base(given, where, options, compare=compare, dry_run=dry_run)
    if options["check_base"] and not states.base:
        raise UsageError("--check-base is for an increment: a full copy needs no base")
    if given.machine is not None and (dry_run or compare or session):
        raise UsageError(
            "-n, --compare and --session are not for a machine of VMware: only a snapshot tells "
            "what would be sent; `blockstream vsphere ls` changes nothing"
        )
    if given.point is not None and (states.base or states.goal or states.extents):
        raise UsageError(
            "a restore point says itself what it is, and what changed: leave --base, "
            "--goal and --extents out"
        )
    if given.machine is not None and how.receipt_seconds:
        raise UsageError("--require-receipt is not for a machine: its target says what it holds")
    if given.to_host and (how.receipt_seconds or how.resume):
        raise UsageError(f"--require-receipt and --resume {_NO_EFFECT}")
    if given.is_in_store and (how.receipt_seconds or how.resume):
        raise UsageError("--require-receipt and --resume have no effect on a store")
    if len(given.sources) > 1 and (states.extents or states.base):
        raise UsageError("--base and --extents are for one disk at a time")
    if given.target is None and options["rotate"] and not (session or how.receipt_seconds):
        raise UsageError(
            "--rotate turns over when the target is committed, which nobody tells over a plain "
            "pipe: give a TARGET, or --require-receipt"
        )


def _refuse_compare(
    given: SendArguments,
    states: StateOptions,
    where: ReceiveRequest,
    options: Mapping[str, Any],
    *,
    compare: bool,
    dry_run: bool,
) -> None:
    """Nothing but a comparison says what to send."""
    if options["delta"] and (compare or options["audit"]):
        raise UsageError("--delta reads no parent: leave out --compare and --audit")
    told = states.base or states.extents or options["since"] or options["bitmap"] or where.create
    if compare and (given.target is None or len(given.sources) > 1 or dry_run or told):
        raise UsageError(
            "--compare finds out what changed since TARGET was written: leave out --base, "
            "--extents, --since, --bitmap, --create and -n, and send one disk at a time"
        )


def _refuse_pipe_options(given: SendArguments, pipe: Mapping[str, Any]) -> None:
    """An option without effect is an error."""
    if not given.within_one_host:
        return
    for name in ("--compress", "--bwlimit", "--resume", "--require-receipt"):
        if pipe[name]:
            raise UsageError(
                f"{name} has no effect on a copy within one host; an interrupted copy continues "
                "by itself when the same command is run again"
            )


@dataclass(slots=True)
class _Sending:
    """Disks of this host on their way, as the command line says."""

    given: SendArguments
    states: StateOptions
    where: ReceiveRequest
    how: TransferOptions
    other: OtherTool | None
    options: Mapping[str, Any]
    voice: Voice
    machine: "MachineCapture | None" = None
    compares: bool = False
    doubts: str = ""

    def __post_init__(self) -> None:
        if self.given.machine is not None:
            # A terminal is asked for the password here, where nothing else runs.
            way = peer_options(self.options, as_json=self.voice.as_json).way
            self.machine = machine_capture(
                self.given.machine,
                str(self.given.target),
                self.states,
                self.where.state_dir,
                way,
                self.options,
            )

    async def done(
        self, output: SendOutput, changes: ChangeOptions, *, session: bool, meeting: int
    ) -> None:
        """Send them."""
        run = self.voice.run
        if changes.compare:
            run.tell("comparing first: both sides are read whole, only what differs travels")
        async with (
            self._destination(session=session, meeting=meeting) as destination,
            self._capture(destination) as capture,
        ):
            await transfer(capture, destination, run, output, changes)
        output.doubt(self.doubts)

    async def rehearsed(self) -> None:
        """Say what would be sent, and what the target says of it. Nothing is made."""
        async with (
            self._destination(session=False, meeting=0) as destination,
            self._capture(destination, rehearsal=True) as capture,
        ):
            shown = functools.partial(show_rehearsal, voice=self.voice)
            output = SendOutput(self.voice)
            await rehearse(capture, destination, self.voice.run, shown, output)

    @contextlib.asynccontextmanager
    async def _destination(self, *, session: bool, meeting: int) -> AsyncIterator[Destination]:
        given, run = self.given, self.voice.run
        if self.other is not None:
            from blockstream.destinations.other_tool import OtherToolDestination
            from blockstream.formats.foreign.table import by_name

            how = by_name(self.other.format)
            yield OtherToolDestination(self.how, how, _STDOUT, self.other.pool_chunk)
        elif given.target is None:
            from blockstream.destinations.stdout import StreamDestination

            async with run.within(meeting_of(meeting), harmless=True) as guests:
                lanes = [_STDOUT, *(writing for _, writing in guests)]
                yield StreamDestination(self.how, lanes, _STDIN if session else None)
        else:
            from blockstream.cli.stores import open_store
            from blockstream.destinations.registry import DestinationOptions, opened_destination

            access = self.options["access"]
            options = DestinationOptions(
                where=self.where,
                how=self.how,
                peer=peer_options(self.options, as_json=self.voice.as_json),
                open_store=functools.partial(open_store, access),
                audit_cycle=self.options["audit"],
                check_base=self.options["check_base"],
            )
            opening = opened_destination(given.target, given.naming, options, run)
            async with opening as destination:
                yield destination

    @contextlib.asynccontextmanager
    async def _capture(
        self, destination: Destination, *, rehearsal: bool = False
    ) -> AsyncIterator[Capture]:
        given, run, options = self.given, self.voice.run, self.options
        if self.machine is not None:
            yield self.machine
            return
        if given.point is not None:
            from blockstream.cli.stores import captured_point, doubts_text

            # Where two stores may be damaged, it has to say itself which one is.
            target = "" if given.is_in_store else str(given.target or "the stream")
            opening = captured_point(
                given.point,
                target,
                options["access"],
                run,
                increments=given.is_in_store and not self.compares,
            )
            async with opening as (capture, doubts):
                yield capture
                self.doubts = doubts_text(doubts)
            return
        captures = []
        for source, name, key in zip(given.disks, given.names, given.keys, strict=True):
            states = self.states
            if states.base == "last":
                last = await destination.last(source.key, run)
                states = replace(states, base=last)
            asked = CaptureOptions(
                state_dir=self.how.state_dir,
                states=states,
                lvm=lvm_options(options),
                vmdk=vmdk_options(options),
                bitmap=options["bitmap"],
                target=self.how.target or key,
                name=name if len(given.disks) > 1 else "",
            )
            captures.append(await capture_of(source, asked, run, rehearsal=rehearsal))
        yield captures[0] if len(captures) == 1 else Together(captures)


async def _fetch(
    host: Remote, words: list[str], where: ReceiveRequest, options: Mapping[str, Any], voice: Voice
) -> None:
    from blockstream.transfers.pull import pull

    peer = peer_options(options, as_json=voice.as_json)
    try:
        result = await pull(host, words, where, peer, voice.run)
    finally:
        cleared(voice.shown)
    show_received(result, where.target, as_json=voice.as_json, quiet=voice.quiet)
    result.check()


def _words(**given: str | None) -> list[str]:
    """Return options for the other host's command line."""
    pairs = [(f"--{name.replace('_', '-')}", value) for name, value in given.items() if value]
    return [word for pair in pairs for word in pair]
