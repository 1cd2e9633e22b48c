"""Options on how a disk may be written."""

from collections.abc import Callable
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

TARGET_FLAGS = ("create", "verify", "force_in_use", "force_larger", "force_base")


with_force_larger = click.option(
    "--force-larger", is_flag=True, help="Take a TARGET larger than the source."
)


def with_target_options(function: F) -> F:
    """Add what says how a target may be written."""
    for option in (
        click.option(
            "--create", is_flag=True, help="Make TARGET, a sparse file; refused if it exists."
        ),
        click.option("--verify", is_flag=True, help="Read everything back before it is durable."),
        click.option("--force-in-use", is_flag=True, help="Write although somebody uses TARGET."),
        with_force_larger,
        click.option("--force-base", is_flag=True, help="Believe that TARGET holds the base."),
    ):
        function = option(function)
    return function
