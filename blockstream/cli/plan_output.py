"""What `send -n` says."""

from blockstream.cli.console import emit, say
from blockstream.cli.options import warn
from blockstream.cli.received_output import show_received, show_would_apply
from blockstream.cli.voice import Voice
from blockstream.destinations.interface import Rehearsal
from blockstream.transfers.send import SendPlan
from blockstream.words import counted, moment_text, size_text


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
