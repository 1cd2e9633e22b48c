"""`blockstream join`: what each further connection of a session runs on the other host."""

import click

from blockstream.cli.options import with_errors_json
from blockstream.linux.stream_join import heard_token, join

_STDIN = 0


@click.command("join", hidden=True)
@click.argument("number", type=click.IntRange(0, 255))
@with_errors_json
def command(number: int) -> None:
    """Give standard input and output to a session, whose secret comes first on standard input."""
    join(heard_token(_STDIN), number)
