"""`blockstream store verify`, `prune`, `compact` and `repair`."""

import functools
from dataclasses import asdict

import click

from blockstream.cli.console import emit, say
from blockstream.cli.foreground import done
from blockstream.cli.location_types import PLACE
from blockstream.cli.options import ProgressWish, cleared, reporters, with_json, with_progress
from blockstream.cli.store_access import StoreAccess
from blockstream.cli.store_disks import check_all_done, gone, with_each
from blockstream.cli.store_options import with_store_access
from blockstream.cli.store_output import say_pruned, show_repaired, show_verified
from blockstream.cli.stores import (
    check_doubts,
    opened_store,
    whole_store,
)
from blockstream.errors import (
    StoreDamagedError,
    UsageError,
)
from blockstream.locations.interface import opened_source
from blockstream.locations.registry import disk_of
from blockstream.locations.store import store_place
from blockstream.repository.compaction import Compacted, compact
from blockstream.repository.healing import heal
from blockstream.repository.memory import Memory
from blockstream.repository.prune import Pruned, prune
from blockstream.repository.repair import repair
from blockstream.repository.repository import StoredDisk
from blockstream.repository.retention import parse_rules
from blockstream.repository.verify import Verified, verify_disk
from blockstream.run import Run
from blockstream.words import size_text


@click.command("verify", short_help="Read what points are made of.")
@click.argument("place", metavar="STORE[/DISK]", type=PLACE)
@click.option("--newest", is_flag=True, help="Only what the newest point is made of.")
@click.option(
    "--percent",
    type=click.FloatRange(0, 100, min_open=True),
    default=100.0,
    show_default=True,
    help="How much of the frames is read, chosen by chance.",
)
@with_store_access
@with_progress
def verify(
    place: str,
    newest: bool,
    percent: float,
    access: StoreAccess,
    as_json: bool,
    quiet: bool,
    progress: ProgressWish,
) -> None:
    """Read what the points of a disk, or of all disks, are made of.

    What is damaged is named, with the ranges of the disk that it holds, and so are the points that
    are whole all the same. Exit 12 if anything is, or if there is data of a newer point without a
    manifest; 19 if this host has seen a newer point before.
    """
    shown = reporters("verify", as_json=as_json, quiet=quiet, progress=progress)
    found: list[Verified] = []
    doubts = list[str]()
    run = Run()

    async def verified(disk: StoredDisk) -> None:
        found.append(await verify_disk(disk, run, newest=newest, part=percent / 100))
        whole = not found[-1].damages
        doubt = await run.ask(lambda: Memory(access.state_dir).doubt(disk)) if whole else ""
        doubts.extend([doubt] if doubt else [])
        cleared(shown)
        show_verified(found[-1], as_json=as_json, quiet=quiet)

    failed = done(with_each(place, access, verified, run), run, shown)
    broken = [each for each in found if each.damages or each.broken or each.unnamed]
    if broken:
        names = ", ".join(each.disk for each in broken)
        raise StoreDamagedError(
            f"{place}: what is kept of {names} is damaged, or incomplete; see the lines above"
        )
    check_all_done(place, failed)
    check_doubts([*doubts, *gone(place, access)])


@click.command("prune", short_help="Hide, then delete, the points that no rule keeps.")
@click.argument("place", metavar="STORE[/DISK]", type=PLACE)
@click.option(
    "--keep",
    required=True,
    metavar="RULES",
    help="The newest point of so many periods: last, hourly, daily, weekly, monthly, yearly=N.",
)
@click.option(
    "--grace",
    type=click.FloatRange(0),
    default=24.0,
    show_default=True,
    metavar="HOURS",
    help="For how long a pruned point is only hidden, because somebody may be restoring it.",
)
@click.option("-n", "--dry-run", is_flag=True, help="Say what would be pruned; write nothing.")
@with_store_access
@with_json
def prune_points(
    place: str, keep: str, grace: float, dry_run: bool, access: StoreAccess, as_json: bool
) -> None:
    """Hide the points of a disk, or of all disks, that no rule keeps, and delete them later.

    What a kept point is made of is never deleted. The newest point is always kept. Of points that
    are damaged, as far as is known, as many sound ones are kept besides (exit status 12).
    """
    rules = parse_rules(keep)

    memory, run = Memory(access.state_dir), Run()
    go_on = functools.partial(run.check, "the same command goes on")

    def prune_disk(disk: StoredDisk) -> Pruned:
        memory.check(disk)
        return prune(disk, rules, grace=grace * 3600, dry_run=dry_run, check=go_on)

    async def pruned(disk: StoredDisk) -> None:
        result = await run.carry(lambda: prune_disk(disk))
        if as_json:
            from blockstream.events import Pruned as Event

            emit(Event(**asdict(result)))
        else:
            say_pruned(result, dry_run=dry_run)
        if result.damaged:
            seq, lack = next(iter(result.damaged.items()))
            raise StoreDamagedError(
                f"{lack}; point {seq} of {disk.name} cannot be restored as a whole, so as many "
                "sound ones are kept besides; `store repair` replaces what is damaged, from a copy "
                "of the store or from a disk, and a full copy, sent without --base, needs none of "
                "it"
            )

    check_all_done(place, done(with_each(place, access, pruned, run), run))
    check_doubts(gone(place, access))


