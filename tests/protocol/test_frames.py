"""Whatever bytes come in, however they are cut: the same frames, or the same refusal."""

import json
import zlib
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockstream_protocol import (
    MAGIC,
    Code,
    Codec,
    Extent,
    Extents,
    Frame,
    FrameDecoder,
    FrameType,
    Kind,
    Ping,
    RemoteProtocolError,
    encode,
    encode_head,
    encode_optional,
    message_of,
    unpacked,
)
from tests.protocol.host import (
    Host,
    decompress,
    extents_frame,
    frame_of,
    new_digest,
    packed,
    whole_stream,
    wire_of,
)
from tests.protocol.vectors import (
    FOLDER,
    Vector,
    decode_frames,
    frame_json,
    host_of,
    load_vectors,
    meaning,
    outcome,
)

CUTS = pytest.mark.parametrize("cut", [1, 7, 1 << 20], ids=["bytewise", "sevens", "whole"])
PING = encode(frame_of(Ping()))
# A device of 612 bytes: one sector of zeros, then a tail of data.
SMALL_IMAGE = bytes(512) + b"x" * 100
SMALL = wire_of(whole_stream(SMALL_IMAGE))


def decode(wire: bytes, cut: int) -> list[Frame]:
    decoder = FrameDecoder()
    frames: list[Frame] = []
    for start in range(0, len(wire), cut):
        frames += decoder.feed(wire[start : start + cut])
    decoder.end()
    return frames


@CUTS
@pytest.mark.parametrize("vector", load_vectors("frames", refused=False), ids=str)
def test_vector_decodes_however_it_arrives(vector: Vector, cut: int) -> None:
    frames = decode(vector.wire, cut)
    assert [frame_json(frame) for frame in frames] == vector.means["frames"]


@CUTS
@pytest.mark.parametrize("vector", load_vectors("frames", refused=False), ids=str)
def test_bytes_after_a_vector_are_the_next_frame(vector: Vector, cut: int) -> None:
    frames = decode(vector.wire + PING, cut)
    assert [frame_json(frame) for frame in frames[:-1]] == vector.means["frames"]
    assert encode(frames[-1]) == PING


@CUTS
@pytest.mark.parametrize("vector", load_vectors("frames", refused=True), ids=str)
def test_bad_vector_is_refused_however_it_arrives(vector: Vector, cut: int) -> None:
    def decoded(given_: dict[str, Any]) -> dict[str, Any]:
        return {"frames": decode(bytes.fromhex(given_["wire"]), cut)}

    assert meaning(decoded, vector.given) == vector.means


@CUTS
@pytest.mark.parametrize("vector", load_vectors("streams"), ids=str)
def test_stream_vector_has_its_outcome_however_it_arrives(vector: Vector, cut: int) -> None:
    host = host_of(vector.given)
    finish = host.feed(vector.wire, cut)
    assert json.loads(json.dumps(outcome(host, finish))) == vector.means


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.json")))
def test_vectors_have_unique_names_and_a_section(name: str) -> None:
    vectors = load_vectors(name)
    assert len({vector.name for vector in vectors}) == len(vectors)
    spec = (FOLDER.parent / "SPEC.md").read_text()
    for vector in vectors:
        marks = "###" if "." in vector.spec else "##"
        assert f"\n{marks} {vector.spec}" in spec


def test_every_prefix_of_a_stream_is_a_failure_that_can_be_resumed() -> None:
    for length in range(len(SMALL)):
        finish = Host.of(len(SMALL_IMAGE)).feed(SMALL[:length])
        assert finish.code == Code.INTERRUPTED, length
        assert finish.committed is None


def test_every_flipped_byte_of_a_stream_is_refused() -> None:
    for place in range(len(SMALL)):
        flipped = bytearray(SMALL)
        flipped[place] ^= 1 << place % 8
        host = Host.of(len(SMALL_IMAGE))
        assert host.feed(bytes(flipped)).code != 0, place
        assert bytes(host.image) in {bytes(612), SMALL_IMAGE}, "nothing altered is written"


