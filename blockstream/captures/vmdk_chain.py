"""A VMDK: the disk that its chain makes, or one delta of it."""

import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence

from blockstream.captures.interface import Captured, Held
from blockstream.captures.listing import listing_of, parsed
from blockstream.captures.options import CaptureOptions, StateOptions
from blockstream.errors import UsageError
from blockstream.formats.extent_lists import ExtentList, Meaning
from blockstream.locations.vmdk import VmdkFile
from blockstream.run import Run
from blockstream.sources.vmdk import VmdkSource
from blockstream_protocol import PLAN_EXTENTS


class VmdkCapture:
    """Reads a chain of VMDK files; base and goal are named by the content ids that it tells."""

    def __init__(self, location: VmdkFile, options: CaptureOptions) -> None:
        """Name it.

        Args:
            location: The file.
            options: How it is read; states that they name stand.

        Raises:
            UsageError: If the options contradict each other.
        """
        if options.vmdk.delta and options.states.extents:
            raise UsageError("--delta finds out what changed; leave --extents out")
        self._location = location
        self._options = options

    @contextlib.asynccontextmanager
    async def open(self, held: Held, run: Run) -> AsyncIterator[Sequence[Captured]]:
        """See `Capture`. Nothing is made.

        Raises:
            UsageError: If it is no delta, or does not tell onto what it belongs.
            SourceError: If it cannot be read.
        """
        del held  # the content ids name the states
        listing = await listing_of(self._options.states, run)
        opening = self._delta() if self._options.vmdk.delta else self._chain(listing)
        async with run.within(opening, harmless=True) as disk:
            yield [disk]

    async def committed(self, disk: Captured) -> None:
        """See `Capture`. Nothing is kept."""

    @contextlib.contextmanager
    def _chain(self, listing: bytes | None) -> Iterator[Captured]:
        # As of now: a chain that is written meanwhile is refused in the end.
        states, began = self._options.states, time.time_ns()
        with self._source(delta=False) as source:
            state = states.given_goal or ("" if states.resume is not None else source.state)
            changes = parsed(listing, source)
            yield self._captured(source, states.given_base, state, changes, began)

    @contextlib.contextmanager
    def _delta(self) -> Iterator[Captured]:
        began = time.time_ns()
        with contextlib.ExitStack() as stack:
            source = stack.enter_context(self._source(delta=True))
            changes = changes_of(source)
            if len(changes.extents) > PLAN_EXTENTS:
                # Gaps between them will be closed, with what its parents hold.
                source = stack.enter_context(self._source(delta=False))
            base, state = _named(self._options.states, source)
            yield self._captured(source, base, state, changes, began)

    @contextlib.contextmanager
    def _source(self, *, delta: bool) -> Iterator[VmdkSource]:
        opening = VmdkSource(
            self._location.path, delta=delta, outside=self._options.vmdk.allow_outside
        )
        with contextlib.closing(opening) as source:
            yield source

    def _captured(
        self, source: VmdkSource, base: str, state: str, changes: ExtentList | None, moment: int
    ) -> Captured:
        return Captured(
            name=self._options.name or self._location.name,
            location=self._location.key,
            source=source,
            state=state,
            moment=moment,
            base=base,
            changes=changes,
        )


def _named(states: StateOptions, source: VmdkSource) -> tuple[str, str]:
    """Return base and goal of a delta."""
    if states.resume is not None:
        return states.given_base, states.given_goal
    base, goal = states.base or source.base_state, states.goal or source.state
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
    return base, goal


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
