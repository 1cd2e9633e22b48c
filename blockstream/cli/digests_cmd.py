"""`blockstream digests`: what `verify` and `send --compare` run on the other host."""

from pathlib import Path

import click

from blockstream.cli.foreground import done
from blockstream.cli.location_types import DISK
from blockstream.cli.options import refuse_terminal, with_errors_json, with_state_dir
from blockstream.locations.interface import DiskLocation
from blockstream.run import Run
from blockstream.transfers.digests import send_digests
from blockstream_protocol import DEVICE_BYTES

_STDOUT = 1


@click.command("digests", hidden=True)
@click.argument("disk", type=DISK)
@click.option("--most", type=click.IntRange(0), default=DEVICE_BYTES, metavar="BYTES")
@click.option("--adopt", default="", metavar="ID")
@with_state_dir
@with_errors_json
def command(disk: DiskLocation, most: int, adopt: str, state_dir: Path) -> None:
    """Write the digests of the blocks of DISK to standard output."""
    refuse_terminal(_STDOUT, "standard output")
    held = (adopt, state_dir) if adopt else None
    run = Run()
    done(send_digests(disk, most, _STDOUT, run, held), run)
