"""The messages other than data, and their JSON form (SPEC 4).

JSON is canonical: sorted keys, no blanks, ASCII. So the same message is always the same bytes,
and the opening can be digested.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import NoReturn

from blockstream_protocol._digests import Buffer, NewDigest
from blockstream_protocol._errors import Code, RemoteProtocolError
from blockstream_protocol._frames import Decompress, Frame, FrameType, plain_frame, unpacked
from blockstream_protocol._limits import (
    CONTROL_DEPTH,
    DEVICE_BYTES,
    ID_CHARS,
    PLAN_EXTENTS,
    TEXT_BYTES,
)

VERSION = 1

Json = object
Check = Callable[[Json], bool]


@dataclass(frozen=True, slots=True)
class Hello:
    """The first message each way. Unknown keys are ignored, so that it can grow.

    Attributes:
        version: The one version that the rest of the stream is in.
        duplex: Whether the speaker expects answers.
        digest: Name of the digest of every frame and of the chain.
        codecs: Names of the codecs that may occur (sender) or are understood (receiver).
        software: For people.
        target: What the speaker says of its own disk; see SPEC 4.1.
    """

    version: int = VERSION
    duplex: bool = False
    digest: str = "blake3"
    codecs: tuple[str, ...] = ("zstd",)
    software: str = ""
    target: Mapping[str, Json] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Moment:
    """When the source held the state that is sent; an optional frame, before the opening.

    Attributes:
        moment: Nanoseconds since 1970, UTC.
    """

    moment: int


@dataclass(frozen=True, slots=True)
class Open:
    """What is about to be sent. All but the resume point makes the transfer's identity.

    Attributes:
        size: Bytes of the source; the target must have at least as many.
        base: State that the target must hold; empty for a full copy.
        goal: State that the target will hold.
        plan: Digest of the plan, hex; of a full copy, of the one range that is the device.
        ranges: How many extents the plan has.
        total: How many bytes the plan covers.
        name: Name of the target in a policy; empty where the command line chose the target.
        frames: Resume point: EXTENTS frames that are not sent again.
        chain: Resume point: the chain after those frames, hex; empty at the start.
    """

    size: int
    base: str
    goal: str
    plan: str
    ranges: int
    total: int
    name: str = ""
    frames: int = 0
    chain: str = ""

    @property
    def full(self) -> bool:
        """Whether this is a copy of the whole device, not an increment."""
        return not self.base

    def identity(self, new_digest: NewDigest) -> bytes:
        """Return the digest of what is to be done: the transfer's id and the chain's start."""
        content = asdict(self)
        del content["frames"], content["chain"]
        return new_digest(b"blockstream/1\n" + _canonical(content)).digest()


@dataclass(frozen=True, slots=True)
class PlanRows:
    """A piece of the plan: rows of (u64 offset, u64 length)."""

    rows: Buffer


@dataclass(frozen=True, slots=True)
class Extents:
    """A data frame, still packed; `unpacked` and `parse_table` open it."""

    frame: Frame


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Asks that the first `frames` EXTENTS frames be made durable."""

    frames: int
    chain: str


@dataclass(frozen=True, slots=True)
class Ack:
    """Says that the first `frames` EXTENTS frames are durable; the first tells where to resume."""

    frames: int
    chain: str


@dataclass(frozen=True, slots=True)
class End:
    """Says that all was sent and the source was still valid. Nothing may follow.

    Attributes:
        frames: How many EXTENTS frames there were, resumed ones included.
        chain: The chain after all of them, hex.
        total: Bytes of the device that they cover.
    """

    frames: int
    chain: str
    total: int


@dataclass(frozen=True, slots=True)
class Committed:
    """Says that the goal is on the target, durable and recorded. It is also the receipt.

    Attributes:
        transfer: Identity of the opening, hex.
        goal: State that the target now holds.
        frames: How many EXTENTS frames made it.
        chain: The chain after all of them, hex.
        total: Bytes of the device that they cover.
    """

    transfer: str
    goal: str
    frames: int
    chain: str
    total: int


@dataclass(frozen=True, slots=True)
class Refuse:
    """The receiver will not do it; nothing was written."""

    code: int
    text: str


@dataclass(frozen=True, slots=True)
class Abort:
    """The transfer ends here, unfinished."""

    code: int
    text: str


@dataclass(frozen=True, slots=True)
class Ping:
    """The speaker is alive."""


ControlMessage = Hello | Moment | Open | Checkpoint | Ack | End | Committed | Refuse | Abort | Ping
Message = ControlMessage | PlanRows | Extents


def _is_count(value: Json) -> bool:
    return type(value) is int and 0 <= value <= DEVICE_BYTES


def is_id(value: Json) -> bool:
    """Tell whether `value` may name a state: printable ASCII, no blank at either end."""
    return (
        isinstance(value, str)
        and 0 < len(value) <= ID_CHARS
        and all(" " <= char <= "~" for char in value)
        and value == value.strip()
    )


def _is_hex(value: Json) -> bool:
    return isinstance(value, str) and len(value) == 64 and not set(value) - set("0123456789abcdef")


def _is_text(value: Json) -> bool:
    return isinstance(value, str) and len(value) <= TEXT_BYTES


