"""The list of extents that people hand over beside a disk."""

from pathlib import Path
from typing import TYPE_CHECKING

from blockstream.captures.options import StateOptions
from blockstream.errors import UsageError
from blockstream.interfaces import Source
from blockstream.run import Run

if TYPE_CHECKING:
    from blockstream.formats.extent_lists import ExtentList  # numpy: 60 ms


async def listing_of(states: StateOptions, run: Run) -> bytes | None:
    """Read the file that holds the list; None if there is none. A pipe may keep us waiting.

    Raises:
        UsageError: If it cannot be read.
    """
    path = states.extents
    return await run.ask(lambda: _read(path)) if path else None


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}; nothing was sent") from error


def parsed(listing: bytes | None, source: Source) -> "ExtentList | None":
    """Return what a list says of a disk.

    Raises:
        ExtentListError: If it cannot be trusted.
    """
    if listing is None:
        return None
    from blockstream.formats.extent_lists import parse_extent_list  # numpy

    return parse_extent_list(listing, source.size)
