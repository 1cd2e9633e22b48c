"""Our own list of extents: a JSON object, with one extent a line, that any tracker can write.

    {"format":"blockstream-extents","version":1,"size":1048576,"meaning":"changed","extents":[
    {"offset":0,"length":4096,"kind":"data"},
    {"offset":65536,"length":512,"kind":"zero"}
    ]}

Other blanks, another order of names and additional names are as good.
"""

import re
from collections.abc import Iterator
from typing import Final

import numpy as np
import numpy.typing as npt

from blockstream.extents import ExtentMap
from blockstream.formats.extent_rows import ExtentList, Meaning, Rows, shown
from blockstream.formats.json_cursor import JsonCursor
from blockstream_protocol import Kind

FORMAT: Final = "blockstream-extents"
VERSION: Final = 1
# A block of lines is about 3 MB of text, and the fewer blocks, the fewer calls.
_BLOCK_ROWS: Final = 1 << 16
_KINDS: Final = {"data": Kind.DATA, "zero": Kind.ZERO}
_WORDS: Final = {kind: word for word, kind in _KINDS.items()}
# A list as `written` makes it. Eighteen digits fit 64 bits; longer numbers go the long way.
_OUR_HEADER: Final = re.compile(
    rb'\{"format":"blockstream-extents","version":1,"size":(\d{1,18}),'
    rb'"meaning":"([a-z]{1,20})","extents":\[\n'
)
_OUR_LINES: Final = re.compile(
    rb'(?:\{"offset":\d{1,18},"length":\d{1,18},"kind":"(?:data|zero)"\},\n)*+'
)
_OUR_END: Final = b"\n]}\n"
_ONLY_NUMBERS: Final = bytes(c if chr(c).isdigit() and c < 128 else ord(" ") for c in range(256))
_BLOCK_BYTES: Final = 1 << 20
_REWRITE: Final = "write it as the documentation says"


def written(extents: ExtentMap, meaning: Meaning) -> Iterator[str]:
    """Give the text of a list, block by block, so that millions of extents cost no memory."""
    yield (
        f'{{"format":"{FORMAT}","version":{VERSION},"size":{extents.size},'
        f'"meaning":"{meaning}","extents":[\n'
    )
    comma = ""
    for start in range(0, len(extents), _BLOCK_ROWS):
        block = slice(start, start + _BLOCK_ROWS)
        rows = zip(
            extents.offsets[block].tolist(),
            extents.lengths[block].tolist(),
            extents.kinds[block].tolist(),
            strict=True,
        )
        yield comma + ",\n".join(
            f'{{"offset":{offset},"length":{length},"kind":"{_WORDS[kind]}"}}'
            for offset, length, kind in rows
        )
        comma = ",\n"
    yield "\n]}\n" if comma else "]}\n"


def read(data: bytes, size: int) -> ExtentList:
    """Parse one.

    Raises:
        ExtentListError: If it is not one, of another version, or of a device of another size.
    """
    rows = Rows(FORMAT)
    header = _read_as_written(data, rows)
    if header is None:
        header = _read_as_json(data, rows)
    meaning = _checked(header, rows, size)
    return ExtentList(rows.extents(size), meaning, FORMAT, size)


def _read_as_json(data: bytes, rows: Rows) -> dict[str, object]:
    header: dict[str, object] = {}
    cursor = JsonCursor(data, rows.refused)
    for key in cursor.keys():  # noqa: SIM118 - not a dictionary: each step reads on
        if key in header:
            raise rows.refused_whole(f"{shown(key)} occurs twice", _REWRITE)
        header[key] = _filled(rows, cursor) if key == "extents" else cursor.value()
    cursor.end()
    return header


def _filled(rows: Rows, cursor: JsonCursor) -> Rows:
    for entry in cursor.array():
        if not isinstance(entry, dict):
            raise rows.refused(f"{shown(entry)} is not an extent", _REWRITE)
        word = entry.get("kind")
        kind = _KINDS.get(word) if isinstance(word, str) else None
        if kind is None:
            raise rows.refused(f"its kind is {shown(word)}, neither data nor zero", _REWRITE)
        rows.add(entry.get("offset"), entry.get("length"), kind)
    return rows


def _read_as_written(data: bytes, rows: Rows) -> dict[str, object] | None:
    """Take a list that looks exactly as `written` makes it, a block of lines at a time.

    Four times as fast as a JSON reader, and none the less strict: whatever differs by a byte is
    left to that reader. Returns the header, or None with nothing taken.
    """
    head = _OUR_HEADER.match(data)
    if head is None or not data.endswith(_OUR_END):
        return None
    blocks = []
    position, end = head.end(), len(data) - len(_OUR_END)
    while position < end:
        stop = data.rfind(b"\n", position, min(position + _BLOCK_BYTES, end)) + 1
        if stop <= position or end - position <= _BLOCK_BYTES:
            stop = end
        lines = data[position:stop] + (b",\n" if stop == end else b"")
        if not _OUR_LINES.fullmatch(lines):
            return None
        blocks.append(_columns(lines))
        position = stop
    for block in blocks:
        rows.add_columns(block[:, 0], block[:, 1], block[:, 2])
    size, meaning = int(head[1]), head[2].decode()
    return {"format": FORMAT, "version": VERSION, "size": size, "meaning": meaning, "extents": rows}


def _columns(lines: bytes) -> npt.NDArray[np.int64]:
    """Return offset, length and kind of lines whose form has been checked."""
    for word, kind in _KINDS.items():
        lines = lines.replace(b'"%s"' % word.encode(), b"%d" % kind)
    numbers = lines.translate(_ONLY_NUMBERS)
    return np.fromstring(numbers.decode(), np.int64, sep=" ").reshape(-1, 3)


def _checked(header: dict[str, object], rows: Rows, size: int) -> Meaning:
    """Return what the list means, when all else in its header is right."""
    if header.get("format") != FORMAT:
        raise rows.refused_whole(f'it has no "format": "{FORMAT}"', _REWRITE)
    version, own = header.get("version"), header.get("size")
    if type(version) is not int or version != VERSION:
        what = f"its version is {shown(version)}, this program knows {VERSION}"
        raise rows.refused_whole(what, "use a newer blockstream, or write version 1")
    if type(own) is not int or own != size:
        raise rows.refused_whole(f"it is of a device of {shown(own)} bytes, this one has {size}")
    for meaning in Meaning:
        if header.get("meaning") == meaning:
            break
    else:
        word = shown(header.get("meaning"))
        raise rows.refused_whole(f"its meaning is {word}, neither changed nor allocated", _REWRITE)
    if "extents" not in header:
        raise rows.refused_whole('it has no "extents"', _REWRITE)
    return meaning
