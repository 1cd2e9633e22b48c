"""`blockstream schema`."""

import json

import click

from blockstream.cli.console import show
from blockstream.events import schema


@click.command("schema", short_help="Print the JSON schema of what --json says.")
def command() -> None:
    """Print the JSON schema of the lines that --json writes.

    Results of a listing go to standard output, all else to standard error, of which the last line
    is an `end` event with the exit status.

    \b
    Example:
      blockstream schema > blockstream.schema.json
      blockstream send /dev/vg/vm HOST:/dev/vg/vm --json 2>&1 | jq 'select(.event == "end")'
    """  # noqa: D301
    show(json.dumps(schema(), indent=2) + "\n")
