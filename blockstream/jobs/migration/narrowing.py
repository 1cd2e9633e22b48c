"""What of the chunks of a thin pool was written, where a chunk is larger than what is written.

A pool of 64 KiB chunks says "this chunk", and a guest wrote 4 KiB of it. Both snapshots are here,
and reading them may be faster than sending sixteen times as much.
"""

import contextlib
import time
from dataclasses import replace

from blockstream.formats.extent_lists import ExtentList
from blockstream.linux.lvm import Volume
from blockstream.run import Run
from blockstream.sources.volume import VolumeSource
from blockstream.transfers.compare import differing
from blockstream.transfers.send import SendResult
from blockstream_protocol import Kind


class Narrowing:
    """Compares chunks with their base as long as that is faster than the line, as measured."""

    def __init__(self) -> None:
        """Know nothing yet: the first time tells."""
        self._resting = False
        self._compared = 0.0  # bytes a second, 0 before the first time
        self._kept = 0.0  # of what is compared, so much differs
        self._line = 0.0  # bytes of the disk a second, 0 before anything was sent

    @property
    def pays(self) -> bool:
        """Whether comparing and sending what differs is faster than sending all of it."""
        if not self._compared or not self._line:
            return True
        return 1 / self._compared + self._kept / self._line < 1 / self._line

    def rest(self) -> None:
        """Take the next list whole.

        An unfinished pass wrote ranges that the next one must cover, also where the guest has put
        back by now what was there before.
        """
        self._resting = True

    def carried(self, sent: SendResult) -> None:
        """Learn from a pass how fast the line is."""
        if sent.counts.data and sent.seconds:
            self._line = sent.counts.data / sent.seconds

    def narrowed(self, older: Volume, newer: Volume, found: ExtentList, run: Run) -> ExtentList:
        """Return the blocks of 4 KiB that differ, or the list as it is where that is faster.

        Args:
            older: A thin snapshot, active.
            newer: A later one of the same volume, or the volume, which nobody writes.
            found: What the pool says that changed.
            run: Counts, and stops it.

        Raises:
            SourceError: If one cannot be read.
        """
        resting, self._resting = self._resting, False
        data = found.extents.total(Kind.DATA)
        if resting or not data or not self.pays:
            return found
        began = time.monotonic()
        with (
            contextlib.closing(VolumeSource(newer)) as new,
            contextlib.closing(VolumeSource(older)) as old,
        ):
            changed = differing(new, old, run, found.extents.of_kind(Kind.DATA))
        self._compared = data / max(time.monotonic() - began, 1e-6)
        self._kept = changed.total(Kind.DATA) / data
        zeros = found.extents.of_kind(Kind.ZERO)
        return replace(found, extents=changed.overlaid(zeros), origin=f"{found.origin}, compared")
