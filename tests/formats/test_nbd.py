"""What an NBD server says is taken as the protocol means it, or refused before it costs memory."""

import struct

import pytest

from blockstream.errors import (
    AuthenticationError,
    NbdError,
    NotFoundError,
    SourceError,
)
from blockstream.formats.nbd import Export, Step, Wish, opened
from blockstream.formats.nbd_replies import Replies, Request
from tests.nbd_servers import (
    ACK,
    DATA,
    ERROR,
    ERROR_OFFSET,
    EXPORT_NAME,
    GO,
    HOLE,
    INFO,
    LIST,
    LIST_META,
    META,
    NONE,
    POLICY,
    SET_META,
    STARTTLS,
    STATUS,
    STRUCTURED_REPLY,
    TLS_REQUIRED,
    UNKNOWN,
    UNSUPPORTED,
    answer,
    blocks,
    chunk,
    context,
    data,
    export,
    fault,
    greeting,
    hole,
    listed,
    simple,
    status,
)

MIB = 1 << 20
HELLO = greeting() + answer(STRUCTURED_REPLY, ACK)
TOLD = context(7, "base:allocation") + answer(SET_META, ACK)
OPEN = export(MIB) + answer(GO, ACK)
VM = Wish("here", "vm")


def handshake(wish: Wish, wire: bytes) -> tuple[Export, bytes, bytes]:
    """Return what was opened, what was sent for it, and what of the wire was not taken."""
    sent, reply = b"", b""
    steps = opened(wish)
    try:
        step: Step = next(steps)
        while True:
            sent += step.send + (b"<TLS>" if step.secure else b"")
            assert step.take <= 1 << 16, "a server decides how much memory we need"
            if len(wire) < step.take:
                raise EOFError
            reply, wire = wire[: step.take], wire[step.take :]
            step = steps.send(reply)
    except StopIteration as stop:
        found: Export = stop.value
        return found, sent, wire


def options(sent: bytes) -> list[int]:
    """Return the numbers of the options that were asked for."""
    found, rest = [], sent[4:].replace(b"<TLS>", b"")
    while rest:
        magic, option, length = struct.unpack_from(">QII", rest)
        assert magic == 0x49484156454F5054
        found.append(option)
        rest = rest[16 + length :]
    return found


def test_an_export_is_opened() -> None:
    found, sent, rest = handshake(VM, HELLO + TOLD + blocks(1, 4096, 32 * MIB) + OPEN + b"rest")
    assert found == Export(MIB, 3, True, {7: "base:allocation"}, 1, 32 * MIB)
    assert sent[:4] == b"\0\0\0\3"
    assert options(sent) == [STRUCTURED_REPLY, SET_META, GO]
    assert sent.endswith(b"\0\0\0\2vm\0\1\0\3")
    assert rest == b"rest"


def test_what_a_server_does_not_tell_has_a_default() -> None:
    found, *_ = handshake(VM, HELLO + answer(SET_META, ACK) + OPEN)
    assert found == Export(MIB, 3, True, {}, 512, 32 * MIB)


@pytest.mark.parametrize("why", [UNSUPPORTED, POLICY])
def test_a_server_without_structured_replies_is_asked_for_nothing_that_needs_them(why: int) -> None:
    found, sent, _ = handshake(VM, greeting() + answer(STRUCTURED_REPLY, why) + OPEN)
    assert found == Export(MIB, 3)
    assert options(sent) == [STRUCTURED_REPLY, GO]


def test_a_server_without_meta_contexts_is_read_without_them() -> None:
    found, *_ = handshake(VM, HELLO + answer(SET_META, UNSUPPORTED) + OPEN)
    assert found.contexts == {}


@pytest.mark.parametrize(("flags", "zeroes"), [(3, b""), (1, bytes(124))])
def test_a_server_that_knows_no_go_is_asked_by_name(flags: int, zeroes: bytes) -> None:
    wire = greeting(flags) + answer(STRUCTURED_REPLY, UNSUPPORTED) + answer(GO, UNSUPPORTED)
    found, sent, rest = handshake(VM, wire + struct.pack(">QH", MIB, 3) + zeroes + b"rest")
    assert found == Export(MIB, 3)
    assert options(sent) == [STRUCTURED_REPLY, GO, EXPORT_NAME]
    assert sent[:4] == struct.pack(">I", flags)
    assert rest == b"rest"


