"""Tags by which LVM itself tells of migrations that were begun and not finished.

A volume that is moved has a tag for each place that it is on its way to, and what was made there
has one that says for which. So what is left is found without any file of ours.

LVM allows letters, digits and `_+.-/=!:&#` in a tag (lvm(8)); what else is in a place is written as
`=` and two hex digits.
"""

import re
from typing import Final

from blockstream.errors import UsageError
from blockstream.linux.lvm import Volume
from blockstream.locations.ssh import Remote, remote

_TO: Final = "blockstream_to:"
_ODD: Final = re.compile(r"[^A-Za-z0-9_+.\-/!:&#]")
_CODED: Final = re.compile(r"=([0-9A-F]{2})")


def made_for(ident: str) -> str:
    """Return the tag of a volume that was made for a migration; `ident` as for snapshots."""
    return f"blockstream_{ident}"


def tag_of(where: Remote) -> str:
    """Return the tag of a volume that is on its way to `where`."""
    host = f"[{where.host}]" if ":" in where.host else where.host
    account = f"{where.user}@{host}" if where.user else host
    text = f"{account}:{where.path}"
    if where.port:
        text = f"ssh://{account}:{where.port}{where.path}"
    return _TO + _ODD.sub(lambda odd: f"={ord(odd[0]):02X}", text.encode().decode("latin-1"))


def places_of(volume: Volume) -> dict[str, Remote]:
    """Return where a volume is on its way to, by tag."""
    found = {}
    for tag in sorted(volume.tags):
        if tag.startswith(_TO):
            coded = _CODED.sub(lambda code: chr(int(code[1], 16)), tag.removeprefix(_TO))
            where = _place(coded.encode("latin-1").decode(errors="replace"))
            if where is not None and where.path.count("/") == 3:
                found[tag] = where
    return found


def _place(text: str) -> Remote | None:
    try:
        return remote(text)
    except UsageError:  # nobody of us wrote it
        return None
