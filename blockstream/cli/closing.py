"""The last line of `--json`: what was delivered, how it ended, and what is left behind."""

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from blockstream.errors import BlockstreamError, LeftoverError
from blockstream.words import time_text

if TYPE_CHECKING:
    from blockstream.events import Delivery, End
    from blockstream.pipeline.progress import Snapshot


@dataclass(slots=True)
class Closing:
    """Gathers what the last line says of one command.

    Attributes:
        began: When the command did, by a clock that is only good for differences.
        deliveries: What was delivered.
        error: What ended it; None for nothing.
        is_asked: Whether a program hears us, and so the last line is said.
    """

    began: float = field(default_factory=time.monotonic)
    deliveries: "list[Delivery]" = field(default_factory=list)
    error: BlockstreamError | None = None
    is_asked: bool = False

    def delivered(
        self,
        *,
        source: str,
        target: str,
        state: str,
        base: str,
        moment: str | None,
        counts: "Snapshot",
        is_committed: bool,
    ) -> None:
        """Take a disk that was delivered just now."""
        from blockstream.events import Delivery

        self.deliveries.append(
            Delivery(
                source=source,
                target=target,
                state=state,
                base=base,
                moment=moment,
                committed_at=time_text(time.time()) if is_committed else None,
                size=counts.size,
                covered=counts.covered,
                data=counts.data,
                wire=counts.wire,
            )
        )

    def end(self, status: int) -> "End":
        """Return the last line."""
        from blockstream.events import VERSION, End

        error = self.error
        return End(
            version=VERSION,
            status=status,
            deliveries=self.deliveries,
            error=type(error).__name__ if error is not None else None,
            message=str(error) if error is not None else None,
            what=error.what if error is not None else None,
            more=error.more if error is not None else [],
            where=error.where or None if error is not None else None,
            durable=error.durable if error is not None else None,
            advice=error.advice or None if error is not None else None,
            left_behind=str(error) if isinstance(error, LeftoverError) else None,
            seconds=round(time.monotonic() - self.began, 3),
        )


CLOSING = Closing()  # of this process, which runs one command
