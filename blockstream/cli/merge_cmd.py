"""`blockstream merge`."""

from pathlib import Path

import click

from blockstream.cli.convert_common import StreamGroups, made_of
from blockstream.cli.grouped_help import GroupedCommand
from blockstream.cli.option_groups import with_groups
from blockstream.cli.options import ProgressWish, with_progress, with_state_dir
from blockstream.errors import UsageError


@click.command("merge", cls=GroupedCommand, short_help="Fold a chain of increments into one.")
@click.argument("streams", nargs=-1, required=True)
@with_groups(StreamGroups)
@with_progress
@with_state_dir
def command(
    streams: tuple[str, ...],
    options: StreamGroups,
    state_dir: Path,
    as_json: bool,
    quiet: bool,
    progress: ProgressWish,
) -> None:
    """Write one stream to standard output that does what STREAMS do one after the other.

    They are increments of one disk, the oldest first; the first may be a whole disk. What a later
    one writes wins, zeros as well, and the disk may grow and shrink. Each is checked to its end
    before anything is written.

    \b
    Examples:
      blockstream merge monday.bsx tuesday.bsx > both.bsx
      blockstream merge a.rbd b.rbd --to rbd > both.rbd
    """  # noqa: D301
    if streams.count("-") > 1:
        raise UsageError("standard input, -, can be only one of the streams")
    made_of(
        "merge",
        streams,
        options,
        state_dir,
        as_json=as_json,
        quiet=quiet,
        progress=progress,
    )
