"""A file, a block device or an NBD export as it is: nobody tracks what changes in it."""

import contextlib
import functools
import time
from collections.abc import AsyncIterator, Iterator, Sequence

from blockstream.captures.interface import Captured, Held
from blockstream.captures.listing import listing_of, parsed
from blockstream.captures.options import CaptureOptions
from blockstream.errors import NotFoundError, RefusedError
from blockstream.interfaces import Source
from blockstream.linux.state_directory import target_folder
from blockstream.locations.interface import DiskLocation, opened_source
from blockstream.run import Run


class PlainCapture:
    """Reads a disk itself, and believes what people say of its changes."""

    def __init__(self, location: DiskLocation, options: CaptureOptions) -> None:
        """Name it.

        Args:
            location: The disk.
            options: What is said of its states.
        """
        self._location = location
        self._states = options.states
        self._state_dir = options.state_dir
        self._name = options.name or location.name

    @contextlib.asynccontextmanager
    async def open(self, held: Held, run: Run) -> AsyncIterator[Sequence[Captured]]:
        """See `Capture`. Nothing is made."""
        del held  # what people say is what counts
        listing = await listing_of(self._states, run)
        opening = self._opened(listing)
        async with run.within(opening, harmless=self._location.is_far) as disk:
            await run.ask(functools.partial(self._warn, disk.source, run))
            yield [disk]

    def _warn(self, source: Source, run: Run) -> None:
        """Say that a transfer onto it has begun and not ended: it is neither base nor goal."""
        if not target_folder(self._state_dir, source.identity).is_dir():
            return
        from blockstream.pipeline.target_status import read_status  # what `send` does without
        from blockstream_protocol import Dirty

        with contextlib.suppress(NotFoundError, RefusedError):
            state = read_status(target_folder(self._state_dir, source.identity)).state
            if isinstance(state, Dirty):
                run.tell(
                    f"{source.name} is half-written: a transfer to it, to {state.goal}, has begun "
                    "and not ended, so it is no state of anything"
                )

    async def committed(self, disk: Captured) -> None:
        """See `Capture`. Nothing is kept."""

    @contextlib.contextmanager
    def _opened(self, listing: bytes | None) -> Iterator[Captured]:
        states, began = self._states, time.time_ns()
        with opened_source(self._location) as source:
            yield Captured(
                name=self._name,
                location=self._location.key,
                source=source,
                state=states.given_goal,
                moment=began if source.is_still else None,
                base=states.given_base,
                changes=parsed(listing, source),
            )
