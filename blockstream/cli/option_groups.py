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
from typing import Any, ClassVar, Final, TypeVar, get_args, get_type_hints

import click
from click.core import ParameterSource

from blockstream.cli.grouped_help import GroupedOption
from blockstream.declared import Declared, declared
from blockstream.errors import UsageError

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
