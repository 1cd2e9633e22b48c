"""`blockstream points`."""

from collections.abc import Mapping, Sequence

import click

from blockstream.cli.console import emit_result, say, show
from blockstream.cli.location_types import PLACE
from blockstream.cli.options import warn
from blockstream.cli.saved_output import point_values
from blockstream.cli.store_access import StoreAccess
from blockstream.cli.store_options import with_store_access
from blockstream.cli.stores import (
    check_doubts,
    doubts_of,
    is_store,
    missing_disks,
    opened_store,
    place_of,
    show_strays,
    whole_store,
)
from blockstream.errors import NotFoundError, StaleViewError, StoreDamagedError, UsageError
from blockstream.formats.point import Point
from blockstream.repository.repository import VERIFIED, StoredDisk
from blockstream.words import counted, duration_text, size_text, time_text


@click.command("points", short_help="List the restore points of a disk, or the disks of a store.")
@click.argument("place", metavar="STORE[/DISK]", type=PLACE)
@with_store_access
@click.option("--json", "as_json", is_flag=True, help="Speak in JSON lines.")
def command(place: str, access: StoreAccess, as_json: bool) -> None:
    """List the restore points of DISK, oldest first; of a STORE alone, its disks.

    The time is when the disk held that state; of points that nobody knew that of, when they were
    saved. The lag is how long after that they could be restored.

    Exit 12 if `store verify` found that one cannot be restored, and has not found it whole since.
    Exit 19 if a point that others go onto is missing, or newer points may be: there is data of one
    without a manifest, or this host has seen a newer one before.

    \b
    Example:
      blockstream points dir:/var/backups/blockstream/vm
    """  # noqa: D301
    store = whole_store(place)
    if is_store(store, access):
        _list_disks(store, access, as_json=as_json)
        return
    found = place_of(place)
    if found.point:
        raise UsageError(f"all points are listed: leave @{found.point} out")
    with opened_store(found.store, access, found.disk) as repository:
        disk = repository.disk(found.disk)
        points, verified = _points_of(disk, found.store), disk.marks(VERIFIED)
        damaged = disk.found_damaged()
        doubts, lost = doubts_of(disk, access), _lost(disk, points)
    if as_json:
        from blockstream.events import Point as PointEvent

        for point in points:
            emit_result(
                PointEvent(
                    **point_values(point),
                    verified=_time(verified.get(point.seq)),
                    damaged=_time(damaged.get(point.seq)),
                )
            )
    elif points:
        _show(points, verified, damaged)
    elif not doubts:
        raise NotFoundError(
            f"{found} has no point; `blockstream points {found.store}` lists the disks"
        )
    show_strays(disk.strays)
    for text in lost:
        warn(text, as_json=as_json)
    check_doubts(doubts)
    if lost:
        raise StaleViewError(
            f"{found}: not every point that is listed can be restored; `blockstream store repair "
            f"{found} --from COPY` puts back what is missing"
        )
    bad = [point for point in points if point.seq in damaged]
    if bad:
        raise StoreDamagedError(
            f"{found}: {counted(len(bad), 'point')} cannot be restored as a whole; `blockstream "
            f"store repair {found} --from COPY|DISK` replaces what is damaged"
        )


def _time(seconds: float | None) -> str | None:
    return None if seconds is None else time_text(seconds)


def _show(
    points: Sequence[Point], verified: Mapping[int, float], damaged: Mapping[int, float]
) -> None:
    heads = ("kind", "disk", "changed", "stored", "lag")
    head = "{:<9}{:>10}{:>12}{:>12}{:>9}".format(*heads)
    show(f"point   {'time (UTC)':<20}   {head}   {'verified':<10}   state\n")
    for point in points:
        when = verified.get(point.seq)
        checked = time_text(when, "%Y-%m-%d") if when else "never"
        show(
            f"{point.seq:>5}   {point.time:<20}   {point.kind:<9}{size_text(point.size):>10}"
            f"{size_text(point.data):>12}{size_text(point.stored):>12}"
            f"{duration_text(point.lag):>9}   {checked:<10}   "
            f"{point.state}\n"
        )
        if point.seq in damaged:
            found = time_text(damaged[point.seq], "%Y-%m-%d")
            show(f"        ! found damaged on {found}, itself or what it goes onto\n")
        if point.missed:
            show(
                f"        ! the list of changes had missed {size_text(point.missed)} of it; the "
                "points before may lack them\n"
            )


def _list_disks(store: str, access: StoreAccess, *, as_json: bool) -> None:
    with opened_store(store, access) as repository:
        names, strays = repository.disks(), repository.strays()
        gone = missing_disks(repository, access)
    for name in names:
        if as_json:
            from blockstream.events import Disk

            emit_result(Disk(name, f"{store}/{name}"))
        else:
            show(f"{store}/{name}\n")
    if not names and not as_json:
        say(f"{store} has no disk yet")
    show_strays(strays)
    check_doubts(gone)


def _lost(disk: StoredDisk, points: Sequence[Point]) -> list[str]:
    """Return what is to be said of points without the one that they go onto."""
    there = set(disk.numbers())
    return [
        f"point {each.seq}, and what goes onto it, cannot be restored: the manifest of point "
        f"{each.parent.seq} is missing"
        for each in points
        if each.parent is not None and each.parent.seq not in there
    ]


def _points_of(disk: StoredDisk, store: str) -> list[Point]:
    """Return all points that were not pruned; say what to do where one is damaged."""
    try:
        return list(disk.points())
    except StoreDamagedError as error:
        raise StoreDamagedError(
            f"{error}; nothing is listed; `blockstream store repair {store} --from COPY` puts it "
            "back from a copy of the store"
        ) from error
