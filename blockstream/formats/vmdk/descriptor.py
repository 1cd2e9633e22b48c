"""The text that says what a VMDK is made of, and which state of which parent it belongs to."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final

from blockstream.errors import VmdkError
from blockstream_protocol import DEVICE_BYTES

SECTOR: Final = 512
# qemu block/vmdk.c reads no more either.
MOST_BYTES: Final = (1 << 20) - 1
# 64 TiB in files of 2 GiB are 32,768; each is a descriptor that we hold open.
_MOST_EXTENTS: Final = 4096

# Others than VMware write it apart (VMDKstream), or small.
_SIGNATURE: Final = re.compile(rb"(?:\xef\xbb\xbf)?\s*# Disk Descriptor ?File", re.IGNORECASE)
_ENCODING: Final = re.compile(
    rb'^\s*encoding\s*=\s*"?([A-Za-z0-9_.:\-]+)', re.IGNORECASE | re.MULTILINE
)
_EXTENT = re.compile(r"(RW|RDONLY|NOACCESS)\s+(\d{1,20})\s+([A-Z0-9]+)(?:\s+(\S.*))?")
_FILE = re.compile(r'"([^"]+)"(?:\s+(\d{1,20}))?(?:\s+\S.*)?')
_SETTING = re.compile(r'([A-Za-z][A-Za-z0-9_.:\-]*)\s*=\s*(?:"([^"]*)"|([^"]*))')
_CID = re.compile(r"[0-9a-f]{1,8}")
_LONG_ID = re.compile(r"[0-9a-f]{32}")

NO_PARENT: Final = "ffffffff"
# What ESXi writes in place of a content id while a disk is in use; ddb.longContentID tells then.
LIVE: Final = "fffffffe"


class ExtentType(Enum):
    """What an extent's file holds."""

    FLAT = "FLAT"
    VMFS = "VMFS"
    SPARSE = "SPARSE"
    VMFSSPARSE = "VMFSSPARSE"
    SESPARSE = "SESPARSE"
    ZERO = "ZERO"


@dataclass(frozen=True, slots=True)
class ExtentLine:
    """One extent of a disk.

    Attributes:
        size: Its bytes.
        type: What its file holds.
        file: The file's name as it stands there; empty for zeros.
        offset: Where it begins in a flat file, in bytes.
    """

    size: int
    type: ExtentType
    file: str = ""
    offset: int = 0


@dataclass(frozen=True, slots=True)
class Descriptor:
    """What a descriptor says.

    Attributes:
        cid: Id of this content, 8 hexadecimal digits.
        parent_cid: Id that the parent's content must have; NO_PARENT for none.
        parent: The parent's file as it stands there; empty for none.
        long_id: The long form of `cid`, which ESXi keeps; empty if it is not told.
        extents: What the disk is made of, in order.
    """

    cid: str
    parent_cid: str
    parent: str
    long_id: str
    extents: tuple[ExtentLine, ...]

    @property
    def size(self) -> int:
        """Bytes of the disk."""
        return sum(extent.size for extent in self.extents)

    @property
    def has_parent(self) -> bool:
        """Whether absent grains are to be read from another disk."""
        return self.parent_cid != NO_PARENT

    @property
    def state(self) -> str:
        """What this content is called as a state of a disk; empty if nothing tells it apart."""
        own = self.long_id if self.cid == LIVE else self.cid
        return f"vmdk:{own}" if own else ""

    @property
    def parent_state(self) -> str:
        """What the parent's content is called; empty if only the parent can tell."""
        known = self.has_parent and self.parent_cid != LIVE
        return f"vmdk:{self.parent_cid}" if known else ""


def is_descriptor(head: bytes) -> bool:
    """Tell whether a file that begins so is a descriptor."""
    return _SIGNATURE.match(head) is not None


