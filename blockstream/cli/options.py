"""Options and checks that several commands share."""

import functools
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import click

from blockstream.cli.console import emit, say
from blockstream.cli.grouped_help import RareOption
from blockstream.cli.progress_output import (
    BarReporter,
    EventReporter,
    LineReporter,
    PercentReporter,
    write_share,
)
from blockstream.cli.reporter import Reporter
from blockstream.errors import UsageError
from blockstream.linux.state_directory import check_owner, default_state_directory

F = TypeVar("F", bound=Callable[..., Any])

_STDIN = 0
_CANNOT_DRAW = {"", "dumb", "unknown"}


def with_state_dir(function: F) -> F:
    """Add --state-dir."""
    return click.option(
        "--state-dir",
        cls=RareOption,
        type=click.Path(path_type=Path),
        default=default_state_directory,
        callback=lambda _context, _option, path: check_owner(path),
        help="Where journals lie; BLOCKSTREAM_STATE_DIR says it, too. [default: "
        "/var/lib/blockstream for root, else ~/.local/state/blockstream]",
    )(function)


def with_json(function: F) -> F:
    """Add --json."""
    return click.option("--json", "as_json", is_flag=True, help="Speak in JSON lines.")(function)


def with_errors_json(function: F) -> F:
    """Add --json to what says nothing but errors, which are said in JSON then."""
    return click.option("--json", is_flag=True, hidden=True, expose_value=False)(function)


@dataclass(frozen=True, slots=True)
class ProgressWish:
    """How progress is to be shown.

    Attributes:
        fd: Where N/100 lines go; None for nowhere.
        every: Seconds between two lines; None for as often as is usual.
    """

    fd: int | None
    every: float | None


def with_progress(function: F) -> F:
    """Add --json, --quiet, --progress and --progress-interval, as `progress`."""

    @functools.wraps(function)
    def run(*, progress_fd: int | None, progress_interval: float | None, **options: Any) -> None:
        function(progress=ProgressWish(progress_fd, progress_interval), **options)
        if progress_fd is not None:
            write_share(progress_fd, 100)

    command = cast("F", run)
    for option in (
        click.option("-q", "--quiet", is_flag=True, help="No progress and no closing line."),
        click.option(
            "--progress-interval",
            cls=RareOption,
            type=click.FloatRange(min=0.1),
            metavar="SECONDS",
            help="Between two lines in a log. [default: at 10 s, then each minute, after ten each "
            "ten minutes; JSON each second]",
        ),
        click.option(
            "--progress",
            "progress_fd",
            cls=RareOption,
            type=int,
            metavar="FD",
            help="Write N/100 lines to this descriptor, as nbdcopy does; 100/100 once it is done.",
        ),
    ):
        command = option(command)
    return with_json(command)


def reporters(name: str, *, as_json: bool, quiet: bool, progress: ProgressWish) -> list[Reporter]:
    """Return whoever shows progress, as the options and the terminal ask.

    Raises:
        UsageError: If the descriptor of --progress is not open for writing.
    """
    found: list[Reporter] = []
    if as_json:
        found.append(EventReporter(progress.every))
    elif not quiet and not _can_draw():
        found.append(LineReporter(name, progress.every))
    elif not quiet and not sender_draws(_STDIN):
        found.append(BarReporter(name))
    if progress.fd is not None:
        try:
            os.write(progress.fd, b"")
        except OSError as error:
            raise UsageError(f"--progress={progress.fd}: {error.strerror}") from error
        found.append(PercentReporter(progress.fd))
    return found


def _can_draw() -> bool:
    """Tell whether people look at a terminal that can move its cursor."""
    return os.isatty(2) and os.environ.get("TERM", "") not in _CANNOT_DRAW


def sender_draws(fd: int) -> bool:
    """Tell whether `fd` is a pipe from a blockstream on this terminal: two bars would fight."""
    if not stat.S_ISFIFO(os.fstat(fd).st_mode):
        return False
    ours = Path("/proc/self/fd")
    for process in Path("/proc").glob("[0-9]*"):
        try:
            writes_to_us = (process / "fd/1").samefile(ours / str(fd))
            if writes_to_us and b"blockstream" in (process / "cmdline").read_bytes():
                return (process / "fd/2").samefile(ours / "2")
        except OSError:
            continue  # it ended, or is somebody else's
    return False


def cleared(shown: list[Reporter]) -> None:
    """Take bars away before the last words."""
    for reporter in shown:
        reporter.clear()


def warn(text: str, *, as_json: bool) -> None:
    """Tell people something that does not stop us."""
    if as_json:
        from blockstream.events import Warned

        emit(Warned(text))
    else:
        say(f"blockstream: note: {text}")


def refuse_terminal(fd: int, what: str) -> None:
    """Refuse to mix a stream with a terminal.

    Raises:
        UsageError: If `fd` is one.
    """
    if os.isatty(fd):
        raise UsageError(
            f"{what} is a terminal, which is no place for a stream; use a pipe or file"
        )
