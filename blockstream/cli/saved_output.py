"""How commands say what was saved."""

from dataclasses import asdict, fields
from typing import Any

from blockstream.cli.console import emit, saving_text, say
from blockstream.formats.point import Point
from blockstream.transfers.save import SaveResult
from blockstream.words import duration_text, moment_text, size_text


def point_values(point: Point) -> dict[str, Any]:
    """Return the fields of an event on a point."""
    from blockstream.events import PointFields

    renamed: dict[str, Any] = {"type": str(point.kind), "moment": moment_text(point.moment)}
    renamed |= {"parent": asdict(point.parent) if point.parent is not None else None}
    same = (each.name for each in fields(PointFields) if each.name not in renamed)
    return renamed | {name: getattr(point, name) for name in same}


def show_saved(result: SaveResult, place: str, *, as_json: bool, quiet: bool) -> None:
    """Say what was saved."""
    point, audit = result.point, result.audit
    if as_json:
        from blockstream.events import Saved

        audited = audit.checked if audit is not None else 0
        where, counts = f"{place}@{point.seq}", asdict(result.counts)
        emit(
            Saved(
                **point_values(point),
                place=where,
                counts=counts,
                audited=audited,
                existed=result.existed,
            )
        )
    elif result.existed:
        if not quiet:
            say(f"already saved: {place}@{point.seq} is {point.state}; nothing was stored")
    elif not quiet:
        saving = saving_text(result.counts, full=not point.base)
        say(
            f"saved: {place}@{point.seq} is {point.state}: {saving}, "
            f"{size_text(point.stored)} in the store, in {duration_text(point.milliseconds / 1000)}"
        )
        if audit is not None and not point.missed:
            say(f"audited: {size_text(audit.checked)} that were called unchanged are")


def missed_text(result: SaveResult, place: str) -> str:
    """Say what an audit found that the list of changes had missed; empty for nothing."""
    point, audit = result.point, result.audit
    if not point.missed or audit is None:
        return ""
    first = int(audit.missed.offsets[0])
    return (
        f"{place}@{point.seq} is right, but the list of changes had missed "
        f"{size_text(point.missed)}, first at offset {first}: an audit found them; the points "
        "before may lack them, and more may be missing in parts that were not audited yet; "
        "send a full copy, and do not trust what made the list"
    )
