"""`blockstream adopt`."""

from pathlib import Path

import click

from blockstream.cli.console import emit, say
from blockstream.cli.location_types import DISK_HERE
from blockstream.cli.options import with_json, with_state_dir
from blockstream.jobs.target_admin import adopt


@click.command("adopt", short_help="Say which state a target holds.")
@click.argument("target", type=DISK_HERE)
@click.option("--id", "state_id", required=True, help="The state, as `send --base` will name it.")
@click.option("--force-base", is_flag=True, help="Even if TARGET is half-written.")
@with_json
@with_state_dir
def command(target: str, state_id: str, force_base: bool, as_json: bool, state_dir: Path) -> None:
    """Record that TARGET holds a state, although it was copied there by other means.

    Nothing is compared: you vouch for it. Increments from that state are taken afterwards.

    \b
    Example:
      dd if=disk.img of=/dev/vg/vm bs=1M conv=fdatasync
      blockstream adopt /dev/vg/vm --id monday
      blockstream send --base monday --extents changed.json disk.img | blockstream recv /dev/vg/vm
    """  # noqa: D301
    adopt(target, state_id, state_dir, force_base=force_base)
    if as_json:
        from blockstream.events import Adopted

        emit(Adopted(target, state_id))
    else:
        say(f"adopted: {target} is taken to hold {state_id}")
