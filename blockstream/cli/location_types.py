"""What words of a command line name, as click's types: parsed once, completed by the shell."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from blockstream.errors import UsageError
from blockstream.locations.interface import DiskLocation
from blockstream.locations.local import LocalDisk, is_plain

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem


def disk_here(text: str) -> LocalDisk:
    """Return a disk of this host, where only one will do.

    Raises:
        UsageError: If it is something else.
    """
    if text and (is_plain(text) or Path(text).exists()):
        return LocalDisk(text)
    from blockstream.locations.registry import location_of

    found = location_of(text, many=True)
    if isinstance(found, LocalDisk):
        return found
    raise UsageError(f"{found} {found.what}")


class _DiskHere(click.ParamType[str]):
    """The path of a disk or file of this host."""

    name = "disk"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the path.

        Raises:
            UsageError: If it is something else.
        """
        del param, ctx  # the error says which word it was
        return disk_here(value).path

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> "list[CompletionItem]":
        """Let the shell complete files."""
        from click.shell_completion import CompletionItem  # the shell asks for it alone

        del ctx, param
        return [CompletionItem(incomplete, type="file")]


class _Disk(click.ParamType[DiskLocation]):
    """A disk that is read from this host, or an export."""

    name = "disk"

    def convert(
        self, value: str, param: click.Parameter | None, ctx: click.Context | None
    ) -> DiskLocation:
        """Return it.

        Raises:
            UsageError: If it is something else.
        """
        del param, ctx  # the error says which word it was
        from blockstream.locations.registry import disk_of

        return disk_of(value)


class _Place(click.ParamType[str]):
    """A place, as it is typed: a command tells what is meant from all of its words."""

    name = "place"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> "list[CompletionItem]":
        """Let the shell complete it."""
        from blockstream.cli.completion import places  # the shell asks for it alone

        del ctx, param
        return places(incomplete)


PLACE = _Place()
DISK_HERE = _DiskHere()
DISK = _Disk()
