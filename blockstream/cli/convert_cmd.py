"""`blockstream convert`."""

from pathlib import Path

import click

from blockstream.cli.convert_common import StreamGroups, made_of
from blockstream.cli.grouped_help import GroupedCommand
from blockstream.cli.option_groups import with_groups
from blockstream.cli.options import ProgressWish, with_progress, with_state_dir


@click.command(
    "convert", cls=GroupedCommand, short_help="Make a stream of one tool into that of another."
)
@click.argument("stream", default="-")
@with_groups(StreamGroups)
@with_progress
@with_state_dir
def command(
    stream: str,
    options: StreamGroups,
    state_dir: Path,
    as_json: bool,
    quiet: bool,
    progress: ProgressWish,
) -> None:
    """Write STREAM, a file or - for standard input, in another format to standard output.

    It may be a stream of ours or of any tool that `recv` takes. What the new format cannot carry is
    said before anything is written.

    \b
    Examples:
      blockstream convert --to rbd delta.bsx > delta.rbd
      blockstream convert --size 10G --base monday dump.lvmsync > delta.bsx
    """  # noqa: D301
    made_of(
        "convert",
        (stream,),
        options,
        state_dir,
        as_json=as_json,
        quiet=quiet,
        progress=progress,
    )
