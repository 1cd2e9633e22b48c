"""`send --format`: a disk, or its changes, as a stream that another tool receives."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

import click

from blockstream.cli.console import event, saving_text, say
from blockstream.cli.foreign import parse_pool_chunk, with_pool_chunk
from blockstream.cli.options import cleared, refuse_terminal, warn
from blockstream.cli.send_output import Voice
from blockstream.errors import UsageError
from blockstream.formats.foreign.names import WRITTEN
from blockstream.jobs.snapshots import SnapshotWish, opened_in
from blockstream.transfers.send import SendRequest, planned

F = TypeVar("F", bound=Callable[..., Any])
_STDOUT = 1


@dataclass(frozen=True, slots=True)
class OtherTool:
    """Whose stream is written.

    Attributes:
        format: Its name.
        pool_chunk: Bytes of a chunk of the pool that receives; 0 if nobody knows.
    """

    format: str
    pool_chunk: int


def with_other_tool(function: F) -> F:
    """Add --format and what belongs to it."""
    return click.option(
        "--format",
        "to_format",
        type=click.Choice(WRITTEN),
        help="Write what another tool receives, in place of a stream of ours.",
    )(with_pool_chunk(function))


def other_tool(
    options: Mapping[str, Any], target: str | None, beside: Sequence[str]
) -> OtherTool | None:
    """Return whose stream was asked for, if one of another tool was.

    Raises:
        UsageError: If an option has no effect beside --format, or without it, or no pool has such
            chunks.
    """
    chunk = parse_pool_chunk(options["pool_chunk"])
    if options["to_format"] is None:
        if chunk:
            raise UsageError("--pool-chunk is only for --format thin-send")
        return None
    if target is not None:
        raise UsageError("--format writes one disk to standard output: leave TARGET out")
    if beside:
        raise UsageError(f"--format is for a tool that knows nothing of {beside[0]}: leave it out")
    return OtherTool(options["to_format"], chunk)


async def send_to_other_tool(
    request: SendRequest, wish: SnapshotWish, other: OtherTool, voice: Voice
) -> None:
    """Write the stream to standard output, after what it cannot carry was said."""
    from blockstream.formats.foreign.table import by_name  # rarely used, as the next two
    from blockstream.jobs.foreign.chain import head_of
    from blockstream.jobs.foreign.convert import lost, write_foreign

    refuse_terminal(_STDOUT, "standard output")
    how, run = by_name(other.format), voice.run
    async with opened_in(run, request, wish) as (source, asked):
        voice.warn_of(source)
        plan = await run.carry(lambda: planned(asked, source))
        head = replace(head_of(plan), pool_chunk=other.pool_chunk)
        warn(f"{how.title} does not carry {', '.join(lost(how, head))}", as_json=voice.as_json)
        await write_foreign(how, source, plan.extents, head, _STDOUT, run)
    cleared(voice.shown)
    if voice.as_json:
        event("written", format=other.format, counts=asdict(run.progress.snapshot()))
    elif not voice.quiet:
        text = saving_text(run.progress.snapshot(), full=not asked.base)
        say(f"sent: {text}; whether it was received, only that tool tells")
