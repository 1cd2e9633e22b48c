"""From what people type to the thing that it names: one line a kind of source or target."""

from blockstream.interfaces import Source
from blockstream.linux.identity import Node
from blockstream.targets.disk import DiskTarget


def open_source(location: str) -> Source:
    """Open what `location` names for reading.

    Raises:
        NotFoundError: If there is nothing.
        SourceError: If it cannot be read.
    """
    from blockstream.sources.disk import DiskSource  # numpy: 60 ms that `recv` need not wait

    return DiskSource(location)


def open_target(
    location: str,
    *,
    create: int | None = None,
    force_in_use: bool = False,
    sources: frozenset[Node] = frozenset(),
) -> DiskTarget:
    """Open what `location` names for writing; see `DiskTarget`.

    Raises:
        RefusedError: If it must not be written.
    """
    return DiskTarget(location, create=create, force_in_use=force_in_use, sources=sources)
