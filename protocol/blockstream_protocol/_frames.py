"""Frames: bytes in, frames out, and back (SPEC 3).

The decoder owns no payload memory: it asks `allocate` for a buffer of an already checked
size, and the caller may fill that buffer straight from a descriptor.
"""

import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import IntEnum

from blockstream_protocol._digests import DIGEST_BYTES, Buffer, NewDigest
from blockstream_protocol._errors import Code, RemoteProtocolError
from blockstream_protocol._limits import CONTROL_BYTES, EXTENTS_BYTES, PLAN_FRAME_BYTES

# As in PNG: a byte above 127, a name, and both line ends, so that a stream that went
# through a text-mode pipe is told from one that was cut.
MAGIC = b"\x89BSX\r\n\x1a\n"

_HEAD = struct.Struct("<BBII")
_CRC = struct.Struct("<I")
HEAD_BYTES = _HEAD.size + _CRC.size + DIGEST_BYTES
OPTIONAL = 0x80  # a type from here on may be skipped
_SKIP_BYTES = 64 << 10


class FrameType(IntEnum):
    """The number of a message on the wire."""

    HELLO = 1
    OPEN = 2
    PLAN = 3
    EXTENTS = 4
    CHECKPOINT = 5
    ACK = 6
    END = 7
    COMMITTED = 8
    REFUSE = 9
    ABORT = 10
    PING = 11
    # Optional: whoever does not know it skips it. 128 to 130 are those of a pack (SPEC 14).
    MOMENT = 131


class Codec(IntEnum):
    """How a payload is packed; by number, because the package itself knows no codec."""

    NONE = 0
    ZSTD = 1


