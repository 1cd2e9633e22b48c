"""What a destination promises: to say what it holds, and to take captured disks.

Each kind is a parameter of `tests/contracts/test_destinations.py`.
"""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from blockstream.captures.interface import Captured, Holding
from blockstream.run import Run

if TYPE_CHECKING:
    from blockstream.transfers.digests import Comparison
    from blockstream.transfers.dry_run import WouldTake
    from blockstream.transfers.receive import ReceiveResult
    from blockstream.transfers.save import SaveEstimate, SaveResult
    from blockstream.transfers.send import SendPlan, SendResult
    from blockstream.transfers.write_foreign import WriteResult


@dataclass(frozen=True, slots=True)
class Delivered:
    """What became of one disk.

    Attributes:
        disk: The disk.
        place: What people call the place where it is now; empty for a stream.
        result: What the transfer says of itself.
        base_checked: Whether the place was read first, and was the base.
        is_confirmed: Whether the place said that it holds it; over a plain pipe, nobody does.
    """

    disk: Captured
    place: str
    result: "SendResult | ReceiveResult | SaveResult | WriteResult"
    base_checked: bool = False
    is_confirmed: bool = True


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """What would become of one disk.

    Attributes:
        place: What people call the place where it would go; empty for a stream.
        plan: What would be sent.
        answer: What the place says of it: what it would take, or what that would cost in a store;
            None where nobody can be asked.
    """

    place: str
    plan: "SendPlan"
    answer: "ReceiveResult | SaveEstimate | WouldTake | None"


class Destination(Protocol):
    """Takes captured disks. Prints nothing, asks nobody.

    A call that is cancelled ends at the next safe point, and raises InterruptedTransferError; what
    `deliver` had begun by then is continued by the same call.
    """

    async def last(self, location: str, run: Run) -> str:
        """Return the state that was last confirmed to be there, for `--base last`.

        Args:
            location: What was sent, as `Captured.location` has it.
            run: Stops it.

        Raises:
            NotFoundError: If there is none.
            BaseMismatchError: If what is there is of another source.
        """

    async def held(self, name: str, run: Run) -> Holding:
        """Return what is held under a name.

        Raises:
            UsageError: If a second disk would go where one has its place.
            BlockstreamError: If it cannot be asked.
        """

    async def differing(self, disk: Captured, run: Run, *, adopt: bool = False) -> "Comparison":
        """Compare a disk with what is held under its name; both are read, nothing is sent.

        Args:
            disk: The disk.
            run: Counts, and stops it.
            adopt: Call what is held by a name of its own, so that an increment onto that, the
                `base` of what is returned, is refused if anybody else comes between.

        Raises:
            UsageError: If nothing can be read there.
            BlockstreamError: As either side fails.
        """

    async def rehearse(self, disk: Captured, run: Run) -> Rehearsal:
        """Say what would become of a disk; nothing is written.

        Raises:
            BlockstreamError: As the delivery would be refused.
        """

    def deliver(self, disks: Sequence[Captured], run: Run) -> AsyncGenerator[Delivered, None]:
        """Take disks, together where that is possible; give each once it is committed, or was sent.

        Raises:
            PartlyDoneError: If some were committed and others not; the same call finishes them.
            BlockstreamError: If it fails; then nothing was committed.
        """