def test_tls_comes_before_everything_else() -> None:
    wire = greeting() + answer(STARTTLS, ACK) + answer(STRUCTURED_REPLY, ACK) + TOLD + OPEN
    _, sent, _ = handshake(Wish("here", "vm", tls=True), wire)
    assert sent[4:].startswith(struct.pack(">QII", 0x49484156454F5054, STARTTLS, 0) + b"<TLS>")
    assert options(sent) == [STARTTLS, STRUCTURED_REPLY, SET_META, GO]


@pytest.mark.parametrize("why", [UNSUPPORTED, POLICY])
def test_without_tls_nothing_goes_on_in_clear(why: int) -> None:
    wire = greeting() + answer(STARTTLS, why, b"no certificate")
    with pytest.raises(AuthenticationError, match=r"no certificate.*nothing was sent in clear"):
        handshake(Wish("here", "vm", tls=True), wire + answer(STRUCTURED_REPLY, ACK) + TOLD + OPEN)


@pytest.mark.parametrize(
    "wire",
    [
        greeting() + answer(STRUCTURED_REPLY, TLS_REQUIRED, b"TLS first"),
        HELLO + TOLD + answer(GO, TLS_REQUIRED, b"TLS first"),
    ],
)
def test_where_tls_is_required_people_hear_how(wire: bytes) -> None:
    with pytest.raises(AuthenticationError, match=r"TLS first.*use nbds://"):
        handshake(VM, wire)


@pytest.mark.parametrize(
    "wire",
    [HELLO + answer(SET_META, UNKNOWN), HELLO + TOLD + answer(GO, UNKNOWN, b"who?")],
)
def test_an_unknown_export_is_answered_by_those_that_there_are(wire: bytes) -> None:
    lists = listed("web") + listed("mail\n\x1b[2J") + answer(LIST, ACK)
    with pytest.raises(NotFoundError, match=r"no export 'vm'; it has 'web', 'mail \[2J'"):
        handshake(VM, wire + lists)
    with pytest.raises(NotFoundError, match="no export 'vm'; it does not say which it has"):
        handshake(VM, wire + answer(LIST, POLICY))


def test_a_bitmap_is_a_context_beside_the_allocation() -> None:
    contexts = context(0, "base:allocation") + context(5, "qemu:dirty-bitmap:b0")
    wire = HELLO + contexts + answer(SET_META, ACK) + OPEN
    found, sent, _ = handshake(Wish("here", "vm", bitmap="b0"), wire)
    assert found.contexts == {0: "base:allocation", 5: "qemu:dirty-bitmap:b0"}
    assert b"\0\0\0\2\0\0\0\x0fbase:allocation\0\0\0\x14qemu:dirty-bitmap:b0" in sent


def test_a_bitmap_that_is_not_there_is_answered_by_those_that_are() -> None:
    there = [
        context(0, f"qemu:{name}", LIST_META) for name in ("allocation-depth", "dirty-bitmap:b1")
    ]
    wire = HELLO + TOLD + b"".join(there) + answer(LIST_META, ACK)
    with pytest.raises(NotFoundError, match="no bitmap 'b0' with this export; it offers 'b1';"):
        handshake(Wish("here", "vm", bitmap="b0"), wire)
    wire = HELLO + TOLD + answer(LIST_META, ACK)
    with pytest.raises(NotFoundError, match="no bitmap 'b0' with this export; it offers none;"):
        handshake(Wish("here", "vm", bitmap="b0"), wire)


def test_a_bitmap_needs_structured_replies() -> None:
    with pytest.raises(NotFoundError, match="tells nothing of bitmaps"):
        handshake(Wish("", bitmap="b0"), greeting() + answer(STRUCTURED_REPLY, UNSUPPORTED))


