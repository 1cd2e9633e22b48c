"""How a `send` speaks: what it says of its source, of its plan, and of what was sent."""

import os
from collections.abc import Coroutine, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, TypeVar

from blockstream.captures.interface import Captured
from blockstream.cli.closing import CLOSING
from blockstream.cli.console import emit, saving_text, say
from blockstream.cli.foreground import Reporter, done
from blockstream.cli.options import cleared, warn
from blockstream.cli.received_output import show_received, show_would_apply
from blockstream.destinations.interface import Delivered, Rehearsal
from blockstream.errors import BlockstreamError, StaleViewError
from blockstream.run import Run
from blockstream.transfers.send import SendPlan, SendResult
from blockstream.words import counted, duration_text, moment_text, size_text

if TYPE_CHECKING:
    from blockstream.captures.vsphere.capture import MachineCapture  # pyVmomi: 0.2 s
    from blockstream.transfers.digests import Comparison  # numpy: 60 ms
    from blockstream.transfers.write_foreign import WriteResult

T = TypeVar("T")

_STDOUT = 1


@dataclass(slots=True)
class Voice:
    """How a run speaks.

    Attributes:
        shown: Who shows progress.
        as_json: In JSON lines.
        quiet: No closing line.
        run: What works is handed this.
    """

    shown: list[Reporter]
    as_json: bool
    quiet: bool
    run: Run = field(init=False)

    def __post_init__(self) -> None:
        self.run = Run(self.tell)

    def done(self, job: Coroutine[object, object, T]) -> T:
        """Do a job in the foreground; see there."""
        return done(job, self.run, self.shown)

    def tell(self, text: str) -> None:
        """Say a line, in the place of a bar."""
        cleared(self.shown)
        warn(text, as_json=self.as_json)


class SendOutput:
    """Says what becomes of disks that are sent, and keeps what has to be looked at for the end."""

    def __init__(self, voice: Voice, machine: "MachineCapture | None" = None) -> None:
        """Begin.

        Args:
            voice: How to speak.
            machine: The machine that is sent, if it is one.
        """
        self._voice = voice
        self._machine = machine
        self._missed: dict[str, int] = {}
        self._doubts: list[str] = []
        self._delivered: list[Delivered] = []

    def captured(self, disks: Sequence[Captured]) -> None:
        """See `Onlooker`."""
        if self._machine is not None and self._voice.as_json:
            frozen = self._machine.frozen
            from blockstream.events import Machine

            emit(
                Machine(
                    machine=frozen.machine.path,
                    snapshot=frozen.snapshot.name,
                    quiesced=frozen.quiesced,
                    whole=len([each for each in disks if each.why_whole]),
                    disks=[_described(each) for each in disks],
                )
            )
            return
        for each in disks:
            if each.why_whole:
                size = size_text(each.source.size)
                self._voice.tell(f"{each.name}: all of its {size}, because {each.why_whole}")

    def compared(self, disk: Captured, found: "Comparison") -> None:
        """See `Onlooker`."""
        cleared(self._voice.shown)

    def missed(self, disk: Captured, count: int) -> None:
        """See `Onlooker`."""
        cleared(self._voice.shown)
        if self._voice.as_json:
            from blockstream.events import Rechecked

            emit(Rechecked(disk.name, count))
        if count:
            self._missed[disk.name] = count

    def delivered(self, what: Delivered) -> None:
        """See `Onlooker`. It is shown at the end, below the last bar."""
        self._delivered.append(what)

    def _show(self, what: Delivered) -> None:
        voice, result, full = self._voice, what.result, not what.disk.base
        if what.base_checked and voice.as_json:
            from blockstream.events import BaseChecked

            emit(BaseChecked(what.place))
        elif what.base_checked and not voice.quiet:
            say(f"{what.place} held the base: all that was not sent was read, and was equal")
        if isinstance(result, SendResult):
            _note(what, voice)
            show_sent(result, voice, full=full, target=what.place)
            return
        # What the others take to say is loaded for them alone.
        from blockstream.transfers.receive import ReceiveResult
        from blockstream.transfers.write_foreign import WriteResult

        if isinstance(result, ReceiveResult):
            show_received(
                result,
                what.place,
                as_json=voice.as_json,
                quiet=voice.quiet,
                source=what.disk.location,
            )
            self.doubt(result.undo_lost)
        elif isinstance(result, WriteResult):
            _note(what, voice)
            show_written(result, voice, full=full)
        else:
            from blockstream.cli.stores import missed_text, show_saved

            _note(what, voice)
            show_saved(result, what.place, as_json=voice.as_json, quiet=voice.quiet)
            self.doubt(missed_text(result, what.place))

    def doubt(self, text: str) -> None:
        """Say in the end what has to be looked at, if it is anything."""
        self._doubts += [text] if text else []

    def done(self, job: Coroutine[object, object, T]) -> T:
        """Do a job in the foreground; say in the end what has to be looked at.

        Raises:
            StaleViewError: If there is anything.
            BlockstreamError: As the job fails.
        """
        try:
            result = self._voice.done(job)
        except BlockstreamError:
            self._show_all()
            # What ended it has the status; this has to be known, too.
            for text in self._texts():
                self._voice.tell(text)
            raise
        self._show_all()
        if texts := self._texts():
            raise StaleViewError("; ".join(texts))
        return result

    def _show_all(self) -> None:
        cleared(self._voice.shown)
        for each in self._delivered:
            self._show(each)

    def _texts(self) -> list[str]:
        arrived = {each.disk.name for each in self._delivered}
        texts, missed, lost = list(self._doubts), list[str](), list[str]()
        for name, count in self._missed.items():
            (missed if name in arrived else lost).append(f"{size_text(count)} of {name}")
        if missed:
            texts.append(
                f"what arrived is right, but change tracking had missed {', '.join(missed)}: what "
                "other targets hold may lack them; send them full copies, and do not trust this "
                "tracker before it was switched off and on"
            )
        if lost:
            texts.append(
                f"change tracking had missed {', '.join(lost)}, of which nothing arrived: do not "
                "trust this tracker before it was switched off and on"
            )
        return texts


