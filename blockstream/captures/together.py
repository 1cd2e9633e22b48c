"""Several disks, each held still for itself, that go to one destination as a set."""

import contextlib
from collections.abc import AsyncIterator, Sequence

from blockstream.captures.interface import Capture, Captured, Held
from blockstream.run import Run


class Together:
    """Opens captures one after the other, and tells each of its own disks."""

    def __init__(self, captures: Sequence[Capture]) -> None:
        """Name them."""
        self._captures = captures
        self._of: dict[int, Capture] = {}

    @contextlib.asynccontextmanager
    async def open(self, held: Held, run: Run) -> AsyncIterator[Sequence[Captured]]:
        """See `Capture`. They are not of one moment, but each disk has its own."""
        async with contextlib.AsyncExitStack() as stack:
            found = list[Captured]()
            for capture in self._captures:
                disks = await stack.enter_async_context(capture.open(held, run))
                self._of |= {id(disk.source): capture for disk in disks}
                found += disks
            yield found

    async def committed(self, disk: Captured) -> None:
        """See `Capture`."""
        await self._of[id(disk.source)].committed(disk)
