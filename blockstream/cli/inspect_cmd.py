"""`blockstream inspect`."""

import os
from dataclasses import asdict

import click

from blockstream.cli.console import result, show
from blockstream.cli.options import refuse_terminal, with_json
from blockstream.errors import NotFoundError
from blockstream.jobs.inspect import MAP_CELLS, Inspection, inspect
from blockstream.words import counted, size_text

_SHADES = " ░▒▓█"


@click.command("inspect", short_help="Show what a stored stream holds, and verify it.")
@click.argument("stream", default="-")
@with_json
def command(stream: str, as_json: bool) -> None:
    """Show ids, sizes and a map of STREAM, a file or - for standard input; verify every digest.

    The exit status is that of receiving it: 0 only if it is whole and sound.

    \b
    Examples:
      blockstream inspect disk.bsx
      ssh HOST cat disk.bsx | blockstream inspect
    """  # noqa: D301
    if stream == "-":
        refuse_terminal(0, "standard input")
        found = inspect(0)
    else:
        try:
            fd = os.open(stream, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise NotFoundError(f"{stream} cannot be opened: {error.strerror}") from error
        try:
            found = inspect(fd)
        finally:
            os.close(fd)
    if as_json:
        values = asdict(found) | {"problem": str(found.problem) if found.problem else None}
        result("stream", **values)
    else:
        _show(stream, found)
    if found.problem is not None:
        raise found.problem


def _show(name: str, found: Inspection) -> None:
    opening = found.opening
    kind = "full copy" if opening.full else f"increment from {opening.base}"
    ratio = found.data / found.wire if found.wire else 0.0
    rows = [
        ("stream", name),
        ("kind", kind),
        ("goal", opening.goal),
        ("device", f"{size_text(opening.size)} ({opening.size} bytes)"),
        ("covers", f"{size_text(opening.total)} in {counted(opening.ranges, 'range')}"),
        ("frames", f"{found.frames}, {found.packed_frames} of them compressed"),
        ("extents", f"{found.extents}, the largest {size_text(found.largest)}"),
        ("data", size_text(found.data)),
        ("zeros", size_text(found.zeros)),
        ("wire", f"{size_text(found.wire)} ({ratio:.2f}:1)"),
        ("map", f"[{_map(found)}]"),
        ("chain", found.chain or "-"),
        ("verdict", "NOT SOUND" if found.problem else "whole and sound"),
    ]
    show("".join(f"{key:<8}  {value}\n" for key, value in rows))


def _map(found: Inspection) -> str:
    """Draw where on the device the stream writes, denser for more."""
    cell_bytes = max(1, -(-found.opening.size // MAP_CELLS))
    top = len(_SHADES) - 1
    return "".join(_SHADES[-(-top * min(c, cell_bytes) // cell_bytes)] for c in found.cells)