def _note(what: Delivered, voice: Voice) -> None:
    """Keep what was delivered for the last line."""
    if not voice.as_json:
        return
    result, disk = what.result, what.disk
    CLOSING.delivered(
        source=disk.location,
        target=what.place,
        state=result.state,
        base=disk.base,
        moment=moment_text(result.moment),
        counts=result.counts,
        is_committed=what.is_confirmed,
    )


def _described(disk: Captured) -> dict[str, object]:
    return {
        "name": disk.name,
        "key": int(disk.name.rpartition("-")[2]),
        "size": disk.source.size,
        "base": disk.base,
        "goal": disk.state,
        "why_whole": disk.why_whole,
    }


def show_rehearsal(source: str, found: Rehearsal, voice: Voice) -> None:
    """Say what would be sent, and what the place says of it."""
    from blockstream.transfers.receive import ReceiveResult
    from blockstream.transfers.save import SaveEstimate

    show_plan(source, found.plan, as_json=voice.as_json)
    answer = found.answer
    if isinstance(answer, ReceiveResult):
        show_received(answer, found.place, as_json=voice.as_json, quiet=False)
    elif isinstance(answer, SaveEstimate) and voice.as_json:
        from blockstream.events import WouldStore

        emit(WouldStore(answer.bytes, answer.requests))
    elif isinstance(answer, SaveEstimate):
        say(
            f"  {size_text(answer.bytes)} at most would be stored, with about {answer.requests} "
            "requests that write"
        )
    elif answer is not None:
        show_would_apply(found.place, answer.base, answer.goal, as_json=voice.as_json)
    elif found.place:
        say(f"{found.place} is not asked: its policy tells only a real transfer")


def show_plan(source: str, plan: SendPlan, *, as_json: bool) -> None:
    """Say what would be sent."""
    for text in plan.warnings:
        warn(text, as_json=as_json)
    if as_json:
        from blockstream.events import Planned

        emit(
            Planned(
                source=source,
                base=plan.opening.base,
                goal=plan.opening.goal,
                size=plan.opening.size,
                total=plan.opening.total,
                extents=len(plan.extents),
                data=plan.data_bytes,
                zeros=plan.zero_bytes,
                moment=moment_text(plan.moment),
            )
        )
        return
    opening = plan.opening
    kind = "a full copy" if opening.full else f"the changes from {opening.base} to {opening.goal}"
    say(f"would send {kind} of {source} ({size_text(opening.size)}):")
    say(f"  {size_text(plan.data_bytes)} to read, in {counted(len(plan.extents), 'extent')}")
    say(f"  {size_text(plan.zero_bytes)} known to be zeros")
    say(f"  {size_text(opening.size - opening.total)} not touched")


def show_sent(result: SendResult, voice: Voice, *, full: bool, target: str = "") -> None:
    """Say what was sent."""
    if voice.as_json:
        from blockstream.events import Sent

        emit(
            Sent(
                target=target,
                **asdict(result.expected),
                confirmed=result.confirmed,
                moment=moment_text(result.moment),
                seconds=round(result.seconds, 3),
                counts=asdict(result.counts),
            )
        )
    elif not voice.quiet and target:
        saving = saving_text(result.counts, full=full)
        seconds = duration_text(result.seconds)
        say(f"committed: {target} holds {result.expected.goal}: {saving}, in {seconds}")
    elif not voice.quiet:
        say(
            f"sent: {saving_text(result.counts, full=full)}, in {duration_text(result.seconds)}, "
            f"as {result.expected.goal}"
        )
        if result.confirmed:
            say("confirmed: the receiver committed it")
        elif not os.isatty(_STDOUT):
            say("sent, not confirmed: the receiver's exit status decides")


def show_written(result: "WriteResult", voice: Voice, *, full: bool) -> None:
    """Say what was written for another tool."""
    if voice.as_json:
        from blockstream.events import Written

        emit(Written(result.format, asdict(result.counts)))
    elif not voice.quiet:
        text = saving_text(result.counts, full=full)
        say(f"sent: {text}; whether it was received, only that tool tells")
