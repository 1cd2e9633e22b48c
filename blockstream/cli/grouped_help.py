"""`--help` in groups; what is rarely needed only by `--help-all`."""

import functools
from enum import Enum
from typing import TYPE_CHECKING, Any, Final

import click

from blockstream.declared import Declared

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem


_ALL: Final = "--help-all"
_MORE: Final = "More"
_MOST_COLUMNS: Final = 24


class GroupedOption(click.Option):
    """An option that knows where it stands in `--help`."""

    title = ""
    declared = Declared("")
    usual: object = None
    kind: type[Enum] | None = None

    def get_help_extra(self, ctx: click.Context) -> Any:
        """Return what stands behind its help: a default, but no range, which no text needs."""
        found = super().get_help_extra(ctx)
        found.pop("range", None)
        return found

    def shell_complete(self, ctx: click.Context, incomplete: str) -> "list[CompletionItem]":
        """Let the shell complete the value."""
        if self.declared.completes == "states":
            from blockstream.cli.completion import states  # the shell asks for it alone

            return states(ctx, incomplete)
        if self.declared.completes == "files":
            from click.shell_completion import CompletionItem

            return [CompletionItem(incomplete, type="file")]
        return super().shell_complete(ctx, incomplete)

    def value_of(self, parsed: Any) -> Any:
        """Return the field's value, of what click made of the words."""
        if parsed is None:
            return self.usual
        return parsed if self.kind is None else self.kind(parsed)


class RareOption(click.Option):
    """An option of every command that only `--help-all` shows."""


class GroupedCommand(click.Command):
    """Shows its options in groups; those that are rarely needed only by `--help-all`."""

    @functools.cached_property
    def _help_all(self) -> click.Option:
        return _help_all()

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Return the parameters, `--help-all` among them."""
        found = super().get_params(ctx)
        if any(isinstance(each, click.Option) and _is_rare(each) for each in found):
            found.insert(-1, self._help_all)
        return found

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write a section a group."""
        everything = bool(ctx.meta.get(_ALL))
        options = [each for each in self.get_params(ctx) if isinstance(each, click.Option)]
        shown = [each for each in options if everything or not _is_rare(each)]
        records = [(_title(each), each.get_help_record(ctx)) for each in shown]
        there = [(title, record) for title, record in records if record is not None]
        width = max(len(record[0]) for _, record in there if len(record[0]) <= _MOST_COLUMNS)
        for name in [*dict.fromkeys(title for title, _ in there if title), ""]:
            with formatter.section(name or _MORE):
                rows = [(flag.ljust(width), text) for title, (flag, text) in there if title == name]
                formatter.write_dl(rows, col_max=_MOST_COLUMNS)
        left = sum(not each.hidden for each in options) - len(there)
        if left:
            formatter.write_paragraph()
            formatter.write_text(f"Rarely needed, {left} more: {ctx.command_path} {_ALL}")


def _title(option: click.Option) -> str:
    return option.title if isinstance(option, GroupedOption) else ""


def _is_rare(option: click.Option) -> bool:
    return isinstance(option, RareOption) or (
        isinstance(option, GroupedOption) and option.declared.rare
    )


def _help_all() -> click.Option:
    def show(context: click.Context, _option: click.Parameter, value: bool) -> None:
        if value and not context.resilient_parsing:
            context.meta[_ALL] = True
            click.echo(context.get_help())
            context.exit()

    return click.Option(
        [_ALL],
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=show,
        help="Show all options.",
    )
