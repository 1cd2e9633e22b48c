"""`blockstream join`: what each further connection of a session runs on the other host."""

import click

from blockstream.linux.meeting import join


@click.command("join", hidden=True)
@click.argument("token")
@click.argument("number", type=click.IntRange(0, 255))
def command(token: str, number: int) -> None:
    """Give standard input and output to the session that waits under TOKEN."""
    join(token, number)
