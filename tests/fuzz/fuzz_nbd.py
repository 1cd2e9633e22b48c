"""Whatever an NBD server says is an export and replies to what was asked, or an error of its own.

The first byte chooses: the handshake, with or without TLS and a bitmap, or replies to three open
questions, structured or not. Nobody makes us take more than a limit, nor write outside a buffer.
"""

from tests.fuzz.engine import fuzz, instrumented

with instrumented("blockstream.formats"):
    from blockstream.errors import BlockstreamError
    from blockstream.formats.nbd import Export, Wish, opened
    from blockstream.formats.nbd_replies import Replies, Request

LIMIT = 9 << 20
SIZE = 1 << 20
GUARD = 64
CONTEXTS = {1: "base:allocation", 2: "qemu:dirty-bitmap:b"}


def check(data: bytes) -> None:
    """Take one input."""
    if not data:
        return
    mode, wire = data[0] % 6, data[1:]
    try:
        if mode < 4:
            handshake(Wish("x", "e", bool(mode & 1), "b" if mode & 2 else ""), wire)
        else:
            replies(Export(SIZE, 3, mode == 5, CONTEXTS), wire)
    except BlockstreamError as error:
        if len(str(error)) > 30000 or not all(map(str.isprintable, str(error))):
            raise AssertionError(str(error)) from error


def handshake(wish: Wish, wire: bytes) -> None:
    """Open an export."""
    steps = opened(wish)
    try:
        step = next(steps)
        while True:
            if step.take > LIMIT:
                raise AssertionError(step)
            if step.take > len(wire):
                return
            piece, wire = wire[: step.take], wire[step.take :]
            step = steps.send(piece)
    except StopIteration as stop:
        if not 0 <= stop.value.size < 1 << 63 or not 1 <= stop.value.least <= 1 << 16:
            raise AssertionError(stop.value) from stop


def replies(export: Export, wire: bytes) -> None:
    """Take replies to two reads and a question for the status."""
    memory = bytearray(b"g" * (2 * GUARD + 8192))
    whole = memoryview(memory)
    reads = [
        Request(4096, 4096, whole[GUARD:][:4096]),
        Request(0, 4096, whole[GUARD + 4096 :][:4096]),
    ]
    asked = [*reads, Request(0, 65536)]
    found = Replies("x", export)
    for each in asked:
        found.ask(each)
    while (rest := taken(found, wire)) is not None:
        wire = rest
    if memory[:GUARD] + memory[-GUARD:] != b"g" * (2 * GUARD):
        raise AssertionError("written outside")
    for each in reads:
        if each.done and not each.fault and sum(e - s for s, e in each.pieces) != each.length:
            raise AssertionError(each)
    for rows in asked[2].status.values():
        if not rows[:, 0].all() or int(rows[:-1, 0].sum(dtype="u8")) >= asked[2].length:
            raise AssertionError(rows)


def taken(found: Replies, wire: bytes) -> bytes | None:
    """Take one reply; None if there is no whole one."""
    steps = found.take()
    try:
        wanted = next(steps)
        while True:
            count = wanted if isinstance(wanted, int) else len(wanted)
            if count > LIMIT:
                raise AssertionError(count)
            if count > len(wire):
                return None
            piece, wire = wire[:count], wire[count:]
            if not isinstance(wanted, int):
                wanted[:] = piece
            wanted = steps.send(piece)
    except StopIteration:
        return wire


if __name__ == "__main__":
    fuzz(check)
