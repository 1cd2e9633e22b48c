"""`blockstream inspect`."""

import functools
import os
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from blockstream.cli.console import emit_result, show
from blockstream.cli.foreground import done
from blockstream.cli.options import (
    ProgressWish,
    refuse_terminal,
    reporters,
    with_progress,
)
from blockstream.cli.reporter import Reporter
from blockstream.errors import NotFoundError, StaleViewError, UsageError
from blockstream.formats.foreign.names import OURS, READ
from blockstream.jobs.foreign.detect import beginning, is_ours
from blockstream.jobs.inspect import MAP_CELLS, Inspection, inspect
from blockstream.run import Run
from blockstream.words import counted, moment_text, size_text

if TYPE_CHECKING:
    from blockstream.events import Stream
    from blockstream.jobs.foreign.inspect import ForeignInspection

_SHADES = " ░▒▓█"


@click.command("inspect", short_help="Show what a stored stream holds, and verify it.")
@click.argument("stream", default="-")
@click.option(
    "--format",
    "given",
    type=click.Choice(READ),
    help="Format of a stream of another tool. [default: as it begins]",
)
@with_progress
def command(
    stream: str,
    given: str | None,
    as_json: bool,
    quiet: bool,
    progress: ProgressWish,
) -> None:
    """Show ids, sizes and a map of STREAM, a file or - for standard input; verify every digest.

    The exit status is that of receiving it: 0 only if it is whole and sound. A stream of another
    tool is read to its end as well; what it does not tell cannot be verified, and is named: 19 if
    it has no end mark.

    \b
    Examples:
      blockstream inspect disk.bsx
      ssh HOST cat disk.bsx | blockstream inspect
      blockstream inspect delta.rbd
    """  # noqa: D301
    shown = reporters("inspect", as_json=as_json, quiet=quiet, progress=progress)
    if stream == "-":
        refuse_terminal(0, "standard input")
        _show_inspected(stream, 0, given, shown, as_json=as_json)
        return
    try:
        fd = os.open(stream, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise NotFoundError(f"{stream} cannot be opened: {error.strerror}") from error
    try:
        _show_inspected(stream, fd, given, shown, as_json=as_json)
    finally:
        os.close(fd)


async def _inspected(
    stream: str, fd: int, given: str | None, run: Run
) -> "Inspection | ForeignInspection":
    head = await run.ask(lambda: beginning(fd, given=bool(given)))
    if is_ours(head, given or ""):
        if given:
            raise UsageError(
                f"--format has no effect: {stream} is a stream of ours, which says that itself"
            )
        return await inspect(fd, head, run)
    from blockstream.jobs.foreign.inspect import inspect_foreign  # rarely used
    from blockstream.jobs.foreign.unpacking import packed_ours, unpacking

    packed = ""
    if not given:
        packed, head = await run.ask(functools.partial(packed_ours, fd, head))
    if packed:
        async with run.within(unpacking(fd, packed, head)) as inside:
            return await inspect(inside, b"", run)
    return await inspect_foreign(fd, head, given or "", run)


def _show_inspected(
    stream: str, fd: int, given: str | None, shown: list[Reporter], *, as_json: bool
) -> None:
    run = Run()
    found = done(_inspected(stream, fd, given, run), run, shown)
    if as_json:
        emit_result(_event(found))
    elif isinstance(found, Inspection):
        _show(stream, found)
    else:
        _show_foreign(stream, found)
    if found.problem is not None:
        raise found.problem
    if not isinstance(found, Inspection) and found.open_ended:
        raise StaleViewError(
            f"{found.title} has no end mark: nobody knows whether {found.data} bytes in "
            f"{found.records} records are all; compare with what its sender says"
        )


def _event(found: "Inspection | ForeignInspection") -> "Stream":
    """Return it as programs read it."""
    from blockstream.events import Stream

    said = found.opening if isinstance(found, Inspection) else found
    named = {"format", "size", "base", "goal", "whole", "data", "zeros", "moment", "problem"}
    details = {name: value for name, value in asdict(found).items() if name not in named}
    return Stream(
        format=OURS if isinstance(found, Inspection) else found.format,
        size=said.size,
        base=said.base,
        goal=said.goal,
        whole=not said.base if isinstance(found, Inspection) else found.whole,
        data=found.data,
        zeros=found.zeros,
        moment=moment_text(found.moment) if isinstance(found, Inspection) else None,
        details=details,
        problem=str(found.problem) if found.problem is not None else None,
    )


def _show_foreign(name: str, found: "ForeignInspection") -> None:
    size = found.reach if found.size is None else found.size
    device = "it does not say" if found.size is None else f"{size_text(size)} ({size} bytes)"
    packed = f", packed with {found.packed}" if found.packed else ""
    kind = "whole disk" if found.whole else "changes"
    rows = [
        ("stream", name),
        ("format", f"{found.format}{packed}"),
        ("kind", f"{kind} from {found.base}" if found.base else kind),
        ("goal", found.goal or "it does not say"),
        ("device", device),
        ("records", f"{found.records}, {found.extents} extents once in order"),
        ("data", size_text(found.data)),
        ("zeros", size_text(found.zeros)),
        ("wire", size_text(found.wire)),
        ("map", f"[{_map(found.cells, size)}]"),
        *(("note", text) for text in found.remarks),
        ("verdict", "NOT SOUND" if found.problem else "can be read to its end"),
        ("open", f"it does not tell {', '.join(found.unchecked)}"),
    ]
    show("".join(f"{key:<8}  {value}\n" for key, value in rows))


def _show(name: str, found: Inspection) -> None:
    opening = found.opening
    kind = "full copy" if opening.full else f"increment from {opening.base}"
    ratio = found.data / found.wire if found.wire else 0.0
    rows = [
        ("stream", name),
        ("kind", kind),
        ("goal", opening.goal),
        *((("moment", when),) if (when := moment_text(found.moment)) else ()),
        ("device", f"{size_text(opening.size)} ({opening.size} bytes)"),
        ("covers", f"{size_text(opening.total)} in {counted(opening.ranges, 'range')}"),
        ("frames", f"{found.frames}, {found.packed_frames} of them compressed"),
        ("extents", f"{found.extents}, the largest {size_text(found.largest)}"),
        ("data", size_text(found.data)),
        ("zeros", size_text(found.zeros)),
        ("wire", f"{size_text(found.wire)} ({ratio:.2f}:1)"),
        ("map", f"[{_map(found.cells, opening.size)}]"),
        ("chain", found.chain or "-"),
        ("verdict", "NOT SOUND" if found.problem else "whole and sound"),
    ]
    show("".join(f"{key:<8}  {value}\n" for key, value in rows))


def _map(cells: list[int], size: int) -> str:
    """Draw where on the device a stream writes, denser for more."""
    cell_bytes = max(1, -(-size // MAP_CELLS))
    top = len(_SHADES) - 1
    return "".join(_SHADES[-(-top * min(c, cell_bytes) // cell_bytes)] for c in cells)
