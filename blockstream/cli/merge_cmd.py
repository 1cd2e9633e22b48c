"""`blockstream merge`."""

import click

from blockstream.cli.convert_common import made_of
from blockstream.cli.foreign import with_stream_options
from blockstream.errors import UsageError


@click.command("merge", short_help="Fold a chain of increments into one.")
@click.argument("streams", nargs=-1, required=True)
@with_stream_options
def command(streams: tuple[str, ...], to: str, **options: object) -> None:
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
    made_of("merge", streams, to, options)
