"""From what people type to the thing that it names: one line a kind of source or target."""

import contextlib
import importlib.util
import re
import shlex
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, unquote, urlsplit

from blockstream.errors import NotFoundError, UsageError
from blockstream.interfaces import Objects, Source
from blockstream.linux.identity import Node
from blockstream.stores.folder import FolderObjects
from blockstream.targets.disk import DiskTarget
from blockstream.transports.command import CommandLink, PipedLink
from blockstream.words import Secret, holds_credentials

if TYPE_CHECKING:
    from blockstream.sources.datastore import Server  # ssl and http
    from blockstream.sources.nbd import NbdSource
    from blockstream.sources.vsphere import VSphere  # pyVmomi: 0.2 s

_ROUND_TRIP_SECONDS = 5.0
_VMDK = "vmdk:"
# `DOMAIN\user` is a user of a Windows domain.
USER = r"[A-Za-z0-9._+][A-Za-z0-9._@+\\-]*"
_HOST = rf"(?:(?P<user>{USER})@)?(?P<host>\[[0-9A-Za-z:.%_-]+\]|[A-Za-z0-9._-]+)"
_SHORT = re.compile(rf"{_HOST}:(?P<path>/.+)", re.DOTALL)
_NAMED = re.compile(rf"{_HOST}::(?P<path>[A-Za-z0-9._-]{{1,64}})")
_LONG = re.compile(rf"ssh://{_HOST}(?::(?P<port>\d{{1,5}}))?(?P<path>/.+)", re.DOTALL)

_STORE = re.compile(
    r"(?P<store>dir:.*?|s3://[^/]+.*?)(?:/(?P<disk>[^/@]+)(?:@(?P<point>[^/@]*))?)?/?", re.DOTALL
)
_ENDPOINT = re.compile(r"https?://[^/]")
_NBD = re.compile(r"nbds?(\+unix)?://")
_PASSWORD = re.compile(r"(//[^/@:]*:)[^/]*@")

# What a location may begin with that is neither a path nor a host.
_FORMS = {
    "cow": "cow:FILE after `blockstream extents`",
    "dir": "dir:PATH/DISK",
    "s3": "s3://BUCKET/PREFIX/DISK",
    "nbd": "nbd://HOST[:PORT]/EXPORT",
    "nbds": "nbds://HOST[:PORT]/EXPORT",
    "nbd+unix": "nbd+unix:///EXPORT?socket=PATH",
    "nbds+unix": "nbds+unix:///EXPORT?socket=PATH",
    "ssh": "ssh://[USER@]HOST[:PORT]/PATH",
    "vmdk": "vmdk:FILE",
    "vsphere": "vsphere://USER@HOST/DATACENTER/vm/NAME",
}
_OTHERS = {"file", "http", "https"}
_KIND = re.compile(r"(?P<kind>[A-Za-z][A-Za-z0-9.+-]*):(?P<slashes>//)?")


def open_source(location: str, *, from_medium: bool = False) -> Source:
    """Open what `location` names for reading; `from_medium` passes the cache by.

    Raises:
        NotFoundError: If there is nothing.
        SourceError: If it cannot be read.
        UsageError: If it cannot be a disk of this host.
    """
    if is_nbd(location):
        return open_export(location)
    image = vmdk_path(location)
    if image is not None:
        from blockstream.sources.vmdk import VmdkSource

        return VmdkSource(image, from_medium=from_medium)
    from blockstream.sources.disk import DiskSource  # numpy: 60 ms that `recv` need not wait

    disk = DiskSource(of_this_host(location), from_medium=from_medium)
    disk.look_for_an_image()
    return disk


@contextlib.contextmanager
def opened_source(location: str, *, from_medium: bool = False) -> Iterator[Source]:
    """Open what `location` names, and close it. See `open_source`."""
    with contextlib.closing(open_source(location, from_medium=from_medium)) as source:
        yield source


def absolute(location: str) -> str:
    """Return the name of a source that means the same in every directory."""
    if is_nbd(location):
        return location
    image = vmdk_path(location)
    return str(Path(location).absolute()) if image is None else f"{_VMDK}{Path(image).absolute()}"


def disk_name(location: str) -> str:
    """Return what a disk is called at a destination that has names: the end of its path."""
    if is_nbd(location):
        return unquote(urlsplit(location).path).strip("/").rpartition("/")[2] or "disk"
    image = vmdk_path(location)
    return Path(location).name if image is None else Path(image).stem


