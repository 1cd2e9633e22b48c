"""The command group: finds commands, speaks of failures, knows exit statuses."""

import errno
import gc
import importlib
import os
import sys
import traceback

import click

from blockstream import __version__
from blockstream.cli import foreground
from blockstream.cli.closing import CLOSING
from blockstream.cli.command_group import CommandGroup
from blockstream.cli.console import emit, say
from blockstream.cli.options import warn
from blockstream.errors import (
    BlockstreamError,
    ExitStatus,
    InterruptedTransferError,
    UsageError,
)

# In the order of --help; each is `cli/NAME_cmd.py` with one command called `command`.
_COMMANDS = (
    "send",
    "recv",
    "status",
    "undo",
    "apply",
    "abort",
    "adopt",
    "confirm",
    "extents",
    "inspect",
    "convert",
    "merge",
    "verify",
    "serve",
    "migrate",
    "store",
    "points",
    "restore",
    "vsphere",
    "schema",
    "completion",
)
# What our own commands run on other hosts; nobody types them.
_PLUMBING = ("join", "digests", "landing")
_VERSION = "version"
_ALIASES = {"receive": "recv"}


class _Commands(CommandGroup):
    """Imports a command only when it is used, so that `recv` starts fast."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        name = _ALIASES.get(cmd_name, cmd_name)
        if name == _VERSION:
            return _version
        if name not in _COMMANDS + _PLUMBING:
            return None
        command = importlib.import_module(f"blockstream.cli.{name}_cmd").command
        return command if isinstance(command, click.Command) else None


def _show_version() -> None:
    """Show the version, as --version does."""
    click.echo(f"blockstream, version {__version__}")


_version = click.Command(_VERSION, callback=_show_version, help="Show the version.")


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, "-V", "--version", prog_name="blockstream")
def cli() -> None:
    """Move block devices by streaming only what changed, and prove that it arrived.

    \b
    To another host:  blockstream send /dev/vg/a root@HOST:/dev/vg/b
    By any pipe:      blockstream send /dev/vg/a | ssh HOST blockstream recv /dev/vg/b
    Only its changes: blockstream send --base A --goal B --extents changed.json DISK | ...
    To a file:        blockstream send disk.img > disk.bsx

    `blockstream COMMAND --help` has an example for each.
    """  # noqa: D301  # \b keeps the lines as they are


def run(arguments: list[str]) -> int:
    """Run one command; return its exit status. Nothing is raised."""
    _open_standard_descriptors()
    foreground.mind_signals()
    # All that is loaded now is kept: to look for garbage in it costs 8 ms. A job begins with that.
    gc.disable()
    CLOSING.is_asked = "--json" in arguments
    try:
        status = _flushed(_status_of(arguments))
    except InterruptedTransferError as error:  # between two steps of ours
        _speak(error)
        status = error.exit_status
    finally:
        foreground.finish()
        gc.enable()
    if CLOSING.is_asked:
        emit(CLOSING.end(status))
    return status


def _status_of(arguments: list[str]) -> int:
    try:
        result = cli.main(arguments, prog_name="blockstream", standalone_mode=False)
        foreground.finish()
    except click.ClickException as error:
        if CLOSING.is_asked:
            _speak(UsageError(error.format_message()))
        else:
            error.show()
        return ExitStatus.USAGE
    except click.Abort:
        return ExitStatus.INTERRUPTED
    except BaseExceptionGroup as group:
        return _failed_twice(group)
    except BlockstreamError as error:
        _speak(error)
        return error.exit_status
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EPIPE, errno.EIO} or error.filename is not None:
            return _bug()
        return _unheard(error)  # of click, which wrote to standard output
    except Exception:  # noqa: BLE001  # the last place where a bug can be turned into words
        return _bug()
    return result if isinstance(result, int) else ExitStatus.OK


def _failed_twice(group: BaseExceptionGroup) -> int:
    """Say all errors; a target that could not keep what was written outranks the others."""
    causes = [e for e in group.exceptions if isinstance(e, BlockstreamError)]
    if len(causes) < len(group.exceptions):
        return _bug()
    for cause in causes:
        _speak(cause)
    statuses = [cause.exit_status for cause in causes]
    return ExitStatus.TARGET if ExitStatus.TARGET in statuses else statuses[0]


def _open_standard_descriptors() -> None:
    """Let nothing that we open become standard input, output or error.

    A message would be written into the disk that got descriptor 2.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            # Lowest first, so it gets this number. Writing to 0 and 1 must fail, not vanish.
            os.open(os.devnull, os.O_WRONLY if number == 2 else os.O_RDONLY)
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)


def _speak(error: BlockstreamError) -> None:
    """Say what ended it; programs hear of it in the last line, and of more than one before that."""
    before, CLOSING.error = CLOSING.error, error
    if not CLOSING.is_asked:
        say(f"blockstream: {error}")
    elif before is not None:
        warn(str(before), as_json=True)


def _bug() -> ExitStatus:
    """Say that it is our fault, with what we need to find it."""
    traceback.print_exc()
    say(f"blockstream {__version__}: this is a bug of ours; please report the lines above")
    return ExitStatus.BUG


def _flushed(status: int) -> int:
    """Make sure that what was printed got out: a full disk behind stdout is a failure."""
    try:
        sys.stdout.flush()
    except OSError as error:
        unheard = _unheard(error)
        return status or unheard
    return status


def _unheard(error: OSError) -> int:
    """Say that standard output cannot be written; return the status for that."""
    # Python would try again at exit, and complain in its own words.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    say(f"blockstream: standard output cannot be written: {error.strerror}")
    return ExitStatus.INTERRUPTED
