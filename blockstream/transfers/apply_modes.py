"""The ways in which a stream comes onto a target, and what each keeps until it is committed."""

from collections.abc import Callable
from dataclasses import replace

from blockstream.pipeline.direct import DirectApplier
from blockstream.pipeline.receiver import Applier
from blockstream.pipeline.staged import SPOOL_POSITION, StagedApplier
from blockstream.run import Run
from blockstream.transfers.opened_target import OpenedTarget
from blockstream.transfers.receive_options import ApplyMode
from blockstream.transfers.stored_stream import finish_staged, spool_facts
from blockstream.transfers.undo_keeper import Save, UndoKeeper
from blockstream_protocol import Dirty, Open, Plan, ReceiverPolicy, TargetState

# Whether a transfer of that identity is continued here.
Continues = Callable[[str], bool]


def applier_for(
    mode: ApplyMode,
    everything: OpenedTarget,
    policy: ReceiverPolicy,
    facts: dict[str, str],
    continues: Continues,
    run: Run,
) -> tuple[TargetState, Applier]:
    """Return the state to decide by, and what executes the effects.

    Args:
        mode: How it is to be applied.
        everything: The target.
        policy: What is allowed.
        facts: What a journal keeps beside the state.
        continues: Tells whether the transfer in the spool is the one that comes.
        run: Stops it.
    """
    target, journal = everything.target, everything.journal
    keeper = UndoKeeper(everything, _saver(everything) if mode is ApplyMode.UNDO else None)
    direct = DirectApplier(target, journal, keeper)
    if mode is not ApplyMode.STAGE or policy.dry_run:
        return journal.state, direct

    def complete() -> None:
        finish_staged(everything, run)

    staged = StagedApplier(everything.spool_path, everything.spool, direct, complete)
    everything.spool.facts = facts | spool_facts(policy)
    if not _spool_is_there(everything):
        everything.drop_spool()
    spooled = everything.spool.state
    if isinstance(spooled, Dirty) and continues(spooled.transfer):
        return spooled, staged
    return _as_spool_sees(journal.state), staged


def unfinished(mode: ApplyMode, everything: OpenedTarget) -> TargetState:
    """Return the state in which an earlier run left what comes in this way."""
    return (everything.spool if mode is ApplyMode.STAGE else everything.journal).state


def why_undo_lost(mode: ApplyMode, everything: OpenedTarget) -> str:
    """Say, after something was written, why it cannot be undone; empty if it need not or can."""
    if mode is not ApplyMode.UNDO or everything.undo_path.exists():
        return ""
    return (
        f"{everything.target.name} is committed, but cannot be undone: somebody has taken away "
        f"{everything.undo_path}, which held what it overwrote"
    )


def _spool_is_there(everything: OpenedTarget) -> bool:
    """Tell whether there is as much in an unfinished spool as its journal promises."""
    promised = int(everything.spool.entry.facts.get(SPOOL_POSITION, 0))
    if not isinstance(everything.spool.state, Dirty) or not promised:
        return True
    try:
        return everything.spool_path.stat().st_size >= promised
    except OSError:
        return False


def _as_spool_sees(state: TargetState) -> TargetState:
    """Return the target's state without a resume point: nothing of the stream is in the spool."""
    if not isinstance(state, Dirty):
        return state
    return replace(state, transfer="", frames=0, chain="", end=0, covered=0)


def _saver(everything: OpenedTarget) -> Save:
    """Return what keeps the pre-images of a plan."""

    def save(opening: Open, plan: Plan, resumed: bool) -> None:
        from blockstream.transfers.undo import save_undo  # heavy, and rarely used

        save_undo(everything, opening, plan, resumed=resumed)

    return save
