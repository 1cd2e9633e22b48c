"""`blockstream verify`."""

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from blockstream.cli.console import event, say
from blockstream.cli.foreground import done
from blockstream.cli.options import ProgressWish, reporters, with_progress, with_state_dir
from blockstream.cli.remote_options import peer_options, refuse_peer_options, with_peer_options
from blockstream.errors import IntegrityError
from blockstream.jobs.snapshots import SnapshotWish, opened_in
from blockstream.locations import Remote, of_this_host, open_source, remote
from blockstream.run import Run
from blockstream.transfers.digests import Comparison, compared
from blockstream.transfers.push import push_differing
from blockstream.transfers.receive import ReceiveRequest
from blockstream.transfers.remote_command import PeerOptions
from blockstream.transfers.send import SendRequest
from blockstream.words import size_text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from blockstream.interfaces import Source

_SHOWN = 5


@click.command("verify", short_help="Compare two disks, and repair one.")
@click.argument("source")
@click.argument("target")
@click.option("--repair", is_flag=True, help="Send what differs.")
@with_peer_options
@with_progress
@with_state_dir
def command(
    source: str,
    target: str,
    repair: bool,
    state_dir: Path,
    as_json: bool,
    quiet: bool,
    progress: ProgressWish,
    **options: Any,
) -> None:
    """Compare SOURCE with TARGET, a disk of this host or [USER@]HOST:/PATH; both are read whole.

    From another host, only digests travel. Exit status 0 means equal, 12 that something differs.
    With --repair, what differs is sent, and 0 means that they are equal then.

    \b
    Examples:
      blockstream verify disk.img HOST:/dev/vg/vm
      blockstream verify /dev/vg/vm copy.img
      blockstream verify /dev/vg/vm-snap root@HOST:/dev/vg/vm --repair
    """  # noqa: D301
    where = remote(target)
    if where is None:
        of_this_host(target)
        refuse_peer_options(options)
    shown = reporters("verify", as_json=as_json, quiet=quiet, progress=progress)
    run = Run()
    if where is None:
        job = _here(source, target, state_dir, run, repair=repair)
    else:
        peer = peer_options(options, as_json=as_json)
        job = _there(source, target, where, state_dir, peer, run, repair=repair)
    found, goal = done(job, run, shown)
    _show(found, source, target, goal, as_json=as_json, quiet=quiet)


async def _here(
    source: str, target: str, state_dir: Path, run: Run, *, repair: bool
) -> tuple[Comparison, str]:
    """Return what differs on this host, and the state that the target holds after a repair."""
    from blockstream.transfers.verify_here import compared_here, repaired_here  # numpy

    if not repair:
        async with run.within(_opened(source), harmless=True) as disk:
            return await compared_here(disk, target, run), ""
    request = SendRequest(source, state_dir)
    what = ReceiveRequest(target, state_dir, force_larger=True)
    async with opened_in(run, request, SnapshotWish()) as (disk, request):
        repaired, found = await repaired_here(request, disk, what, run)
    return found, repaired.committed.goal if repaired.committed is not None else ""


async def _there(
    source: str,
    target: str,
    where: Remote,
    state_dir: Path,
    peer: PeerOptions,
    run: Run,
    *,
    repair: bool,
) -> tuple[Comparison, str]:
    """Return what differs on another host, and the state that the target holds after a repair."""
    if not repair:
        async with run.within(_opened(source), harmless=True) as disk:
            return await compared(disk, where, peer, run), ""
    request = SendRequest(source, state_dir)
    what = ReceiveRequest(target, state_dir, force_larger=True)
    async with opened_in(run, request, SnapshotWish()) as (disk, request):
        sent, found = await push_differing(request, disk, where, what, peer, run)
    return found, sent.expected.goal


@contextlib.contextmanager
def _opened(location: str) -> "Iterator[Source]":
    with contextlib.closing(open_source(location, from_medium=True)) as source:
        yield source


def _show(
    found: Comparison, source: str, target: str, goal: str, *, as_json: bool, quiet: bool
) -> None:
    """Say what differs.

    Raises:
        IntegrityError: If something does, and was not repaired.
    """
    differing = found.differing.total()
    if as_json:
        event(
            "compared",
            size=found.size,
            target_size=found.target_size,
            differing=differing,
            ranges=len(found.differing),
            repaired=goal or None,
        )
    elif not quiet and not differing:
        say(f"equal: {target} holds the {size_text(found.size)} of {source}")
    elif not quiet and goal:
        say(f"repaired: {size_text(differing)} of {target} differed; it holds {goal} now")
    if differing and not goal:
        places = [f"{length} bytes at offset {offset}" for offset, length, _ in found.differing]
        more = f", and {len(places) - _SHOWN} more ranges" if len(places) > _SHOWN else ""
        raise IntegrityError(
            f"{target} differs from {source} in {differing} bytes: {'; '.join(places[:_SHOWN])}"
            f"{more}; nothing was written; --repair sends them"
        )
