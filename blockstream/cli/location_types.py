"""What words of a command line name, as click's types: parsed once, completed by the shell."""

import click
from click.shell_completion import CompletionItem

from blockstream.locations.interface import DiskLocation
from blockstream.locations.registry import disk_here, disk_of


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
    ) -> list[CompletionItem]:
        """Let the shell complete files."""
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
        return disk_of(value)


DISK_HERE = _DiskHere()
DISK = _Disk()
