"""Virtual machines of VMware: `vsphere://USER@HOST[:PORT]/DATACENTER/vm/NAME[?disk=KEY]`."""

import importlib.util
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar
from urllib.parse import parse_qs, unquote, urlsplit

from blockstream.errors import NotFoundError, UsageError
from blockstream.locations.ssh import remote
from blockstream.words import Secret

if TYPE_CHECKING:
    from blockstream.sources.datastore import Server  # ssl and http
    from blockstream.sources.vsphere import VSphere  # pyVmomi: 0.2 s

_PREFIX = "vsphere://"
_HTTPS = 443
# Each with the words of a location that only it has.
READERS = {
    "https": set[str](),
    "file": {"mount"},
    "nbdkit": {"plugin", "libdir"},
    "sftp": {"ssh", "volumes"},
    "nbd": {"export"},
}
_THUMBPRINT = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class MachinePlace:
    """A virtual machine, or one disk of it.

    Attributes:
        user: Who logs in.
        host: Name or address of the vCenter, or of an ESXi host.
        port: Usually 443.
        path: Inventory path of the machine: `DATACENTER/vm/.../NAME`; empty for all of them.
        disk: Number of the disk; 0 for all.
        reader: How its bytes are read: one of `READERS`.
        mount: For `file`, where its datastore is mounted here; `{datastore}` stands for its name.
        ssh: For `sftp`, the ESXi host that has the files: `[USER@]HOST`.
        volumes: For `sftp`, where that host keeps its datastores.
        export: For `nbd`, where a server has the disk: `nbd://HOST/{snapshot}-{key}`.
        plugin: For `nbdkit`, which plugin: `vddk`, `nfc`, or a path.
        libdir: For `nbdkit`, where VMware's library lies; empty if the plugin finds it.
        ca: File with the certificate that signs the server's; empty for the system's own.
        thumbprint: SHA-256 of the server's own certificate; empty to check who signed it.
    """

    user: str
    host: str
    port: int
    path: str
    disk: int = 0
    reader: str = "https"
    mount: str = ""
    ssh: str = ""
    volumes: str = "/vmfs/volumes"
    export: str = ""
    plugin: str = "vddk"
    libdir: str = ""
    ca: str = ""
    thumbprint: str = ""
    what: ClassVar[str] = (
        "is a machine of VMware, which only `send` and `vsphere` take; nothing was done"
    )

    def __str__(self) -> str:
        """What people call it, without what only the way there needs."""
        port = "" if self.port == _HTTPS else f":{self.port}"
        disk = f"?disk={self.disk}" if self.disk else ""
        return f"{_PREFIX}{self.user}@{self.host}{port}/{self.path}{disk}"

    @property
    def key(self) -> str:
        """See `Location`."""
        return str(self)

    @property
    def name(self) -> str:
        """The machine's own name."""
        return self.path.rpartition("/")[2]


def machine_place(location: str) -> MachinePlace:
    """Return the machine in `vsphere://USER@HOST[:PORT]/DATACENTER/vm/NAME[?disk=KEY]`.

    Raises:
        UsageError: If it is none.
    """
    form = f"{_PREFIX}USER@HOST[:PORT]/DATACENTER/vm/NAME[?disk=KEY]"
    try:
        found = urlsplit(location)
        query = parse_qs(found.query, strict_parsing=True) if found.query else {}
        port = found.port or _HTTPS
    except ValueError:
        raise UsageError(f"what was given for a machine is not {form}") from None
    if found.password is not None:
        # Not shown: it would be in a log already.
        raise UsageError(
            "a password does not belong on the command line, where everybody sees it: set "
            "BLOCKSTREAM_VSPHERE_PASSWORD, or name a file with --password-file"
        )
    values = {name: given[-1] for name, given in query.items()}
    disk, reader = values.get("disk", "0"), values.get("reader", "https")
    if not disk.isdecimal() or reader not in READERS:
        raise UsageError(f"{location}: disk= is a number, and reader= one of {', '.join(READERS)}")
    unknown = sorted(set(query) - {"disk", "reader", "ca", "thumbprint"} - READERS[reader])
    if unknown or not found.username or not found.hostname or found.fragment:
        what = f": {unknown[0]}= has no effect there" if unknown else ""
        raise UsageError(f"{location} is not {form}{what}")
    if reader == "sftp" and remote(f"{values.get('ssh', '')}:/vmfs") is None:
        raise UsageError(
            f"{location}: reader=sftp needs ssh=USER@ESXI, the host that has the files"
        )
    if reader == "nbd" and not values.get("export"):
        raise UsageError(f"{location}: reader=nbd needs export=, where a server has the disk")
    if reader == "file" and not values.get("mount"):
        raise UsageError(f"{location}: reader=file needs mount=, where the datastore is mounted")
    thumbprint = values.get("thumbprint", "").replace(":", "").lower()
    if thumbprint and not _THUMBPRINT.fullmatch(thumbprint):
        raise UsageError(f"{location}: thumbprint= is a SHA-256 in 64 hexadecimal digits")
    # A slash in a name is written %2f in the inventory itself.
    words = [unquote(word).replace("/", "%2f") for word in found.path.split("/") if word]
    return MachinePlace(
        user=unquote(found.username),
        host=found.hostname,
        port=port,
        path="/".join(words),
        disk=int(disk),
        reader=reader,
        mount=values.get("mount", ""),
        ssh=values.get("ssh", ""),
        volumes=values.get("volumes", "/vmfs/volumes"),
        export=values.get("export", ""),
        plugin=values.get("plugin", "vddk"),
        libdir=values.get("libdir", ""),
        ca=values.get("ca", ""),
        thumbprint=thumbprint,
    )


def open_vsphere(place: MachinePlace, password: Secret) -> "VSphere":
    """Log in where a machine is.

    Raises:
        NotFoundError: If what speaks VMware's API is not installed, or nobody answers.
        AuthenticationError: If server, user or password are not the right ones.
    """
    if importlib.util.find_spec("pyVmomi") is None:
        raise NotFoundError(
            "VMware's API needs pyvmomi, which is not installed here (the extra `vsphere` brings "
            "it); nothing was sent"
        )
    from blockstream.sources.vsphere import VSphere  # 0.2 s

    return VSphere(server_of(place), place.user, password)


def server_of(place: MachinePlace) -> "Server":
    """Return a server, with what its certificate is checked by.

    Raises:
        NotFoundError: If a file or the server is not there.
        AuthenticationError: If its certificate is not the one that was named.
    """
    import ssl

    from blockstream.sources.datastore import Server, pinned

    if place.thumbprint:
        return pinned(place.host, place.port, place.thumbprint)
    try:
        context = ssl.create_default_context(cafile=place.ca or None)
    except (OSError, ssl.SSLError) as error:
        raise NotFoundError(
            f"{place.ca} holds no certificate that can be read: {error.strerror or error}; "
            "nothing was asked"
        ) from error
    return Server(place.host, place.port, context)
