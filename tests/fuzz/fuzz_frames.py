"""Whatever comes in is frames or a RemoteProtocolError, the same in any pieces, in bounded memory.

The first byte chooses: raw bytes; heads with repaired checksums; or repaired digests too, so that
the bytes get as far as a receiver, which then must not write outside the plan it was given.
"""

import struct
import zlib

from tests.fuzz.engine import fuzz, instrumented

with instrumented("blockstream_protocol"):
    from blockstream_protocol import (
        EXTENTS_BYTES,
        HEAD_BYTES,
        MAGIC,
        Clean,
        Frame,
        FrameDecoder,
        Plan,
        RemoteProtocolError,
        Write,
        encode,
    )
    from tests.protocol.host import Host, new_digest

SIZE = 4096
HEAD = struct.Struct("<BBII")


def check(data: bytes) -> None:
    """Take one input."""
    mode, wire = data[:1], MAGIC + data[1:]
    if mode == b"\1":
        wire = repaired(wire, digests=False)
    elif mode == b"\2":
        wire = repaired(wire, digests=True)
        receive(wire)
    elif mode != b"\0":
        wire = data
    whole, pieces = decoded(wire, len(wire)), decoded(wire, 1 + len(data) % 97)
    if whole != pieces:
        raise AssertionError(f"cuts matter: {whole} and {pieces}")


def repaired(wire: bytes, *, digests: bool) -> bytes:
    """Return the stream with every head's checksum right, and if wished every plain digest."""
    done = bytearray(wire)
    place = len(MAGIC)
    while place + HEAD_BYTES <= len(done):
        head = bytes(done[place : place + HEAD.size])
        _, codec, _, length = HEAD.unpack(head)
        done[place + 10 : place + 14] = struct.pack("<I", zlib.crc32(head))
        start = place + HEAD_BYTES
        if digests and codec == 0:
            payload = bytes(done[start : start + length])
            done[place + 14 : start] = new_digest(payload).digest()
        place = start + length
    return bytes(done)


def decoded(wire: bytes, cut: int) -> tuple[list[bytes], str]:
    """Return the frames and the error, having looked at every promise on the way."""
    asked: list[int] = []

    def allocate(size: int) -> memoryview:
        asked.append(size)
        return memoryview(bytearray(size))

    decoder = FrameDecoder(allocate)
    frames: list[Frame] = []
    error = ""
    try:
        for start in range(0, len(wire), max(cut, 1)):
            frames += decoder.feed(wire[start : start + cut])
        decoder.end()
    except RemoteProtocolError as refused:
        error = str(refused)
    if max(asked, default=0) > EXTENTS_BYTES:
        raise AssertionError(f"asked for {max(asked)} bytes")
    return [encode(frame) for frame in frames], error


def receive(wire: bytes) -> None:
    """Let a receiver take the stream, and check that nothing was written but the plan."""
    held = Clean("b", "", Plan.whole(0), "", 0, "", "")
    host = Host.of(SIZE, held)
    finish = host.feed(wire)
    if (finish.code == 0) != (host.receiver.target != held and finish.committed is not None):
        raise AssertionError(finish)
    end = 0
    for effect in host.did:
        for offset, length, _ in effect.extents if isinstance(effect, Write) else ():
            if offset < end or offset + length > SIZE:
                raise AssertionError(effect)
            end = offset + length


if __name__ == "__main__":
    fuzz(check)
