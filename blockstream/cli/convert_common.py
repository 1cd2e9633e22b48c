"""How streams are made of others: what `convert` and `merge` share."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import ClassVar

from blockstream.cli.console import emit, saving_text, say
from blockstream.cli.foreground import done
from blockstream.cli.option_groups import OptionGroups
from blockstream.cli.options import ProgressWish, refuse_terminal, reporters, warn
from blockstream.cli.other_tool import PoolOptions
from blockstream.errors import StaleViewError, UsageError
from blockstream.formats.foreign.names import OURS
from blockstream.formats.foreign.table import by_name
from blockstream.jobs.foreign.chain import Combined, ConvertRequest, combined
from blockstream.jobs.foreign.convert import write_ours
from blockstream.jobs.foreign.options import ConvertOptions
from blockstream.pipeline.compression import CompressionChoice
from blockstream.run import Run
from blockstream.transfers.write_foreign import lost, write_foreign

_STDIN = 0
_STDOUT = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamGroups(OptionGroups):
    """The options of `convert` and `merge`."""

    titles: ClassVar = {"said": "Streams", "pool": "For the pool that receives"}

    said: ConvertOptions
    pool: PoolOptions


def made_of(
    command: str,
    streams: Sequence[str],
    options: StreamGroups,
    state_dir: Path,
    *,
    as_json: bool,
    quiet: bool,
    progress: ProgressWish,
) -> None:
    """Make one stream of one or several, for a command.

    Raises:
        StaleViewError: If one of them had no end mark, so that nobody knows whether it was whole.
    """
    said, pool_chunk = options.said, options.pool.pool_chunk
    refuse_terminal(_STDOUT, "standard output")
    if "-" in streams:
        refuse_terminal(_STDIN, "standard input")
    shown = reporters(command, as_json=as_json, quiet=quiet, progress=progress)
    if said.to != OURS and options.given("--compress"):
        raise UsageError("--compress is only for streams of ours")
    if said.to == OURS and pool_chunk:
        raise UsageError("--pool-chunk is only for --to thin-send")
    request = ConvertRequest(streams, state_dir, said)
    compression = CompressionChoice.parse(said.compress)
    run = Run()

    async def make() -> Combined:
        async with run.within(combined(request, run), harmless=True) as made:
            if said.to == OURS:
                await write_ours(made, compression, _STDOUT, run)
                return made
            how = by_name(said.to)
            head = replace(made.head, pool_chunk=pool_chunk)
            warn(f"{how.title} does not carry {', '.join(lost(how, head))}", as_json=as_json)
            await write_foreign(how, made.source, made.what.extents, head, _STDOUT, run)
            return made

    made = done(make(), run, shown)
    opening = made.what.opening
    if as_json:
        counts = asdict(run.progress.snapshot())
        from blockstream.events import Made

        made_event = Made(said.to, opening.base, opening.goal, opening.size, opening.total, counts)
        emit(made_event)
    elif not quiet:
        whole = "a whole disk" if opening.full else f"changes from {opening.base}"
        saving = saving_text(run.progress.snapshot(), full=opening.full)
        say(f"made: {whole} to {opening.goal}: {saving}")
    open_ended = [link.name for link in made.links if link.open_ended]
    if open_ended and not said.accept_open_end:
        raise StaleViewError(
            f"{open_ended[0]} has no end mark, so nobody knows whether all of it was there; the "
            "stream was made of what was; --accept-open-end believes it"
        )
