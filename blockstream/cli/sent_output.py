"""How commands say that a disk was sent."""

import os
from dataclasses import asdict
from typing import TYPE_CHECKING

from blockstream.cli.closing import CLOSING
from blockstream.cli.console import emit, saving_text, say
from blockstream.cli.voice import Voice
from blockstream.destinations.interface import Delivered
from blockstream.transfers.send import SendResult
from blockstream.words import duration_text, moment_text

if TYPE_CHECKING:
    from blockstream.transfers.write_foreign import WriteResult

_STDOUT = 1


def note_delivery(what: Delivered, voice: Voice) -> None:
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
