"""What the things are that people name."""

import contextlib
from collections.abc import Iterator
from typing import ClassVar, Protocol

from blockstream.interfaces import Source


class Location(Protocol):
    """Something that people name, told from all other kinds by its type.

    `str()` gives what people call it, without secrets.
    """

    what: ClassVar[str]
    """What it is, where a disk of this host is wanted, behind its name."""

    @property
    def key(self) -> str:
        """Words that mean the same in every directory of this host."""


class DiskLocation(Location, Protocol):
    """A disk that is read from this host."""

    @property
    def name(self) -> str:
        """What it is called at a destination that has names."""

    @property
    def is_far(self) -> bool:
        """Whether somebody else has to answer before it is open."""

    def open_source(self, *, from_medium: bool = False) -> Source:
        """Open it for reading; `from_medium` passes the cache by.

        Raises:
            NotFoundError: If there is nothing.
            SourceError: If it cannot be read.
        """


@contextlib.contextmanager
def opened_source(location: DiskLocation, *, from_medium: bool = False) -> Iterator[Source]:
    """Open a disk for reading, and close it. See `DiskLocation.open_source`."""
    with contextlib.closing(location.open_source(from_medium=from_medium)) as source:
        yield source