def test_a_refusal_has_the_words_of_the_server() -> None:
    with pytest.raises(SourceError, match=r"does not open 'vm' .*policy: not today.; nothing was"):
        handshake(VM, HELLO + TOLD + answer(GO, POLICY, b"not\ntoday"))


BAD_HANDSHAKES = {
    "another protocol": (greeting(magic=b"SSH-2.0-"), "begins with"),
    "oldstyle": (greeting(kind=0x0000420281861253), "oldstyle"),
    "neither": (greeting(kind=1), "after NBDMAGIC"),
    "not fixed": (greeting(flags=2), "fixed newstyle"),
    "wrong magic of an answer": (greeting() + answer(STRUCTURED_REPLY, ACK, magic=1), "no answer"),
    "answer to another option": (greeting() + answer(GO, ACK), "no answer to it"),
    "a huge answer": (greeting() + struct.pack(">QIII", 0x0003E889045565A9, 8, 1, 1 << 31), "2147"),
    "endless answers": (HELLO + context(1, "x") * 5000, "no end"),
    "a context that nobody asked for": (HELLO + context(1, "x") + answer(SET_META, ACK), "'x'"),
    "a context twice": (HELLO + context(1, "base:allocation") + TOLD, "base:allocation"),
    "a context without number": (HELLO + answer(SET_META, META, b"x") + TOLD, "without a number"),
    "no size": (HELLO + TOLD + answer(GO, ACK), "size"),
    "a size past all disks": (HELLO + TOLD + export((1 << 64) - 1) + answer(GO, ACK), "size"),
    "half an info": (HELLO + TOLD + answer(GO, INFO, b"\0\0\0") + answer(GO, ACK), "3 bytes"),
    "blocks of nothing": (HELLO + TOLD + blocks(0, 0, 0) + OPEN, "requests of 0"),
    "odd blocks": (HELLO + TOLD + blocks(3, 3, 9) + OPEN, "requests of 3"),
    "large blocks": (HELLO + TOLD + blocks(MIB, MIB, MIB) + OPEN, "requests of 1048576"),
    "a largest request below the least": (HELLO + TOLD + blocks(4096, 4096, 512) + OPEN, "to 512"),
    "no flags": (
        HELLO + TOLD + answer(GO, INFO, struct.pack(">HQH", 0, MIB, 2)) + answer(GO, ACK),
        "flags",
    ),
}


@pytest.mark.parametrize("case", BAD_HANDSHAKES)
def test_a_server_that_is_none_is_not_believed(case: str) -> None:
    wire, words = BAD_HANDSHAKES[case]
    with pytest.raises(NbdError, match=words):
        handshake(VM, wire)


def test_a_largest_request_without_limit_is_one() -> None:
    found, *_ = handshake(VM, HELLO + TOLD + blocks(1, 4096, (1 << 32) - 1) + OPEN)
    assert found.most == (1 << 32) - 1


# Replies.

STRUCTURED = Export(MIB, 3, True, {1: "base:allocation", 2: "bitmap"})
SIMPLE = Export(MIB, 3)
BASE = 4096


def read(length: int = 8192) -> Request:
    return Request(BASE, length, memoryview(bytearray(b"?" * length)))


def feed(replies: Replies, wire: bytes) -> None:
    """Let all replies be taken."""
    while wire:
        steps = replies.take()
        try:
            wanted = next(steps)
            while True:
                count = wanted if isinstance(wanted, int) else len(wanted)
                assert count <= 9 * MIB, "a server decides how much memory we need"
                if len(wire) < count:
                    raise EOFError
                if not isinstance(wanted, int):
                    wanted[:] = wire[:count]
                piece, wire = wire[:count], wire[count:]
                wanted = steps.send(piece)
        except StopIteration:
            continue


def answered(request: Request, wire: bytes, agreed: Export = STRUCTURED) -> Request:
    replies = Replies("here", agreed)
    replies.ask(request)
    feed(replies, wire)
    return request


def content(request: Request) -> bytes:
    assert request.buffer is not None
    return bytes(request.buffer)


