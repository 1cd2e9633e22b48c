"""`send --format`: a disk, or its changes, as a stream that another tool receives."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import click

from blockstream.cli.foreign import parse_pool_chunk, with_pool_chunk
from blockstream.errors import UsageError
from blockstream.formats.foreign.names import WRITTEN
from blockstream.locations.interface import Location

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
    options: Mapping[str, Any], target: Location | None, beside: Sequence[str]
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
