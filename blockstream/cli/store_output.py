"""What the commands that look after a store say."""

from collections.abc import Iterable
from dataclasses import asdict, fields
from itertools import groupby

from blockstream.cli.console import emit, say
from blockstream.cli.stores import (
    show_strays,
)
from blockstream.repository.prune import Pruned
from blockstream.repository.repair import Repaired
from blockstream.repository.verify import Verified
from blockstream.words import counted, size_text

_MOST_EXTENTS = 5


def say_pruned(result: Pruned, *, dry_run: bool) -> None:
    """Say what became of the points of a disk."""
    text = f"{result.disk}: kept {_numbers(result.kept)}; "
    if dry_run:
        say(text + f"would be hidden {_numbers(result.hidden)}; nothing was done")
        return
    text += f"hidden {_numbers(result.hidden)}; deleted {_numbers(result.deleted)}, "
    say(text + f"{size_text(result.freed)}")
    if result.doubtful:
        say(
            f"  {counted(result.doubtful, 'object')} that no point names: deleted by a later "
            "prune, if whoever wrote them gives no sign of life until then"
        )
    if result.uploads:
        say(f"  uploads of runs that died were not looked for: {result.uploads}")
    if result.unfinished:
        say(f"  {result.unfinished} uploads of runs that died were given up")
    if result.locked:
        say(f"  {result.locked} objects are locked by the store until later")
    show_strays(result.strays)


def show_repaired(result: Repaired, other: str, *, as_json: bool) -> None:
    """Say what was replaced, by what the other one holds."""
    if as_json:
        from blockstream.events import Repaired as Event

        values = {each.name: getattr(result, each.name) for each in fields(Event)}
        emit(Event(**values))
        return
    for key in result.replaced:
        say(f"{result.disk}: {key} was replaced")
    for text in dict.fromkeys(result.refusals):
        say(text)
    if result.healed or result.lost:
        text = f"{result.disk}: made anew from {other}: {counted(result.healed, 'frame')}"
        say(text + (f"; of {result.lost} more it holds something else" if result.lost else ""))
    for key in result.filled:
        say(f"{result.disk}: {key} is no stream for `recv` any more; to restore takes only frames")


def show_verified(found: Verified, *, as_json: bool, quiet: bool) -> None:
    """Say what is damaged, and what can be restored all the same."""
    if as_json:
        from blockstream.events import Checked

        emit(Checked(**asdict(found)))
        return
    # A pack that is gone is so for each of its frames.
    for (seq, text), same in groupby(found.damages, lambda damage: (damage.seq, damage.text)):
        say(f"point {seq} of {found.disk}: {text}")
        extents = _joined(extent for damage in same for extent in damage.extents)
        for offset, length in extents[:_MOST_EXTENTS]:
            say(f"  {size_text(length)} of the disk at offset {offset}")
        if len(extents) > _MOST_EXTENTS:
            say(f"  and {len(extents) - _MOST_EXTENTS} more")
    for owner in found.unnamed:
        say(
            f"{found.disk}: {owner} is newer than the newest point, and has no manifest: a run "
            "died, and the next `send` makes it good, or the manifest is lost"
        )
    show_strays(found.strays)
    if found.damages and not found.noted:
        say(
            f"{found.disk}: this key may not note what is damaged, so `points` and `store prune` "
            "do not know of it; a key that may write marks notes it"
        )
    if quiet and not (found.damages or found.unnamed):
        return
    whole, broken = _numbers(found.whole), _numbers(found.broken)
    text = f"{found.disk}: {size_text(found.checked)} read"
    if found.part < 1:
        text += (
            f", a sample of {found.part * 100:.3g} %; points in which it found no damage: {whole}"
        )
    else:
        text += f"; points that can be restored: {whole}"
    say(text + (f"; that cannot: {broken}" if found.broken else ""))


def _joined(extents: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return ranges of a disk, those that touch as one."""
    joined: list[tuple[int, int]] = []
    for offset, length in sorted(extents):
        if joined and sum(joined[-1]) == offset:
            joined[-1] = (joined[-1][0], joined[-1][1] + length)
        else:
            joined.append((offset, length))
    return joined


def _numbers(seqs: list[int]) -> str:
    """Return numbers of points as ranges."""
    parts: list[list[int]] = []
    for seq in sorted(seqs):
        if parts and seq == parts[-1][-1] + 1:
            parts[-1].append(seq)
        else:
            parts.append([seq])
    words = (f"#{p[0]}" if len(p) == 1 else f"#{p[0]} to #{p[-1]}" for p in parts)
    return ", ".join(words) or "none"