def test_a_request_is_28_bytes() -> None:
    replies = Replies("here", STRUCTURED)
    assert replies.ask(read()).hex() == ("25609513000000000000000000000001000000000000100000002000")
    assert replies.ask(Request(0, 512)).hex() == (
        "25609513000000070000000000000002000000000000000000000200"
    )


A, B = b"a" * 4096, b"b" * 4096
GOOD_READS = {
    "whole": data(1, BASE, A + B),
    "in two": data(1, BASE, A, 0) + data(1, BASE + 4096, B),
    "the other way round": data(1, BASE + 4096, B, 0) + data(1, BASE, A),
    "with an end of its own": data(1, BASE, A + B, 0) + chunk(1, NONE),
    "bytes in the middle last": data(1, BASE, A[:1], 0)
    + data(1, BASE + 8191, B[:1], 0)
    + data(1, BASE + 1, (A + B)[1:-1]),
}


@pytest.mark.parametrize("case", GOOD_READS)
def test_data_comes_to_its_place(case: str) -> None:
    request = answered(read(), GOOD_READS[case])
    assert (request.done, request.fault, content(request)) == (True, "", A + B)


def test_a_hole_is_zeros() -> None:
    request = answered(read(), hole(1, BASE, 4096, 0) + data(1, BASE + 4096, B))
    assert content(request) == bytes(4096) + B


def test_a_simple_reply_brings_its_data() -> None:
    request = answered(read(), simple(1, data=A + B), SIMPLE)
    assert (request.done, content(request)) == (True, A + B)


def test_replies_come_in_any_order() -> None:
    replies = Replies("here", STRUCTURED)
    first, second = read(4096), read(4096)
    replies.ask(first)
    replies.ask(second)
    feed(replies, data(2, BASE, B))
    assert (first.done, second.done) == (False, True)
    feed(replies, data(1, BASE, A))
    assert (content(first), content(second), replies.pending) == (A, B, {})


@pytest.mark.parametrize(
    ("wire", "words"),
    [
        (fault(1, 5, b"bad\nsector"), "EIO: bad sector"),
        (fault(1, 5, b"bad", kind=ERROR_OFFSET), "EIO: bad"),
        (fault(1, 5, kind=0x8099), "EIO"),
        (fault(1, 5, flags=0) + chunk(1, NONE), "EIO"),
        (data(1, BASE, A, 0) + fault(1, 28), "ENOSPC"),
        (fault(1, 5, b"first", 0) + fault(1, 22, b"second"), "EIO: first"),
        (fault(1, 12345), "error 12345"),
    ],
)
def test_an_error_is_of_the_whole_read(wire: bytes, words: str) -> None:
    request = answered(read(), wire)
    assert (request.done, request.fault, request.goes_away) == (True, words, False)


def test_a_simple_error_is_one_too() -> None:
    assert answered(read(), simple(1, 5), SIMPLE).fault == "EIO"
    assert answered(Request(0, 512), simple(1, 22)).fault == "EINVAL"


def test_a_server_that_shuts_down_says_so() -> None:
    assert answered(read(), fault(1, 108)).goes_away


def test_status_is_of_each_context() -> None:
    wire = status(1, (512, 3), (100, 0), flags=0) + status(1, (1 << 20, 1), number=2)
    request = answered(Request(BASE, 8192), wire)
    found = {name: rows.tolist() for name, rows in request.status.items()}
    assert found == {"base:allocation": [[512, 3], [100, 0]], "bitmap": [[1 << 20, 1]]}


