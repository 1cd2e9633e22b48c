"""Sparse streams of virtnbdbackup and oVirt: frames with a header of 40 bytes of text.

`meta` with JSON first, then `data` and `zero`, then `stop`. Where data is packed
with lz4, a list of packed sizes comes last.
"""

import json
import re
from typing import Any

from blockstream.errors import RefusedError
from blockstream.formats.foreign.events import (
    Base,
    Data,
    Format,
    Goal,
    Looking,
    Packed,
    Reading,
    Remark,
    Size,
    Take,
    Whole,
    Zero,
    malformed,
)

BEGIN = b"meta 0000"
_TITLE = "a sparse stream of virtnbdbackup"
_HEADER_BYTES = 40
_HEADER = re.compile(
    rb"(meta|data|zero|stop|comp) ([0-9a-f]{16}) ([0-9a-f]{16})\r\n", re.IGNORECASE
)
_META_BYTES = 1 << 20
_END = b"\r\n"


def read(_size: int | None) -> Reading:
    """Read a stream."""
    kind, start, length = _parsed((yield Take(_HEADER_BYTES)))
    if kind != b"meta" or start or length > _META_BYTES:
        raise malformed(_TITLE, "it does not begin with what describes it")
    facts = _facts((yield Take(length)))
    yield from _line_end()
    size = _number(facts, "virtualSize", "virtual-size")
    stated = facts.get("dataSize", facts.get("data-size"))
    packed = bool(facts.get("compressed"))
    if packed and facts.get("compressionMethod", "lz4") != "lz4":
        raise RefusedError(
            f"this sparse stream is packed with {facts['compressionMethod']!r}, and only lz4 is "
            "read; nothing was written"
        )
    if facts.get("incremental"):
        yield Remark("what became zeros since its parent is not in it: virtnbdbackup leaves it out")
        if isinstance(facts.get("parentCheckpoint"), str) and facts["parentCheckpoint"]:
            yield Base(facts["parentCheckpoint"])
    else:
        yield Whole()
    yield Size(size)
    if isinstance(facts.get("checkpointName"), str) and facts["checkpointName"]:
        yield Goal(facts["checkpointName"])
    total = yield from _ranges(size, packed=packed)
    if isinstance(stated, int) and int.from_bytes(total, "big") != stated:
        raise malformed(_TITLE, f"it claims {stated} bytes of data and has another number")
    if packed:
        yield from _packed_sizes()
    if (yield Take(1, or_end=True)):
        raise malformed(_TITLE, "bytes follow its end")


def _packed_sizes() -> Reading:
    """Pass over the list of packed sizes, which tells what lz4 tells as well.

    Its own size comes after it, so its end is found by its line end.
    """
    length = 0
    last = b""
    while last != _END:
        last = (last + (yield Take(1)))[-2:]
        length += 1
    kind, start, stated = _parsed((yield Take(_HEADER_BYTES)))
    if (kind, start, stated) != (b"comp", 0, length - len(_END)):
        raise malformed(_TITLE, "the list of packed sizes has another size")


def _ranges(size: int, *, packed: bool) -> Looking:
    """Read up to the end mark; return how much data there was."""
    total = reached = 0
    while True:
        kind, start, length = _parsed((yield Take(_HEADER_BYTES)))
        if kind == b"stop":
            return total.to_bytes(8, "big")
        if kind not in {b"data", b"zero"}:
            raise malformed(_TITLE, f"a frame {kind.decode()!r} comes where none may")
        if start < reached or start + length > size:
            raise malformed(_TITLE, f"the frame at {start} is out of order or past the end")
        reached = start + length
        if kind == b"data":
            total += length
            if length:
                yield Packed(start, length) if packed else Data(start, length)
            yield from _line_end()
        elif length:
            yield Zero(start, length)


def _parsed(header: bytes) -> tuple[bytes, int, int]:
    found = _HEADER.fullmatch(header)
    if found is None:
        raise malformed(_TITLE, "a frame has no header")
    return found[1].lower(), int(found[2], 16), int(found[3], 16)


def _facts(text: bytes) -> dict[str, Any]:
    try:
        facts = json.loads(text)
    except (ValueError, RecursionError):
        facts = None
    if not isinstance(facts, dict):
        raise malformed(_TITLE, "what describes it is no JSON object")
    return facts


def _number(facts: dict[str, Any], *names: str) -> int:
    """Return a size; older streams spell the names with hyphens."""
    for name in names:
        value = facts.get(name)
        if isinstance(value, int) and 0 <= value < 1 << 63:
            return value
    raise malformed(_TITLE, f"it does not say its {names[0]}")


def _line_end() -> Reading:
    if (yield Take(len(_END))) != _END:
        raise malformed(_TITLE, "a frame does not end where it should")


FORMAT = Format(
    name="sparsestream",
    title=_TITLE,
    read=read,
    ends=True,
    based=False,
    unchecked=("its base", "its bytes"),
)
