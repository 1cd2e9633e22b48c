"""Exports of NBD servers: `nbd://HOST[:PORT]/EXPORT`, and the three other forms."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar
from urllib.parse import quote, unquote, urlsplit

if TYPE_CHECKING:
    from blockstream.sources.nbd import NbdSource


@dataclass(frozen=True, slots=True)
class NbdExport:
    """An export of an NBD server.

    Attributes:
        url: As libnbd writes it.
    """

    url: str
    what: ClassVar[str] = "is an export of an NBD server, which is only read; nothing was done"
    is_far: ClassVar[bool] = True

    def __str__(self) -> str:
        """What people call it."""
        return self.url

    @property
    def key(self) -> str:
        """See `Location`."""
        return self.url

    @property
    def name(self) -> str:
        """See `DiskLocation`: the end of the export's name."""
        return unquote(urlsplit(self.url).path).strip("/").rpartition("/")[2] or "disk"

    @property
    def uses_tls(self) -> bool:
        """Whether TLS is required."""
        return self.url.startswith("nbds")

    def with_certificates(self, folder: str) -> "NbdExport":
        """Return the same, with the folder of the certificates."""
        sign = "&" if "?" in self.url else "?"
        return replace(self, url=f"{self.url}{sign}tls-certificates={quote(folder)}")

    def open_source(self, *, from_medium: bool = False, bitmap: str = "") -> "NbdSource":
        """Open it; see `NbdSource`."""
        del from_medium  # which cache the server uses is its own matter
        from blockstream.sources.nbd import NbdSource

        return NbdSource(self.url, bitmap=bitmap)
