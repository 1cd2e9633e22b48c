"""How commands say what a target of this host holds now."""

from dataclasses import asdict
from typing import TYPE_CHECKING

from blockstream.cli.closing import CLOSING
from blockstream.cli.console import emit, saving_text, say
from blockstream.words import duration_text, moment_text, size_text

if TYPE_CHECKING:
    from blockstream.transfers.receive import ReceiveResult


def sampled_text(target: str, reason: str) -> str:
    """Say that only samples told that a target was its base, and why."""
    return (
        f"{target} was compared with its base by samples alone, because {reason}; --check-base "
        "reads all of it"
    )


def show_received(
    result: "ReceiveResult", target: str, *, as_json: bool, quiet: bool, source: str = ""
) -> None:
    """Say what was committed and what that saved; programs hear of it in the last line, too."""
    committed = result.committed
    if committed is None:
        if as_json or not quiet:
            opening = result.opening
            show_would_apply(target, opening.base, opening.goal, as_json=as_json)
        return
    if as_json:
        from blockstream.events import Committed

        CLOSING.delivered(
            source=source,
            target=target,
            state=committed.goal,
            base=result.opening.base,
            moment=moment_text(result.moment),
            counts=result.counts,
            is_committed=True,
        )
        emit(
            Committed(
                target=target,
                **asdict(committed),
                written=result.written,
                untouched_tail=result.untouched_tail,
                sampled=result.sampled,
                moment=moment_text(result.moment),
                seconds=round(result.seconds, 3),
                counts=asdict(result.counts),
            )
        )
        return
    if quiet:
        return
    if not result.written:
        say(f"already committed: {target} holds {committed.goal}; nothing was written")
        return
    if result.sampled:
        say(sampled_text(target, result.sampled))
    if result.untouched_tail:
        say(f"the last {size_text(result.untouched_tail)} of {target} were not touched")
    saving = saving_text(result.counts, full=result.opening.full)
    say(f"committed: {target} holds {committed.goal}: {saving}, in {duration_text(result.seconds)}")


def show_would_apply(target: str, base: str, goal: str, *, as_json: bool) -> None:
    """Say what a target would take."""
    if as_json:
        from blockstream.events import WouldApply

        emit(WouldApply(target, base, goal))
        return
    kind = f"changes from {base}" if base else "a full copy"
    say(f"{target} would take {kind} to {goal}; nothing was written")