BAD_READS = {
    "wrong magic": struct.pack(">IIQ", 1, 0, 1),
    "a question that nobody asked": data(9, BASE, A + B),
    "the same answer again": data(1, BASE, A + B) + data(1, BASE, A + B),
    "before the request": data(1, BASE - 1, A + B),
    "past the request": data(1, BASE + 1, A + B),
    "far past it": data(1, (1 << 64) - 1, A + B),
    "more than the request": data(1, BASE, A + B + b"c"),
    "huge": struct.pack(">IHHQI", 0x668E33EF, 1, DATA, 1, (1 << 32) - 1),
    "no data": data(1, BASE, b""),
    "half an offset": chunk(1, DATA, b"1234"),
    "an end too early": data(1, BASE, A),
    "an end before all": chunk(1, NONE),
    "nothing, and no end": chunk(1, NONE, flags=0),
    "an end with something": chunk(1, NONE, b"x"),
    "the same place twice": data(1, BASE, A, 0) + data(1, BASE, B),
    "overlapping": data(1, BASE, A, 0) + data(1, BASE + 4095, B),
    "overlapping what comes after": data(1, BASE + 4096, B, 0) + data(1, BASE + 1, A),
    "a hole of nothing": hole(1, BASE, 0, 0) + data(1, BASE, A + B),
    "past the end, before it comes": data(1, BASE, A, 0) + data(1, BASE + 4096, A + B)[:28],
    "a hole outside": hole(1, BASE + 8192, 1),
    "a huge hole": hole(1, BASE, (1 << 32) - 1),
    "a hole that is too long": chunk(1, HOLE, bytes(13)),
    "in too many pieces": b"".join(data(1, BASE + at, b"x", 0) for at in range(0, 8192, 2))
    + data(1, BASE + 1, b"x", 0),
    "status of a read": status(1, (512, 0)),
    "an unknown type": chunk(1, 77, b"x"),
    "an error that is none": fault(1, 0),
    "an error with less text than said": chunk(1, ERROR, struct.pack(">IH", 5, 100)),
    "an error that is too short": chunk(1, ERROR, b"abc"),
    "a huge error": struct.pack(">IHHQI", 0x668E33EF, 1, ERROR, 1, 1 << 31),
    "simply": simple(1, data=A + B),
    "a simple error": simple(1, 5),
}


@pytest.mark.parametrize("case", BAD_READS)
def test_what_answers_no_read_is_not_believed(case: str) -> None:
    with pytest.raises(NbdError, match="END was not sent"):
        answered(read(8191 if case == "in too many pieces" else 8192), BAD_READS[case])


@pytest.mark.parametrize("offset", [0, BASE - 1, BASE + 1, BASE + 8192])
def test_data_of_another_place_is_told_by_its_place(offset: int) -> None:
    words = f"gives 8192 bytes at offset {offset} for 8192 bytes at offset {BASE};"
    with pytest.raises(NbdError, match=words):
        answered(read(), data(1, offset, A + B))


BAD_STATUS = {
    "of nothing": status(1),
    "half a row": chunk(1, STATUS, bytes(7)),
    "an empty extent": status(1, (512, 0), (0, 1), (512, 0)),
    "an extent after the end": status(1, (8192, 0), (512, 0)),
    "overflowing": status(1, (1 << 31, 0), (1 << 31, 0), (512, 0)),
    "another context": status(1, (512, 0), number=9),
    "one context twice": status(1, (512, 0), flags=0) + status(1, (512, 0)),
    "data": data(1, BASE, A),
    "simply": simple(1),
    "a hole": hole(1, BASE, 4096),
    "huge": struct.pack(">IHHQI", 0x668E33EF, 1, STATUS, 1, (1 << 32) - 4),
}


@pytest.mark.parametrize("case", BAD_STATUS)
def test_what_answers_no_status_is_not_believed(case: str) -> None:
    with pytest.raises(NbdError, match="END was not sent"):
        answered(Request(BASE, 8192), BAD_STATUS[case])


def test_structured_replies_are_refused_where_nobody_agreed_on_them() -> None:
    with pytest.raises(NbdError, match="begins with 0x668e33ef"):
        answered(read(), data(1, BASE, A + B), SIMPLE)


@pytest.mark.parametrize("wire", [data(1, BASE, A + B), fault(1, 5, b"x"), hole(1, BASE, 8192)])
def test_nothing_is_done_before_the_last_byte(wire: bytes) -> None:
    for cut in (1, len(wire) // 2, len(wire) - 1):
        request = read()
        replies = Replies("here", STRUCTURED)
        replies.ask(request)
        with pytest.raises(EOFError):
            feed(replies, wire[:cut])
        assert not request.done