def _is_names(value: Json) -> bool:
    return isinstance(value, list) and len(value) <= 16 and all(map(is_id, value))


def _or_empty(check: Check) -> Check:
    return lambda value: value == "" or check(value)


_CHECKS: Mapping[str, Check] = {
    "version": _is_count,
    "duplex": lambda value: isinstance(value, bool),
    "digest": is_id,
    "codecs": _is_names,
    "software": _is_text,
    "target": lambda value: isinstance(value, dict),
    "moment": _is_count,
    "size": _is_count,
    "base": _or_empty(is_id),
    "goal": is_id,
    "plan": _is_hex,
    "ranges": lambda value: type(value) is int and 0 <= value <= PLAN_EXTENTS,
    "total": _is_count,
    "name": _or_empty(is_id),
    "frames": _is_count,
    "chain": _is_hex,
    "transfer": _is_hex,
    "code": lambda value: type(value) is int and 0 <= value <= 255,
    "text": _is_text,
}

_CONTROL: Mapping[FrameType, type[ControlMessage]] = {
    FrameType.HELLO: Hello,
    FrameType.MOMENT: Moment,
    FrameType.OPEN: Open,
    FrameType.CHECKPOINT: Checkpoint,
    FrameType.ACK: Ack,
    FrameType.END: End,
    FrameType.COMMITTED: Committed,
    FrameType.REFUSE: Refuse,
    FrameType.ABORT: Abort,
    FrameType.PING: Ping,
}
_TYPES = {message: kind for kind, message in _CONTROL.items()}


def _canonical(content: Mapping[str, Json]) -> bytes:
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()


def control_frame(message: ControlMessage, new_digest: NewDigest) -> Frame:
    """Return the frame of a message that is not data."""
    return plain_frame(_TYPES[type(message)], _canonical(asdict(message)), new_digest)


def message_of(frame: Frame, new_digest: NewDigest, decompress: Decompress) -> Message:
    """Return the message in a frame, checked; data stays packed and unchecked.

    Raises:
        RemoteProtocolError: If the payload is altered or not a message of its type.
    """
    if frame.kind is FrameType.EXTENTS:
        return Extents(frame)
    raw = unpacked(frame, new_digest, decompress)
    if frame.kind is FrameType.PLAN:
        return PlanRows(raw)
    return _control(frame.kind, bytes(raw))


def plain_text(text: str) -> str:
    """Return a peer's text as it may be shown: printable, on one line, and short."""
    clean = "".join(char if char.isprintable() else " " for char in text[:TEXT_BYTES])
    return " ".join(clean.split())


def _control(kind: FrameType, raw: bytes) -> ControlMessage:
    content = _parse_json(kind, raw)
    cls = _CONTROL[kind]
    names = [entry.name for entry in fields(cls)]
    unknown = content.keys() - set(names)
    missing = set(names) - content.keys()
    if (unknown and cls is not Hello) or missing:
        odd = ", ".join(sorted(unknown | missing))[:80]
        raise RemoteProtocolError(f"{kind.name} has wrong keys: {plain_text(odd)}")
    values = {name: content[name] for name in names}
    for name, value in values.items():
        check = _or_empty(_is_hex) if (cls, name) == (Open, "chain") else _CHECKS[name]
        if not check(value):
            raise RemoteProtocolError(f"{kind.name} has a bad value for {name!r}")
    if cls is Hello:
        values["codecs"] = tuple(values["codecs"])  # type: ignore[arg-type]  # checked above
    return cls(**values)  # type: ignore[arg-type]  # checked above


def _parse_json(kind: FrameType, raw: bytes) -> dict[str, Json]:
    """Parse without believing anything: RecursionError and huge integers included."""
    try:
        content = json.loads(raw, parse_float=_no_number, parse_constant=_no_number)
    except (ValueError, RecursionError):
        raise RemoteProtocolError(f"{kind.name} is not JSON") from None
    if not isinstance(content, dict) or _depth(content) > CONTROL_DEPTH:
        raise RemoteProtocolError(f"{kind.name} is not a flat JSON object")
    # One form only: two readers of the same bytes cannot take a doubled key for different values.
    if _canonical(content) != raw:
        raise RemoteProtocolError(f"{kind.name} is not canonical JSON")
    return content


def _no_number(text: str) -> NoReturn:
    """Refuse fractions, exponents, NaN and infinity: they have no one form."""
    raise ValueError(text)


def _depth(value: Json, limit: int = CONTROL_DEPTH) -> int:
    if limit < 0 or not isinstance(value, dict | list):
        return 0
    inside = value.values() if isinstance(value, dict) else value
    return 1 + max((_depth(item, limit - 1) for item in inside), default=0)


def check_hello(hello: Hello, *, digests: tuple[str, ...] = ("blake3",)) -> None:
    """Refuse a peer of another version or with another digest.

    Raises:
        RemoteProtocolError: With code REFUSED, naming both sides' versions.
    """
    if hello.version != VERSION:
        raise RemoteProtocolError(
            f"the stream is of version {hello.version}, this program reads version {VERSION}",
            Code.REFUSED,
        )
    if hello.digest not in digests:
        raise RemoteProtocolError(
            f"the stream uses the digest {hello.digest!r}, this program knows {digests[0]!r}",
            Code.REFUSED,
        )