_LIMITS = dict.fromkeys(FrameType, CONTROL_BYTES) | {
    FrameType.PLAN: PLAN_FRAME_BYTES,
    FrameType.EXTENTS: EXTENTS_BYTES,
}
# A head that was checked: what a frame will be once its payload is there.
_Pending = tuple[FrameType, Codec, int, bytes]
_PACKABLE = frozenset({FrameType.PLAN, FrameType.EXTENTS})
_KNOWN = frozenset(FrameType)
_AFTER_END = frozenset({FrameType.ABORT, FrameType.PING})


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame as it lies on the wire; the payload is not yet checked or unpacked.

    Attributes:
        kind: Its type; optional frames that this version does not know never get this far.
        codec: How the payload is packed.
        raw_len: Bytes of the payload once unpacked.
        digest: What the unpacked payload must digest to.
        payload: The packed bytes; a view of the buffer that `allocate` gave.
    """

    kind: FrameType
    codec: Codec
    raw_len: int
    digest: bytes
    payload: Buffer

    @property
    def is_optional(self) -> bool:
        """Whether others may skip it; over lanes it is not counted (SPEC 3.1)."""
        return self.kind >= OPTIONAL

    @property
    def wire_len(self) -> int:
        """All bytes of the frame on the wire."""
        return HEAD_BYTES + len(self.payload)


# Unpacks a zstd payload into exactly that many bytes, or raises RemoteProtocolError.
Decompress = Callable[[Buffer, int], Buffer]


def encode_head(kind: FrameType, codec: Codec, raw_len: int, wire_len: int, digest: bytes) -> bytes:
    """Return the 46 bytes that go before a payload."""
    head = _HEAD.pack(kind, codec, raw_len, wire_len)
    return head + _CRC.pack(zlib.crc32(head)) + digest


def encode(frame: Frame) -> bytes:
    """Return a whole frame; for data, write head and payload separately instead."""
    head = encode_head(frame.kind, frame.codec, frame.raw_len, len(frame.payload), frame.digest)
    return head + bytes(frame.payload)


def encode_optional(kind: int, payload: bytes, new_digest: NewDigest) -> bytes:
    """Return a whole frame of a type that whoever does not know it skips."""
    head = _HEAD.pack(kind, Codec.NONE, len(payload), len(payload))
    return head + _CRC.pack(zlib.crc32(head)) + new_digest(payload).digest() + payload


def plain_frame(kind: FrameType, payload: bytes, new_digest: NewDigest) -> Frame:
    """Return the frame of a payload that is not packed."""
    digest = new_digest(payload).digest()
    return Frame(kind, Codec.NONE, len(payload), digest, payload)


def unpacked(frame: Frame, new_digest: NewDigest, decompress: Decompress) -> Buffer:
    """Return the payload, unpacked and checked against its digest.

    Pure and without state, so that workers may run it on many frames at once.

    Raises:
        RemoteProtocolError: If it does not unpack, or is not what the sender digested.
    """
    raw = frame.payload
    if frame.codec is Codec.ZSTD:
        raw = decompress(raw, frame.raw_len)
    if new_digest(raw).digest() != frame.digest:
        raise RemoteProtocolError(f"the digest of a frame of type {frame.kind.name} does not match")
    return raw


class FrameDecoder:
    """Turns bytes, however they are cut, into frames.

    Two ways in: `feed`, or `buffer` and `filled`, which save the copy. After the first error the
    decoder is spent.
    """

    def __init__(self, allocate: Callable[[int], memoryview] | None = None) -> None:
        """Start before the first byte.

        Args:
            allocate: Gives a writable buffer of at least that many bytes; it belongs to the frame
                that comes out with it. By default a fresh one each time.
        """
        self._allocate = allocate or (lambda size: memoryview(bytearray(size)))
        self._head = memoryview(bytearray(max(HEAD_BYTES, len(MAGIC))))
        self._want = self._head[: len(MAGIC)]
        self._have = 0
        self._started = False
        self._pending: _Pending | None = None
        self._skip = 0
        self._scrap = memoryview(b"")
        self._ended = False
        self.wire_bytes = 0

    @property
    def between_frames(self) -> bool:
        """Whether the bytes so far end exactly at the end of a frame."""
        return self._started and self._pending is None and not self._skip and self._have == 0

    @property
    def started(self) -> bool:
        """Whether any byte was taken."""
        return self.wire_bytes > 0

    def buffer(self) -> memoryview:
        """Return where the next bytes belong; never empty."""
        return self._want[self._have :]

    def filled(self, count: int) -> Frame | None:
        """Take `count` bytes that were written to `buffer()`; give the frame they completed.

        Raises:
            RemoteProtocolError: At the first byte that breaks SPEC 3.
        """
        self._have += count
        self.wire_bytes += count
        if self._have < len(self._want):
            return None
        return self._step()

    def feed(self, data: Buffer) -> Iterator[Frame]:
        """Take all of `data`, giving the frames as they complete.

        Raises:
            RemoteProtocolError: At the first byte that breaks SPEC 3.
        """
        view = memoryview(data).cast("B")
        while view:
            space = self.buffer()
            count = min(len(space), len(view))
            space[:count] = view[:count]
            view = view[count:]
            frame = self.filled(count)
            if frame is not None:
                yield frame

    def end(self) -> None:
        """Take the end of input.

        Raises:
            RemoteProtocolError: If it falls inside a frame.
        """
        if self.between_frames or not self.started:
            return
        # What follows END is no frame that was cut, unless it begins like one that may follow.
        if self._ended and self._head[0] not in _AFTER_END:
            raise RemoteProtocolError("bytes follow the end of the stream")
        raise RemoteProtocolError("the stream ends inside a frame", Code.INTERRUPTED)

    def _step(self) -> Frame | None:
        """Act on a full buffer: magic, head, or payload."""
        if not self._started:
            if self._want != MAGIC:
                raise RemoteProtocolError(_foreign(bytes(self._want)))
            self._started = True
        elif self._skip:
            self._skip -= len(self._want)
        elif self._pending is None:
            return self._take_head()
        else:
            return self._complete(self._pending)
        self._expect_next()
        return None

    def _take_head(self) -> Frame | None:
        number, codec_number, raw_len, wire_len, digest = _parsed_head(self._head)
        if number >= OPTIONAL and number not in _KNOWN:
            if wire_len > EXTENTS_BYTES:
                raise RemoteProtocolError(f"an optional frame of {wire_len} bytes is too long")
            self._skip = wire_len
            self._scrap = memoryview(bytearray(min(wire_len, _SKIP_BYTES)))
            self._expect_next()
            return None
        kind, codec = _checked_head(number, codec_number, raw_len, wire_len)
        pending = (kind, codec, raw_len, digest)
        self._have = 0
        if not wire_len:
            self._want = memoryview(b"")
            return self._complete(pending)
        self._want = self._allocate(wire_len)[:wire_len]
        self._pending = pending
        return None

    def _complete(self, pending: _Pending) -> Frame:
        kind, codec, raw_len, digest = pending
        frame = Frame(kind, codec, raw_len, digest, self._want)
        self._ended |= kind is FrameType.END
        self._pending = None
        self._expect_next()
        return frame

    def _expect_next(self) -> None:
        """Wait for a head, or for the next stretch of a frame that is being skipped."""
        self._have = 0
        self._want = self._scrap[: self._skip] if self._skip else self._head[:HEAD_BYTES]


def frame_in(data: Buffer) -> Frame:
    """Return the one frame that these bytes are; its payload is a view of them.

    Raises:
        RemoteProtocolError: If they are no frame, or not one alone.
    """
    view = memoryview(data).cast("B")
    if len(view) < HEAD_BYTES:
        raise RemoteProtocolError("the stream ends inside a frame", Code.INTERRUPTED)
    number, codec_number, raw_len, wire_len, digest = _parsed_head(view)
    kind, codec = _checked_head(number, codec_number, raw_len, wire_len)
    if len(view) != HEAD_BYTES + wire_len:
        raise RemoteProtocolError("a frame has another length than it should")
    return Frame(kind, codec, raw_len, digest, view[HEAD_BYTES:])


def sound_frames(data: Buffer, new_digest: NewDigest) -> int:
    """Return how many bytes these begin with that are whole frames, optional ones as well.

    A packed payload is taken as it is: whoever unpacks it checks it.
    """
    view, done = memoryview(data).cast("B"), 0
    while len(view) - done >= HEAD_BYTES:
        try:
            _, codec, _, wire_len, digest = _parsed_head(view[done:])
        except RemoteProtocolError:
            break
        end = done + HEAD_BYTES + wire_len
        payload = view[done + HEAD_BYTES : end]
        whole = len(payload) == wire_len
        if not whole or (codec == Codec.NONE and new_digest(payload).digest() != digest):
            break
        done = end
    return done


def _parsed_head(head: memoryview) -> tuple[int, int, int, int, bytes]:
    """Return type, codec, both lengths and the digest that a head states."""
    stated = bytes(head[: _HEAD.size])
    (crc,) = _CRC.unpack_from(head, _HEAD.size)
    if zlib.crc32(stated) != crc:
        raise RemoteProtocolError("the head of a frame is damaged")
    digest = bytes(head[HEAD_BYTES - DIGEST_BYTES : HEAD_BYTES])
    number, codec, raw_len, wire_len = _HEAD.unpack(stated)
    return number, codec, raw_len, wire_len, digest


def _checked_head(
    number: int, codec_number: int, raw_len: int, wire_len: int
) -> tuple[FrameType, Codec]:
    """Refuse what no frame of ours can be, before a byte is allocated for it."""
    try:
        kind = FrameType(number)
        codec = Codec(codec_number)
    except ValueError:
        raise RemoteProtocolError(
            f"a frame has type {number} and codec {codec_number}, which this version does not know"
        ) from None
    if raw_len > _LIMITS[kind]:
        raise RemoteProtocolError(f"a frame of type {kind.name} claims {raw_len} bytes")
    if codec is Codec.NONE and wire_len != raw_len:
        raise RemoteProtocolError(f"a frame of type {kind.name} claims two lengths")
    # A packed payload that is not smaller would have been sent plain.
    if codec is not Codec.NONE and (kind not in _PACKABLE or wire_len >= raw_len):
        raise RemoteProtocolError(f"a frame of type {kind.name} may not be packed like this")
    return kind, codec


def _foreign(start: bytes) -> str:
    """Say what the first bytes of a stream that is not ours may mean."""
    if start[:4] == MAGIC[:4]:
        return "the stream was altered on its way, as by a pipe that converts line ends"
    return f"this is not a blockstream stream: it begins with {start.hex(' ')}"
