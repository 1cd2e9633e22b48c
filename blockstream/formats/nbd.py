"""The NBD protocol until an export is open: greeting, options, TLS (nbd/doc/proto.md).

Nothing is read or written here: each generator says what to send and how many bytes to take then.
What it takes was checked against a limit before.
"""

import struct
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Final, NamedTuple, TypeVar

from blockstream.errors import (
    AuthenticationError,
    BlockstreamError,
    NbdError,
    NotFoundError,
    SourceError,
)
from blockstream_protocol import DEVICE_BYTES, plain_text

ALLOCATION: Final = "base:allocation"
BITMAP: Final = "qemu:dirty-bitmap:"

CAN_MULTI_CONN: Final = 256
READ_ONLY: Final = 2
_HAS_FLAGS: Final = 1

_GREETING: Final = struct.Struct(">8sQH")
_FLAGS: Final = struct.Struct(">I")
_OPTION: Final = struct.Struct(">QII")  # magic, option, length
_ANSWER: Final = struct.Struct(">QIII")  # magic, option, kind, length
_SIZE_AND_FLAGS: Final = struct.Struct(">QH")
_BLOCK_SIZES: Final = struct.Struct(">III")  # least, preferred, most
_U32: Final = struct.Struct(">I")
_U16: Final = struct.Struct(">H")

_MAGIC: Final = b"NBDMAGIC"
_HAVE_OPTION: Final = 0x49484156454F5054
_OLDSTYLE: Final = 0x0000420281861253
_ANSWER_MAGIC: Final = 0x0003E889045565A9
_FIXED_NEWSTYLE, _NO_ZEROES = 1, 2
_ZEROES: Final = 124  # after the answer to EXPORT_NAME, unless both agreed on NO_ZEROES

_EXPORT_NAME, _LIST, _STARTTLS, _GO = 1, 3, 5, 7
_STRUCTURED_REPLY, _LIST_META_CONTEXT, _SET_META_CONTEXT = 8, 9, 10
_ACK, _SERVER, _INFO, _META_CONTEXT = 1, 2, 3, 4
_INFO_EXPORT, _INFO_BLOCK_SIZE = 0, 3
_ERROR: Final = 1 << 31
_UNSUPPORTED, _TLS_REQUIRED, _UNKNOWN = _ERROR + 1, _ERROR + 5, _ERROR + 6
_ERRORS: Final = {
    _UNSUPPORTED: "not supported",
    _ERROR + 2: "forbidden by its policy",
    _ERROR + 3: "invalid",
    _ERROR + 4: "not on its platform",
    _TLS_REQUIRED: "only with TLS",
    _UNKNOWN: "unknown",
    _ERROR + 7: "it is shutting down",
    _ERROR + 8: "it wants its block sizes to be asked for",
    _ERROR + 9: "too big",
}

# What takes leave of a server politely, before an export is open.
ABORT: Final = _OPTION.pack(_HAVE_OPTION, 2, 0)

# The longest string of the protocol has 4096 bytes, and no answer has more than two.
_MOST_ANSWER_BYTES: Final = 4 + 2 * 4096
# A disk with more bitmaps, or a server with more exports, has not been seen; 8 MiB in all.
_MOST_ANSWERS: Final = 1024
MOST_NAME_BYTES: Final = 4096
_SHOWN: Final = 20

# What holds where a server does not tell.
_LEAST_BLOCK, _MOST_REQUEST = 512, 32 << 20
_MOST_LEAST_BLOCK: Final = 64 << 10
_NO_LIMIT: Final = (1 << 32) - 1

T = TypeVar("T")


class Step(NamedTuple):
    """What is to be done next.

    Attributes:
        send: Bytes to send.
        take: How many bytes to take after that, and hand back.
        secure: Whether TLS begins then; everything after it is inside.
    """

    send: bytes = b""
    take: int = 0
    secure: bool = False


Steps = Generator[Step, bytes, T]


@dataclass(frozen=True, slots=True)
class Wish:
    """What is to be opened.

    Attributes:
        where: What people call it, for messages.
        export: Name of the export; empty for the server's own choice.
        tls: Whether it must be inside TLS.
        bitmap: Name of a dirty bitmap of QEMU's that must be there; empty for none.
    """

    where: str
    export: str = ""
    tls: bool = False
    bitmap: str = ""

    @property
    def contexts(self) -> list[str]:
        """The meta contexts to ask for."""
        return [ALLOCATION] + ([BITMAP + self.bitmap] if self.bitmap else [])

    @property
    def name(self) -> bytes:
        """The export's name as it travels."""
        encoded = self.export.encode(errors="surrogateescape")
        return _U32.pack(len(encoded)) + encoded


@dataclass(frozen=True, slots=True)
class Export:
    """An open export.

    Attributes:
        size: Its size in bytes.
        flags: Transmission flags.
        structured: Whether replies are structured.
        contexts: Names of the meta contexts that it has, by their numbers.
        least: Offsets and lengths must be multiples of this.
        most: No request may be larger.
    """

    size: int
    flags: int
    structured: bool = False
    contexts: dict[int, str] = field(default_factory=dict)
    least: int = _LEAST_BLOCK
    most: int = _MOST_REQUEST


