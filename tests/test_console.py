"""How far it is, in words: what is left out where there is little room, and when lines come."""

import os
import pty
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from blockstream import __version__
from blockstream.cli import progress_output
from blockstream.cli.console import saving_text
from blockstream.cli.main import cli
from blockstream.cli.options import ProgressWish, reporters
from blockstream.cli.progress_output import (
    BarReporter,
    LineReporter,
    PercentReporter,
    Rate,
    progress_line,
)
from blockstream.errors import UsageError
from blockstream.pipeline.progress import Progress, Snapshot

MIB = 1 << 20
HALF = Snapshot(total=100 * MIB, covered=50 * MIB, size=200 * MIB, data=40 * MIB, wire=10 * MIB)


class Clock:
    """A clock that stands until it is set."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        """Return its time."""
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock that everything in the console goes by."""
    made = Clock()
    monkeypatch.setattr(progress_output, "time", made)
    monkeypatch.setattr(Rate, "__init__", lambda self: _begin(self, made))
    return made


def _begin(rate: Rate, clock: Clock) -> None:
    rate.began, rate._seen, rate._recent = clock.now, None, 0.0


@pytest.mark.parametrize(
    ("columns", "kept", "dropped"),
    [
        (None, ["50.0%", "50.0 MiB of 100 MiB", "/s", "on the wire (4.0:1)", "left"], []),
        (60, ["50.0%", "50.0 MiB of 100 MiB", "/s", "left"], ["wire"]),
        (30, ["50.0%", "/s", "left"], ["wire", " of "]),
        (18, ["50.0%", "left"], ["wire", " of ", "/s"]),
    ],
)
def test_a_narrow_line_keeps_the_share_and_the_time_left(
    clock: Clock, columns: int | None, kept: list[str], dropped: list[str]
) -> None:
    rate = Rate()
    clock.now += 10
    line = progress_line(HALF, rate, columns)
    assert columns is None or len(line) <= columns
    assert all(part in line for part in kept), line
    assert not any(part in line for part in dropped), line


def test_what_an_earlier_run_brought_is_no_speed(clock: Clock) -> None:
    rate = Rate()
    clock.now += 10
    resumed = replace(HALF, skipped=40 * MIB)
    speed, left = rate.update(resumed)
    assert speed == pytest.approx(1 * MIB)
    assert left == pytest.approx(50)
    # All of it was there: nothing can be said of the time left.
    assert Rate().update(replace(HALF, skipped=HALF.covered)) == (0.0, None)


def test_what_is_skipped_is_counted_once() -> None:
    progress = Progress(size=100, total=100)
    progress.begin(skipped=30)
    progress.skip(data=10, covered=10)
    progress.frame(data=5, covered=20, wire=7)
    counts = progress.snapshot()
    assert (counts.covered, counts.skipped, counts.data, counts.zeros) == (60, 40, 15, 15)
    progress.begin()
    counts = progress.snapshot()
    assert (counts.covered, counts.skipped, counts.data, counts.frames) == (0, 0, 0, 0)


def test_lines_of_a_log_come_at_10_seconds_then_each_minute_then_each_ten(clock: Clock) -> None:
    began, reporter = clock.now, LineReporter("send")
    at: list[int] = []
    while len(at) < 14:
        clock.now += reporter.interval
        at.append(round(clock.now - began))
    assert at == [10, *range(60, 601, 60), 1200, 1800, 2400]
    # A second phase of the same command goes on where the first one was.
    clock.now = began + 90
    assert reporter.interval == pytest.approx(30)
    assert LineReporter("send", every=3.0).interval == 3.0


def test_100_of_100_is_not_said_before_it_is_done(tmp_path: Path) -> None:
    path = tmp_path / "shares"
    with path.open("wb", buffering=0) as file:
        reporter = PercentReporter(file.fileno())
        progress = Progress(total=200)
        for covered in (0, 101, 101, 200):
            progress.covered = covered
            reporter.report(progress)
    assert path.read_text().split() == ["0/100", "50/100", "99/100"]


@pytest.mark.parametrize(
    ("counts", "full", "text"),
    [
        (
            Snapshot(size=100 * MIB, data=30 * MIB, zeros=70 * MIB, wire=10 * MIB),
            True,
            "30.0 MiB of data and 70.0 MiB of zeros, 10.0 MiB on the wire",
        ),
        (
            Snapshot(size=100 * MIB, data=30 * MIB, zeros=30 * MIB, skipped=40 * MIB),
            True,
            "30.0 MiB of data and 30.0 MiB of zeros, 40.0 MiB of it brought by an earlier run",
        ),
        (
            Snapshot(size=100 * MIB, covered=5 * MIB, wire=5 * MIB),
            False,
            "5.0 MiB changed of 100 MiB, 5.0 MiB on the wire, 20x less than a full copy",
        ),
    ],
)
def test_the_closing_line(counts: Snapshot, full: bool, text: str) -> None:
    assert saving_text(counts, full=full) == text


@pytest.mark.parametrize(
    ("term", "kind"),
    [("xterm", BarReporter), ("dumb", LineReporter), ("unknown", LineReporter), ("", LineReporter)],
)
def test_a_terminal_that_cannot_move_its_cursor_gets_lines(
    monkeypatch: pytest.MonkeyPatch, term: str, kind: type
) -> None:
    monkeypatch.setenv("TERM", term)
    ours, theirs = pty.openpty()
    stderr = os.dup(2)
    try:
        os.dup2(theirs, 2)
        (found,) = reporters("send", as_json=False, quiet=False, progress=ProgressWish(None, None))
    finally:
        os.dup2(stderr, 2)
        for fd in (ours, theirs, stderr):
            os.close(fd)
    assert isinstance(found, kind)


def test_a_descriptor_that_is_not_open_is_refused() -> None:
    fd = os.dup(2)
    os.close(fd)
    with pytest.raises(UsageError, match=f"--progress={fd}"):
        reporters("send", as_json=True, quiet=False, progress=ProgressWish(fd, None))


@pytest.mark.parametrize("columns", [40, 60, 120])
def test_a_bar_fits_into_its_terminal(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm")
    reporter = BarReporter("send")
    bar = reporter._bar
    progress = Progress(size=200 * MIB, total=100 * MIB)
    progress.frame(data=40 * MIB, covered=50 * MIB, wire=10 * MIB)
    reporter._rate.began -= 10  # the rate is told soon, and not at once
    with bar.console.capture() as captured:
        reporter.report(progress)
        bar.console.print(bar.get_renderable())
    reporter.clear()
    (line,) = [each for each in captured.get().splitlines() if "50.0%" in each][:1]
    assert line.lstrip("\r\x1b[?25l").startswith("send")
    assert line.rstrip().endswith("left")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["sned"], "No such command 'sned'. Did you mean send?"),
        (["recieve"], "No such command 'recieve'. Did you mean recv?"),
        (["store", "prun"], "No such command 'prun'. Did you mean prune?"),
        (["vsphere", "lst"], "No such command 'lst'. Did you mean ls?"),
        (["zzz"], "No such command 'zzz'.\n"),
        (["version"], f"blockstream, version {__version__}"),
        (["-V"], f"blockstream, version {__version__}"),
        (["--version"], f"blockstream, version {__version__}"),
    ],
)
def test_what_was_typed_is_understood_or_told_what_it_may_mean(words: list[str], said: str) -> None:
    result = CliRunner().invoke(cli, words)
    assert said in result.output
    assert result.exit_code == (2 if "No such" in said else 0)
