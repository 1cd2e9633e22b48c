"""`send --check-base`: whether a target holds its base, read as a whole.

What an increment does not write must be equal on both sides already: the source has not changed
there since the base. So it is compared, and what the increment does write is not.
"""

import uuid
from dataclasses import replace

import numpy as np

from blockstream.errors import InterruptedTransferError, RefusedError
from blockstream.extents import ExtentMap
from blockstream.formats.extent_lists import ExtentList, Meaning
from blockstream.interfaces import Source, Target
from blockstream.jobs.digests import GRAIN
from blockstream.jobs.peer import PeerOptions, compared
from blockstream.jobs.send import SendPlan, SendRequest, planned
from blockstream.jobs.supervision import Reporter, Work, supervised
from blockstream.linux.buffers import aligned_buffer
from blockstream.locations import Remote
from blockstream.pipeline.progress import Progress
from blockstream_protocol import Kind

_STEP = 1 << 20


def check_base_here(
    what: SendPlan, source: Source, target: Target, reporters: list[Reporter]
) -> None:
    """Compare a target of this host with the source, but for what the increment writes.

    Args:
        what: The increment.
        source: The disk.
        target: Its target, which we hold, so that nothing comes between this and the increment.
        reporters: Who shows progress.

    Raises:
        RefusedError: If the target is not its base.
        BlockstreamError: If one of them cannot be read.
    """
    if target.size < source.size:
        return  # which the receiver refuses in its own words
    job = _Comparing(what, source, target)
    supervised(job.run, Work(job.stop), job.progress, reporters)
    if job.first is not None:
        raise _differing(target.name, job.first)


def check_base_there(
    request: SendRequest,
    source: Source,
    where: Remote,
    options: PeerOptions,
    reporters: list[Reporter],
) -> SendRequest:
    """Compare a target of another host with the source by digests, but for what is written.

    The target is held there while it is read, and then called by a name of its own, with what the
    kernel knows of it at that moment: an increment onto that is refused if anybody comes between.

    Args:
        request: The increment.
        source: The disk.
        where: The target.
        options: How its host is reached.
        reporters: Who shows progress.

    Returns:
        The increment, from that name on. Of blocks that it writes in part, it writes all: their
        digests cannot tell whether the rest is equal.

    Raises:
        RefusedError: If the target is not its base.
        BlockstreamError: With what the other end said.
    """
    what = planned(request, source)
    name = f"compared-{uuid.uuid4()}"
    found = compared(source, where, options, reporters, adopt=name).differing
    outside = found.without(what.extents.coverage().rounded(GRAIN))
    if len(outside):
        raise _differing(str(where), int(outside.offsets[0]))
    changes = ExtentList(
        found.overlaid(what.extents), Meaning.CHANGED, "comparison with the base", source.size
    )
    return replace(request, base=name, goal=what.opening.goal, extents="", changes=changes)


class _Comparing:
    """Reads a disk and a target of this host, step by step.

    Attributes:
        progress: Counted.
        first: Where they begin to differ; None for nowhere.
    """

    def __init__(self, what: SendPlan, source: Source, target: Target) -> None:
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
            views[1][:] = self._target.read_medium(start, length)
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


def _differing(target: str, offset: int) -> RefusedError:
    return RefusedError(
        f"{target} differs from the source at offset {offset}, where nothing is said to have "
        "changed since the base: somebody wrote to it, or the list of changes lacks something; "
        "nothing was written to it; send a full copy; --force-base looks at nothing, and leaves "
        "what was written"
    )
