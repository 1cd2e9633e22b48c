"""The README shows what the program says."""

import subprocess
import sys
from pathlib import Path

import click
import pytest

from blockstream.cli.main import cli

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


def test_exit_statuses_are_those_of_the_error_classes() -> None:
    script = ROOT / "scripts" / "error_table.py"
    command = [sys.executable, str(script)]
    table = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603
    assert table.stdout in README


@pytest.mark.parametrize("name", cli.list_commands(click.Context(cli)))
def test_every_command_has_an_example_in_its_help(name: str) -> None:
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    assert command.help is not None
    assert "Example" in command.help
    assert f"blockstream {name}" in command.help


@pytest.mark.parametrize("name", cli.list_commands(click.Context(cli)))
def test_every_command_is_named_in_the_readme(name: str) -> None:
    assert f"blockstream {name}" in README
