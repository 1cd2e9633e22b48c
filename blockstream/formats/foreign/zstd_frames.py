"""Where the blocks of a zstd stream end, so that it can be unpacked a block at a time.

A few bytes may unpack to many GiB; one block never gives more than 128 KiB. See RFC 8878, 3.1.
"""

from collections.abc import Generator

from blockstream.errors import IntegrityError, RefusedError
from blockstream.formats.foreign.events import Take

# Of our own streams, and of `zstd --long=27`.
WINDOW_BYTES = 1 << 27
_MAGIC = 0xFD2FB528
_SKIPPABLE = 0x184D2A50  # and the fifteen after it
_BLOCK_BYTES = 128 << 10
_DICTIONARY_ID = (0, 1, 2, 4)
_CONTENT_SIZE = (0, 2, 4, 8)
_RLE, _RESERVED = 1, 3


def walked() -> Generator[Take, bytes, None]:
    """Give how many bytes come next, and take them; every one of them belongs to the unpacker."""
    while start := (yield Take(4, or_end=True)):
        magic = int.from_bytes(start, "little")
        if magic & ~0xF == _SKIPPABLE:
            length = int.from_bytes((yield Take(4)), "little")
            while length:
                step = min(length, _BLOCK_BYTES)
                yield Take(step)
                length -= step
        elif magic == _MAGIC:
            yield from _frame()
        else:
            raise IntegrityError(
                "bytes that are no zstd follow the end of a zstd stream; nothing was written"
            )


def _frame() -> Generator[Take, bytes, None]:
    (descriptor,) = yield Take(1)
    single = bool(descriptor & 0x20)
    length = _CONTENT_SIZE[descriptor >> 6] or int(single)
    rest = yield Take(length + _DICTIONARY_ID[descriptor & 3] + (not single) or 1)
    if not single and (8 + (rest[0] & 7)) << (7 + (rest[0] >> 3)) > WINDOW_BYTES:
        raise RefusedError(
            "the zstd stream needs more memory to unpack than is given here, 128 MiB; nothing was "
            "written; unpack it first: zstd -d --long=31 | ..."
        )
    last = False
    while not last:
        header = int.from_bytes((yield Take(3)), "little")
        last, kind, size = bool(header & 1), header >> 1 & 3, header >> 3
        if kind == _RESERVED or size > _BLOCK_BYTES:
            raise IntegrityError(
                "the zstd stream is damaged: a block that none can be; nothing was written"
            )
        if kind == _RLE:
            yield Take(1)
        elif size:
            yield Take(size)
    if descriptor & 4:
        yield Take(4)
