"""What commands ask and say of streams of other tools."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import click

from blockstream.cli.console import event, say
from blockstream.cli.options import parse_size, warn, with_progress, with_state_dir
from blockstream.errors import StaleViewError, UsageError
from blockstream.formats.foreign.names import OURS, READ, WRITTEN
from blockstream.words import size_text
from blockstream_protocol import is_id

if TYPE_CHECKING:
    from blockstream.jobs.foreign.receive import (
        ForeignResult,  # numpy: what `recv` need not wait for
    )

F = TypeVar("F", bound=Callable[..., Any])

# What dm-thin allows.
_CHUNK_STEP = 64 << 10
_CHUNK_MOST = 1 << 30
_WISHES = (
    *("format", "base", "goal", "expect_bytes", "accept_open_end", "snapback"),
    "force_raw",
)


def with_foreign_options(function: F) -> F:
    """Add what people say of a stream that does not say it itself."""
    for option in (
        click.option(
            "--format",
            type=click.Choice(READ),
            help="Format of a stream of another tool. [default: as it begins]",
        ),
        click.option("--base", default="", help="State that such a stream belongs onto."),
        click.option("--goal", default="", help="Name of the state that it leads to."),
        click.option(
            "--expect-bytes",
            type=click.IntRange(min=0),
            metavar="BYTES",
            help="How many bytes of data it must have.",
        ),
        click.option(
            "--accept-open-end",
            is_flag=True,
            help="Believe that a stream without an end mark is whole.",
        ),
        click.option(
            "--force-raw",
            is_flag=True,
            help="With --format raw: it is one, although it begins like something else.",
        ),
        click.option(
            "--snapback",
            is_flag=True,
            help="It is lvmsync's undo log: the first of two records of a range wins.",
        ),
    ):
        function = option(function)
    return function


def with_pool_chunk(function: F) -> F:
    """Add what a writer of zeros for a thin pool must know."""
    return click.option(
        "--pool-chunk",
        default="",
        metavar="SIZE",
        help="For thin-send: chunk size of the pool that receives, by `lvs -o chunk_size`; zeros "
        "that fill whole chunks are unmapped there. [default: all zeros are sent as bytes]",
    )(function)


def parse_pool_chunk(text: str) -> int:
    """Return the bytes of a chunk; 0 if nothing was said.

    Raises:
        UsageError: If no pool has such chunks.
    """
    chunk = parse_size(text) if text else 0
    if text and (chunk % _CHUNK_STEP or not _CHUNK_STEP <= chunk <= _CHUNK_MOST):
        raise UsageError(
            f"--pool-chunk {text}: chunks of a pool are a multiple of 64 KiB, at most 1 GiB"
        )
    return chunk


def with_stream_options(function: F) -> F:
    """Add what says which streams are read, and what is made of them."""
    for option in (
        click.option(
            "--to",
            type=click.Choice((OURS, *WRITTEN)),
            default=OURS,
            show_default=True,
            help="Format that is written; bsx is ours.",
        ),
        click.option(
            "--format", type=click.Choice(READ), help="Format that is read. [default: as it begins]"
        ),
        click.option("--size", default="", help="Bytes of the disk, where nothing else says it."),
        click.option("--base", default="", help="State that it belongs onto, likewise."),
        click.option("--goal", default="", help="Name of the state that it leads to."),
        click.option(
            "--compress", default="auto", show_default=True, help="auto, none, zstd or zstd:LEVEL."
        ),
        click.option(
            "--accept-open-end",
            is_flag=True,
            help="Believe that a stream without an end mark is whole.",
        ),
        with_pool_chunk,
        with_progress,
        with_state_dir,
    ):
        function = option(function)
    return function


def wish_given(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return what was said of a stream.

    Raises:
        UsageError: If a state cannot be called like that.
    """
    check_names(options)
    given = ((name, options[name]) for name in _WISHES)
    # Not by comparing: of 0 bytes, which may be expected, Python thinks as of False.
    return {name: value for name, value in given if value or type(value) is int}


def check_names(options: Mapping[str, Any]) -> None:
    """Look at the names of states before a stream is read to its end.

    Raises:
        UsageError: If a state cannot be called like that.
    """
    for option in ("base", "goal"):
        if options[option] and not is_id(options[option]):
            raise UsageError(
                f"--{option} takes up to 256 printable ASCII characters, no blank at either end"
            )


def show_foreign(found: "ForeignResult", *, as_json: bool, quiet: bool) -> None:
    """Say what came, and what could not be checked.

    Raises:
        StaleViewError: If nothing says that all of it came.
    """
    taken = found.taken
    for text in taken.remarks:
        warn(text, as_json=as_json)
    if as_json:
        event(
            "foreign",
            format=found.how.name,
            records=taken.records,
            data=taken.data,
            zeros=taken.zeros,
            stream=taken.wire,
            unchecked=list(found.unchecked),
            compared=found.compared,
        )
    elif not quiet:
        checked = f"not checked, because it does not tell: {', '.join(found.unchecked)}"
        if found.compared:
            checked = f"the {found.compared} of the whole disk is that of its source"
        say(
            f"{found.how.title}: {taken.data} bytes in {taken.records} records, "
            f"{size_text(taken.zeros)} of zeros; {checked}"
        )
    if taken.uncompared and found.received.committed is not None:
        raise StaleViewError(
            f"{found.how.title} was committed as {found.received.committed.goal}, but its only "
            f"check, the {taken.uncompared} of the whole disk, is not known here, so nobody knows "
            "whether this is the disk that it was made for; compare both sides; a patch with "
            "sha256 is checked; --force-base says that it need not be"
        )
    if found.open_ended and found.received.committed is not None:
        raise StaleViewError(
            f"{found.how.title} has no end mark: what came was committed as "
            f"{found.received.committed.goal}, but nobody knows whether {taken.data} bytes in "
            f"{taken.records} records are all; compare with what its sender says; with "
            "--expect-bytes nothing is written unless they are, --accept-open-end believes it"
        )
