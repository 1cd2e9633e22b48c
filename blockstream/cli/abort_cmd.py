"""`blockstream abort`."""

from pathlib import Path

import click

from blockstream.cli.console import emit, say
from blockstream.cli.location_types import DISK_HERE
from blockstream.cli.options import with_json, with_state_dir
from blockstream.jobs.target_admin import abort


@click.command("abort", short_help="Give up an unfinished transfer.")
@click.argument("target", type=DISK_HERE)
@with_json
@with_state_dir
def command(target: str, as_json: bool, state_dir: Path) -> None:
    """Give up what is unfinished on TARGET: its resume point, its spool and its undo log.

    To bring a half-written target back instead, use `blockstream undo`.

    \b
    Example:
      blockstream abort /dev/vg/vm
    """  # noqa: D301
    outcome = abort(target, state_dir)
    if as_json:
        from blockstream.events import Aborted

        emit(Aborted(target, outcome))
    else:
        say(outcome)
