"""How a `send` speaks: what it says of its source, of its plan, and of what was sent."""

import os
from collections.abc import Coroutine
from dataclasses import asdict, dataclass, field
from typing import TypeVar

from blockstream.cli.console import event, saving_text, say
from blockstream.cli.foreground import Reporter, done
from blockstream.cli.options import cleared, warn
from blockstream.interfaces import Source
from blockstream.run import Run
from blockstream.transfers.send import SendPlan, SendResult
from blockstream.words import counted, duration_text, moment_text, size_text

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

    def warn_of(self, source: Source) -> None:
        """Say what people should know of what is sent."""
        for text in source.warnings:
            warn(text, as_json=self.as_json)


def show_plan(source: str, plan: SendPlan, *, as_json: bool) -> None:
    """Say what would be sent."""
    for text in plan.warnings:
        warn(text, as_json=as_json)
    if as_json:
        event(
            "plan",
            **asdict(plan.opening),
            extents=len(plan.extents),
            data=plan.data_bytes,
            zeros=plan.zero_bytes,
            moment=moment_text(plan.moment),
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
        event(
            "sent",
            **asdict(result.expected),
            confirmed=result.confirmed,
            moment=moment_text(result.moment),
            seconds=round(result.seconds, 3),
            counts=asdict(result.counts),
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
