"""A message is one sequence of bytes, and only a message of its own form is believed."""

import json
from dataclasses import asdict, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blockstream_protocol import (
    DEVICE_BYTES,
    ID_CHARS,
    PLAN_EXTENTS,
    Abort,
    Ack,
    Checkpoint,
    Code,
    Committed,
    End,
    FrameType,
    Hello,
    Message,
    Open,
    Ping,
    PlanRows,
    Refuse,
    RemoteProtocolError,
    check_hello,
    is_id,
    message_of,
    plain_frame,
    plain_text,
)
from tests.protocol.host import decompress, frame_of, new_digest

COUNTS = st.integers(0, DEVICE_BYTES)
IDS = st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=40).filter(
    is_id
)
HEXES = st.binary(min_size=32, max_size=32).map(bytes.hex)
TEXTS = st.text(max_size=80)
CODES = st.integers(0, 255)
MESSAGES: st.SearchStrategy[Message] = st.one_of(
    st.builds(
        Hello,
        version=COUNTS,
        duplex=st.booleans(),
        digest=IDS,
        codecs=st.lists(IDS, max_size=16).map(tuple),
        software=TEXTS,
        target=st.dictionaries(TEXTS, st.none() | st.integers() | TEXTS, max_size=4),
    ),
    st.builds(
        Open,
        size=COUNTS,
        base=IDS | st.just(""),
        goal=IDS,
        plan=HEXES,
        ranges=st.integers(0, PLAN_EXTENTS),
        total=COUNTS,
        name=IDS | st.just(""),
        frames=COUNTS,
        chain=HEXES | st.just(""),
    ),
    st.builds(PlanRows, rows=st.binary(max_size=64)),
    st.builds(Checkpoint, frames=COUNTS, chain=HEXES),
    st.builds(Ack, frames=COUNTS, chain=HEXES),
    st.builds(End, frames=COUNTS, chain=HEXES, total=COUNTS),
    st.builds(Committed, transfer=HEXES, goal=IDS, frames=COUNTS, chain=HEXES, total=COUNTS),
    st.builds(Refuse, code=CODES, text=TEXTS),
    st.builds(Abort, code=CODES, text=TEXTS),
    st.just(Ping()),
)


def code_of(kind: FrameType, payload: bytes) -> Code | None:
    """Return why a payload is refused; None if it is not."""
    try:
        message_of(plain_frame(kind, payload, new_digest), new_digest, decompress)
    except RemoteProtocolError as error:
        return error.code
    return None


@settings(max_examples=50)
@given(MESSAGES)
def test_a_message_survives_its_frame(message: Message) -> None:
    frame = frame_of(message)
    assert message_of(frame, new_digest, decompress) == message
    if not isinstance(message, PlanRows):
        assert bytes(frame.payload).isascii()


@given(st.sampled_from(FrameType), st.binary(max_size=200))
def test_any_payload_is_a_message_or_refused(kind: FrameType, payload: bytes) -> None:
    assert code_of(kind, payload) in {None, Code.INTEGRITY}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)


@settings(max_examples=25)
@given(st.sampled_from([FrameType.HELLO, FrameType.OPEN, FrameType.ACK]), st.data())
def test_any_json_in_the_right_keys_is_a_message_or_refused(
    kind: FrameType, data: st.DataObject
) -> None:
    full = {
        FrameType.HELLO: asdict(Hello()),
        FrameType.OPEN: asdict(OPENING),
        FrameType.ACK: asdict(Ack(0, "0" * 64)),
    }
    content = full[kind]
    for key in data.draw(st.sets(st.sampled_from(sorted(content)))):
        content[key] = data.draw(JSON)
    payload = json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
    assert code_of(kind, payload) in {None, Code.INTEGRITY}


OPENING = Open(4096, "b", "g", "0" * 64, 1, 512, "name", 3, "1" * 64)


@pytest.mark.parametrize(
    ("other", "same"),
    [
        (replace(OPENING, frames=0, chain=""), True),
        (replace(OPENING, size=512), False),
        (replace(OPENING, base=""), False),
        (replace(OPENING, goal="h"), False),
        (replace(OPENING, plan="2" * 64), False),
        (replace(OPENING, ranges=2), False),
        (replace(OPENING, total=1024), False),
        (replace(OPENING, name=""), False),
    ],
)
def test_the_identity_is_everything_but_the_resume_point(other: Open, same: bool) -> None:
    assert (other.identity(new_digest) == OPENING.identity(new_digest)) is same


def test_a_full_copy_has_no_base() -> None:
    assert replace(OPENING, base="").full
    assert not OPENING.full


@pytest.mark.parametrize(
    ("value", "fits"),
    [
        ("a", True),
        ("a b", True),
        ("~" * ID_CHARS, True),
        ("~" * (ID_CHARS + 1), False),
        ("", False),
        (" a", False),
        ("a ", False),
        ("a\n", False),
        ("\x7f", False),
        ("é", False),
        (7, False),
        (None, False),
    ],
)
def test_an_id_is_short_printable_ascii(value: object, fits: bool) -> None:
    assert is_id(value) is fits


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("two\nlines\tand\rmore", "two lines and more"),
        ("\x1b[31mred\x1b[0m", "[31mred [0m"),
        ("\u202eright to left", "right to left"),
        ("\ud800", ""),
        ("x" * 5000, "x" * 1024),
        ("  ", ""),
    ],
)
def test_a_peers_text_is_shown_on_one_line_without_control_characters(
    text: str, shown: str
) -> None:
    assert plain_text(text) == shown


def test_a_hello_of_ours_is_accepted() -> None:
    check_hello(Hello())
    check_hello(Hello(digest="other"), digests=("blake3", "other"))


@pytest.mark.parametrize(
    ("hello", "text"),
    [
        (Hello(version=2), "the stream is of version 2, this program reads version 1"),
        (
            Hello(digest="sha256"),
            "the stream uses the digest 'sha256', this program knows 'blake3'",
        ),
    ],
)
def test_another_version_or_digest_is_refused_naming_both(hello: Hello, text: str) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        check_hello(hello)
    assert (caught.value.code, str(caught.value)) == (Code.REFUSED, text)
