"""Who shows how far it is: lines for a log, a bar for a terminal, JSON and shares for programs."""

import contextlib
import os
import time
from dataclasses import asdict, dataclass, field

from blockstream.cli.console import emit, say
from blockstream.pipeline.progress import Progress, Snapshot
from blockstream.words import duration_text, size_text

_BAR_SECONDS = 0.1


_EVENT_SECONDS = 1.0


# When lines come into a log: soon, to show that it goes on; then each minute; then each 10.
_FIRST_LINE_SECONDS = 10.0


_OFTEN_SECONDS = 60.0


_SELDOM_SECONDS = 600.0


_BAR_COLUMNS = 24


# A terminal that is narrower has no room for a bar beside the words.
_BAR_FROM_COLUMNS = 80


@dataclass(slots=True)
class Rate:
    """Follows the counters: mean rate, recent rate, time left."""

    began: float = field(default_factory=time.monotonic)
    _seen: tuple[float, int] | None = None
    _recent: float = 0.0

    def update(self, counts: Snapshot) -> tuple[float, float | None]:
        """Return bytes of the plan a second, smoothed, and the seconds left if they can be told.

        What an earlier run had brought is done at once, and says nothing of how fast it goes.
        """
        now = time.monotonic()
        done = counts.covered - counts.skipped
        before = self._seen or (self.began, 0)
        if now - before[0] > 0.05:
            current = max(0, done - before[1]) / (now - before[0])
            self._recent = current if self._seen is None else 0.7 * self._recent + 0.3 * current
            self._seen = (now, done)
        left = counts.total - counts.covered
        return self._recent, left / self._recent if self._recent > 0 and left >= 0 else None


def progress_line(counts: Snapshot, rate: Rate, columns: int | None = None) -> str:
    """Return one line on how far it is.

    Args:
        counts: How far it is.
        rate: How fast it went until now.
        columns: Room for it; what matters least is left out. None for any.
    """
    speed, left = rate.update(counts)
    if counts.seen and not counts.total:
        return f"looking first: {size_text(counts.seen)}"
    share = 100 * counts.covered / counts.total if counts.total else 0.0
    wire = f"{size_text(counts.wire)} on the wire"
    if counts.data and 0 < counts.wire < counts.data:
        wire += f" ({counts.data / counts.wire:.1f}:1)"
    # With its rank: the highest goes first where there is no room; 0 stays.
    parts = [
        (0, f"{share:5.1f}%"),
        (2, f"{size_text(counts.covered)} of {size_text(counts.total)}"),
        (1, f"{size_text(speed)}/s"),
        (3, wire if counts.wire else ""),
        (0, f"{duration_text(left)} left" if left is not None else ""),
    ]
    for dropped in (3, 2, 1, 0):
        text = "  ".join(part for rank, part in parts if part and rank <= dropped)
        if columns is None or len(text) <= columns:
            break
    return text


class LineReporter:
    """A line now and then, for logs and pipes: at 10 s, then each minute, then each 10."""

    def __init__(self, name: str, every: float | None = None) -> None:
        """Begin; `every` is the seconds between two lines, where they were asked for."""
        self._name = name
        self._rate = Rate()
        self._every = every

    @property
    def interval(self) -> float:
        """Seconds until the next line."""
        if self._every is not None:
            return self._every
        passed = time.monotonic() - self._rate.began
        if passed < _FIRST_LINE_SECONDS:
            return _FIRST_LINE_SECONDS - passed
        step = _OFTEN_SECONDS if passed < _SELDOM_SECONDS else _SELDOM_SECONDS
        return step - passed % step

    def report(self, progress: Progress) -> None:
        """Write a line."""
        say(f"{self._name}: {progress_line(progress.snapshot(), self._rate)}")

    asked = report

    def clear(self) -> None:
        """Nothing stands in the way."""


class BarReporter:
    """A bar that moves, for a terminal."""

    interval = _BAR_SECONDS

    def __init__(self, name: str) -> None:
        # Only here: a pipe or a log need not wait for it.
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as Bar

        self._name = name
        self._rate = Rate()
        self._narrow = (TextColumn("{task.description}"), TextColumn("{task.fields[line]}"))
        self._wide = (self._narrow[0], BarColumn(bar_width=_BAR_COLUMNS), self._narrow[1])
        self._bar = Bar(
            console=Console(stderr=True),
            auto_refresh=False,
            transient=True,
        )
        self._task = self._bar.add_task(name, line="", total=None)

    def report(self, progress: Progress) -> None:
        """Draw the bar."""
        counts = progress.snapshot()
        if not counts.total and not counts.seen:
            return
        columns = self._bar.console.width
        has_bar = columns >= _BAR_FROM_COLUMNS
        self._bar.columns = self._wide if has_bar else self._narrow
        room = columns - len(self._name) - 2 - (_BAR_COLUMNS + 1 if has_bar else 0)
        line = progress_line(counts, self._rate, room)
        total = counts.total or None
        self._bar.update(self._task, total=total, completed=counts.covered, line=line)
        with contextlib.suppress(OSError):  # the terminal has gone
            if not self._bar.live.is_started:
                self._bar.start()
            self._bar.refresh()

    def asked(self, progress: Progress) -> None:
        """Write a line above the bar."""
        line = f"{self._name}: {progress_line(progress.snapshot(), self._rate)}"
        with contextlib.suppress(OSError):
            self._bar.console.print(line, highlight=False)

    def clear(self) -> None:
        """Take the bar away, so that the next words stand alone."""
        with contextlib.suppress(OSError):
            self._bar.stop()


class EventReporter:
    """A JSON line every second, or as often as was asked for."""

    def __init__(self, every: float | None = None) -> None:
        """Begin; `every` is the seconds between two lines."""
        self.interval = every or _EVENT_SECONDS
        self._rate = Rate()

    def report(self, progress: Progress) -> None:
        """Write the counters."""
        counts = progress.snapshot()
        speed, left = self._rate.update(counts)
        from blockstream.events import Progress as Event

        emit(Event(**asdict(counts), rate=round(speed), seconds_left=left))

    asked = report

    def clear(self) -> None:
        """Nothing stands in the way."""


class PercentReporter:
    """Lines of N/100 on a descriptor, as nbdcopy writes them."""

    interval = _EVENT_SECONDS

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._last = -1

    def report(self, progress: Progress) -> None:
        """Write the share that is done, when it changed; 100 is for what is committed."""
        counts = progress.snapshot()
        share = min(99, 100 * counts.covered // counts.total) if counts.total else 0
        if share != self._last:
            self._last = share
            write_share(self._fd, share)

    asked = report

    def clear(self) -> None:
        """Nothing stands in the way."""


def write_share(fd: int, share: int) -> None:
    """Write a line of N/100 to a descriptor."""
    with contextlib.suppress(OSError):  # whoever followed us has gone
        os.write(fd, f"{share}/100\n".encode())
