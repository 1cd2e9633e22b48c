"""`blockstream confirm`."""

import sys
from pathlib import Path

import click

from blockstream.cli.console import emit, say
from blockstream.cli.options import with_json, with_state_dir
from blockstream.errors import OutcomeUnknownError, UsageError
from blockstream.transfers.sender_journal import SentTransfers, parse_receipt

_RECEIPT_BYTES = 64 << 10


@click.command("confirm", short_help="Take a receipt, so that the base may advance.")
@click.argument("receipt")
@with_json
@with_state_dir
def command(receipt: str, as_json: bool, state_dir: Path) -> None:
    """Compare RECEIPT, a file or - for standard input, with what was sent from here.

    \b
    Example:
      blockstream send ... | ssh HOST blockstream recv --receipt - DISK | blockstream confirm -
    """  # noqa: D301
    try:
        if receipt == "-":
            text = sys.stdin.read(_RECEIPT_BYTES)
        else:
            with Path(receipt).open() as file:
                text = file.read(_RECEIPT_BYTES)
    except OSError as error:
        raise UsageError(
            f"{receipt} cannot be read: {error.strerror}; the base was not advanced"
        ) from error
    except UnicodeDecodeError:
        text = "?"  # whatever it is, it is no receipt
    if not text.strip():
        raise OutcomeUnknownError(
            "no receipt came: the receiver did not commit, or its word was lost; the base was not "
            "advanced"
        )
    intent = SentTransfers(state_dir).confirm(parse_receipt(text))
    if as_json:
        from blockstream.events import Confirmed

        emit(Confirmed(intent.source, intent.expected.goal))
    else:
        say(
            f"confirmed: the target holds {intent.expected.goal}; the next increment of "
            f"{intent.source} starts with --base {intent.expected.goal}"
        )
