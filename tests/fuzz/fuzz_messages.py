"""Whatever payload comes in is a message that gives back exactly it, or a RemoteProtocolError.

The first byte chooses the type; the digest is always right. EXTENTS are opened as a table.
"""

from tests.fuzz.engine import fuzz, instrumented

with instrumented("blockstream_protocol", "json"):
    from blockstream_protocol import (
        DEVICE_BYTES,
        Extents,
        FrameType,
        Hello,
        Kind,
        PlanRows,
        RemoteProtocolError,
        control_frame,
        encode_table,
        message_of,
        parse_table,
        plain_frame,
        plain_text,
    )
    from tests.protocol.host import decompress, new_digest

KINDS = list(FrameType)


def check(data: bytes) -> None:
    """Take one input."""
    if not data:
        return
    kind, payload = KINDS[data[0] % len(KINDS)], data[1:]
    frame = plain_frame(kind, payload, new_digest)
    try:
        message = message_of(frame, new_digest, decompress)
        if isinstance(message, Extents):
            table(payload)
            return
    except RemoteProtocolError as error:
        shown(str(error))
        return
    if isinstance(message, PlanRows):
        return
    # A HELLO may have grown by keys that this version drops.
    if not isinstance(message, Hello) and control_frame(message, new_digest) != frame:
        raise AssertionError(message)
    shown(plain_text(str(message)))


def table(payload: bytes) -> None:
    """Open a payload of EXTENTS."""
    opened = parse_table(payload)
    if encode_table(opened.extents) + opened.data != payload:
        raise AssertionError(opened)
    for offset, length, kind in opened.extents:
        if length <= 0 or offset + length > DEVICE_BYTES or kind not in set(Kind):
            raise AssertionError((offset, length, kind))


def shown(text: str) -> None:
    """Check that people can be shown this."""
    if len(text) > 1100 or not all(map(str.isprintable, text)):
        raise AssertionError(text)


if __name__ == "__main__":
    fuzz(check)
