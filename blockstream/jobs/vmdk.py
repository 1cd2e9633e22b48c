"""What `send` reads of a VMDK: the disk that its chain makes, or one delta of it."""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

from blockstream.errors import UsageError
from blockstream.formats.extent_lists import ExtentList, Meaning
from blockstream.interfaces import Source
from blockstream.sources.vmdk import VmdkSource
from blockstream.transfers.send import SendRequest
from blockstream_protocol import PLAN_EXTENTS


@contextlib.contextmanager
def opened_vmdk(
    path: str, request: SendRequest, *, delta: bool, outside: bool
) -> Iterator[tuple[Source, SendRequest]]:
    """Open a VMDK, and name base and goal by the content ids that it tells.

    Args:
        path: The file.
        request: What to send; states that it names stand.
        delta: Send only what this one holds itself, onto what its parent is.
        outside: Follow names that lead out of its folder.

    Raises:
        UsageError: If it is no delta, or does not tell onto what it belongs.
        SourceError: If it cannot be read.
    """
    if delta and request.extents:
        raise UsageError("--delta finds out what changed; leave --extents out")
    # As of now: a chain that is written meanwhile is refused in the end.
    request = replace(request, moment=time.time_ns())
    with contextlib.ExitStack() as stack:
        source = _entered(stack, VmdkSource(path, delta=delta, outside=outside))
        if not delta:
            named = request.goal or ("" if request.resume is not None else source.state)
            yield source, replace(request, goal=named)
            return
        changes = changes_of(source)
        if len(changes.extents) > PLAN_EXTENTS:
            # Gaps between them will be closed, with what its parents hold.
            source = _entered(stack, VmdkSource(path, outside=outside))
        asked = request if request.resume is not None else _named(request, source)
        yield source, replace(asked, changes=changes)


def _entered(stack: contextlib.ExitStack, source: VmdkSource) -> VmdkSource:
    stack.callback(source.close)
    return source


def _named(request: SendRequest, source: VmdkSource) -> SendRequest:
    """Return the request with base and goal."""
    base, goal = request.base or source.base_state, request.goal or source.state
    if not base:
        raise UsageError(
            f"{source.name} does not tell what it belongs onto: --base must name the state that "
            "the target holds; nothing was sent"
        )
    if base == goal:
        raise UsageError(
            f"{source.name} has the content id of its parent, {goal}: nothing was written to it, "
            "or it is in use; nothing was sent; --goal names its state all the same"
        )
    return replace(request, base=base, goal=goal)


def listed(path: str, *, delta: bool, outside: bool, tell: Callable[[str], None]) -> ExtentList:
    """Return what a VMDK's chain holds, or what changed since its parent.

    Args:
        path: The file.
        delta: Whether it alone is meant.
        outside: Follow names that lead out of its folder.
        tell: Takes what people should know.

    Raises:
        UsageError: If it is no delta.
        SourceError: If it cannot be read, or was written meanwhile.
    """
    with contextlib.closing(VmdkSource(path, delta=delta, outside=outside)) as source:
        for text in source.warnings:
            tell(text)
        if delta:
            found = changes_of(source)
        else:
            found = ExtentList(source.extents(), Meaning.ALLOCATED, "VMDK", source.size)
        source.validate()
    return found


def changes_of(source: VmdkSource) -> ExtentList:
    """Return what a delta holds, as a list of changes.

    Raises:
        UsageError: If it has no parent.
        SourceError: If it cannot be read.
    """
    if not source.is_delta:
        raise UsageError(
            f"{source.name} has no parent, so it is no delta; leave --delta out; nothing was sent"
        )
    return ExtentList(source.changes(), Meaning.CHANGED, "delta of a VMDK", source.size)
