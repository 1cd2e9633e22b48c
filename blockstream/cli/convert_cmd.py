"""`blockstream convert`."""

import click

from blockstream.cli.convert_common import made_of
from blockstream.cli.foreign import with_stream_options


@click.command("convert", short_help="Make a stream of one tool into that of another.")
@click.argument("stream", default="-")
@with_stream_options
def command(stream: str, to: str, **options: object) -> None:
    """Write STREAM, a file or - for standard input, in another format to standard output.

    It may be a stream of ours or of any tool that `recv` takes. What the new format cannot carry is
    said before anything is written.

    \b
    Examples:
      blockstream convert --to rbd delta.bsx > delta.rbd
      blockstream convert --size 10G --base monday dump.lvmsync > delta.bsx
    """  # noqa: D301
    made_of("convert", (stream,), to, options)
