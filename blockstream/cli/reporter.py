"""What shows progress to somebody."""

from typing import Protocol

from blockstream.pipeline.progress import Progress


class Reporter(Protocol):
    """Shows progress to somebody."""

    @property
    def interval(self) -> float:
        """Seconds until the next `report`."""

    def report(self, progress: Progress) -> None:
        """Show how far it is; called after each `interval`."""

    def asked(self, progress: Progress) -> None:
        """Show one line now: somebody sent SIGUSR1."""

    def clear(self) -> None:
        """Leave the place to other words; what comes next may be shown again."""
