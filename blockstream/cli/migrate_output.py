"""What `migrate` says."""

import math
from collections.abc import Sequence
from dataclasses import asdict

from blockstream.cli.console import emit, say
from blockstream.cli.voice import Voice
from blockstream.jobs.migration.convergence import Round
from blockstream.jobs.migration.migrate import MigrationReport
from blockstream.words import duration_text, size_text

_PLOT_COLUMNS = 30


class Steps(Voice):
    """Speaks of the steps of a migration, unless it is to be quiet."""

    def tell(self, text: str) -> None:
        """Say a line, in the place of a bar."""
        if not self.quiet:
            Voice.tell(self, text)


def show_migrated(report: MigrationReport, *, as_json: bool, quiet: bool) -> None:
    """Say how it went, round by round."""
    if as_json:
        from blockstream.events import Migrated

        rounds = [
            asdict(each) | {"send_rate": each.send_rate, "dirty_rate": each.dirty_rate}
            for each in report.rounds
        ]
        stood = report.downtime
        emit(Migrated(rounds, stood.total, asdict(stood), report.seconds))
        return
    if quiet:
        return
    say("round   changed     on the wire        took   snapshot full")
    for each in report.rounds:
        last = each.number == len(report.rounds) - 1
        full = "" if last else f"{each.filled:.0f} %"
        say(
            f"{'last' if last else each.number:>5}{size_text(each.covered):>11}"
            f"{size_text(each.wire):>14}{duration_text(each.seconds):>12}{full:>12}   "
            f"{_bar(each, report.rounds)}"
        )
    parts = [
        f"{seconds:.1f} s {what}"
        for what, seconds in asdict(report.downtime).items()
        if round(seconds, 1)
    ]
    say(
        f"migrated in {duration_text(report.seconds)}; the guest stood still for "
        f"{report.downtime.total:.1f} s" + (f": {', '.join(parts)}" if len(parts) > 1 else "")
    )


def _bar(one: Round, rounds: Sequence[Round]) -> str:
    """Return a bar for the bytes of a round, in powers, or all but the first would be dots."""
    most = max(math.log2(each.covered + 1) for each in rounds) or 1.0
    return "#" * round(_PLOT_COLUMNS * math.log2(one.covered + 1) / most)
