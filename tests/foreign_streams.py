"""Streams of other tools, made byte by byte from the tables of formats, not by our writers."""

import json
import os
import struct
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from blockstream.formats.foreign.events import Format
from blockstream.formats.foreign.table import HEAD_BYTES, recognised
from blockstream.formats.foreign.wrappings import wrapping
from blockstream.sources.foreign_stream import ForeignStream, StreamContents
from blockstream.sources.layered import LayeredSource

# What a disk is written with: an offset, and bytes or how many zeros.
Change = tuple[int, bytes | int]


def applied(disk: bytes, changes: Sequence[Change]) -> bytes:
    """Return a disk with changes, one after the other: the model of everything here."""
    found = bytearray(disk)
    for offset, what in changes:
        new = bytes(what) if isinstance(what, int) else what
        found[offset : offset + len(new)] = new
    return bytes(found)


def lvmsync(changes: Sequence[Change], banner: bytes = b"lvmsync PROTO[3]\n") -> bytes:
    """Return a dump; zeros are bytes."""
    parts = [banner]
    for offset, what in changes:
        data = bytes(what) if isinstance(what, int) else what
        parts.append(struct.pack(">QI", offset, len(data)) + data)
    return b"".join(parts)


MAGIC_1_1 = bytes.fromhex("24C4F02AAE2E4FA9")
MAGIC_1_0 = bytes.fromhex("CA7F00D5DE7EC7ED")


def thin_chunk(offset: int, length: int, command: int, magic: bytes = MAGIC_1_1) -> bytes:
    """Return a header of thin_send."""
    return magic + struct.pack(">QQI", offset, length, command)


def thin_ranges(changes: Sequence[Change], magic: bytes = MAGIC_1_1) -> bytes:
    """Return the chunks of changes."""
    parts = []
    for offset, what in changes:
        if isinstance(what, int):
            parts.append(thin_chunk(offset, what, 1, magic))
        else:
            parts.append(thin_chunk(offset, len(what), 0, magic) + what)
    return b"".join(parts)


def thin_end(chunks: int, data: int, unmapped: int) -> bytes:
    """Return an end mark with these counts."""
    return thin_chunk(0, 24, 3) + struct.pack(">QQQ", chunks, data, unmapped)


def thin_send(changes: Sequence[Change]) -> bytes:
    """Return a stream of thin_send 1.1."""
    unmapped = sum(isinstance(what, int) for _, what in changes)
    end = thin_end(2 + len(changes), len(changes) - unmapped, unmapped)
    return thin_chunk(0, 0, 2) + thin_ranges(changes) + end


def rbd_diff(
    changes: Sequence[Change], size: int, base: str = "", goal: str = "", version: int = 1
) -> bytes:
    """Return a diff of rbd."""
    records: list[tuple[bytes, bytes]] = []
    for tag, name in ((b"f", base), (b"t", goal)):
        if name:
            records.append((tag, struct.pack("<I", len(name.encode())) + name.encode()))
    records.append((b"s", struct.pack("<Q", size)))
    for offset, what in changes:
        if isinstance(what, int):
            records.append((b"z", struct.pack("<QQ", offset, what)))
        else:
            records.append((b"w", struct.pack("<QQ", offset, len(what)) + what))
    counted = version == 2
    body = b"".join(
        tag + (struct.pack("<Q", len(rest)) if counted else b"") + rest for tag, rest in records
    )
    return f"rbd diff v{version}\n".encode() + body + b"e"


def rbd_image(diffs: Sequence[bytes]) -> bytes:
    """Return an export in format 2, with some facts of an image."""
    facts = b"O" + struct.pack("<QQ", 8, 22) + b"T" + struct.pack("<QQ", 8, 61)
    head = b"rbd image v2\n" + facts + b"E" + b"rbd image diffs v2\n"
    return head + struct.pack("<Q", len(diffs)) + b"".join(diffs)


def bdsync(changes: Sequence[Change], size: int, digest: bytes = b"", order: str = "<") -> bytes:
    """Return a patch; zeros are bytes."""
    name = b"/dev/vg/old"
    parts = [b"BDSYNC 0.3\n", struct.pack(f"{order}qH", size, len(name)), name]
    for offset, what in changes:
        data = bytes(what) if isinstance(what, int) else what
        parts.append(struct.pack(f"{order}qH", offset, len(data)) + data)
    parts.append(bytes(10))
    named = b"\x06sha256" + bytes([len(digest)]) + digest if digest else b"\0\0"
    return b"".join(parts) + named


