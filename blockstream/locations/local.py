"""Disks and files of this host: a path."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from blockstream.linux.identity import Node

if TYPE_CHECKING:
    from blockstream.sources.disk import DiskSource
    from blockstream.targets.disk import DiskTarget


@dataclass(frozen=True, slots=True)
class LocalDisk:
    """A disk or file of this host.

    Attributes:
        path: As it was typed.
    """

    path: str
    what: ClassVar[str] = "is a disk of this host"
    is_far: ClassVar[bool] = False

    def __str__(self) -> str:
        """What people call it."""
        return self.path

    @property
    def key(self) -> str:
        """See `Location`."""
        return str(Path(self.path).absolute())

    @property
    def name(self) -> str:
        """See `DiskLocation`."""
        return Path(self.path).name

    def is_file(self) -> bool:
        """Tell whether it is a file, and no device."""
        return Path(self.path).is_file()

    def open_source(self, *, from_medium: bool = False) -> "DiskSource":
        """Open it; see `DiskSource`."""
        from blockstream.sources.disk import DiskSource  # numpy: 60 ms that `recv` need not wait

        disk = DiskSource(self.path, from_medium=from_medium)
        disk.look_for_an_image()
        return disk


def is_plain(text: str) -> bool:
    """Tell whether a text can be nothing but a path: no colon comes before its first slash."""
    return ":" not in text.partition("/")[0]


def open_target(
    path: str,
    *,
    create: int | None = None,
    force_in_use: bool = False,
    sources: frozenset[Node] = frozenset(),
) -> "DiskTarget":
    """Open a disk of this host for writing; see `DiskTarget`.

    Raises:
        RefusedError: If it must not be written.
    """
    from blockstream.targets.disk import DiskTarget  # what `send` does without

    return DiskTarget(path, create=create, force_in_use=force_in_use, sources=sources)
