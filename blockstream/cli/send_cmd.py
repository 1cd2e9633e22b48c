"""`blockstream send`."""

import contextlib
import functools
import platform
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click

from blockstream.cli.base_check import (
    check_here,
    checked_there,
    refuse_check_base,
    with_check_base,
)
from blockstream.cli.bwlimit import limiter_for
from blockstream.cli.console import event, say
from blockstream.cli.join_options import meeting_of, with_meeting
from blockstream.cli.lvm_options import wish_of, with_snapshot_options, with_vmdk_options
from blockstream.cli.nbd_options import with_certificates, with_export_options
from blockstream.cli.options import (
    ProgressWish,
    cleared,
    refuse_empty,
    refuse_terminal,
    reporters,
    with_progress,
    with_state_dir,
)
from blockstream.cli.other_tool import (
    other_tool,
    send_to_other_tool,
    with_other_tool,
)
from blockstream.cli.recv_cmd import TARGET_FLAGS, show_received, with_target_options
from blockstream.cli.remote_options import peer_options, with_peer_options
from blockstream.cli.send_arguments import Places, check_places
from blockstream.cli.send_output import Voice, show_plan, show_sent
from blockstream.cli.stores import StoreAccess, opened_store, show_saved, with_store_access
from blockstream.cli.vsphere_options import send_machine, with_machine_options
from blockstream.errors import UsageError
from blockstream.jobs.snapshots import SnapshotWish, opened_in
from blockstream.locations import Remote, StorePlace
from blockstream.pipeline.compression import CompressionChoice
from blockstream.pipeline.token import ResumeToken
from blockstream.repository.memory import Memory
from blockstream.transfers.apply_modes import ApplyMode
from blockstream.transfers.copy import copy
from blockstream.transfers.disk_set import push_set
from blockstream.transfers.dry_run import rehearsed_here, rehearsed_there
from blockstream.transfers.pull import pull
from blockstream.transfers.push import push, push_differing
from blockstream.transfers.receive import ReceiveRequest
from blockstream.transfers.save import SaveEstimate, estimated, from_last, save
from blockstream.transfers.send import SendPlan, SendRequest, planned, send
from blockstream.transfers.session import send_session
from blockstream.words import size_text

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
    help="Where nobody tracked: both hosts read and digest all, only what differs travels.",
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
    host, too, and is fetched then. Several SOURCEs go to HOST: or HOST:/FOLDER/ as one set: none
    is committed before all are durable there. SOURCE may be a virtual machine of VMware,
    vsphere://USER@VCENTER/DATACENTER/vm/NAME, and TARGET then a folder, HOST:/FOLDER/ or
    STORE/NAME for all of its disks; only what changed since the TARGET's state is sent.

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
      blockstream send nbd://HOST/vm copy.img --base monday --goal tuesday --bitmap monday
      blockstream send vmdk:vm-000002.vmdk /dev/vg/vm
      blockstream send --delta vmdk:vm-000003.vmdk /dev/vg/vm
      blockstream send --since vm-snap /dev/vg/vm --format thin-send | ssh OLD thin_recv vg/vm
    """  # noqa: D301
    receipt_seconds = _receipt_seconds(receipt_wait, wanted=require_receipt)
    where_to = Places.of(with_certificates(places, options["tls_certificates"]))
    check_places(where_to, options)
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
    other = other_tool(options, where_to.target, [name for name, given in pipe.items() if given])
    source, target, from_host = where_to.source, where_to.target, where_to.from_host
    shown = reporters("send", as_json=as_json, quiet=quiet or session, progress=progress)
    voice = Voice(shown, as_json=as_json, quiet=quiet or session)
    where = ReceiveRequest(
        target=target or "",
        state_dir=state_dir,
        apply=ApplyMode(options["apply"]),
        **{name: options[name] for name in TARGET_FLAGS},
    )
    if from_host is not None:
        if receipt_seconds or resume or dry_run or compare:
            raise UsageError(f"--require-receipt, --resume, --compare and -n {_NO_EFFECT}")
        words = _words(base=base, goal=goal, extents=extents, compress=compress, bwlimit=bwlimit)
        words += _words(
            **{name: options[name] for name in ("since", "snapshot_size", "on_lost_base")}
        )
        words += [f"--{name}" for name in ("quiesced", "rotate") if options[name]]
        words += _words(on_behalf_of=f"{platform.node()}:{where_to.key}")
        voice.done(_fetch(from_host, words, where, options, voice))
        return
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
        bitmap=options["bitmap"],
        target=on_behalf_of or where_to.key,
    )
    voice.shown += followers
    _refuse_compare(where_to, request, where, options, compare=compare, dry_run=dry_run)
    refuse_check_base(where_to, where, options, compare=compare, dry_run=dry_run)
    if where_to.machine:
        _refuse_for_machine(dry_run=dry_run, compare=compare, session=session)
        _refuse_pipe_options(where_to, compress, bwlimit, resume, receipt_seconds)
        send_machine(places, request, where, options, voice)
        return
    wish = wish_of(options, request.target)
    if dry_run:
        voice.done(_rehearse(request, wish, where_to, where, options, voice))
    elif where_to.hosts:
        voice.done(_push(request, wish, where_to, where, options, voice, compare=compare))
    elif where_to.store is not None:
        voice.done(_save(request, wish, where_to.store, options, voice))
    elif target is not None:
        _refuse_pipe_options(where_to, compress, bwlimit, resume, receipt_seconds)
        voice.done(_copy(request, wish, where, voice, check_base=options["check_base"]))
    elif other is not None:
        voice.done(send_to_other_tool(request, wish, other, voice))
    else:
        voice.done(_to_stdout(request, wish, voice, session=session, meeting=meeting))


def _receipt_seconds(wait: float | None, *, wanted: bool) -> float:
    """Return how long to wait for a receipt; 0 for not at all."""
    if wait is not None and not wanted:
        raise UsageError("--receipt-wait has no effect without --require-receipt")
    return (wait or _RECEIPT_SECONDS) if wanted else 0.0


def _refuse_for_machine(*, dry_run: bool, compare: bool, session: bool) -> None:
    """An option without effect is an error."""
    if dry_run or compare or session:
        raise UsageError(
            "-n, --compare and --session are not for a machine of VMware: only a snapshot tells "
            "what would be sent; `blockstream vsphere ls` changes nothing"
        )


def _refuse_compare(
    places: Places,
    request: SendRequest,
    where: ReceiveRequest,
    options: Mapping[str, Any],
    *,
    compare: bool,
    dry_run: bool,
) -> None:
    """Only a TARGET of another host is compared, and nothing but a comparison says what to send."""
    if options["delta"] and (compare or options["audit"]):
        raise UsageError("--delta reads no parent: leave out --compare and --audit")
    told = request.base or request.extents or where.create
    if compare and (len(places.hosts) != 1 or dry_run or told):
        raise UsageError(
            "--compare finds out what changed on a TARGET of another host: leave out --base, "
            "--extents, --create and -n"
        )


async def _copy(
    request: SendRequest,
    wish: SnapshotWish,
    where: ReceiveRequest,
    voice: Voice,
    *,
    check_base: bool,
) -> None:
    async with opened_in(voice.run, request, wish) as (disk, asked):
        voice.warn_of(disk)
        check = check_here(asked, disk, voice) if check_base else None
        result = await copy(asked, disk, where, voice.run, check)
    cleared(voice.shown)
    show_received(result, where.target, as_json=voice.as_json, quiet=voice.quiet)


async def _to_stdout(
    request: SendRequest, wish: SnapshotWish, voice: Voice, *, session: bool, meeting: int
) -> None:
    if wish.rotate and not (session or request.receipt_seconds):
        raise UsageError(
            "--rotate turns over when the target is committed, which nobody tells over a plain "
            "pipe: give a TARGET, or --require-receipt"
        )
    refuse_terminal(_STDOUT, "standard output")
    if session:
        refuse_terminal(_STDIN, "standard input")
    run = voice.run
    async with opened_in(run, request, wish) as (source, asked):
        if session:
            async with run.within(meeting_of(meeting), harmless=True) as guests:
                lanes = [_STDOUT, *(writing for _, writing in guests)]
                await send_session(asked, source, _STDIN, lanes, run)
            return
        voice.warn_of(source)
        sent = await send(asked, source, _STDOUT, run)
    cleared(voice.shown)
    show_sent(sent, voice, full=not asked.base)


async def _push(
    request: SendRequest,
    wish: SnapshotWish,
    places: Places,
    where: ReceiveRequest,
    options: Mapping[str, Any],
    voice: Voice,
    *,
    compare: bool,
) -> None:
    if request.receipt_seconds or request.resume:
        raise UsageError(f"--require-receipt and --resume {_NO_EFFECT}")
    peer = peer_options(options, as_json=voice.as_json)
    if compare:
        peer.tell("comparing first: both hosts read all of their disk, only what differs travels")
    single = places.hosts[0]
    if len(places.hosts) > 1 and (request.extents or request.base):
        raise UsageError("--base and --extents are for one disk at a time")
    run = voice.run
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(cleared, voice.shown)
        requests, disks = [], []
        for each, host in zip(places.sources, places.hosts, strict=True):
            asked = replace(request, source=each, target=host.key)
            opening = opened_in(run, asked, replace(wish, target=host.key))
            disk, asked = await stack.enter_async_context(opening)
            requests.append(asked)
            disks.append(disk)
        if options["check_base"]:
            for number, (asked, disk, host) in enumerate(
                zip(requests, disks, places.hosts, strict=True)
            ):
                requests[number] = await checked_there(asked, disk, host, peer, voice)
        request, disk = requests[0], disks[0]
        if len(places.hosts) > 1:
            sent = await push_set(requests, disks, list(places.hosts), where, peer, run)
        elif compare:
            sent = [(await push_differing(request, disk, single, where, peer, run))[0]]
        else:
            sent = [await push(request, disk, single, where, peer, run)]
    full = not request.base and not compare
    for host, result in zip(places.hosts, sent, strict=True):
        show_sent(result, voice, full=full, target=str(host))


async def _save(
    request: SendRequest,
    wish: SnapshotWish,
    place: StorePlace,
    options: Mapping[str, Any],
    voice: Voice,
) -> None:
    if request.receipt_seconds or request.resume:
        raise UsageError("--require-receipt and --resume have no effect on a store")
    run, opening = voice.run, opened_store(place.store, options["access"], place.disk)
    async with (
        run.within(opening, harmless=True) as store,
        opened_in(run, request, wish) as (disk, request),
    ):
        voice.warn_of(disk)
        where, cycle = store.disk(place.disk), options["audit"]
        memory = Memory(options["access"].state_dir)
        await run.ask(lambda: memory.check(where))
        saved = await save(request, disk, where, run, audit_cycle=cycle)
        await run.settle(lambda: memory.remember(where, saved.point))
    cleared(voice.shown)
    show_saved(saved, place, as_json=voice.as_json, quiet=voice.quiet)


async def _fetch(
    host: Remote, words: list[str], where: ReceiveRequest, options: Mapping[str, Any], voice: Voice
) -> None:
    peer = peer_options(options, as_json=voice.as_json)
    try:
        result = await pull(host, words, where, peer, voice.run)
    finally:
        cleared(voice.shown)
    show_received(result, where.target, as_json=voice.as_json, quiet=voice.quiet)


def _words(**given: str | None) -> list[str]:
    """Return options for the other host's command line."""
    pairs = [(f"--{name.replace('_', '-')}", value) for name, value in given.items() if value]
    return [word for pair in pairs for word in pair]


