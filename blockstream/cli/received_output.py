"""How commands say what a target of this host holds now."""

from dataclasses import asdict
from typing import TYPE_CHECKING

from blockstream.cli.console import event, saving_text, say
from blockstream.words import duration_text, moment_text, size_text

if TYPE_CHECKING:
    from blockstream.transfers.receive import ReceiveResult


def sampled_text(target: str, reason: str) -> str:
    """Say that only samples told that a target was its base, and why."""
    return (
        f"{target} was compared with its base by samples alone, because {reason}; --check-base "
        "reads all of it"
    )


def show_received(result: "ReceiveResult", target: str, *, as_json: bool, quiet: bool) -> None:
    """Say what was committed and what that saved."""
    committed = result.committed
    if as_json:
        event(
            "committed" if committed else "would-apply",
            **(asdict(committed) if committed else asdict(result.opening)),
            written=result.written,
            seconds=round(result.seconds, 3),
            counts=asdict(result.counts),
            untouched_tail=result.untouched_tail,
            sampled=result.sampled,
            moment=moment_text(result.moment),
        )
        return
    if quiet:
        return
    if committed is None:
        kind = "a full copy" if result.opening.full else f"changes from {result.opening.base}"
        say(f"{target} would take {kind} to {result.opening.goal}; nothing was written")
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