def is_nbd(location: str) -> bool:
    """Tell whether a location is an export of an NBD server."""
    return _NBD.match(location) is not None


def open_export(location: str, *, bitmap: str = "") -> "NbdSource":
    """Open an export of an NBD server; see `NbdSource`.

    Raises:
        SourceError: If it cannot be read.
    """
    from blockstream.sources.nbd import NbdSource

    return NbdSource(location, bitmap=bitmap)


def vmdk_path(location: str) -> str | None:
    """Return the file in `vmdk:FILE`; None for anything else."""
    return location.removeprefix(_VMDK) if location.startswith(_VMDK) else None


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
        UsageError: If it can only be read, or cannot be a disk of this host.
    """
    path = of_this_host(location)
    return DiskTarget(path, create=create, force_in_use=force_in_use, sources=sources)


def of_this_host(location: str) -> str:
    """Return a path; refuse what only a slip would take for one, as the `HOST:FILE` of scp.

    Raises:
        UsageError: If it names something else, and no file here is called so.
    """
    if not location:
        raise UsageError("a place is empty; nothing was done; is a variable not set?")
    if ":" not in location.partition("/")[0] or Path(location).exists():
        return location
    if is_nbd(location):
        raise UsageError(
            f"{location} is an export of an NBD server, which is only read; nothing was done"
        )
    if vmdk_path(location) is not None:
        raise UsageError(f"{location} is a VMDK, which is only read; nothing was done")
    if is_machine(location):
        raise UsageError(
            f"{location} is a machine of VMware, which only `send` and `vsphere` take; nothing "
            "was done"
        )
    if remote(location) is not None:
        raise UsageError(
            f"{location} is on another host, and here only a disk of this one will do; nothing "
            "was done; run it over there"
        )
    near = _likely_form(location.partition(":")[0])
    raise UsageError(
        f"{location} is no file of this host; nothing was done; write "
        + (near or "HOST:/PATH, with the whole path, for one of another host")
        + f"; a file that is called so is ./{location}"
    )


def _refuse_other_kinds(location: str) -> None:
    """Let no kind of place that we do not know, or that is mistyped, become the name of a host."""
    found = _KIND.match(location)
    if found is None or found["kind"] == "ssh":
        return
    kind = found["kind"].lower()
    if found["slashes"] is None and kind not in _FORMS.keys() | _OTHERS:
        return
    if store_place(location, disk=False) is not None:
        raise UsageError(
            f"{location} is in a store, and here only a disk will do; nothing was done; "
            "`blockstream restore` writes a point onto a disk"
        )
    shown = _PASSWORD.sub(r"\1***@", location)
    meant = _likely_form(kind) or (
        "a path, HOST:/PATH, or what begins with dir:, s3://, nbd://, nbd+unix://, vmdk: or "
        "vsphere://, as `blockstream send --help` tells"
    )
    raise UsageError(
        f"{shown} is no place that is known; nothing was done; write {meant}; if a host is called "
        f"so, ssh://{found['kind']}/PATH"
    )


def _likely_form(word: str) -> str:
    """Return what was probably meant by the first word of a location; empty if nobody knows."""
    import difflib  # only for who made a slip: `recv` starts fast

    near = difflib.get_close_matches(word.lower(), _FORMS, 1, 0.7)
    return _FORMS[near[0]] if near else ""


@dataclass(frozen=True, slots=True)
class StorePlace:
    """A disk in a store, or a point of it.

    Attributes:
        store: The store: `dir:PATH` or `s3://BUCKET/PREFIX`.
        disk: Name of the disk; empty for the store itself.
        point: Which point; empty for none in particular.
    """

    store: str
    disk: str = ""
    point: str = ""

    def __str__(self) -> str:
        """What people call it."""
        disk = f"/{self.disk}" if self.disk else ""
        return f"{self.store}{disk}" + (f"@{self.point}" if self.point else "")


def store_place(location: str, *, disk: bool = True) -> StorePlace | None:
    """Return the store that a location leads to; None if it leads to none.

    Args:
        location: `dir:PATH` or `s3://BUCKET/PREFIX`, then `/DISK`, then `@POINT` at most.
        disk: Whether its last word is a disk.

    Raises:
        UsageError: If a disk, or the folder, is missing.
    """
    found = _STORE.fullmatch(location)
    if found is None:
        return None
    if not location.removeprefix("dir:").strip("/"):
        raise UsageError(
            f"{location} names no folder: dir:PATH; nothing was done; is a variable not set?"
        )
    if not disk:
        return StorePlace(location.rstrip("/"))
    # One folder below / is a store, for nobody has one in / itself.
    if not found["disk"] or found["store"] == "dir:":
        raise UsageError(
            f"{location} names no disk: STORE/DISK, as in {location.rstrip('/')}/vm; nothing was "
            "done"
        )
    return StorePlace(found["store"], found["disk"], found["point"] or "")


def open_objects(store: str, endpoint: str = "", *, allow_http: bool = False) -> Objects:
    """Open a store's objects; a bucket is not asked yet.

    Args:
        store: `dir:PATH` or `s3://BUCKET/PREFIX`.
        endpoint: URL of another S3 server than AWS; empty for what botocore's settings say.
        allow_http: Speak to another host without TLS.

    Raises:
        NotFoundError: If what speaks S3 is not installed.
        UsageError: If the endpoint is no URL.
    """
    for each in (store, endpoint):
        if holds_credentials(each):
            raise UsageError(
                f"{each} holds a password, which everybody can read on this host; nothing was "
                "done; credentials come from the environment, ~/.aws, or the instance"
            )
    if endpoint and not _ENDPOINT.match(endpoint):
        raise UsageError(
            f"{endpoint} is no URL of an S3 server, as https://s3.example.com is; nothing was done"
        )
    if store.startswith("dir:"):
        return FolderObjects(Path(store.removeprefix("dir:")).absolute())
    if importlib.util.find_spec("aiobotocore") is None:
        raise NotFoundError(
            "S3 needs aiobotocore, which is not installed here (the extra `s3` brings it); nothing "
            "was done"
        )
    from blockstream.stores.s3 import s3_objects  # 0.3 s

    return s3_objects(store, endpoint, allow_http=allow_http)


@dataclass(frozen=True, slots=True)
class Remote:
    """A disk of another host.

    Attributes:
        host: Name or address, as ssh is given it.
        path: The disk's absolute path there.
        user: Empty for what ssh's configuration says.
        port: 0 for what ssh's configuration says.
        name: In place of a path, the name that a policy of `serve` gives it.
    """

    host: str
    path: str
    user: str = ""
    port: int = 0
    name: str = ""

    def __str__(self) -> str:
        """What people call it."""
        return f"{self.account}::{self.name}" if self.name else f"{self.account}:{self.path}"

    @property
    def key(self) -> str:
        """What tells it from every other one."""
        return f"{self} port {self.port}" if self.port else str(self)

    @property
    def account(self) -> str:
        """USER@HOST, or HOST."""
        return f"{self.user}@{self.host}" if self.user else self.host


def remote(location: str) -> Remote | None:
    """Return the host and path in `[USER@]HOST:/PATH` or `ssh://[USER@]HOST[:PORT]/PATH`, or None.

    `[USER@]HOST::NAME` is a disk that `serve` there knows by name.

    Raises:
        UsageError: If it can only be meant as such, and is none; or as a kind of place that is
            not known.
    """
    if is_nbd(location) or vmdk_path(location) is not None or is_machine(location):
        return None
    _refuse_other_kinds(location)
    named = _NAMED.fullmatch(location)
    if named is not None and not named["host"].startswith("-"):
        return Remote(named["host"].strip("[]"), "", named["user"] or "", name=named["path"])
    long = location.startswith("ssh://")
    found = (_LONG if long else _SHORT).fullmatch(location)
    if found is None:
        if long:
            shown = _PASSWORD.sub(r"\1***@", location)
            raise UsageError(f"{shown} is not ssh://[USER@]HOST[:PORT]/PATH")
        return None
    port = int(found.groupdict().get("port") or 0)
    host = found["host"].strip("[]")
    if host.startswith("-") or port > 0xFFFF:  # ssh would take it for an option
        raise UsageError(f"{location} names no host")
    return Remote(host, found["path"], found["user"] or "", port)


@dataclass(frozen=True, slots=True)
class Way:
    """How another host is reached.

    Attributes:
        rsh: Program that leads there; empty for our own ssh.
        host_keys: What becomes of unknown host keys, for our own ssh: a `HostKeyPolicy`.
        ssh_config: Configuration for our own ssh, in place of the user's.
    """

    rsh: str = ""
    host_keys: str = "strict"
    ssh_config: str = ""


def remote_folder(location: str, sources: Sequence[str]) -> list[Remote] | None:
    """Return where several disks go that are sent to `[USER@]HOST:` or `[USER@]HOST:/FOLDER/`.

    To a host alone, each goes to the path that it has here; to a folder, under its own name.
    """
    host, colon, folder = location.rpartition(":")
    if not colon or (folder and not folder.endswith("/")):
        return None
    paths = [str(Path(source).absolute()) for source in sources]
    found = [remote(f"{host}:{folder + Path(path).name if folder else path}") for path in paths]
    return [each for each in found if each is not None] if all(found) else None


def open_link(where: Remote, command: str, way: Way) -> PipedLink:
    """Run a command, for its shell, on another host.

    Raises:
        UsageError: If `rsh` is no command.
        NotFoundError: If there is no such program here.
    """
    return open_links(where, [command], way)[0]


def open_links(where: Remote, commands: Sequence[str], way: Way) -> list[PipedLink]:
    """Run commands on another host, each over a connection of its own. See `open_link`."""
    if way.rsh:
        return [
            CommandLink(_rsh_command(where, command, way.rsh), where.account)
            for command in commands
        ]
    if importlib.util.find_spec("asyncssh") is None:
        raise NotFoundError(
            "our own ssh needs asyncssh, which is not installed here (the extra `ssh` brings it); "
            "nothing was sent; give --rsh ssh to use the system's"
        )
    options = ["--host-keys", way.host_keys]
    options += ["--config", way.ssh_config] if way.ssh_config else []
    options += ["--port", str(where.port)] if where.port else []
    options += ["--user", where.user] if where.user else []
    many = [[*options, "--", where.host, command] for command in commands]
    if len(many) > 1:
        from blockstream.transports.relays import relays  # multiprocessing

        return relays(many, where.account)
    ours = [sys.executable, "-m", "blockstream.transports.ssh"]
    return [CommandLink([*ours, *words], where.account) for words in many]


def round_trip(where: Remote, way: Way) -> float | None:
    """Return the seconds to a host and back; None where only another program knows the way."""
    if way.rsh:
        return None
    from blockstream.transports.ssh_config import SshConfigError, ssh_config

    try:
        config = ssh_config(
            where.host, port=where.port, user=where.user, config_file=way.ssh_config
        )
    except SshConfigError:
        return None  # who connects says it
    if not config.is_direct:
        return None
    try:
        began = time.monotonic()
        with socket.create_connection((config.hostname, config.port), _ROUND_TRIP_SECONDS):
            return time.monotonic() - began
    except OSError:
        return None


def _rsh_command(where: Remote, command: str, rsh: str) -> Sequence[str]:
    """Return the program's arguments; `{host}` and `{command}` may say where these belong."""
    try:
        words = shlex.split(rsh)
    except ValueError as error:
        raise UsageError(f"--rsh {rsh!r} is no command: {error}") from None
    if not words:
        raise UsageError("--rsh is empty")
    if any("{command}" in word for word in words):
        return [
            word.replace("{host}", where.account).replace("{command}", command) for word in words
        ]
    if where.port:
        words += ["-p", str(where.port)]
    return [*words, where.account, command]


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

    def __str__(self) -> str:
        """What people call it, without what only the way there needs."""
        port = "" if self.port == _HTTPS else f":{self.port}"
        disk = f"?disk={self.disk}" if self.disk else ""
        return f"{_MACHINE}{self.user}@{self.host}{port}/{self.path}{disk}"

    @property
    def name(self) -> str:
        """The machine's own name."""
        return self.path.rpartition("/")[2]


_MACHINE = "vsphere://"
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


def is_machine(location: str) -> bool:
    """Tell whether a location leads to VMware."""
    return location.startswith(_MACHINE)


def machine_place(location: str) -> MachinePlace:
    """Return the machine in `vsphere://USER@HOST[:PORT]/DATACENTER/vm/NAME[?disk=KEY]`.

    Raises:
        UsageError: If it is none.
    """
    form = f"{_MACHINE}USER@HOST[:PORT]/DATACENTER/vm/NAME[?disk=KEY]"
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
