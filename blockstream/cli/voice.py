"""How a run speaks."""

from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import TypeVar

from blockstream.cli.foreground import done
from blockstream.cli.options import cleared, warn
from blockstream.cli.reporter import Reporter
from blockstream.run import Run

T = TypeVar("T")


@dataclass(slots=True)
class Voice:
    """How a run speaks.

    Attributes:
        shown: Who shows progress.
        as_json: In JSON lines.
        quiet: No closing line.
        run: What works is handed this.
    """

    shown: list[Reporter]
    as_json: bool
    quiet: bool
    run: Run = field(init=False)

    def __post_init__(self) -> None:
        self.run = Run(self.tell)

    def done(self, job: Coroutine[object, object, T]) -> T:
        """Do a job in the foreground; see there."""
        return done(job, self.run, self.shown)

    def tell(self, text: str) -> None:
        """Say a line, in the place of a bar."""
        cleared(self.shown)
        warn(text, as_json=self.as_json)
