"""`send --check-base`: whether a target holds its base, read as a whole.

What an increment does not write must be equal on both sides already: the source has not changed
there since the base. So it is compared, and what the increment does write is not.
"""

import contextlib
from dataclasses import replace

import numpy as np

from blockstream.errors import InterruptedTransferError, RefusedError, WrittenSinceError
from blockstream.extents import ExtentMap
from blockstream.formats.extent_lists import ExtentList, Meaning
from blockstream.interfaces import Source
from blockstream.jobs.digests import GRAIN
from blockstream.jobs.peer import PeerOptions, compared
from blockstream.jobs.send import SendPlan, SendRequest, planned
from blockstream.jobs.supervision import Reporter, Work, supervised
from blockstream.linux.buffers import aligned_buffer
from blockstream.locations import Remote, open_source
from blockstream.pipeline.progress import Progress
from blockstream_protocol import Kind

_STEP = 1 << 20


def check_base_here(
    request: SendRequest, source: Source, target: str, reporters: list[Reporter]
) -> None:
    """Compare a target of this host with the source, but for what the increment writes.

    Args:
        request: The increment.
        source: The disk.
        target: Location of the target.
        reporters: Who shows progress.

    Raises:
        WrittenSinceError: If the target is not its base.
        RefusedError: If it is smaller than the source.
        SourceError: If one of them cannot be read.
    """
    what = planned(request, source)
    with contextlib.closing(open_source(target, from_medium=True)) as theirs:
        if theirs.size < source.size:
            raise RefusedError(
                f"{target} has {theirs.size} bytes, {source.name} {source.size}: it cannot hold "
                "the base; nothing was written"
            )
        job = _Comparing(what, source, theirs)
        supervised(job.run, Work(job.stop), job.progress, reporters)
    if job.first is not None:
        raise _differing(target, job.first)


def check_base_there(
    request: SendRequest,
    source: Source,
    where: Remote,
    options: PeerOptions,
    reporters: list[Reporter],
) -> SendRequest:
    """Compare a target of another host with the source by digests, but for what is written.

    Args:
        request: The increment.
        source: The disk.
        where: The target.
        options: How its host is reached.
        reporters: Who shows progress.

    Returns:
        The increment. Of blocks that it writes in part, it writes all: their digests cannot tell
        whether the rest is equal.

    Raises:
        WrittenSinceError: If the target is not its base.
        BlockstreamError: With what the other end said.
    """
    what = planned(request, source)
    found = compared(source, where, options, reporters).differing
    outside = found.without(what.extents.coverage().rounded(GRAIN))
    if len(outside):
        raise _differing(str(where), int(outside.offsets[0]))
    changes = ExtentList(
        found.overlaid(what.extents), Meaning.CHANGED, "comparison with the base", source.size
    )
    opening = what.opening
    return replace(request, base=opening.base, goal=opening.goal, extents="", changes=changes)


class _Comparing:
    """Reads two disks of this host, step by step.

    Attributes:
        progress: Counted.
        first: Where they begin to differ; None for nowhere.
    """

    def __init__(self, what: SendPlan, source: Source, target: Source) -> None:
        self.progress = Progress()
        self.first: int | None = None
        self._source = source
        self._target = target
        self._planned = what.extents.coverage()
        self._stopped = ""

    def stop(self, reason: str) -> None:
        """Make `run` end soon."""
        self._stopped = reason

    def run(self) -> None:
        """Compare them up to the first difference."""
        size = self.progress.size = self.progress.total = self._source.size
        buffers = aligned_buffer(_STEP), aligned_buffer(_STEP)
        for start in range(0, size, _STEP):
            if self._stopped:
                raise InterruptedTransferError(f"{self._stopped}; nothing was written")
            length = min(_STEP, size - start)
            views = [buffer[:length] for buffer in buffers]
            self._source.read_into([start], [length], views[0])
            self._read_target(start, views[1])
            differs = np.not_equal(*(np.frombuffer(view, np.uint8) for view in views))
            step = ExtentMap.from_columns(
                np.array([start]), np.array([length]), Kind.DATA, self._planned.size
            )
            for offset, count, _ in self._planned.intersected(step):
                differs[offset - start : offset - start + count] = False
            if differs.any():
                self.first = start + int(np.argmax(differs))
                return
            self.progress.frame(data=length, covered=length, wire=0)

    def _read_target(self, start: int, view: memoryview) -> None:
        """Read a range of a target that may be larger, and want whole blocks."""
        step = self._target.alignment
        needed = min(-(-len(view) // step) * step, self._target.size - start)
        if needed == len(view):
            self._target.read_into([start], [needed], view)
            return
        buffer = aligned_buffer(needed)
        self._target.read_into([start], [needed], buffer)
        view[:] = buffer[: len(view)]


def _differing(target: str, offset: int) -> WrittenSinceError:
    return WrittenSinceError(
        f"{target} differs from the source at offset {offset}, where nothing is said to have "
        "changed since the base: somebody wrote to it, or the list of changes lacks something; "
        "nothing was written; send a full copy, or --compare, which sends what differs"
    )
