"""The XML of `thin_delta --snap1 A --snap2 B`, from thin-provisioning-tools."""

import re
from typing import Final
from xml.parsers import expat

from blockstream.extents import NOTHING
from blockstream.formats.extent_rows import MAKE_AGAIN, ExtentList, Meaning, Rows, shown
from blockstream_protocol import Kind

SECTOR: Final = 512
# drivers/md/dm-thin.c: 64 KiB to 1 GiB, in steps of 64 KiB.
_CHUNK_STEP: Final = 128
_CHUNK_SECTORS: Final = 2097152
_NUMBER: Final = re.compile(r"[0-9]{1,19}")
_SLICE_BYTES: Final = 1 << 20

# A chunk that only the left side maps has been discarded. What it reads as, the list does not say.
_ENTRIES: Final[dict[str, int]] = {
    "different": Kind.DATA,
    "right_only": Kind.DATA,
    "left_only": Kind.DATA,
    "same": NOTHING,
}
# Which elements may stand in which.
_CHILDREN: Final[dict[str, frozenset[str]]] = {
    "": frozenset({"superblock"}),
    "superblock": frozenset({"diff"}),
    "diff": frozenset(_ENTRIES),
}
_PLAIN: Final = "run thin_delta without --verbose (thin_dump is another list)"


def read(data: bytes, size: int, *, unmapped: Kind = Kind.DATA) -> ExtentList:
    """Parse it.

    Args:
        data: The XML.
        size: Bytes of the device.
        unmapped: What a chunk is that was discarded: ZERO only where it is known to read as zeros.
            With an external origin, it shows that again.

    Raises:
        ExtentListError: If it is not that, or not of this device.
    """
    reader = _Reader(size, unmapped)
    # Named, so that a declaration in the document cannot choose a codec.
    parser = expat.ParserCreate("utf-8")
    # Without a DOCTYPE there are no entities to declare, hence none that expand without end.
    parser.StartDoctypeDeclHandler = reader.refuse_doctype
    parser.StartElementHandler = reader.start
    parser.EndElementHandler = reader.end
    view = memoryview(data)
    try:
        for start in range(0, len(view), _SLICE_BYTES):
            parser.Parse(view[start : start + _SLICE_BYTES])
        parser.Parse(b"", True)
    except expat.ExpatError as error:
        what = f"it is cut off or not XML at line {error.lineno}"
        raise reader.rows.refused_whole(what) from error
    return reader.result()


class _Reader:
    """Takes the elements as they come."""

    def __init__(self, size: int, unmapped: Kind) -> None:
        self.rows = Rows("thin_delta")
        self._kinds = _ENTRIES | {"left_only": unmapped}
        self._size = size
        self._chunk = 0  # bytes
        self._open = [""]
        self._diffs = 0

    def refuse_doctype(self, *_: object) -> None:
        raise self.rows.refused_whole("it declares a DOCTYPE, which thin_delta never does")

    def start(self, name: str, attributes: dict[str, str]) -> None:
        if name not in _CHILDREN.get(self._open[-1], frozenset()):
            what = f"<{shown(name)[1:-1]}> does not belong into it"
            raise self.rows.refused(what, _PLAIN)
        self._open.append(name)
        if name == "superblock":
            self._begin(attributes)
        elif name == "diff":
            self._diffs += 1
        else:
            self._add(name, attributes)

    def end(self, _name: str) -> None:
        self._open.pop()

    def result(self) -> ExtentList:
        if self._diffs != 1:
            raise self.rows.refused_whole(f"it compares {self._diffs} pairs of volumes, not one")
        return ExtentList(self.rows.extents(self._size), Meaning.CHANGED, self.rows.origin, None)

    def _begin(self, attributes: dict[str, str]) -> None:
        sectors = self._number(attributes, "data_block_size")
        if not 0 < sectors <= _CHUNK_SECTORS or sectors % _CHUNK_STEP:
            what = f"its data_block_size is {sectors}, which no thin pool can have"
            raise self.rows.refused_whole(what)
        self._chunk = sectors * SECTOR
        self.rows.unit = self._chunk

    def _add(self, name: str, attributes: dict[str, str]) -> None:
        begin = self._number(attributes, "begin") * self._chunk
        length = self._number(attributes, "length") * self._chunk
        self.rows.add(begin, length, self._kinds[name])

    def _number(self, attributes: dict[str, str], name: str) -> int:
        text = attributes.get(name)
        if text is None or not _NUMBER.fullmatch(text):
            advice = _PLAIN if text is None else MAKE_AGAIN
            raise self.rows.refused(f"its {name} is {shown(text)}, not a number", advice)
        return int(text)
