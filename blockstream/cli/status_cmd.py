"""`blockstream status`."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from blockstream.cli.console import emit_result, say, show
from blockstream.cli.location_types import DISK_HERE
from blockstream.cli.options import with_json, with_state_dir
from blockstream.errors import UsageError
from blockstream.jobs.target_admin import all_statuses, forget, status
from blockstream.pipeline.target_status import TargetStatus
from blockstream.words import moment_text, size_text, time_text
from blockstream_protocol import Clean, Dirty

if TYPE_CHECKING:
    from blockstream.events import Status


@click.command("status", short_help="Show what a target holds, and the resume token.")
@click.argument("target", required=False, type=DISK_HERE)
@click.option("--forget", "forgets", is_flag=True, help="Forget TARGET, which may be gone.")
@click.option(
    "--force-base", is_flag=True, help="Forget it although it is unfinished, or could be undone."
)
@with_json
@with_state_dir
def command(
    target: str | None, forgets: bool, force_base: bool, as_json: bool, state_dir: Path
) -> None:
    """Show what TARGET holds and what is unfinished; without TARGET, of all that are known.

    \b
    Examples:
      blockstream status /dev/vg/vm
      blockstream status --forget /mnt/old/disk.img
      blockstream send --resume "$(blockstream status --json DISK | jq -r .token)" ...
    """  # noqa: D301
    if forgets or force_base:
        if target is None or not forgets:
            raise UsageError("--forget takes one TARGET; --force-base goes with it")
        for folder in forget(target, state_dir, force_base=force_base):
            say(f"forgotten: {folder}; only a full copy may go onto {target} now")
        return
    found = [status(target, state_dir)] if target is not None else all_statuses(state_dir)
    for one in found:
        if as_json:
            emit_result(_event(one))
        else:
            _show(one)
    if not found and not as_json:
        show(f"no target is known in {state_dir}\n")


def _event(one: TargetStatus) -> "Status":
    """Return it as programs read it."""
    from blockstream.events import Status

    state = one.state
    clean = state if isinstance(state, Clean) else None
    dirty = state if isinstance(state, Dirty) else None
    return Status(
        target=one.location,
        size=one.size,
        state=type(state).__name__.lower(),
        id=clean.id if clean else None,
        prev=clean.prev if clean else None,
        moment=moment_text(clean.moment) if clean else None,
        base=dirty.base if dirty else None,
        goal=dirty.goal if dirty else None,
        covered=dirty.covered if dirty else None,
        total=dirty.plan.total if dirty else None,
        token=one.token,
        staged=one.staged,
        undo=one.undo,
        folder=str(one.folder),
    )


def _show(one: TargetStatus) -> None:
    lines = [f"{one.location} ({size_text(one.size)})"]
    match one.state:
        case Clean(id=state_id, prev=prev, moment=moment):
            lines.append(f"  CLEAN     holds {state_id}" + (f", from {prev}" if prev else ""))
            if moment is not None:
                lines.append(
                    f"  MOMENT    {time_text(moment // 1_000_000_000)}, when its source held that"
                )
        case Dirty() as state:
            share = 100 * state.covered / state.plan.total if state.plan.total else 0
            lines.append(
                f"  DIRTY     {state.base or 'a full copy'} -> {state.goal}, {share:.1f}% durable "
                f"({size_text(state.covered)} of {size_text(state.plan.total)})"
            )
        case _:
            lines.append("  UNKNOWN   only a full copy may go onto it")
    if one.staged:
        lines.append(f"  STAGED    {one.staged} waits: blockstream apply {one.location}")
    if one.undo:
        lines.append(f"  UNDO      possible: blockstream undo {one.location}")
    if one.token:
        lines.append(f"  RESUME    blockstream send --resume {one.token} ...")
    lines.append(f"  state in  {one.folder}")
    show("\n".join(lines) + "\n")
