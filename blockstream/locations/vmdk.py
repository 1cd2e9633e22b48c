"""Disks of VMware in files: `vmdk:FILE`."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from blockstream.sources.vmdk import VmdkSource

_PREFIX = "vmdk:"


@dataclass(frozen=True, slots=True)
class VmdkFile:
    """The descriptor of a disk of VMware, or a sparse file with one in it.

    Attributes:
        path: The file.
    """

    path: str
    what: ClassVar[str] = "is a VMDK, which is only read; nothing was done"
    is_far: ClassVar[bool] = True  # its folder may lie on NFS

    @classmethod
    def parse(cls, text: str) -> "VmdkFile":
        """Return the file in `vmdk:FILE`."""
        return cls(text.removeprefix(_PREFIX))

    def __str__(self) -> str:
        """What people call it."""
        return f"{_PREFIX}{self.path}"

    @property
    def key(self) -> str:
        """See `Location`."""
        return f"{_PREFIX}{Path(self.path).absolute()}"

    @property
    def name(self) -> str:
        """See `DiskLocation`."""
        return Path(self.path).stem

    def open_source(self, *, from_medium: bool = False) -> "VmdkSource":
        """Open its whole chain; see `VmdkSource`."""
        from blockstream.sources.vmdk import VmdkSource

        return VmdkSource(self.path, from_medium=from_medium)
