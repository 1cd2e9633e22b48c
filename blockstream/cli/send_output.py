"""How a `send` speaks: what it says of its source, of its plan, and of what was sent."""

from collections.abc import Coroutine, Sequence
from typing import TYPE_CHECKING, TypeVar

from blockstream.captures.interface import Captured
from blockstream.cli.console import emit, say
from blockstream.cli.options import cleared
from blockstream.cli.received_output import show_received
from blockstream.cli.sent_output import note_delivery, show_sent, show_written
from blockstream.cli.voice import Voice
from blockstream.destinations.interface import Delivered
from blockstream.errors import BlockstreamError, StaleViewError
from blockstream.transfers.send import SendResult
from blockstream.words import size_text

if TYPE_CHECKING:
    from blockstream.captures.vsphere.capture import MachineCapture  # pyVmomi: 0.2 s
    from blockstream.transfers.digests import Comparison  # numpy: 60 ms


T = TypeVar("T")


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
            note_delivery(what, voice)
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
            note_delivery(what, voice)
            show_written(result, voice, full=full)
        else:
            from blockstream.cli.saved_output import missed_text, show_saved

            note_delivery(what, voice)
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


def _described(disk: Captured) -> dict[str, object]:
    return {
        "name": disk.name,
        "key": int(disk.name.rpartition("-")[2]),
        "size": disk.source.size,
        "base": disk.base,
        "goal": disk.state,
        "why_whole": disk.why_whole,
    }
