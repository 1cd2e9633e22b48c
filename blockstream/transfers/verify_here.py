"""`verify SOURCE TARGET` on one host: both are read, and nothing travels."""

import contextlib
import uuid
from dataclasses import replace

from blockstream.errors import RefusedError
from blockstream.formats.extent_lists import ExtentList, Meaning
from blockstream.interfaces import Source
from blockstream.locations import open_source, open_target
from blockstream.run import Run
from blockstream.transfers.compare import differing
from blockstream.transfers.copy import copy
from blockstream.transfers.digests import Comparison
from blockstream.transfers.opened_target import absolute_path, opened, record_adopted
from blockstream.transfers.receive import ReceiveRequest, ReceiveResult
from blockstream.transfers.send import SendRequest


async def compared_here(source: Source, target: str, run: Run) -> Comparison:
    """Compare a disk with another one of this host.

    Raises:
        RefusedError: If the other one is smaller.
        BlockstreamError: If one of them cannot be read.
    """
    return await run.carry(lambda: _compared(source, target, run))


def _compared(source: Source, target: str, run: Run) -> Comparison:
    with contextlib.closing(open_source(target, from_medium=True)) as other:
        if other.size < source.size:
            raise RefusedError(
                f"{source.name} has {source.size} bytes, {target} only {other.size}: they cannot "
                "be equal; nothing was written"
            )
        return Comparison(source.size, differing(source, other, run), other.size)


async def repaired_here(
    request: SendRequest, source: Source, where: ReceiveRequest, run: Run
) -> tuple[ReceiveResult, Comparison]:
    """Compare a disk with another one of this host, and write there what differs.

    Raises:
        BlockstreamError: As for any comparison, and any copy.
    """
    base = f"compared-{uuid.uuid4()}"

    def compare_and_adopt() -> Comparison:
        target = open_target(where.target, sources=source.nodes)
        with opened(target, where.state_dir) as everything:
            found = _compared(source, where.target, run)
            record_adopted(everything, where.target, base)
        return found

    comparison = await run.carry(compare_and_adopt)
    changes = ExtentList(comparison.differing, Meaning.CHANGED, "comparison", comparison.size)
    request = replace(request, base=base, changes=changes, target=absolute_path(where.target))
    # By that name, and by what the kernel knows, a target is refused that somebody wrote meanwhile.
    return await copy(request, source, where, run), comparison