def blocksync_fast(blocks: Sequence[tuple[int, bytes]], size: int, block: int) -> bytes:
    """Return a delta."""
    head = b"!BSF#DELTA".ljust(16, b"\0") + b"1.07".ljust(8, b"\0")
    head += struct.pack("<QQQQQ", size, block, -(-size // block), 1, 0)
    records = b"".join(struct.pack("<Q", offset) + data for offset, data in blocks)
    return head.ljust(512, b"\0") + records


def sparse_frame(kind: str, start: int, length: int) -> bytes:
    """Return a header of virtnbdbackup."""
    return f"{kind} {start:016x} {length:016x}\r\n".encode()


def lz4_frame(data: bytes) -> bytes:
    """Return a frame of blocks that are not packed, as lz4 writes of noise."""
    descriptor = bytes([0x60, 0x40])  # version 1, blocks of 64 KiB that stand alone
    header = b"\x04\x22\x4d\x18" + descriptor + bytes([_xxh32(descriptor) >> 8 & 0xFF])
    blocks = [data[at : at + 65_536] for at in range(0, len(data), 65_536)]
    packed = b"".join(struct.pack("<I", len(each) | 1 << 31) + each for each in blocks)
    return header + packed + bytes(4)


def _xxh32(data: bytes) -> int:
    """Return the hash that a header of lz4 has a byte of; for less than four bytes."""
    mask = 0xFFFFFFFF
    value = 0x165667B1 + len(data)
    for byte in data:
        value = (value + byte * 0x165667B1) & mask
        value = ((value << 11 | value >> 21) & mask) * 0x9E3779B1 & mask
    value = (value ^ value >> 15) * 0x85EBCA77 & mask
    value = (value ^ value >> 13) * 0xC2B2AE3D & mask
    return value ^ value >> 16


def packed_sparsestream(changes: Sequence[Change], size: int) -> bytes:
    """Return a stream of virtnbdbackup that is packed; each range as two frames, if it is long."""
    plain = sparsestream(changes, size, compressed=2, compressionMethod="lz4")
    sizes: list[object] = []
    for _, what in changes:
        if isinstance(what, int):
            continue
        frames = [lz4_frame(what[:4096])] + ([lz4_frame(what[4096:])] if what[4096:] else [])
        plain = plain.replace(what + b"\r\n", b"".join(frames) + b"\r\n", 1)
        lengths = [len(each) for each in frames]
        sizes.append({str(sum(lengths)): lengths} if len(frames) > 1 else lengths[0])
    text = json.dumps(sizes).encode()
    return plain + text + b"\r\n" + sparse_frame("comp", 0, len(text))


def sparsestream(changes: Sequence[Change], size: int, **facts: object) -> bytes:
    """Return a stream of virtnbdbackup."""
    data = sum(len(what) for _, what in changes if not isinstance(what, int))
    meta = {"virtualSize": size, "dataSize": data, "incremental": False, "compressed": False}
    text = json.dumps(meta | facts).encode()
    parts = [sparse_frame("meta", 0, len(text)), text, b"\r\n"]
    for offset, what in changes:
        if isinstance(what, int):
            parts.append(sparse_frame("zero", offset, what))
        else:
            parts += [sparse_frame("data", offset, len(what)), what, b"\r\n"]
    return b"".join((*parts, sparse_frame("stop", 0, 0)))


@contextmanager
def intake(stream: bytes, *, pipe: bool) -> Iterator[ForeignStream]:
    """Let a stream come from a file, or, as far as a pipe holds it, from one."""
    if pipe:
        reading, writing = os.pipe()
        assert len(stream) <= 65_536
        os.write(writing, stream)
        os.close(writing)
    else:
        reading = os.memfd_create("stream")
        os.write(reading, stream)
        os.lseek(reading, 0, os.SEEK_SET)
    folder = Path(tempfile.gettempdir())
    try:
        head = os.read(reading, HEAD_BYTES)
        packed = wrapping(head)
        with closing(ForeignStream(reading, ahead=head, wrapping=packed, folder=folder)) as made:
            yield made
    finally:
        os.close(reading)


def read(
    stream: bytes, size: int | None = None, *, pipe: bool = False, how: Format | None = None
) -> StreamContents:
    """Read a stream to its end."""
    with intake(stream, pipe=pipe) as made:
        return made.run(how or recognised(made.head(HEAD_BYTES)), size)


def brought_onto(
    disk: bytes,
    stream: bytes,
    size: int | None = None,
    *,
    pipe: bool = False,
    how: Format | None = None,
    first_wins: bool = False,
) -> bytes:
    """Return what a stream makes of a disk, read through the source that `recv` copies from."""
    with intake(stream, pipe=pipe) as made:
        taken = made.run(how or recognised(made.head(HEAD_BYTES)), size)
        disk_size = taken.size if taken.size is not None else len(disk)
        placed = taken.layers.flattened(disk_size, first_wins=first_wins)
        source = LayeredSource("test", placed, [made.fd], disk_size)
        found = bytearray(disk_size)
        if not taken.whole:
            found[: len(disk)] = disk[:disk_size]
        for offset, length, kind in placed.extents(disk_size):
            buffer = memoryview(bytearray(length))
            if kind == 1:
                source.read_into([offset], [length], buffer)
            found[offset : offset + length] = buffer
    return bytes(found)
