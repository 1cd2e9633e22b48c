"""`blockstream restore`."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import click

from blockstream.cli.grouped_help import GroupedCommand
from blockstream.cli.location_types import PLACE, disk_here
from blockstream.cli.option_groups import OptionGroups, with_groups
from blockstream.cli.options import ProgressWish, reporters, with_progress, with_state_dir
from blockstream.cli.remote_options import RemoteOptions, refuse_remote_options
from blockstream.cli.send_output import SendOutput
from blockstream.cli.store_options import StoreOptions
from blockstream.cli.stores import captured_point, doubts_text, place_of
from blockstream.cli.voice import Voice
from blockstream.destinations.places import OneDisk
from blockstream.destinations.registry import DestinationOptions, opened_destination
from blockstream.jobs.transfer import transfer
from blockstream.locations.registry import location_of
from blockstream.locations.ssh import Remote
from blockstream.transfers.receive_options import WriteOptions
from blockstream.transfers.send import TransferOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreGroups(OptionGroups):
    """The options of `restore`."""

    titles: ClassVar = {
        "write": "Writing TARGET",
        "store": "Reaching the store",
        "remote": "Another host",
    }

    write: WriteOptions
    store: StoreOptions
    remote: RemoteOptions


@click.command("restore", cls=GroupedCommand, short_help="Bring a restore point back onto a disk.")
@click.argument("point", metavar="STORE/DISK[@POINT]", type=PLACE)
@click.argument("target", type=PLACE)
@with_groups(RestoreGroups)
@with_progress
@with_state_dir
def command(
    point: str,
    target: str,
    options: RestoreGroups,
    state_dir: Path,
    as_json: bool,
    quiet: bool,
    progress: ProgressWish,
) -> None:
    """Write a restore point onto TARGET, a disk of this host or, as HOST:/PATH, of another.

    POINT is `last` (the default), a number, the id of a state, or a time in UTC: the newest point
    that is not younger. TARGET then holds that state, so that increments can go onto it. Run
    again, the same command goes on where it was interrupted.

    Exit 19 if TARGET holds the point, and newer ones may be missing in the store.

    \b
    Examples:
      blockstream restore dir:/var/backups/blockstream/vm /dev/vg/vm
      blockstream restore dir:/var/backups/blockstream/vm@2026-11-20T03:15 copy.img --create
      blockstream restore dir:/var/backups/blockstream/vm@7 root@HOST:/dev/vg/vm
    """  # noqa: D301
    place = place_of(point)
    going_to = location_of(target)
    if not isinstance(going_to, Remote):
        going_to = disk_here(target)
        refuse_remote_options(options)
    shown = reporters("restore", as_json=as_json, quiet=quiet, progress=progress)
    voice = Voice(shown, as_json=as_json, quiet=quiet)
    taking = DestinationOptions(
        where=options.write.onto(target, state_dir),
        how=TransferOptions(state_dir),
        peer=options.remote.peer(as_json=as_json),
    )
    output = SendOutput(voice)

    async def restored() -> None:
        run = voice.run
        async with (
            captured_point(place, target, options.store.access(state_dir), run) as (
                capture,
                doubts,
            ),
            opened_destination(going_to, OneDisk(), taking, run) as destination,
        ):
            await transfer(capture, destination, run, output)
        output.doubt(doubts_text(doubts))

    output.done(restored())