def parse_descriptor(data: bytes) -> Descriptor:
    """Parse a descriptor, a file's or one embedded in a sparse file.

    Raises:
        VmdkError: If it is none, is too long, or something in it is not understood.
    """
    if len(data) > MOST_BYTES:
        raise VmdkError(f"its descriptor is longer than {MOST_BYTES} bytes")
    text = _decoded(data.partition(b"\0")[0])
    if not is_descriptor(data):
        raise VmdkError("its descriptor does not begin with '# Disk DescriptorFile'")
    settings: dict[str, str] = {}
    extents: list[ExtentLine] = []
    for line in (each.strip() for each in re.split(r"\r\n|\n|\r", text)):
        if not line or line.startswith("#"):
            continue
        found = _EXTENT.fullmatch(line)
        if found is not None:
            extents.append(_extent(line, found))
            continue
        setting = _SETTING.fullmatch(line)
        if setting is None and line.lower().startswith("ddb."):
            continue  # remarks of whoever wrote it
        if setting is None:
            raise VmdkError(f"its descriptor has a line that is not understood: {_shown(line)}")
        settings[setting[1].lower()] = (setting[2] or setting[3] or "").strip()
    return _checked(settings, extents)


# Of names in the DNS, and slow: a hostile descriptor of 1 MiB would take minutes.
_OF_DOMAINS = {"idna", "punycode"}


def _decoded(data: bytes) -> str:
    """Return the text as its `encoding=` says; where that cannot be, names are the host's bytes."""
    found = _ENCODING.search(data)
    name = found[1].decode() if found is not None else "utf-8"
    # As Java and Windows call them, `windows-936` is code page 936.
    for codec in (name, re.sub(r"(?i)^windows-", "cp", name)):
        if codec.lower() in _OF_DOMAINS:
            continue
        try:
            return data.decode(codec).removeprefix("\ufeff")
        except (LookupError, UnicodeError):
            continue
    return data.decode("utf-8", "surrogateescape").removeprefix("\ufeff")


def _extent(line: str, found: re.Match[str]) -> ExtentLine:
    access, sectors, word, rest = found.groups()
    try:
        kind = ExtentType(word)
    except ValueError:
        raise VmdkError(
            f"it has an extent of type {word}, which no reader of files can follow: {_shown(line)}"
        ) from None
    size = int(sectors) * SECTOR
    if kind is ExtentType.ZERO:
        return ExtentLine(size, kind)
    file = _FILE.fullmatch(rest or "")
    if file is None:
        raise VmdkError(f"an extent does not name its file in quotes: {_shown(line)}")
    if access == "NOACCESS":
        raise VmdkError(f"an extent must not be read: {_shown(line)}")
    return ExtentLine(size, kind, file[1], int(file[2] or 0) * SECTOR)


def _checked(settings: Mapping[str, str], extents: list[ExtentLine]) -> Descriptor:
    if not 1 <= len(extents) <= _MOST_EXTENTS:
        raise VmdkError(f"its descriptor names {len(extents)} extents, not 1 to {_MOST_EXTENTS}")
    cid = settings.get("cid", "").lower()
    parent_cid = settings.get("parentcid", NO_PARENT).lower()
    for name, text in (("CID", cid), ("parentCID", parent_cid)):
        if not _CID.fullmatch(text):
            raise VmdkError(f"its {name} is {_shown(text)}, not 8 hexadecimal digits")
    long_id = settings.get("ddb.longcontentid", "").lower()
    found = Descriptor(
        cid=cid.zfill(8),
        parent_cid=parent_cid.zfill(8),
        parent=settings.get("parentfilenamehint", ""),
        long_id=long_id if _LONG_ID.fullmatch(long_id) else "",
        extents=tuple(extents),
    )
    if found.size > DEVICE_BYTES or any(each.offset > DEVICE_BYTES for each in extents):
        raise VmdkError("its extents are larger than any disk")
    if found.has_parent and not found.parent:
        raise VmdkError("it has a parent, but does not tell its file (parentFileNameHint)")
    return found


def _shown(text: str) -> str:
    return ascii(text if len(text) <= 80 else text[:77] + "...")
