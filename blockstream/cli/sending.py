"""Disks on their way, as the command line of `send` says."""

import contextlib
import functools
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from blockstream.captures.interface import Capture
from blockstream.captures.options import CaptureOptions
from blockstream.captures.registry import capture_of
from blockstream.captures.together import Together
from blockstream.cli.joined import meeting_of
from blockstream.cli.plan_output import show_rehearsal
from blockstream.cli.send_arguments import SendArguments
from blockstream.cli.send_options import SendGroups
from blockstream.cli.send_output import SendOutput
from blockstream.cli.voice import Voice
from blockstream.destinations.interface import Destination
from blockstream.jobs.transfer import ChangeOptions, rehearse, transfer
from blockstream.locations.local import LocalDisk
from blockstream.pipeline.compression import CompressionChoice
from blockstream.pipeline.limiter import Limiter
from blockstream.transfers.receive_options import ReceiveRequest
from blockstream.transfers.send import TransferOptions

if TYPE_CHECKING:
    from blockstream.captures.vsphere.capture import MachineCapture  # pyVmomi: 0.2 s

_STDIN = 0
_STDOUT = 1


@dataclass(slots=True)
class Sending:
    """Disks of this host, a restore point, or a machine of VMware.

    Attributes:
        given: What is sent, and where to.
        options: How.
        state_dir: Where is noted what was sent.
        limiter: Limit on wire bytes.
        voice: Who speaks.
        machine: Reads the machine of VMware, if it is one.
        doubts: What is to be said of a store once all is done; empty for nothing.
    """

    given: SendArguments
    options: SendGroups
    state_dir: Path
    limiter: Limiter
    voice: Voice
    machine: "MachineCapture | None" = None
    doubts: str = ""

    def __post_init__(self) -> None:
        if self.given.machine is not None:
            from blockstream.cli.vsphere_login import machine_capture

            # A terminal is asked for the password here, where nothing else runs.
            self.machine = machine_capture(
                self.given.machine,
                str(self.given.target),
                self.state_dir,
                self.options.states.base,
                self.options.vsphere,
                self.options.remote.peer(as_json=self.voice.as_json).way,
            )

    @property
    def where(self) -> ReceiveRequest:
        """How a disk may be written."""
        target = self.given.target
        here = target.path if isinstance(target, LocalDisk) else ""
        return self.options.write.onto(here, self.state_dir)

    @property
    def how(self) -> TransferOptions:
        """How they travel."""
        options = self.options
        return TransferOptions(
            state_dir=self.state_dir,
            compression=CompressionChoice.parse(options.travel.compress),
            limiter=self.limiter,
            resume=options.states.resume,
            receipt_seconds=options.travel.receipt_seconds,
            target=options.plumbing.on_behalf_of,
        )

    async def done(self, output: SendOutput) -> None:
        """Send them."""
        run, checks = self.voice.run, self.options.checks
        changes = ChangeOptions(compare=checks.compare, recheck=self.options.vsphere.verify_cbt)
        if changes.compare:
            run.tell("comparing first: both sides are read whole, only what differs travels")
        async with self._destination() as destination, self._capture(destination) as capture:
            await transfer(capture, destination, run, output, changes)
        output.doubt(self.doubts)

    async def rehearsed(self) -> None:
        """Say what would be sent, and what the target says of it. Nothing is made."""
        shown = functools.partial(show_rehearsal, voice=self.voice)
        output = SendOutput(self.voice)
        async with (
            self._destination() as destination,
            self._capture(destination, rehearsal=True) as capture,
        ):
            await rehearse(capture, destination, self.voice.run, shown, output)

    @contextlib.asynccontextmanager
    async def _destination(self) -> AsyncIterator[Destination]:
        given, run, options = self.given, self.voice.run, self.options
        if options.other.format:
            from blockstream.destinations.other_tool import OtherToolDestination
            from blockstream.formats.foreign.table import by_name

            how = by_name(options.other.format)
            yield OtherToolDestination(self.how, how, _STDOUT, options.other.pool_chunk)
        elif given.target is None:
            from blockstream.destinations.stdout import StreamDestination

            async with run.within(meeting_of(options.plumbing.meeting), harmless=True) as guests:
                lanes = [_STDOUT, *(writing for _, writing in guests)]
                answers = _STDIN if options.plumbing.session else None
                yield StreamDestination(self.how, lanes, answers)
        else:
            from blockstream.cli.stores import open_store
            from blockstream.destinations.registry import DestinationOptions, opened_destination

            taking = DestinationOptions(
                where=self.where,
                how=self.how,
                peer=options.remote.peer(as_json=self.voice.as_json),
                open_store=functools.partial(open_store, options.store.access(self.state_dir)),
                audit_cycle=options.checks.audit,
                check_base=options.checks.check_base,
            )
            opening = opened_destination(given.target, given.naming, taking, run)
            async with opening as destination:
                yield destination

    @contextlib.asynccontextmanager
    async def _capture(
        self, destination: Destination, *, rehearsal: bool = False
    ) -> AsyncIterator[Capture]:
        given, run = self.given, self.voice.run
        if self.machine is not None:
            yield self.machine
        elif given.point is not None:
            from blockstream.cli.stores import captured_point, doubts_text

            opening = captured_point(
                given.point,
                # Where two stores may be damaged, it has to say itself which one is.
                "" if given.is_in_store else str(given.target or "the stream"),
                self.options.store.access(self.state_dir),
                run,
                increments=given.is_in_store and not self.options.checks.compare,
            )
            async with opening as (capture, doubts):
                yield capture
                self.doubts = doubts_text(doubts)
        else:
            captures = [
                await capture_of(
                    source, await self._asked(number, destination), run, rehearsal=rehearsal
                )
                for number, source in enumerate(given.disks)
            ]
            yield captures[0] if len(captures) == 1 else Together(captures)

    async def _asked(self, number: int, destination: Destination) -> CaptureOptions:
        """Return how one of the disks is read."""
        given, options = self.given, self.options
        states = options.states
        if states.base == "last":
            last = await destination.last(given.disks[number].key, self.voice.run)
            states = replace(states, base=last)
        return CaptureOptions(
            state_dir=self.state_dir,
            states=states,
            lvm=options.lvm,
            vmdk=options.vmdk,
            bitmap=options.nbd.bitmap,
            target=options.plumbing.on_behalf_of or given.keys[number],
            name=given.names[number] if len(given.disks) > 1 else "",
        )
