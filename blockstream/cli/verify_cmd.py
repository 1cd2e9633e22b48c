"""`blockstream verify`."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import click

from blockstream.captures.interface import Captured
from blockstream.captures.options import CaptureOptions
from blockstream.captures.registry import capture_of
from blockstream.cli.console import emit, say
from blockstream.cli.grouped_help import GroupedCommand
from blockstream.cli.location_types import PLACE, disk_here
from blockstream.cli.option_groups import OptionGroups, with_groups
from blockstream.cli.options import ProgressWish, reporters, with_progress, with_state_dir
from blockstream.cli.remote_options import RemoteOptions, refuse_remote_options
from blockstream.cli.voice import Voice
from blockstream.declared import option
from blockstream.destinations.interface import Delivered
from blockstream.destinations.places import OneDisk
from blockstream.destinations.registry import DestinationOptions, opened_destination
from blockstream.errors import IntegrityError, TargetTooLargeError, UsageError
from blockstream.jobs.transfer import ChangeOptions, Unwatched, transfer
from blockstream.locations.interface import DiskLocation, Location, opened_source
from blockstream.locations.registry import disk_of, location_of
from blockstream.locations.ssh import Remote
from blockstream.run import Run
from blockstream.transfers.digests import Comparison
from blockstream.transfers.receive import ReceiveResult
from blockstream.transfers.receive_options import ReceiveRequest
from blockstream.transfers.send import SendResult, TransferOptions
from blockstream.words import size_text

_SHOWN = 5


@dataclass(frozen=True, slots=True)
class RepairOptions:
    """What becomes of what differs.

    Attributes:
        repair: Send it.
        force_larger: Also to a target that is larger than the source.
    """

    repair: bool = option(False, "Send what differs.")
    force_larger: bool = option(False, "With --repair: take a TARGET larger than SOURCE.")


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyGroups(OptionGroups):
    """The options of `verify`."""

    titles: ClassVar = {"repair": "What differs", "remote": "Another host"}

    repair: RepairOptions
    remote: RemoteOptions


@click.command("verify", cls=GroupedCommand, short_help="Compare two disks, and repair one.")
@click.argument("source", type=PLACE)
@click.argument("target", type=PLACE)
@with_groups(VerifyGroups)
@with_progress
@with_state_dir
def command(
    source: str,
    target: str,
    options: VerifyGroups,
    state_dir: Path,
    as_json: bool,
    quiet: bool,
    progress: ProgressWish,
) -> None:
    """Compare SOURCE with TARGET, a disk of this host or [USER@]HOST:/PATH; both are read whole.

    From another host, only digests travel. Exit status 0 means equal, 12 that something differs.
    With --repair, what differs is sent, and 0 means that they are equal then. A TARGET may be
    larger: its end is not looked at; to repair such a one takes --force-larger.

    \b
    Examples:
      blockstream verify disk.img HOST:/dev/vg/vm
      blockstream verify /dev/vg/vm copy.img
      blockstream verify /dev/vg/vm-snap root@HOST:/dev/vg/vm --repair
    """  # noqa: D301
    where, disk = location_of(target), disk_of(source)
    if not isinstance(where, Remote):
        where = disk_here(target)
        refuse_remote_options(options)
    taking = DestinationOptions(
        where=ReceiveRequest(target, state_dir, force_larger=True),
        how=TransferOptions(state_dir),
        peer=options.remote.peer(as_json=as_json),
    )
    shown = reporters("verify", as_json=as_json, quiet=quiet, progress=progress)
    voice = Voice(shown, as_json=as_json, quiet=quiet)
    how = options.repair
    if how.force_larger and not how.repair:
        raise UsageError("--force-larger is for --repair, and has no effect without")
    verifying = _Repairing(how) if how.repair else _Comparing()
    voice.done(verifying.done(disk, where, taking, voice.run))
    _show(verifying.found, source, target, verifying.state, as_json=as_json, quiet=quiet)


class _Comparing:
    """Reads both sides.

    Attributes:
        found: What differs.
        state: What the target holds after a repair; empty without one.
    """

    def __init__(self) -> None:
        self.found: Comparison
        self.state = ""

    async def done(
        self, source: DiskLocation, target: Location, options: DestinationOptions, run: Run
    ) -> None:
        """Compare."""
        opening = opened_source(source, from_medium=True)
        async with (
            run.within(opening, harmless=True) as disk,
            opened_destination(target, OneDisk(), options, run) as destination,
        ):
            self.found = await destination.differing(Captured(source.name, source.key, disk), run)


class _Repairing(_Comparing, Unwatched):
    """Reads both sides, and sends what differs."""

    async def done(
        self, source: DiskLocation, target: Location, options: DestinationOptions, run: Run
    ) -> None:
        """Compare, and send."""
        capture = await capture_of(source, CaptureOptions(options.how.state_dir), run)
        async with opened_destination(target, OneDisk(), options, run) as destination:
            await transfer(capture, destination, run, self, ChangeOptions(compare=True))

    def __init__(self, how: RepairOptions) -> None:
        super().__init__()
        self._how = how

    def compared(self, disk: Captured, found: Comparison) -> None:
        """See `Onlooker`. What is larger may be the wrong disk, and is written only on demand.

        Raises:
            TargetTooLargeError: If it would be.
        """
        self.found = found
        larger = found.target_size > found.size and found.differing.total()
        if larger and not self._how.force_larger:
            raise TargetTooLargeError(
                f"the target has {found.target_size} bytes, the source {found.size}; nothing was "
                "written; --force-larger takes it, and leaves the rest untouched"
            )

    def delivered(self, what: Delivered) -> None:
        """See `Onlooker`."""
        result = what.result
        if isinstance(result, SendResult):
            self.state = result.expected.goal
        elif isinstance(result, ReceiveResult) and result.committed is not None:
            self.state = result.committed.goal


def _tail(found: Comparison) -> str:
    """Say what of a larger target was not looked at."""
    more = found.target_size - found.size
    return (
        f"; what TARGET has beyond that, {size_text(more)}, was not looked at" if more > 0 else ""
    )


def _show(
    found: Comparison, source: str, target: str, goal: str, *, as_json: bool, quiet: bool
) -> None:
    """Say what differs.

    Raises:
        IntegrityError: If something does, and was not repaired.
    """
    differing = found.differing.total()
    if as_json:
        from blockstream.events import Compared

        sizes = (found.size, found.target_size)
        emit(Compared(*sizes, differing, len(found.differing), goal or None))
    elif not quiet and not differing:
        say(f"equal: {target} holds the {size_text(found.size)} of {source}{_tail(found)}")
    elif not quiet and goal:
        text = f"repaired: {size_text(differing)} of {target} differed; it holds {goal} now"
        say(text + _tail(found))
    if differing and not goal:
        places = [f"{length} bytes at offset {offset}" for offset, length, _ in found.differing]
        more = f", and {len(places) - _SHOWN} more ranges" if len(places) > _SHOWN else ""
        raise IntegrityError(
            f"{target} differs from {source} in {differing} bytes: {'; '.join(places[:_SHOWN])}"
            f"{more}; nothing was written; --repair sends them{_tail(found)}"
        )