class _Answer(NamedTuple):
    kind: int
    data: bytes


def opened(wish: Wish) -> Steps[Export]:
    """Open an export.

    Raises:
        AuthenticationError: If it is to be inside TLS and cannot, or must be and is not.
        NotFoundError: If the server has no such export, or no such bitmap.
        SourceError: If the server refuses it.
        NbdError: If what the server says is no NBD that we can speak.
    """
    with_zeroes = yield from _greeted(wish)
    if wish.tls:
        yield from _secured(wish)
    structured = yield from _has_structured_replies(wish)
    if wish.bitmap and not structured:
        raise NotFoundError(
            f"{wish.where}: the server tells nothing of bitmaps, because it does not speak "
            "structured replies; nothing was sent; leave --bitmap out to read everything"
        )
    contexts = (yield from _contexts(wish)) if structured else {}
    if wish.bitmap and BITMAP + wish.bitmap not in contexts.values():
        raise (yield from _no_bitmap(wish))
    return (yield from _gone(wish, contexts, structured=structured, with_zeroes=with_zeroes))


def _greeted(wish: Wish) -> Steps[bool]:
    """Greet; return whether 124 zeroes follow an answer to EXPORT_NAME."""
    magic, kind, flags = _GREETING.unpack((yield Step(take=_GREETING.size)))
    if magic != _MAGIC:
        raise NbdError(wish.where, f"it begins with {magic!r}, as no NBD server does")
    if kind == _OLDSTYLE:
        raise NbdError(wish.where, "it speaks the oldstyle protocol, which is not known here")
    if kind != _HAVE_OPTION:
        raise NbdError(wish.where, f"after NBDMAGIC comes {kind:#x}, which means nothing")
    if not flags & _FIXED_NEWSTYLE:
        raise NbdError(wish.where, "it does not speak the fixed newstyle protocol, only an older")
    yield Step(send=_FLAGS.pack(flags & (_FIXED_NEWSTYLE | _NO_ZEROES)))
    return not flags & _NO_ZEROES


def _ask(wish: Wish, option: int, data: bytes = b"") -> Steps[list[_Answer]]:
    """Ask for an option; return all answers, of which only the last is ACK or an error."""
    send, answers = _OPTION.pack(_HAVE_OPTION, option, len(data)) + data, list[_Answer]()
    while len(answers) < _MOST_ANSWERS:
        head = yield Step(send, _ANSWER.size)
        magic, about, kind, length = _ANSWER.unpack(head)
        if magic != _ANSWER_MAGIC or about != option:
            raise NbdError(wish.where, f"what it answers to option {option} is no answer to it")
        if length > _MOST_ANSWER_BYTES:
            raise NbdError(wish.where, f"it answers option {option} with {length} bytes")
        answers.append(_Answer(kind, (yield Step(take=length)) if length else b""))
        if kind == _ACK or kind & _ERROR:
            return answers
        send = b""
    raise NbdError(wish.where, f"its answers to option {option} come to no end")


def _secured(wish: Wish) -> Steps[None]:
    last = (yield from _ask(wish, _STARTTLS))[-1]
    if last.kind != _ACK:
        raise AuthenticationError(
            f"{wish.where}: the server begins no TLS ({_words(last)}); nothing was sent in clear; "
            "give it a certificate, or say nbd in place of nbds if the line needs no protection"
        )
    yield Step(secure=True)


def _has_structured_replies(wish: Wish) -> Steps[bool]:
    last = (yield from _ask(wish, _STRUCTURED_REPLY))[-1]
    if last.kind == _TLS_REQUIRED:
        raise _refusal(wish, last)
    return last.kind == _ACK


def _contexts(wish: Wish) -> Steps[dict[int, str]]:
    """Choose the meta contexts; return those that there are."""
    answers = yield from _ask(wish, _SET_META_CONTEXT, _queries(wish, wish.contexts))
    if answers[-1].kind == _UNKNOWN:
        raise (yield from _no_export(wish))
    found: dict[int, str] = {}
    for number, name in _named(wish, answers):
        if name not in wish.contexts or name in found.values() or number in found:
            raise NbdError(wish.where, f"it offers context {name!r}, which was not asked for")
        found[number] = name
    return found if answers[-1].kind == _ACK else {}


def _queries(wish: Wish, queries: list[str]) -> bytes:
    words = [query.encode(errors="surrogateescape") for query in queries]
    packed = b"".join(_U32.pack(len(word)) + word for word in words)
    return wish.name + _U32.pack(len(words)) + packed


def _named(wish: Wish, answers: list[_Answer]) -> list[tuple[int, str]]:
    """Return number and name of each context in some answers."""
    found = []
    for kind, data in answers:
        if kind == _META_CONTEXT:
            if len(data) < _U32.size:
                raise NbdError(wish.where, "it offers a context without a number")
            name = data[_U32.size :].decode(errors="surrogateescape")
            found.append((_U32.unpack_from(data)[0], name))
    return found


