"""A table describes exactly the bytes that follow it, or is refused."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blockstream_protocol import (
    DATA_BYTES,
    DEVICE_BYTES,
    EXTENTS_BYTES,
    FRAME_EXTENTS,
    Extent,
    Kind,
    RemoteProtocolError,
    encode_table,
    parse_table,
    table_bytes,
)
from tests.protocol.vectors import Vector, decode_table, load_vectors, meaning

EXTENTS = st.lists(
    st.builds(Extent, st.integers(0, 1 << 62), st.integers(1, 50), st.sampled_from(Kind)),
    min_size=1,
    max_size=8,
)


def data_of(extents: list[Extent]) -> bytes:
    count = sum(extent.length for extent in extents if extent.kind == Kind.DATA)
    return bytes(index % 251 for index in range(count))


@settings(max_examples=50)
@given(EXTENTS)
def test_a_table_survives_its_encoding(extents: list[Extent]) -> None:
    encoded, data = encode_table(extents), data_of(extents)
    assert len(encoded) == table_bytes(len(extents))
    table = parse_table(encoded + data)
    assert table.extents == extents
    assert bytes(table.data) == data


@settings(max_examples=50)
@given(EXTENTS, st.integers(-60, 60).filter(bool))
def test_another_amount_of_data_is_refused(extents: list[Extent], change: int) -> None:
    payload = encode_table(extents) + data_of(extents)
    with pytest.raises(RemoteProtocolError):
        parse_table(payload[:change] if change < 0 else payload + bytes(change))


@given(st.binary(max_size=100))
def test_any_payload_is_a_table_or_refused(payload: bytes) -> None:
    assert meaning(decode_table, {"wire": payload.hex()})


@pytest.mark.parametrize("vector", load_vectors("extents"), ids=str)
def test_vector(vector: Vector) -> None:
    assert meaning(decode_table, vector.given) == vector.means


def test_the_data_is_a_view_not_a_copy() -> None:
    payload = bytearray(encode_table([Extent(0, 4, Kind.DATA)]) + b"data")
    assert parse_table(payload).data.obj is payload


def test_the_fullest_frame_fits_the_limit() -> None:
    rows = [Extent(n * 512, 256, Kind.DATA) for n in range(FRAME_EXTENTS)]
    payload = encode_table(rows) + bytes(DATA_BYTES)
    assert len(payload) == EXTENTS_BYTES
    assert len(parse_table(payload).extents) == FRAME_EXTENTS


@pytest.mark.parametrize(
    "payload",
    [
        encode_table([Extent(n * 512, 512, Kind.ZERO) for n in range(FRAME_EXTENTS + 1)]),
        encode_table([Extent(0, DATA_BYTES + 512, Kind.DATA)]) + bytes(DATA_BYTES + 512),
        encode_table([Extent(1, DEVICE_BYTES, Kind.ZERO)]),
    ],
    ids=["rows", "data", "offset"],
)
def test_one_more_than_the_limit_is_refused(payload: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        parse_table(payload)
