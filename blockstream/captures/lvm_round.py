"""One round of a volume that is followed: a snapshot of it, and what changed since another one."""

import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence

from blockstream.captures.interface import Captured, Held
from blockstream.captures.lvm_snapshots import moment_of
from blockstream.formats.extent_lists import ExtentList
from blockstream.linux import lvm
from blockstream.linux.lvm import Volume
from blockstream.locations.local import LocalDisk
from blockstream.run import Run
from blockstream.sources.volume import VolumeSource, flush

Changes = Callable[[Volume, Volume, Run], ExtentList]
"""Returns what changed between an older snapshot and a newer one, or the volume."""


class RoundCapture:
    """Reads a snapshot of a volume; or the volume itself, once nobody writes it any more.

    Attributes:
        preparing: Seconds that it took to find out what changed.
    """

    def __init__(
        self,
        location: LocalDisk,
        newer: Volume,
        older: Volume | None,
        changes: Changes,
        *,
        itself: bool = False,
    ) -> None:
        """Name it.

        Args:
            location: The volume that is followed, as it was named.
            newer: What is read.
            older: What the changes are counted from; None for all of it.
            changes: Finds them out.
            itself: Whether it is the volume, and no snapshot of it.
        """
        self.preparing = 0.0
        self._itself = itself
        self._location = location
        self._newer = newer
        self._older = older
        self._changes = changes

    @contextlib.asynccontextmanager
    async def open(self, held: Held, run: Run) -> AsyncIterator[Sequence[Captured]]:
        """See `Capture`. Nothing is made; whoever follows the volume knows what is held."""
        del held
        newer, older, itself = self._newer, self._older, self._itself
        activating = contextlib.nullcontext(newer) if itself else lvm.activated(newer)
        async with run.within(activating) as active:
            began, changes = time.monotonic(), None
            if older is not None:
                base = older
                if itself:
                    await run.carry(lambda: flush(active))
                changes = await run.carry(lambda: self._changes(base, active, run))
                self.preparing = time.monotonic() - began
            moment = time.time_ns() if itself else moment_of(newer)
            async with run.within(self._opened(active)) as source:
                if itself:
                    source.warnings.clear()  # nobody writes it now
                yield [
                    Captured(
                        name=newer.name,
                        location=self._location.key,
                        source=source,
                        state="" if itself else newer.uuid,
                        moment=moment,
                        base=older.uuid if older is not None else "",
                        changes=changes,
                    )
                ]

    async def committed(self, disk: Captured) -> None:
        """See `Capture`. Whoever follows the volume notes it."""

    @contextlib.contextmanager
    def _opened(self, active: Volume) -> Iterator[VolumeSource]:
        """Read it, as long as a snapshot that its changes are counted from is what it was."""
        watched = [self._older] if self._older is not None else []
        with contextlib.closing(VolumeSource(active, depends_on=watched)) as source:
            yield source
