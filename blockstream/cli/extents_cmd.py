"""`blockstream extents`."""

import click

from blockstream.cli.console import show
from blockstream.cli.options import cleared, reporters, warn, with_progress
from blockstream.formats.extent_lists import Meaning, written
from blockstream.jobs.compare import changes
from blockstream.jobs.supervision import Work, supervised
from blockstream.locations import open_source
from blockstream.pipeline.progress import Progress


@click.command("extents", short_help="List which parts of a disk hold data, or changed.")
@click.argument("source")
@click.option("--since", metavar="OLD", help="List what differs from this older copy instead.")
@with_progress
def command(
    source: str, since: str | None, as_json: bool, quiet: bool, progress_fd: int | None
) -> None:
    """Write the extents of SOURCE to standard output, as JSON that `send --extents` reads.

    \b
    Examples:
      blockstream extents disk.img
      blockstream extents disk.img --since yesterday.img > changed.json
      blockstream send --base A --goal B --extents changed.json disk.img | ...
    """  # noqa: D301
    new = open_source(source)
    try:
        for text in new.warnings:
            warn(text, as_json=as_json)
        if since is None:
            extents, meaning = new.extents(), Meaning.ALLOCATED
        else:
            seen = reporters("compare", as_json=as_json, quiet=quiet, progress_fd=progress_fd)
            old, progress = open_source(since), Progress()
            stopped: list[str] = []
            try:
                extents = supervised(
                    lambda: changes(new, old, progress, stopped),
                    Work(stopped.append),
                    progress,
                    seen,
                )
            finally:
                old.close()
                cleared(seen)
            new.validate()
            meaning = Meaning.CHANGED
    finally:
        new.close()
    for text in written(extents, meaning):
        show(text)
