"""The options of what a logical volume's snapshots can do, and of how a VMDK is read."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import click

from blockstream.captures.options import LvmOptions, VmdkOptions
from blockstream.cli.options import parse_size
from blockstream.errors import UsageError

F = TypeVar("F", bound=Callable[..., Any])


def with_snapshot_options(function: F) -> F:
    """Add what says how a logical volume is read."""
    for option in (
        click.option(
            "--on-lost-base",
            type=click.Choice(["full", "fail"]),
            help="What `--since last` does where the snapshot that was kept has overflowed: send "
            "all, or nothing. [default: full]",
        ),
        click.option(
            "--snapshot-size",
            default="",
            metavar="SIZE",
            help="Room for what is written to a thick volume meanwhile. [default: a fifth of it]",
        ),
        click.option(
            "--rotate",
            is_flag=True,
            help="Keep the new snapshot for the next `--since last`, once it is committed.",
        ),
        click.option(
            "--quiesced",
            is_flag=True,
            help="Nobody writes the logical volume: read it itself, make no snapshot.",
        ),
        click.option(
            "--since",
            default="",
            metavar="SNAPSHOT",
            help="Of a logical volume, only what changed since this snapshot of it; `last` is the "
            "one that --rotate kept for this TARGET.",
        ),
    ):
        function = option(function)
    return function


def with_vmdk_options(function: F) -> F:
    """Add --delta and --allow-outside."""
    for option in (
        click.option(
            "--allow-outside",
            is_flag=True,
            help="Follow names in a VMDK that lead out of its folder.",
        ),
        click.option(
            "--delta",
            is_flag=True,
            help="Of vmdk:FILE, only what it holds itself: what changed since its parent.",
        ),
    ):
        function = option(function)
    return function


def lvm_options(options: Mapping[str, Any]) -> LvmOptions:
    """Return how a logical volume is read.

    Raises:
        UsageError: If the size is none.
    """
    size = parse_size(options["snapshot_size"]) if options["snapshot_size"] else 0
    return LvmOptions(
        since=options["since"],
        quiesced=options["quiesced"],
        snapshot_bytes=-(-size // 512) * 512,
        rotate=options["rotate"],
        base_or_nothing=_base_or_nothing(options),
    )


def vmdk_options(options: Mapping[str, Any]) -> VmdkOptions:
    """Return how a VMDK is read."""
    return VmdkOptions(options["delta"], options["allow_outside"])


def _base_or_nothing(options: Mapping[str, Any]) -> bool:
    if options["on_lost_base"] and options["since"] != "last":
        raise UsageError("--on-lost-base is for --since last")
    return bool(options["on_lost_base"] == "fail")
