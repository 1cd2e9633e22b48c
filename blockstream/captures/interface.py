"""What a capture promises: disks held still, of one moment, and what changed in them.

Each kind is a parameter of `tests/contracts/test_captures.py`.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from blockstream.interfaces import Source
from blockstream.run import Run

if TYPE_CHECKING:
    from blockstream.formats.extent_lists import ExtentList  # numpy: 60 ms


@dataclass(frozen=True, slots=True)
class Holding:
    """What a destination holds under one name.

    Attributes:
        state: State that an increment for it may start from; empty where nothing is known of it.
        moment: When that was the disk's content, in nanoseconds since 1970, UTC; None where nobody
            knows.
        exists: Whether there is anything of that name.
        unfinished: Whether a transfer onto it has begun and not ended.
        origin: What that state was made from, by its identity; empty where nobody knows. Names are
            given by people: two states of one name may be two.
    """

    state: str = ""
    moment: int | None = None
    exists: bool = True
    unfinished: bool = False
    origin: str = ""


Held = Callable[[str], Awaitable[Holding]]
"""Asks a destination what it holds under a name."""


@dataclass(frozen=True, slots=True)
class Captured:
    """One disk, held still for as long as its capture is open.

    Attributes:
        name: What it is called at a destination that has names.
        location: Where it is, in words that mean the same in every directory of this host.
        source: Reads it.
        state: Id of what is read; empty where nobody named it, and a transfer gives it a name.
        moment: When that was the disk's content, in nanoseconds since 1970, UTC; None where nobody
            knows.
        base: State that `changes` start from; empty for a full copy.
        changes: What changed since `base`, or, of a full copy, what is allocated; None for all
            that the source has.
        why_whole: Why all of it is sent although the destination holds something; empty otherwise.
        origin: Of a restore point, where it was saved from: `location` and `host`, as far as that
            is known; None for a disk itself.
    """

    name: str
    location: str
    source: Source
    state: str = ""
    moment: int | None = None
    base: str = ""
    changes: "ExtentList | None" = None
    why_whole: str = ""
    origin: Mapping[str, str] | None = None


class Capture(Protocol):
    """Holds one or several disks still, of one moment, and says what changed in them.

    One capture is opened once.
    """

    def open(self, held: Held, run: Run) -> AbstractAsyncContextManager[Sequence[Captured]]:
        """Make what is needed, as snapshots are, after the destination was asked what it holds.

        A cancelled entry leaves nothing but what the same command goes on with. Leaving the context
        removes all that is not kept, however it ends: what goes on with an unfinished transfer is
        kept, and what `committed` was told of if the next round starts from it.

        Args:
            held: Asks the destination; called before anything is made that grows.
            run: Stops it.

        Raises:
            UsageError: If something was asked for that this kind of disk has not.
            LeftoverError: After all else was done: something could not be removed.
            BlockstreamError: As what makes and reads it fails; then nothing was sent.
        """

    async def committed(self, disk: Captured) -> None:
        """Take the news that the destination holds `disk`, durably; called within the context.

        Raises:
            BlockstreamError: If it cannot be noted.
        """
