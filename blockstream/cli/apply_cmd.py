"""`blockstream apply`."""

from pathlib import Path

import click

from blockstream.cli.console import emit, say
from blockstream.cli.location_types import DISK_HERE
from blockstream.cli.options import with_json, with_state_dir
from blockstream.jobs.target_admin import apply_spool


@click.command("apply", short_help="Finish a staged transfer, without the sender.")
@click.argument("target", type=DISK_HERE)
@with_json
@with_state_dir
def command(target: str, as_json: bool, state_dir: Path) -> None:
    """Apply the complete stream that `recv --apply stage` left for TARGET.

    `recv` does it by itself; this is for when it was killed on the way and the sender is gone.

    \b
    Example:
      blockstream apply /dev/vg/vm
    """  # noqa: D301
    state = apply_spool(target, state_dir)
    if as_json:
        from blockstream.events import Applied

        emit(Applied(target, state))
    else:
        say(f"committed: {target} holds {state}")
