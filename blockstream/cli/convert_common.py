"""How streams are made of others: what `convert` and `merge` share."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from blockstream.cli.console import event, saving_text, say
from blockstream.cli.foreground import done
from blockstream.cli.foreign import check_names, parse_pool_chunk
from blockstream.cli.options import parse_size, refuse_terminal, reporters, warn
from blockstream.errors import StaleViewError, UsageError
from blockstream.formats.foreign.names import OURS
from blockstream.formats.foreign.table import by_name
from blockstream.jobs.foreign.chain import Combined, ConvertRequest, combined
from blockstream.jobs.foreign.convert import write_ours
from blockstream.pipeline.compression import CompressionChoice
from blockstream.run import Run
from blockstream.transfers.write_foreign import lost, write_foreign

_STDIN = 0
_STDOUT = 1


def made_of(command: str, streams: Sequence[str], to: str, options: Mapping[str, Any]) -> None:
    """Make one stream of one or several, for a command.

    Raises:
        StaleViewError: If one of them had no end mark, so that nobody knows whether it was whole.
    """
    refuse_terminal(_STDOUT, "standard output")
    if "-" in streams:
        refuse_terminal(_STDIN, "standard input")
    as_json, quiet = options["as_json"], options["quiet"]
    shown = reporters(command, as_json=as_json, quiet=quiet, progress=options["progress"])
    if to != OURS and options["compress"] != "auto":
        raise UsageError("--compress is only for streams of ours")
    check_names(options)
    pool_chunk = parse_pool_chunk(options["pool_chunk"])
    if to == OURS and pool_chunk:
        raise UsageError("--pool-chunk is only for --to thin-send")
    request = ConvertRequest(
        streams=streams,
        to=to,
        state_dir=options["state_dir"],
        format=options["format"] or "",
        size=parse_size(options["size"]) if options["size"] else None,
        base=options["base"],
        goal=options["goal"],
        accept_open_end=options["accept_open_end"],
    )
    compression = CompressionChoice.parse(options["compress"])
    run = Run()

    async def make() -> Combined:
        async with run.within(combined(request, run), harmless=True) as made:
            if to == OURS:
                await write_ours(made, compression, _STDOUT, run)
                return made
            how = by_name(to)
            head = replace(made.head, pool_chunk=pool_chunk)
            warn(f"{how.title} does not carry {', '.join(lost(how, head))}", as_json=as_json)
            await write_foreign(how, made.source, made.what.extents, head, _STDOUT, run)
            return made

    made = done(make(), run, shown)
    opening = made.what.opening
    if as_json:
        event("made", format=to, **asdict(opening), counts=asdict(run.progress.snapshot()))
    elif not quiet:
        whole = "a whole disk" if opening.full else f"changes from {opening.base}"
        saving = saving_text(run.progress.snapshot(), full=opening.full)
        say(f"made: {whole} to {opening.goal}: {saving}")
    open_ended = [link.name for link in made.links if link.open_ended]
    if open_ended and not options["accept_open_end"]:
        raise StaleViewError(
            f"{open_ended[0]} has no end mark, so nobody knows whether all of it was there; the "
            "stream was made of what was; --accept-open-end believes it"
        )
