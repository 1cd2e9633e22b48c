"""Where the bytes of a frozen disk come from: what `?reader=` of a location chooses."""

from typing import TYPE_CHECKING
from urllib.parse import quote

from blockstream.errors import SourceError, UsageError
from blockstream.locations.ssh import Way, open_link, remote
from blockstream.locations.vsphere import MachinePlace
from blockstream.sources.datastore import Datastore, DatastorePath, Server
from blockstream.sources.inventory import Machine, Snapshot, VirtualDisk
from blockstream.sources.nbd import NbdSource
from blockstream.sources.nbdkit import Frozen, NbdkitReader, Plugin
from blockstream.sources.sftp import COMMAND, Sftp
from blockstream.sources.virtual_disk import Reader, chain_of, chain_there, mounted
from blockstream.sources.vsphere import VSphere, id_of

if TYPE_CHECKING:
    from blockstream.interfaces import Link


class Readers:
    """Opens readers for the disks of one snapshot, which share what leads there."""

    def __init__(
        self,
        session: VSphere,
        server: Server,
        place: MachinePlace,
        way: Way,
        machine: Machine,
        snapshot: Snapshot,
    ) -> None:
        """Open nothing yet.

        Args:
            session: Where the machine is.
            server: The same, for its files.
            place: Says which reader, and what it needs.
            way: How an ESXi host is reached.
            machine: The machine.
            snapshot: The snapshot, alive until all readers are closed.
        """
        self._session = session
        self._server = server
        self._place = place
        self._way = way
        self._machine = machine
        self._snapshot = snapshot
        self._store = Datastore(server, session.cookie)
        self._datacenter = ""
        self._taken: dict[str, str] = {}
        self._link: Link | None = None
        self._sftp: Sftp | None = None

    def close(self) -> None:
        """End what all disks are read over. Nobody may be reading."""
        self._store.close()
        if self._link is not None:
            self._link.close()

    def stop(self) -> None:
        """Let what is tried again fail at once; any thread."""
        self._store.stop()
        if self._link is not None:
            self._link.hang_up()

    def open(self, disk: VirtualDisk) -> Reader:
        """Open what gives the bytes of a disk, as the snapshot has it.

        Raises:
            BlockstreamError: If it cannot be read so.
        """
        session, place = self._session, self._place
        if place.reader == "nbdkit":
            plugin = Plugin(place.plugin, place.libdir)
            frozen = Frozen(id_of(self._machine), id_of(self._snapshot), disk.file, disk.size)
            return NbdkitReader(self._server, place.user, session.password, plugin, frozen)
        if place.reader == "nbd":
            return self._exported(disk)
        self._datacenter = self._datacenter or session.datacenter(self._machine)
        path = DatastorePath.parse(disk.file, self._datacenter)
        if place.reader == "file":
            folder = place.mount.replace("{datastore}", path.datastore)
            self._take(folder, path.datastore, "mount", "{datastore}")
            return mounted(folder, path, disk.size)
        if place.reader == "sftp":
            return chain_there(self._over_ssh(), place.volumes, path, disk.size)
        return chain_of(self._store, path, disk.size)

    def _take(self, where: str, what: str, word: str, missing: str) -> None:
        """Note that something lies in a place.

        Raises:
            UsageError: If something else does: one disk would be taken for another.
        """
        other = self._taken.setdefault(where, what)
        if other != what:
            raise UsageError(
                f"{word}={where} cannot be both {other} and {what}; nothing was sent; write "
                f"{missing} where their names differ, or pick one disk with ?disk="
            )

    def _over_ssh(self) -> Sftp:
        """Return the host that has the files; connect to it, the first time."""
        if self._sftp is None:
            where = remote(f"{self._place.ssh}:/vmfs")
            if where is None:
                raise UsageError(f"ssh={self._place.ssh} names no host")
            self._link = open_link(where, COMMAND, self._way)
            self._sftp = Sftp(self._link)
        return self._sftp

    def _exported(self, disk: VirtualDisk) -> NbdSource:
        """Connect to a server of others, which finds the disk of the snapshot by its names.

        Raises:
            UsageError: If the template has words that mean nothing.
            SourceError: If what it serves is of another size.
        """
        template = self._place.export
        names = {
            "vm": id_of(self._machine),
            "snapshot": id_of(self._snapshot),
            "name": quote(self._machine.name, safe=""),
            "key": str(disk.key),
            "file": quote(disk.file, safe=""),
        }
        try:
            location = template.format_map(names)
        except (KeyError, ValueError, IndexError, AttributeError):
            raise UsageError(
                f"export={template} may name {', '.join(f'{{{name}}}' for name in names)}"
            ) from None
        self._take(location, f"disk {disk.key}", "export", "{key} or {file}")
        export = NbdSource(location)
        if export.size != disk.size:
            export.close()
            raise SourceError(
                f"{location} has {export.size} bytes, and the disk {disk.size}; nothing was sent"
            )
        return export
