"""From what people type to the thing that it names: one row a kind."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from blockstream.errors import UsageError
from blockstream.locations.interface import DiskLocation, Location
from blockstream.locations.local import LocalDisk, is_plain
from blockstream.locations.nbd import NbdExport
from blockstream.locations.ssh import host_folder, remote
from blockstream.locations.store import store_place
from blockstream.locations.vmdk import VmdkFile
from blockstream.locations.vsphere import machine_place
from blockstream.words import printable


@dataclass(frozen=True, slots=True)
class Scheme:
    """One kind of place, told by how it begins.

    Attributes:
        begins: How.
        form: How it is written, for people.
        parse: Returns what a location of this kind names; None for those that are told otherwise.
    """

    begins: str
    form: str
    parse: Callable[[str], Location] | None = None

    @property
    def word(self) -> str:
        """What comes before the first colon."""
        return self.begins.partition(":")[0]


SCHEMES = (
    Scheme("cow:", "cow:FILE after `blockstream extents`"),
    Scheme("dir:", "dir:PATH/DISK"),
    Scheme("s3://", "s3://BUCKET/PREFIX/DISK"),
    Scheme("nbd://", "nbd://HOST[:PORT]/EXPORT", NbdExport),
    Scheme("nbds://", "nbds://HOST[:PORT]/EXPORT", NbdExport),
    Scheme("nbd+unix://", "nbd+unix:///EXPORT?socket=PATH", NbdExport),
    Scheme("nbds+unix://", "nbds+unix:///EXPORT?socket=PATH", NbdExport),
    Scheme("ssh://", "ssh://[USER@]HOST[:PORT]/PATH"),
    Scheme("vmdk:", "vmdk:FILE", VmdkFile.parse),
    Scheme("vsphere://", "vsphere://USER@HOST/DATACENTER/vm/NAME", machine_place),
)
_FORMS = {each.word: each.form for each in SCHEMES}
_OTHERS = {"file", "http", "https"}
_KIND = re.compile(r"(?P<kind>[A-Za-z][A-Za-z0-9.+-]*):(?P<slashes>//)?")


def location_of(text: str, *, many: bool = False, folder: bool = False) -> Location:
    """Return what people name.

    Args:
        text: As typed.
        many: Whether several disks go there together: to a whole store, or a host.
        folder: Whether `HOST:` and `HOST:/FOLDER/` are places for disks by their own names.

    Raises:
        UsageError: If it is none of what is known.
    """
    if not text:
        raise UsageError("a place is empty; nothing was done; is a variable not set?")
    stored = store_place(text, disk=not many)
    if stored is not None:
        return stored
    for scheme in SCHEMES:
        if scheme.parse is not None and text.startswith(scheme.begins):
            return scheme.parse(text)
    _refuse_other_kinds(text)
    host = host_folder(text) if many or folder else None
    return host or remote(text) or _path_here(text)


def disk_of(text: str) -> DiskLocation:
    """Return a disk that is read from this host.

    Raises:
        UsageError: If it is something else.
    """
    found = location_of(text)
    if isinstance(found, LocalDisk | NbdExport | VmdkFile):
        return found
    raise UsageError(f"{found} {found.what}")


def _path_here(text: str) -> LocalDisk:
    """Return a path; refuse what only a slip would take for one, as the `HOST:FILE` of scp.

    Raises:
        UsageError: If it names something else, and no file here is called so.
    """
    if is_plain(text) or Path(text).exists():
        return LocalDisk(text)
    near = _likely_form(text.partition(":")[0])
    raise UsageError(
        f"{text} is no file of this host; nothing was done; write "
        + (near or "HOST:/PATH, with the whole path, for one of another host")
        + f"; a file that is called so is ./{text}"
    )


def _refuse_other_kinds(text: str) -> None:
    """Let no kind of place that we do not know, or that is mistyped, become the name of a host."""
    found = _KIND.match(text)
    if found is None or found["kind"] == "ssh":
        return
    kind = found["kind"].lower()
    if found["slashes"] is None and kind not in _FORMS.keys() | _OTHERS:
        return
    meant = _likely_form(kind) or (
        "a path, HOST:/PATH, or what begins with dir:, s3://, nbd://, nbd+unix://, vmdk: or "
        "vsphere://, as `blockstream send --help` tells"
    )
    raise UsageError(
        f"{printable(text)} is no place that is known; nothing was done; write {meant}; if a host "
        f"is called so, ssh://{found['kind']}/PATH"
    )


def _likely_form(word: str) -> str:
    """Return what was probably meant by the first word of a location; empty if nobody knows."""
    import difflib  # only for who made a slip: `recv` starts fast

    near = difflib.get_close_matches(word.lower(), _FORMS, 1, 0.7)
    return _FORMS[near[0]] if near else ""
