"""Whatever lies in a VMDK is read within its file, as a whole and in parts, or refused.

The first byte says how much of the rest is a descriptor; the next tells whether the file is also
fed to the reader of streams. The file is zeros, but for pieces: tables are large, and inputs small.
A parser must ask only for what is there.
"""

import struct

from tests.fuzz.engine import fuzz, instrumented

with instrumented("blockstream.formats"):
    from blockstream.errors import VmdkError
    from blockstream.formats.vmdk.descriptor import parse_descriptor
    from blockstream.formats.vmdk.stream import GrainStream
    from tests.vmdk_memory import MemoryChain

_MOST = 1 << 20
_PIECE = struct.Struct("<IB")  # where, and how long


def check(data: bytes) -> None:
    """Take one input."""
    text = data[2 : 2 + 4 * data[0]] if data else b""
    rest = unpacked(data[2 + len(text) :])
    _check_descriptor(text)
    if data[1:2] > b"\x7f":
        _check_stream(rest)
    try:
        disk = MemoryChain([rest, b"\1" * 4096])
        _check_disk(disk)
    except VmdkError:
        return


def unpacked(data: bytes) -> bytes:
    """Return a file from its sectors, counted in two bytes, and pieces."""
    file = bytearray(int.from_bytes(data[:2], "little") % 512 * 512)
    position = 2
    while file and position + _PIECE.size <= len(data):
        place, length = _PIECE.unpack_from(data, position)
        position += _PIECE.size
        place %= len(file)
        piece = data[position : position + length][: len(file) - place]
        file[place : place + len(piece)] = piece
        position += length
    return bytes(file)


def packed(file: bytes) -> bytes:
    """Return what `unpacked` takes, for the corpus."""
    parts = [struct.pack("<H", len(file) // 512)]
    for place in range(0, len(file), 64):
        piece = file[place : place + 64].rstrip(b"\0")
        if piece:
            parts += [_PIECE.pack(place, len(piece)), piece]
    return b"".join(parts)


def _check_descriptor(text: bytes) -> None:
    try:
        found = parse_descriptor(b"# Disk DescriptorFile\n" + text)
    except VmdkError:
        return
    if found.size < 0 or not found.extents:
        raise AssertionError(found)


def _check_stream(data: bytes) -> None:
    reader, least = GrainStream(), 0
    try:
        for start in range(0, len(data), 500):
            for grain in reader.feed(data[start : start + 500]):
                if grain.offset < least or not grain.data:
                    raise AssertionError((grain.offset, least))
                least = grain.offset + len(grain.data)
        reader.finish()
    except VmdkError:
        return


def _check_disk(disk: MemoryChain) -> None:
    end = 0
    for offset, length, _ in disk.extents():
        if not end <= offset < offset + length <= disk.chain.size:
            raise AssertionError((offset, length))
        end = offset + length
    size = min(disk.chain.size, _MOST) // 512 * 512
    whole = disk.read((0, size))
    half = size // 1024 * 512
    if disk.read((0, half), (half, size - half)) != whole:
        raise AssertionError(half)


if __name__ == "__main__":
    fuzz(check)
