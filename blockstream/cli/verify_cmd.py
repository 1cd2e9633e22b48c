"""`blockstream verify`."""

import contextlib
from pathlib import Path
from typing import Any

import click

from blockstream.cli.console import event, say
from blockstream.cli.options import cleared, reporters, with_progress, with_state_dir
from blockstream.cli.peers import peer_options, with_peer_options
from blockstream.errors import IntegrityError, UsageError
from blockstream.jobs.digests import Comparison
from blockstream.jobs.peer import compared, push_differing
from blockstream.jobs.receive import ReceiveRequest
from blockstream.jobs.send import SendRequest
from blockstream.jobs.snapshots import SnapshotWish, opened
from blockstream.locations import of_this_host, open_source, remote
from blockstream.pipeline.progress import Progress
from blockstream.words import size_text

_SHOWN = 5


@click.command("verify", short_help="Compare a disk with one of another host.")
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
    progress_fd: int | None,
    **options: Any,
) -> None:
    """Compare SOURCE with TARGET, [USER@]HOST:/PATH, by digests alone; both sides read everything.

    Exit status 0 means equal, 12 that something differs. With --repair, what differs is sent, and
    0 means that they are equal then.

    \b
    Examples:
      blockstream verify disk.img HOST:/dev/vg/vm
      blockstream verify /dev/vg/vm-snap root@HOST:/dev/vg/vm --repair
    """  # noqa: D301
    where = remote(target)
    if where is None:
        of_this_host(target)
        raise UsageError(
            f"{target} is on this host: `blockstream extents {source} --since {target}` compares"
        )
    shown = reporters("verify", as_json=as_json, quiet=quiet, progress_fd=progress_fd)
    peer = peer_options(options, as_json=as_json)
    try:
        if repair:
            request = SendRequest(source, state_dir)
            what = ReceiveRequest(target, state_dir, force_larger=True)
            with opened(request, SnapshotWish()) as (disk, request):
                sent, found = push_differing(request, disk, where, what, peer, Progress(), shown)
            goal = sent.expected.goal
        else:
            with contextlib.closing(open_source(source, from_medium=True)) as disk:
                found, goal = compared(disk, where, peer, shown), ""
    finally:
        cleared(shown)
    _show(found, source, target, goal, as_json=as_json, quiet=quiet)


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
