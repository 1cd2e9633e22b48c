"""Our own list of extents: a JSON object, with one extent a line, that any tracker can write.

    {"format":"blockstream-extents","version":1,"size":1048576,"meaning":"changed","extents":[
    {"offset":0,"length":4096,"kind":"data"},
    {"offset":65536,"length":512,"kind":"zero"}
    ]}

Other blanks, another order of names and additional names are as good.
"""

from collections.abc import Iterator
from typing import Final

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
    header: dict[str, object] = {}
    cursor = JsonCursor(data, rows.refused)
    for key in cursor.keys():  # noqa: SIM118 - not a dictionary: each step reads on
        if key in header:
            raise rows.refused_whole(f"{shown(key)} occurs twice", _REWRITE)
        header[key] = _filled(rows, cursor) if key == "extents" else cursor.value()
    cursor.end()
    meaning = _checked(header, rows, size)
    return ExtentList(rows.extents(size), meaning, FORMAT, size)


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
