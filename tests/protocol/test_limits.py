"""A hostile peer is refused before anything is allocated by a number that it claims."""

import json
import struct
import tracemalloc
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockstream_protocol import (
    CONTROL_BYTES,
    DATA_BYTES,
    EXTENTS_BYTES,
    HEAD_BYTES,
    MAGIC,
    PLAN_FRAME_BYTES,
    Code,
    Codec,
    Extent,
    FrameDecoder,
    FrameType,
    Hello,
    Kind,
    RemoteProtocolError,
    encode_head,
    encode_table,
    message_of,
    parse_table,
    plain_frame,
)
from blockstream_protocol._limits import CONTROL_DEPTH
from tests.protocol.host import decompress, frame_of, new_digest

LIMITS = dict.fromkeys(FrameType, CONTROL_BYTES) | {
    FrameType.PLAN: PLAN_FRAME_BYTES,
    FrameType.EXTENTS: EXTENTS_BYTES,
}


class Asked:
    """Gives buffers, and remembers how large they were."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def allocate(self, size: int) -> memoryview:
        self.sizes.append(size)
        return memoryview(bytearray(size))


def head(kind: int, codec: int, raw_len: int, wire_len: int) -> bytes:
    start = struct.pack("<BBII", kind, codec, raw_len, wire_len)
    return start + struct.pack("<I", zlib.crc32(start)) + bytes(32)


def test_a_head_is_as_the_specification_says() -> None:
    ours = encode_head(FrameType.EXTENTS, Codec.ZSTD, 1000, 500, bytes(32))
    assert ours == head(4, 1, 1000, 500)
    assert len(ours) == HEAD_BYTES


@pytest.mark.parametrize("kind", FrameType)
def test_the_largest_frame_of_a_type_is_taken_and_one_byte_more_is_not(kind: FrameType) -> None:
    asked = Asked()
    limit = LIMITS[kind]
    assert list(FrameDecoder(asked.allocate).feed(MAGIC + head(kind, 0, limit, limit))) == []
    assert asked.sizes == [limit]
    with pytest.raises(RemoteProtocolError, match="claims"):
        list(FrameDecoder(asked.allocate).feed(MAGIC + head(kind, 0, limit + 1, limit + 1)))
    assert asked.sizes == [limit]


LENGTHS = st.one_of(
    st.integers(0, 2**32 - 1),
    st.sampled_from([0, 1, CONTROL_BYTES, PLAN_FRAME_BYTES, EXTENTS_BYTES, 2**31, 2**32 - 1]),
)


@given(st.integers(0, 255), st.integers(0, 3), LENGTHS, LENGTHS)
def test_no_head_makes_us_allocate_more_than_a_data_frame(
    kind: int, codec: int, raw_len: int, wire_len: int
) -> None:
    asked = Asked()
    try:
        list(FrameDecoder(asked.allocate).feed(MAGIC + head(kind, codec, raw_len, wire_len)))
    except RemoteProtocolError:
        assert asked.sizes == []
    assert all(size <= min(EXTENTS_BYTES, wire_len) for size in asked.sizes)


def test_a_refused_head_costs_no_memory() -> None:
    wire = MAGIC + head(FrameType.EXTENTS, 0, 2**32 - 1, 2**32 - 1)
    tracemalloc.start()
    try:
        with pytest.raises(RemoteProtocolError):
            list(FrameDecoder().feed(wire))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20


@pytest.mark.parametrize(
    "payload",
    [
        b"[" * CONTROL_BYTES,
        b'{"a":' * 10000,
        b"{" * CONTROL_BYTES,
        b'{"target":' + b"[" * 900 + b"]" * 900 + b"}",
        b"9" * CONTROL_BYTES,
        b'{"frames":' + b"9" * 4000 + b"}",
        b"1e999",
        b"NaN",
        b"-Infinity",
        b"\xff\xfe",
        b"\xed\xa0\x80",
        b'"' + b"\\ud800" * 100 + b'"',
        b"\0" * 100,
        b'{"a":1,"a":2}',
        b'{"":{}}',
    ],
    ids=lambda payload: repr(payload[:12]),
)
@pytest.mark.parametrize("kind", set(FrameType) - {FrameType.EXTENTS, FrameType.PLAN}, ids=str)
def test_hostile_json_is_refused(kind: FrameType, payload: bytes) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        message_of(plain_frame(kind, payload, new_digest), new_digest, decompress)
    assert caught.value.code is Code.INTEGRITY
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("depth", range(1, 8))
def test_json_nests_only_so_deep(depth: int) -> None:
    target: dict[str, object] = {}
    for _ in range(depth - 2):
        target = {"x": target}
    frame = frame_of(Hello(target=target))
    if 2 <= depth <= CONTROL_DEPTH or depth == 1:
        assert message_of(frame, new_digest, decompress) == Hello(target=target)
    else:
        with pytest.raises(RemoteProtocolError, match="flat"):
            message_of(frame, new_digest, decompress)


def test_a_hello_of_the_largest_size_is_read() -> None:
    content = json.loads(bytes(frame_of(Hello()).payload))
    spare = CONTROL_BYTES - len(json.dumps(content, separators=(",", ":"))) - len('"x":"",')
    content["x"] = "y" * spare
    payload = json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
    assert len(payload) == CONTROL_BYTES
    frame = plain_frame(FrameType.HELLO, payload, new_digest)
    assert message_of(frame, new_digest, decompress) == Hello()


def test_a_table_may_claim_nothing_that_does_not_follow() -> None:
    tracemalloc.start()
    try:
        with pytest.raises(RemoteProtocolError, match="4294967295 rows"):
            parse_table(struct.pack("<I", 2**32 - 1) + bytes(1000))
        with pytest.raises(RemoteProtocolError, match="bytes of data"):
            parse_table(encode_table([Extent(0, 2**60, Kind.DATA)]) + bytes(1000))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < DATA_BYTES