@click.command("compact", short_help="Let the newest point need no older one.")
@click.argument("place", metavar="STORE[/DISK]", type=PLACE)
@with_store_access
def compact_points(place: str, access: StoreAccess) -> None:
    """Let the newest point need no other point, so that older ones can be pruned.

    Packs of which it needs less than half are given up: what it needs is copied into new ones, by
    the server of a bucket or the file system where these can, and by this host where the store is
    encrypted. Until the older points are pruned, that takes room in addition.
    """
    memory, run = Memory(access.state_dir), Run()

    def compact_disk(disk: StoredDisk) -> Compacted | None:
        memory.check(disk)
        made = compact(disk, check=run.check)
        if made is not None:
            memory.remember(disk, made.point)
        return made

    async def compacted(disk: StoredDisk) -> None:
        made = await run.carry(lambda: compact_disk(disk))
        if made is None:
            say(f"{disk.name}: its newest point needs no other")
            return
        text = f"{disk.name}: point {made.point.seq} is {made.point.state}, and needs no other"
        packs = f"{made.rewritten} pack{'s' if made.rewritten > 1 else ''}"
        copied = f"; {size_text(made.copied)} of {packs} copied within the store"
        say(text + (copied if made.rewritten else ""))

    check_all_done(place, done(with_each(place, access, compacted, run), run))


@click.command("repair", short_help="Replace what is damaged, from a copy or a disk.")
@click.argument("place", metavar="STORE[/DISK]", type=PLACE)
@click.option(
    "--from",
    "other",
    required=True,
    metavar="STORE|DISK",
    help="A copy of the store; or a disk that holds what was saved yet, as the source may.",
)
@with_store_access
@with_progress
def repair_points(
    place: str, other: str, access: StoreAccess, as_json: bool, quiet: bool, progress: ProgressWish
) -> None:
    """Replace what is damaged in a STORE by what a copy of it or a DISK holds.

    A copy is what rsync or replication made. A DISK is one of this host; of it, those ranges are
    taken that have not changed since: their digests tell. That heals one STORE/DISK at a time.

    Everything is read first, and again afterwards. Exit 12 if something stays damaged.

    \b
    Examples:
      blockstream store repair dir:/var/backups/blockstream --from dir:/mnt/copy
      blockstream store repair dir:/var/backups/blockstream/vm --from /dev/vg/vm
    """  # noqa: D301
    shown = reporters("repair", as_json=as_json, quiet=quiet, progress=progress)
    damaged, run = list[str](), Run()

    async def repaired(disk: StoredDisk) -> None:
        if store_place(other, disk=False) is not None:
            opening = opened_store(whole_store(other), access)
            async with run.within(opening, harmless=True) as theirs:
                result = await repair(disk, theirs.disk(disk.name), run)
        elif whole_store(place) == disk.objects.name:
            raise UsageError(
                f"a disk heals one STORE/DISK, as {place}/{disk.name}; nothing was done"
            )
        else:
            async with run.within(opened_source(disk_of(other)), harmless=True) as source:
                result = await heal(disk, source, run)
        cleared(shown)
        show_repaired(result, other, as_json=as_json)
        if result.after is not None:
            show_verified(result.after, as_json=as_json, quiet=quiet)
            damaged.extend([disk.name] if result.after.damages or result.after.unnamed else [])

    failed = done(with_each(place, access, repaired, run), run, shown)
    if damaged:
        stays = "stays" if len(damaged) == 1 else "stay"
        raise StoreDamagedError(
            f"{place}: {', '.join(damaged)} {stays} damaged; see the lines above"
        )
    check_all_done(place, failed)
