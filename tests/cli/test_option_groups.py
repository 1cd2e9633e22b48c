"""Options that are declared once: what click makes of them, what a command is given, their help."""

from dataclasses import dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import ClassVar, get_type_hints

import click
import pytest
from click.testing import CliRunner

from blockstream.cli.grouped_help import GroupedCommand
from blockstream.cli.main import cli
from blockstream.cli.migrate_options import MigrateGroups
from blockstream.cli.option_groups import OptionGroups, groups_in, with_groups
from blockstream.cli.recv_options import RecvGroups
from blockstream.cli.restore_cmd import RestoreGroups
from blockstream.cli.send_options import SendGroups
from blockstream.cli.verify_cmd import VerifyGroups
from blockstream.declared import declared, option
from blockstream.errors import UsageError
from blockstream.units import parse_size


class Mode(StrEnum):
    FAST = "fast"
    SAFE = "safe"


@dataclass(frozen=True, slots=True)
class Things:
    flag: bool = option(False, "A flag.")
    mode: Mode = option(Mode.SAFE, "A mode.")
    word: str = option("", "A word.", choices=("one", "two"))
    name: str = option("", "A name.")
    count: int = option(3, "A count.", least=1, most=9)
    wait: float | None = option(None, "Seconds.", above=0)
    size: int = option(0, "A size.", parse=parse_size, rare=True)
    file: Path | None = option(None, "A file.", variable="THINGS_FILE")
    inner: bool = option(False, "Nobody types it.", hidden=True)
    undeclared: int = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class ThingGroups(OptionGroups):
    titles: ClassVar = {"things": "Things"}

    things: Things


def given(*words: str, environment: dict[str, str] | None = None) -> ThingGroups:
    """Return what a command is given by these words."""
    found = list[ThingGroups]()

    @click.command(cls=GroupedCommand)
    @with_groups(ThingGroups)
    def command(options: ThingGroups) -> None:
        found.append(options)

    ended = CliRunner().invoke(
        command, words, standalone_mode=False, env=environment, catch_exceptions=False
    )
    assert ended.exit_code == 0
    return found[0]


def test_nothing_typed_is_what_is_declared() -> None:
    options = given()
    assert options.things == Things()
    assert options.typed == ()


def test_each_kind_of_value_comes_typed() -> None:
    words = ["--flag", "--mode", "fast", "--word", "two", "--name", "x", "--count", "9"]
    words += ["--wait", "0.5", "--size", "2k", "--file", "/a", "--inner"]
    options = given(*words)
    assert options.things == Things(
        flag=True,
        mode=Mode.FAST,
        word="two",
        name="x",
        count=9,
        wait=0.5,
        size=2048,
        file=Path("/a"),
        inner=True,
    )
    assert options.given("--nothing", "--word", "--flag") == "--word"
    assert options.given_of(Things) == "--flag"
    again = options.words("--mode", "--size", "--flag")
    assert again == ["--flag", "--mode", "fast", "--size", "2k"]
    assert given(*again).things == Things(flag=True, mode=Mode.FAST, size=2048)


def test_a_default_that_is_typed_says_nothing_and_a_variable_is_not_typed() -> None:
    options = given("--count", "3", "--mode", "safe", environment={"THINGS_FILE": "/b"})
    assert options.things == Things(file=Path("/b"))
    assert [each.flag for each in options.typed] == ["--mode", "--count"]
    assert (options.given("--count"), options.given_of(Things)) == ("", "")


def test_a_variable_of_a_script_that_is_not_set_is_said() -> None:
    for flag in ("--name", "--size", "--file"):
        with pytest.raises(UsageError, match=f"{flag} is empty"):
            given(flag, "")


@pytest.mark.parametrize(
    "words",
    [["--count", "0"], ["--count", "10"], ["--wait", "0"], ["--word", "x"], ["--mode", "x"]],
)
def test_what_is_out_of_range_is_refused(words: list[str]) -> None:
    with pytest.raises(click.BadParameter):
        given(*words)


def test_help_hides_what_is_rare_and_never_shows_what_is_hidden() -> None:
    @click.command("things", cls=GroupedCommand)
    @with_groups(ThingGroups)
    def command(options: ThingGroups) -> None:
        del options

    short = CliRunner().invoke(command, ["--help"]).output
    whole = CliRunner().invoke(command, ["--help-all"]).output
    assert "Things:" in short
    assert ("--size" in short, "--size" in whole) == (False, True)
    assert "Rarely needed, 1 more: things --help-all" in short
    assert "Rarely needed" not in whole
    assert "--inner" not in whole


@pytest.mark.parametrize(
    "what", [SendGroups, RecvGroups, RestoreGroups, VerifyGroups, MigrateGroups]
)
def test_every_group_has_a_title_and_every_option_a_help(what: type[OptionGroups]) -> None:
    kinds = get_type_hints(what)
    for group in fields(what):
        if group.name == "typed":
            continue
        seen = [declared(each.metadata) for each in fields(kinds[group.name])]
        shown = [each for each in seen if each is not None and not each.hidden]
        assert all(each.text.endswith((".", ")")) for each in shown), group.name
        assert bool(shown) == bool(what.titles.get(group.name)), group.name


def test_every_command_says_how_it_is_used() -> None:
    for name in cli.list_commands(click.Context(cli)):
        ended = CliRunner().invoke(cli, [name, "--help"])
        assert ended.exit_code == 0, name
        assert f"Usage: cli {name}" in ended.output


def test_what_a_migration_keeps_can_be_typed_again() -> None:
    words = ["--streams", "auto", "--snapshot-size", "1.5G", "--leave-by", "shutdown", "--create"]
    words += ["--max-downtime", "5.0", "--retry", "0", "--compress", "zstd:3", "--domain", "vm"]
    command = cli.get_command(click.Context(cli), "migrate")
    assert command is not None

    def options(typed: list[str]) -> MigrateGroups:
        with command.make_context("migrate", [*typed, "vg/a", "h:vg"]) as context:
            return groups_in(context, MigrateGroups)

    first = options(words)
    again = options(first.kept())
    assert sorted(again.kept()) == sorted(first.kept()) == sorted(words)
    assert again.remote.streams == 0
