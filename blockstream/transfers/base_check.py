"""`send --check-base`: whether a target holds its base, read as a whole.

What an increment does not write must be equal on both sides already: the source has not changed
there since the base. So it is compared, and what the increment does write is not.
"""

import uuid
from dataclasses import replace

import numpy as np

from blockstream.captures.interface import Captured
from blockstream.errors import RefusedError
from blockstream.extents import ExtentMap
from blockstream.formats.extent_lists import ExtentList, Meaning
from blockstream.interfaces import Source, Target
from blockstream.linux.buffers import aligned_buffer
from blockstream.locations.ssh import Remote
from blockstream.run import Run
from blockstream.transfers.digests import GRAIN, compared
from blockstream.transfers.peer_options import PeerOptions
from blockstream.transfers.send import SendPlan, TransferOptions, planned
from blockstream_protocol import Kind

_STEP = 1 << 20


def check_base_here(what: SendPlan, source: Source, target: Target, run: Run) -> None:
    """Compare a target of this host with the source, but for what the increment writes.

    Args:
        what: The increment.
        source: The disk.
        target: Its target, which we hold, so that nothing comes between this and the increment.
        run: Counts, and stops it.

    Raises:
        RefusedError: If the target is not its base.
        BlockstreamError: If one of them cannot be read.
    """
    if target.size < source.size:
        return  # which the receiver refuses in its own words
    first = _first_difference(what, source, target, run)
    if first is not None:
        raise _differing(target.name, first)


async def check_base_there(
    disk: Captured, how: TransferOptions, where: Remote, options: PeerOptions, run: Run
) -> Captured:
    """Compare a target of another host with the source by digests, but for what is written.

    The target is held there while it is read, and then called by a name of its own, with what the
    kernel knows of it at that moment: an increment onto that is refused if anybody comes between.

    Args:
        disk: The increment.
        how: How it travels.
        where: The target.
        options: How its host is reached.
        run: Counts, and stops it.

    Returns:
        The increment, from that name on. Of blocks that it writes in part, it writes all: their
        digests cannot tell whether the rest is equal.

    Raises:
        RefusedError: If the target is not its base.
        BlockstreamError: With what the other end said.
    """
    what = await run.carry(lambda: planned(disk, how))
    name = f"compared-{uuid.uuid4()}"
    found = (await compared(disk.source, where, options, run, adopt=name)).differing
    outside = found.without(what.extents.coverage().rounded(GRAIN))
    if len(outside):
        raise _differing(str(where), int(outside.offsets[0]))
    changes = ExtentList(
        found.overlaid(what.extents), Meaning.CHANGED, "comparison with the base", disk.source.size
    )
    return replace(disk, base=name, state=what.opening.goal, changes=changes)


def _first_difference(what: SendPlan, source: Source, target: Target, run: Run) -> int | None:
    """Return where both begin to differ, but for what is written; None if nowhere."""
    progress, planned_to_write = run.count_anew(), what.extents.coverage()
    size = progress.size = progress.total = source.size
    buffers = aligned_buffer(_STEP), aligned_buffer(_STEP)
    for start in range(0, size, _STEP):
        run.check("nothing was written")
        length = min(_STEP, size - start)
        views = [buffer[:length] for buffer in buffers]
        source.read_into([start], [length], views[0])
        views[1][:] = target.read_medium(start, length)
        differs = np.not_equal(*(np.frombuffer(view, np.uint8) for view in views))
        step = ExtentMap.from_columns(
            np.array([start]), np.array([length]), Kind.DATA, planned_to_write.size
        )
        for offset, count, _ in planned_to_write.intersected(step):
            differs[offset - start : offset - start + count] = False
        if differs.any():
            return start + int(np.argmax(differs))
        progress.frame(data=length, covered=length, wire=0)
    return None


def _differing(target: str, offset: int) -> RefusedError:
    return RefusedError(
        f"{target} differs from the source at offset {offset}, where nothing is said to have "
        "changed since the base: somebody wrote to it, or the list of changes lacks something; "
        "nothing was written to it; send a full copy; --force-base looks at nothing, and leaves "
        "what was written"
    )
