"""Lists of extents that are a JSON array of flat objects: rbd, nbdinfo, qemu-img."""

from collections.abc import Iterator
from typing import Final

from blockstream.extents import NOTHING
from blockstream.formats.extent_rows import ExtentList, Meaning, Rows, shown
from blockstream.formats.json_cursor import JsonCursor
from blockstream_protocol import Kind

# QEMU counts sectors: it gives a file of 1000 bytes, and an export of it, 1024 (measured).
SECTOR: Final = 512

# nbdinfo's JSON does not name its context, but its words do (libnbd info/map.c).
# A hole alone is no promise that it reads as zeros (NBD protocol, base:allocation).
_ALLOCATION: Final = {
    ("data", 0): Kind.DATA,
    ("hole", 1): Kind.DATA,
    ("zero", 2): Kind.ZERO,
    ("hole,zero", 3): Kind.ZERO,
}
_BITMAP: Final = {("clean", 0): NOTHING, ("dirty", 1): Kind.DATA}
_CONTEXTS: Final = (
    ("nbdinfo --map=base:allocation", Meaning.ALLOCATED, _ALLOCATION),
    ("nbdinfo --map=qemu:dirty-bitmap", Meaning.CHANGED, _BITMAP),
)
_USE_CONTEXT: Final = "use --map=base:allocation or --map=qemu:dirty-bitmap:NAME"


def read_rbd_diff(data: bytes, size: int) -> ExtentList:
    """Parse `rbd diff --from-snap A --format json POOL/IMAGE@B`.

    It does not tell whether `--from-snap` was given. Without it, the list is of what was written
    since the image was created, and discards are not in it.

    Raises:
        ExtentListError: If it is not that, or not of this device.
    """
    rows = Rows("rbd diff")
    for entry in _entries(data, rows):
        exists = entry.get("exists")
        # Ceph writes words (src/tools/rbd/action/Diff.cc), its imitators booleans.
        if exists is True or exists == "true":
            kind = Kind.DATA
        elif exists is False or exists == "false":
            kind = Kind.ZERO
        else:
            raise rows.refused(f'its "exists" is {shown(exists)}, neither true nor false')
        rows.add(entry.get("offset"), entry.get("length"), kind)
    return ExtentList(rows.extents(size), Meaning.CHANGED, rows.origin, None)


def read_nbdinfo_map(data: bytes, size: int) -> ExtentList:
    """Parse `nbdinfo --map --json URI`, or the same with `--map=qemu:dirty-bitmap:NAME`.

    Raises:
        ExtentListError: If it is not that, mixes contexts, or is not of this whole device.
    """
    rows = Rows("nbdinfo --map", SECTOR)
    meaning = Meaning.ALLOCATED
    kinds: dict[tuple[str, int], int] = {}
    for entry in _entries(data, rows):
        word, number = entry.get("description"), entry.get("type")
        if not isinstance(word, str) or type(number) is not int:
            raise rows.refused("it has no description or type", _USE_CONTEXT)
        if not kinds:
            for origin, meant, table in _CONTEXTS:
                if (word, number) in table:
                    rows.origin, meaning, kinds = origin, meant, dict(table)
        if (word, number) not in kinds:
            what = f"{shown(word)} with type {number} is not a state that this list can have"
            raise rows.refused(what, _USE_CONTEXT)
        rows.add(entry.get("offset"), entry.get("length"), kinds[word, number])
    return ExtentList(rows.whole_extents(size), meaning, rows.origin, rows.end())


def read_qemu_map(data: bytes, size: int) -> ExtentList:
    """Parse `qemu-img map --output=json FILE`.

    Raises:
        ExtentListError: If it is not that, or not of this whole device.
    """
    rows = Rows("qemu-img map", SECTOR)
    for entry in _entries(data, rows):
        zero = entry.get("zero")
        if not isinstance(zero, bool) or not isinstance(entry.get("data"), bool):
            raise rows.refused('its "zero" or "data" is neither true nor false')
        # What is neither zero nor data has contents that QEMU does not know: it must be read.
        rows.add(entry.get("start"), entry.get("length"), Kind.ZERO if zero else Kind.DATA)
    return ExtentList(rows.whole_extents(size), Meaning.ALLOCATED, rows.origin, rows.end())


def _entries(data: bytes, rows: Rows) -> Iterator[dict[str, object]]:
    cursor = JsonCursor(data, rows.refused)
    for entry in cursor.array():
        if not isinstance(entry, dict):
            raise rows.refused(f"{shown(entry)} is not an extent")
        yield entry
    cursor.end()
