"""`blockstream restore`."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from blockstream.cli.console import event, saving_text, say
from blockstream.cli.options import ProgressWish, cleared, reporters, with_progress, with_state_dir
from blockstream.cli.recv_cmd import TARGET_FLAGS, show_received, with_target_options
from blockstream.cli.remote_options import peer_options, refuse_peer_options, with_peer_options
from blockstream.cli.send_output import Voice
from blockstream.cli.stores import (
    StoreAccess,
    check_doubts,
    doubts_of,
    opened_store,
    place_of,
    with_store_access,
)
from blockstream.errors import StoreDamagedError
from blockstream.formats.point import Point
from blockstream.locations import Remote, StorePlace, of_this_host, remote
from blockstream.repository.repository import Repository, StoredDisk
from blockstream.repository.restore import opened_point
from blockstream.sources.point import PointSource
from blockstream.transfers.copy import copy
from blockstream.transfers.push import push
from blockstream.transfers.receive import ReceiveRequest
from blockstream.transfers.remote_command import PeerOptions
from blockstream.transfers.send import SendRequest
from blockstream.words import duration_text


@click.command("restore", short_help="Bring a restore point back onto a disk.")
@click.argument("point", metavar="STORE/DISK[@POINT]")
@click.argument("target")
@with_store_access
@with_peer_options
@with_target_options
@with_progress
@with_state_dir
def command(
    point: str,
    target: str,
    access: StoreAccess,
    state_dir: Path,
    as_json: bool,
    quiet: bool,
    progress: ProgressWish,
    **options: Any,
) -> None:
    """Write a restore point onto TARGET, a disk of this host or, as HOST:/PATH, of another.

    POINT is `last` (the default), a number, the id of a state, or a time in UTC: the newest point
    that is not younger. TARGET then holds that state, so that increments can go onto it. Run
    again, the same command goes on where it was interrupted.

    Exit 19 if TARGET holds the point, and newer ones may be missing in the store.

    \b
    Examples:
      blockstream restore dir:/var/backups/blockstream/vm /dev/vg/vm
      blockstream restore dir:/var/backups/blockstream/vm@2026-11-20T03:15 copy.img --create
      blockstream restore dir:/var/backups/blockstream/vm@7 root@HOST:/dev/vg/vm
    """  # noqa: D301
    place = place_of(point)
    host = remote(target)
    if host is None:
        of_this_host(target)
        refuse_peer_options(options)
    shown = reporters("restore", as_json=as_json, quiet=quiet, progress=progress)
    voice = Voice(shown, as_json=as_json, quiet=quiet)
    where = ReceiveRequest(
        target=target, state_dir=state_dir, **{name: options[name] for name in TARGET_FLAGS}
    )
    peer = peer_options(options, as_json=as_json) if host is not None else None
    voice.done(_restored(place, host, where, access, peer, voice))


async def _restored(
    place: StorePlace,
    host: Remote | None,
    where: ReceiveRequest,
    access: StoreAccess,
    peer: PeerOptions | None,
    voice: Voice,
) -> None:
    run, target = voice.run, where.target
    opening = opened_store(place.store, access, place.disk)
    async with run.within(opening, harmless=True) as store:
        with _what_next(place, target):
            disk, found, doubts = await run.ask(lambda: _found(store, place, access))
            if not voice.quiet:
                for each in doubts:
                    say(f"newer points may be missing: {each}")
            goal, moment = found.state, found.moment
            request = SendRequest(str(place), where.state_dir, goal=goal, moment=moment)
            async with run.within(_opened(disk, found), harmless=True) as source:
                if host is None or peer is None:
                    result = await copy(request, source, where, run)
                else:
                    sent = await push(request, source, host, where, peer, run)
    cleared(voice.shown)
    if host is None:
        show_received(result, target, as_json=voice.as_json, quiet=voice.quiet)
    elif voice.as_json:
        event("restored", target=target, state=found.state, seconds=round(sent.seconds, 3))
    elif not voice.quiet:
        saving = saving_text(sent.counts, full=True)
        say(f"restored: {target} holds {found.state}: {saving}, in {duration_text(sent.seconds)}")
    check_doubts(doubts)


@contextlib.contextmanager
def _opened(disk: StoredDisk, point: Point) -> Iterator[PointSource]:
    with contextlib.closing(opened_point(disk, point)) as source:
        yield source


def _found(
    store: Repository, place: StorePlace, access: StoreAccess
) -> tuple[StoredDisk, Point, list[str]]:
    """Return the disk and the point that are meant, and why newer ones may be missing."""
    disk = store.disk(place.disk)
    found = disk.find(place.point)
    newest = not place.point.isdecimal() and found.seq == disk.numbers()[-1]
    return disk, found, doubts_of(disk, access, newest=newest)


@contextlib.contextmanager
def _what_next(place: StorePlace, target: str) -> Iterator[None]:
    """Say what becomes of the target, and what to do, where the store is damaged."""
    try:
        yield
    except StoreDamagedError as error:
        raise StoreDamagedError(
            f"{error}; {target} does not hold the point, at most a part of it; "
            f"`blockstream store verify {place.store}/{place.disk}` says which points are "
            "whole, and `store repair` takes what is damaged from a copy of the store"
        ) from error