def _no_bitmap(wish: Wish) -> Steps[BlockstreamError]:
    """Ask which bitmaps there are."""
    answers = yield from _ask(wish, _LIST_META_CONTEXT, _queries(wish, ["qemu:"]))
    names = [name for _, name in _named(wish, answers) if name.startswith(BITMAP)]
    there = _listed([name.removeprefix(BITMAP) for name in names])
    return NotFoundError(
        f"{wish.where}: the server offers no bitmap {wish.bitmap!r} with this export; it offers "
        f"{there or 'none'}; nothing was sent; a bitmap is offered with an export by "
        "`qemu-nbd --bitmap` or QMP's block-export-add"
    )


def _no_export(wish: Wish) -> Steps[BlockstreamError]:
    """Ask which exports there are."""
    names = []
    for kind, data in (yield from _ask(wish, _LIST)):
        if kind == _SERVER and len(data) >= _U32.size:
            end = _U32.size + _U32.unpack_from(data)[0]
            names.append(data[_U32.size : end].decode(errors="replace"))
    there = f"it has {_listed(names)}" if names else "it does not say which it has"
    return NotFoundError(
        f"{wish.where}: the server has no export {wish.export!r}; {there}; nothing was sent"
    )


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(repr(plain_text(name)) for name in names[:_SHOWN]) + more


def _gone(
    wish: Wish, contexts: dict[int, str], *, structured: bool, with_zeroes: bool
) -> Steps[Export]:
    """Open it; after this, the server takes requests."""
    asked = wish.name + _U16.pack(1) + _U16.pack(_INFO_BLOCK_SIZE)
    answers = yield from _ask(wish, _GO, asked)
    last = answers[-1]
    if last.kind == _UNSUPPORTED:
        return (yield from _named_only(wish, contexts, structured=structured, zeroes=with_zeroes))
    if last.kind == _UNKNOWN:
        raise (yield from _no_export(wish))
    if last.kind != _ACK:
        raise _refusal(wish, last)
    size, flags, least, most = -1, 0, _LEAST_BLOCK, _MOST_REQUEST
    for kind, data in answers:
        about = _U16.unpack_from(data)[0] if kind == _INFO and len(data) >= _U16.size else None
        if about == _INFO_EXPORT:
            size, flags = _unpacked(wish, _SIZE_AND_FLAGS, data)
        elif about == _INFO_BLOCK_SIZE:
            least, _, most = _unpacked(wish, _BLOCK_SIZES, data)
    return _checked(wish, Export(size, flags, structured, contexts, least, most))


def _named_only(
    wish: Wish, contexts: dict[int, str], *, structured: bool, zeroes: bool
) -> Steps[Export]:
    """Open it as servers want it that do not know GO; they hang up on unknown names."""
    encoded = wish.name[_U32.size :]
    send = _OPTION.pack(_HAVE_OPTION, _EXPORT_NAME, len(encoded)) + encoded
    answer = yield Step(send, _SIZE_AND_FLAGS.size + (_ZEROES if zeroes else 0))
    size, flags = _SIZE_AND_FLAGS.unpack_from(answer)
    return _checked(wish, Export(size, flags, structured, contexts))


def _unpacked(wish: Wish, layout: struct.Struct, data: bytes) -> tuple[int, ...]:
    if len(data) != _U16.size + layout.size:
        raise NbdError(wish.where, f"what it tells of its export has {len(data)} bytes")
    return layout.unpack_from(data, _U16.size)


def _checked(wish: Wish, export: Export) -> Export:
    if not 0 <= export.size <= DEVICE_BYTES:
        raise NbdError(wish.where, "it does not tell a size that a disk can have")
    if not export.flags & _HAS_FLAGS:
        raise NbdError(wish.where, "it tells flags that say themselves that they are none")
    least, most = export.least, export.most
    is_power = 1 <= least <= _MOST_LEAST_BLOCK and not least & (least - 1)
    if not is_power or (most != _NO_LIMIT and (most < least or most % least)):
        raise NbdError(wish.where, f"it wants requests of {least} to {most} bytes")
    return export


def _refusal(wish: Wish, answer: _Answer) -> BlockstreamError:
    if answer.kind == _TLS_REQUIRED:
        return AuthenticationError(
            f"{wish.where}: the server speaks only inside TLS ({_words(answer)}); nothing was "
            "sent; use nbds:// in place of nbd://, or nbds+unix:// in place of nbd+unix://"
        )
    return SourceError(
        f"{wish.where}: the server does not open {wish.export!r} ({_words(answer)}); nothing was "
        "sent"
    )


def _words(answer: _Answer) -> str:
    """Return a server's reason for an error."""
    text = plain_text(answer.data.decode(errors="replace"))
    meaning = _ERRORS.get(answer.kind, f"{answer.kind:#x}")
    return f"{meaning}: {text}" if text else meaning
