"""An NBD export of which a dirty bitmap says what changed."""

import contextlib
import time
from collections.abc import AsyncIterator, Iterator, Sequence

from blockstream.captures.interface import Captured, Held
from blockstream.captures.options import CaptureOptions, LvmOptions
from blockstream.errors import UsageError
from blockstream.locations.interface import DiskLocation
from blockstream.locations.nbd import NbdExport
from blockstream.run import Run


class BitmapCapture:
    """Reads what the dirty bitmap of an export says has changed."""

    def __init__(self, location: DiskLocation, options: CaptureOptions) -> None:
        """Name it.

        Raises:
            UsageError: If it is no export, or the options contradict each other.
        """
        if not isinstance(location, NbdExport):
            raise UsageError(f"--bitmap is for exports of NBD servers, which {location} is not")
        if options.states.extents or options.lvm != LvmOptions():
            raise UsageError("--bitmap tells what changed; leave --extents and --since out")
        if not options.states.base and options.states.resume is None:
            raise UsageError(
                "--bitmap tells what changed since it was begun: --base must name the state that "
                "the target holds since then; nothing was sent"
            )
        self._location = location
        self._options = options

    @contextlib.asynccontextmanager
    async def open(self, held: Held, run: Run) -> AsyncIterator[Sequence[Captured]]:
        """See `Capture`. Nothing is made."""
        del held  # the bitmap was begun at the base that was named
        async with run.within(self._opened(), harmless=True) as disk:
            yield [disk]

    async def committed(self, disk: Captured) -> None:
        """See `Capture`. The bitmap belongs to who began it."""

    @contextlib.contextmanager
    def _opened(self) -> Iterator[Captured]:
        states, began = self._options.states, time.time_ns()
        opening = self._location.open_source(bitmap=self._options.bitmap)
        with contextlib.closing(opening) as source:
            yield Captured(
                name=self._options.name or self._location.name,
                location=self._location.key,
                source=source,
                state=states.given_goal,
                moment=began if source.is_still else None,
                base=states.given_base,
                changes=source.changes(),
            )