def _refuse_pipe_options(
    places: Places, compress: str, bwlimit: str | None, resume: str, receipt_seconds: float
) -> None:
    """An option without effect is an error."""
    if not places.within_one_host:
        return
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


async def _rehearse(
    request: SendRequest,
    wish: SnapshotWish,
    places: Places,
    where: ReceiveRequest,
    options: Mapping[str, Any],
    voice: Voice,
) -> None:
    """Say what would be sent, and what the target says of it."""
    if places.store is not None:
        await _rehearse_saving(request, wish, places.store, options["access"], voice)
        return
    peer, run = peer_options(options, as_json=voice.as_json), voice.run
    for number, each in enumerate(places.sources):
        # Nothing is made, so a volume is looked at as it is.
        asked = replace(request, source=each)
        if places.hosts:
            asked = replace(asked, target=places.hosts[number].key)
            wish = replace(wish, target=places.hosts[number].key)
        async with opened_in(run, asked, wish, rehearsal=True) as (source, asked):
            plan = await run.carry(functools.partial(planned, asked, source))
            show_plan(each, plan, as_json=voice.as_json)
            if places.hosts and places.hosts[number].name:
                say(f"{places.hosts[number]} is not asked: its policy tells only a real transfer")
            elif places.hosts:
                host = places.hosts[number]
                text = await rehearsed_there(plan, source, where, host, peer, run)
                if voice.as_json:
                    event("would-apply", target=str(places.hosts[number]), message=text)
                else:
                    say(text)
            elif places.target is not None:
                result = await rehearsed_here(plan, source, where, run)
                show_received(result, places.target, as_json=voice.as_json, quiet=False)


async def _rehearse_saving(
    request: SendRequest, wish: SnapshotWish, place: StorePlace, access: StoreAccess, voice: Voice
) -> None:
    """Say what would be sent, and what that would cost in the store."""
    run = voice.run
    async with (
        run.within(opened_store(place.store, access, place.disk), harmless=True) as store,
        opened_in(run, request, wish, rehearsal=True) as (source, asked),
    ):
        disk = store.disk(place.disk)

        def looked() -> tuple[SendPlan, SaveEstimate]:
            Memory(access.state_dir).check(disk)
            what = from_last(asked, disk)
            return planned(what, source), estimated(what, source, disk)

        plan, cost = await run.ask(looked)
    show_plan(request.source, plan, as_json=voice.as_json)
    if voice.as_json:
        event("would-store", **asdict(cost))
    else:
        say(
            f"  {size_text(cost.bytes)} at most would be stored, with about {cost.requests} "
            "requests that write"
        )
