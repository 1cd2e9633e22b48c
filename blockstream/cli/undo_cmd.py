"""`blockstream undo`."""

from pathlib import Path

import click

from blockstream.cli.console import emit, say
from blockstream.cli.location_types import DISK_HERE
from blockstream.cli.options import with_json, with_state_dir
from blockstream.jobs.target_admin import undo_target


@click.command("undo", short_help="Bring a target back to before the last transfer.")
@click.argument("target", type=DISK_HERE)
@with_json
@with_state_dir
def command(target: str, as_json: bool, state_dir: Path) -> None:
    """Bring TARGET back to what it held before the last transfer with --apply undo.

    Works after a finished transfer and in the middle of one; needs nothing from the sender.

    \b
    Example:
      blockstream send ... | blockstream recv --apply undo /dev/vg/vm
      blockstream undo /dev/vg/vm
    """  # noqa: D301
    state = undo_target(target, state_dir)
    if as_json:
        from blockstream.events import Undone

        emit(Undone(target, state))
    else:
        say(f"undone: {target} holds {state} again")