@pytest.mark.slow
def test_every_flipped_bit_of_a_stream_is_refused() -> None:
    for place in range(len(SMALL) * 8):
        flipped = bytearray(SMALL)
        flipped[place // 8] ^= 1 << place % 8
        assert Host.of(len(SMALL_IMAGE)).feed(bytes(flipped)).code != 0, place


@given(st.binary(min_size=1, max_size=100).filter(lambda tail: tail[0] not in (10, 11)))
def test_anything_after_the_end_is_an_integrity_error(tail: bytes) -> None:
    host = Host.of(len(SMALL_IMAGE))
    assert host.feed(SMALL + tail).code == Code.INTEGRITY
    assert not any(type(state).__name__ == "Clean" for state in host.recorded)


def test_a_ping_that_is_cut_after_the_end_is_a_cut() -> None:
    assert Host.of(len(SMALL_IMAGE)).feed(SMALL + PING[:20]).code == Code.INTERRUPTED


@given(st.lists(st.integers(0, len(SMALL)), max_size=20))
def test_cuts_do_not_matter(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(SMALL)]
    decoder = FrameDecoder()
    frames = [frame for start, stop in pairwise(edges) for frame in decoder.feed(SMALL[start:stop])]
    assert MAGIC + b"".join(map(encode, frames)) == SMALL
    assert decoder.between_frames
    assert decoder.wire_bytes == len(SMALL)


@given(st.binary(max_size=200))
def test_any_bytes_are_frames_or_refused(wire: bytes) -> None:
    for start in (b"", MAGIC):
        assert meaning(decode_frames, {"wire": (start + wire).hex()})


def test_a_descriptor_can_fill_the_buffers_itself() -> None:
    decoder, frames, wire = FrameDecoder(), [], SMALL
    while wire:
        space = decoder.buffer()
        assert len(space) > 0
        count = min(len(space), len(wire), 11)
        space[:count] = wire[:count]
        frame = decoder.filled(count)
        frames += [frame] if frame else []
        wire = wire[count:]
    assert MAGIC + b"".join(map(encode, frames)) == SMALL


def test_the_payload_lies_in_the_buffer_that_was_given() -> None:
    pool = bytearray(4096)
    decoder = FrameDecoder(allocate=lambda size: memoryview(pool))
    frame = extents_frame(Extent(0, 5, Kind.DATA), data=b"hello")
    (decoded,) = decoder.feed(MAGIC + encode(frame))
    assert isinstance(decoded.payload, memoryview)
    assert decoded.payload.obj is pool
    assert bytes(decoded.payload) == frame.payload
    assert decoded.wire_len == len(encode(frame))


def test_a_decoder_knows_where_it_stands() -> None:
    decoder = FrameDecoder()
    decoder.end()
    assert (decoder.started, decoder.between_frames) == (False, False)
    list(decoder.feed(MAGIC))
    assert (decoder.started, decoder.between_frames) == (True, True)
    list(decoder.feed(PING[:46]))
    assert not decoder.between_frames
    list(decoder.feed(PING[46:]))
    assert decoder.between_frames
    list(decoder.feed(encode(Frame(FrameType.PING, Codec.NONE, 0, bytes(32), b""))))
    assert decoder.between_frames


def test_a_skipped_frame_costs_no_memory() -> None:
    asked: list[int] = []

    def allocate(size: int) -> memoryview:
        asked.append(size)
        return memoryview(bytearray(size))

    decoder = FrameDecoder(allocate)
    head = bytearray(encode_head(FrameType.PING, Codec.NONE, 0, 100_000, bytes(32)))
    head[0] = 0x80
    head[10:14] = _crc(bytes(head[:10]))
    list(decoder.feed(MAGIC + head + bytes(100_000)))
    assert decoder.between_frames
    assert asked == []


def test_a_frame_is_skipped_in_large_steps() -> None:
    """Steps of a head's size made 23,000 turns of each frame of a peer that says nothing else."""
    decoder = FrameDecoder()
    data = MAGIC + encode_optional(0x80, bytes(1 << 20), new_digest) + PING
    steps = 0
    while data:
        space = decoder.buffer()
        space[: len(data)] = data[: len(space)]
        count = min(len(space), len(data))
        frame, data, steps = decoder.filled(count), data[count:], steps + 1
    assert frame is not None
    assert frame.kind is FrameType.PING
    assert steps < 50


def _crc(data: bytes) -> bytes:
    return zlib.crc32(data).to_bytes(4, "little")


PACKED = packed(extents_frame(Extent(0, 512, Kind.DATA), data=bytes(512)))
PLAIN = extents_frame(Extent(0, 5, Kind.DATA), data=b"hello")


@pytest.mark.parametrize("frame", [PLAIN, PACKED], ids=["plain", "packed"])
def test_a_payload_is_what_its_digest_says(frame: Frame) -> None:
    raw = unpacked(frame, new_digest, decompress)
    assert len(raw) == frame.raw_len
    assert new_digest(raw).digest() == frame.digest
    assert message_of(frame, new_digest, decompress) == Extents(frame)


def _other_digest(frame: Frame) -> Frame:
    return Frame(frame.kind, frame.codec, frame.raw_len, bytes(32), frame.payload)


def _other_payload(frame: Frame) -> Frame:
    payload = bytes(frame.payload)[:-1] + b"!"
    return Frame(frame.kind, frame.codec, frame.raw_len, frame.digest, payload)


@pytest.mark.parametrize("alter", [_other_digest, _other_payload], ids=["digest", "payload"])
@pytest.mark.parametrize("frame", [PLAIN, PACKED], ids=["plain", "packed"])
def test_an_altered_payload_is_refused(frame: Frame, alter: Callable[[Frame], Frame]) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        unpacked(alter(frame), new_digest, decompress)
    assert caught.value.code is Code.INTEGRITY
