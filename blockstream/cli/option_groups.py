"""Command lines made of what is declared: options, `--help` in groups, and typed values.

A command names one frozen dataclass, a subclass of `OptionGroups`; each of its fields is a group of
options, in the order in which people need them.
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from enum import Enum
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, ClassVar, Final, TypeVar, get_args, get_type_hints

import click
from click.core import ParameterSource

from blockstream.declared import Declared, declared
from blockstream.errors import UsageError

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

_ALL: Final = "--help-all"
_MORE: Final = "More"
_MOST_COLUMNS: Final = 24
_BETWEEN: Final = "__"  # a group's name and a field's


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Typed:
    """An option that somebody typed.

    Attributes:
        group: The class that declares it.
        flag: What it is called.
        word: Its value, as it was typed; empty for one that takes none.
        declared: What was declared of it.
        is_usual: Whether it says what holds anyway.
    """

    group: type
    flag: str
    word: str
    declared: Declared
    is_usual: bool

    @property
    def words(self) -> list[str]:
        """It, as it can be typed again."""
        return [self.flag, self.word] if self.word else [self.flag]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class OptionGroups:
    """What was said on a command line.

    Attributes:
        typed: What somebody typed, in the order of `--help`.
    """

    titles: ClassVar[Mapping[str, str]] = {}
    typed: tuple[Typed, ...] = ()

    def given(self, *flags: str) -> str:
        """Return the first of these options that was typed and says something; empty for none."""
        there = {each.flag for each in self.typed if not each.is_usual}
        return next((flag for flag in flags if flag in there), "")

    def given_of(self, group: type) -> str:
        """Return the first option of a group that was typed and says something; else empty."""
        said = (each.flag for each in self.typed if each.group is group and not each.is_usual)
        return next(said, "")

    def words(self, *flags: str) -> list[str]:
        """Return those of these options that were typed, as they can be typed again."""
        return [word for each in self.typed if each.flag in flags for word in each.words]


G = TypeVar("G", bound=OptionGroups)


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


def with_groups(what: type[G]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options of a composite of groups, as `options`."""
    made = list(_options_of(what))

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def run(*words: Any, **given: Any) -> None:
            own = {name: value for name, value in given.items() if _BETWEEN not in name}
            function(*words, **own, options=groups_in(click.get_current_context(), what))

        # Click reverses them: the last decorator's options come first.
        params = [*getattr(function, "__click_params__", []), *reversed(made)]
        run.__click_params__ = params  # type: ignore[attr-defined]  # as click's own decorators do
        return run

    return decorate


def groups_in(context: click.Context, what: type[G]) -> G:
    """Return the composite that a parsed command line holds."""
    kinds, typed = get_type_hints(what), list[Typed]()
    values = {each.name: dict[str, Any]() for each in fields(what) if each.name != "typed"}
    for each in context.command.params:
        if not isinstance(each, GroupedOption):
            continue
        group, _, field_name = str(each.name).partition(_BETWEEN)
        values[group][field_name] = value = each.value_of(context.params[str(each.name)])
        source = context.get_parameter_source(str(each.name))
        if source is ParameterSource.COMMANDLINE:
            word = "" if each.is_flag else str(context.meta.get(_meta(each), value))
            is_usual = value == each.usual
            typed.append(Typed(kinds[group], each.opts[-1], word, each.declared, is_usual))
    made = {group: kinds[group](**given) for group, given in values.items()}
    return what(**made, typed=tuple(typed))


def _options_of(what: type[OptionGroups]) -> Iterator[GroupedOption]:
    """Give the options of a composite, group by group."""
    kinds = get_type_hints(what)
    for group in fields(what):
        if group.name == "typed":
            continue
        kind, title = kinds[group.name], what.titles.get(group.name, "")
        hints = get_type_hints(kind)
        for each in fields(kind):
            how = declared(each.metadata)
            if how is not None:
                name = f"{group.name}{_BETWEEN}{each.name}"
                yield _option(name, title, hints[each.name], each.default, how)


def _option(name: str, title: str, kind: Any, default: Any, how: Declared) -> GroupedOption:
    flag = how.flag or f"--{name.partition(_BETWEEN)[2].replace('_', '-')}"
    is_flag = kind is bool
    more: dict[str, Any] = {} if is_flag else {"type": _type_of(kind, how)}
    shows = not (how.shown or is_flag) and default not in {"", None, 0}
    made = GroupedOption(
        [*([how.short] if how.short else []), flag, name],
        is_flag=is_flag,
        default=_default(default, how),
        show_default=shows,
        metavar=how.metavar or None,
        help=f"{how.text} [default: {how.shown}]" if how.shown else how.text,
        envvar=how.variable or None,
        hidden=how.hidden,
        callback=_refuse_empty,
        **more,
    )
    made.title, made.declared, made.usual = title, how, default
    made.kind = kind if isinstance(kind, type) and issubclass(kind, Enum) else None
    return made


def _default(default: Any, how: Declared) -> Any:
    """Return the default as click takes it."""
    if isinstance(default, Enum):
        return default.value
    return None if how.choices and not default else default


def _refuse_empty(context: click.Context, option: click.Parameter, value: Any) -> Any:
    """Take a value, unless it was given as nothing, as by a variable of a script.

    Raises:
        UsageError: If it was.
    """
    typed = context.get_parameter_source(str(option.name)) is ParameterSource.COMMANDLINE
    if typed and isinstance(value, str) and not value:
        raise UsageError(f"{option.opts[-1]} is empty; nothing was done; is a variable not set?")
    return value


class _Parsed(click.ParamType[Any]):
    """What a function of ours makes of text."""

    def __init__(self, name: str, parse: Callable[[str], object]) -> None:
        self.name = name
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Parse it; a default is what it is already."""
        if not isinstance(value, str) or not value:
            return value
        if param is not None and ctx is not None:
            ctx.meta[_meta(param)] = value  # so that it can be typed again
        return self._parse(value)


def _meta(param: click.Parameter) -> str:
    return f"{__name__}.{param.name}"


def _type_of(kind: Any, how: Declared) -> click.ParamType[Any]:
    if how.parse is not None:
        return _Parsed(how.metavar or "text", how.parse)
    if how.choices:
        return click.Choice(list(how.choices))
    kinds = set(get_args(kind) or (kind,)) - {NoneType}
    (one,) = kinds
    if issubclass(one, Enum):
        return click.Choice([str(each.value) for each in one])
    if one is int:
        return click.IntRange(_whole(how.least), _whole(how.most))
    if one is float:
        least = how.above if how.least is None else how.least
        return click.FloatRange(least, how.most, min_open=how.above is not None)
    return _Parsed("path", Path) if one is Path else click.STRING


def _whole(number: float | None) -> int | None:
    return None if number is None else int(number)
