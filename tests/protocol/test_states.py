"""A message is in the table of its state, or it is refused; and the picture in SPEC is true."""

import runpy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest

from blockstream_protocol import (
    RECEIVER,
    SENDER,
    Abort,
    Ack,
    Checkpoint,
    Clean,
    Code,
    Committed,
    End,
    Extents,
    Hello,
    Message,
    Ping,
    Plan,
    PlanRows,
    Receiver,
    Record,
    Refuse,
    RemoteProtocolError,
    Sender,
    State,
    TargetState,
    Unknown,
)
from tests.protocol.host import (
    Host,
    Source,
    converse,
    frames_of,
    new_digest,
    opening_of,
    sectors,
)

SCRIPT = runpy.run_path(str(Path(__file__).resolve().parents[2] / "scripts" / "spec_states.py"))
SIZE = 2048
IMAGE = b"x" * SIZE
PLAN = Plan.whole(SIZE)
OPENING = opening_of(PLAN, size=SIZE)
IDENTITY = OPENING.identity(new_digest).hex()
FRAMES = frames_of(PLAN, IMAGE)
HEX = "1" * 64
PIECE = sectors(0, 2, size=SIZE)
INCREMENT = opening_of(PIECE, size=SIZE, base="b")
HELD = Clean("g", "", PLAN, IDENTITY, 4, HEX, HEX)

MESSAGES: Mapping[type[Message], Message] = {
    type(message): message
    for message in (
        Hello(duplex=True),
        OPENING,
        PlanRows(PIECE.rows()[:16]),
        Extents(FRAMES[0][0]),
        Checkpoint(0, IDENTITY),
        Ack(0, IDENTITY),
        End(0, IDENTITY, 0),
        Committed(IDENTITY, "g", 4, HEX, SIZE),
        Refuse(10, "no"),
        Abort(11, "no"),
        Ping(),
    )
}


def receiver_in(state: State) -> Receiver:
    held: TargetState = HELD if state is State.SKIM else Unknown()
    if state in {State.PLANNING, State.DECIDING}:
        held = Clean("b", "", PLAN, HEX, 1, HEX, HEX)
    receiver = Receiver(size=SIZE, state=held, new_digest=new_digest)
    if state is State.GREET:
        return receiver
    receiver.receive(Hello(duplex=state is not State.SKIM))
    if state is State.OPENING:
        return receiver
    receiver.receive(INCREMENT if state in {State.PLANNING, State.DECIDING} else OPENING)
    if state is State.DECIDING:
        receiver.receive(PlanRows(PIECE.rows()))
    if state is State.SKIM:
        receiver.base_checked("")
    if state in {State.STREAM, State.ENDING, State.DONE}:
        (record,) = receiver.prepared()
        assert isinstance(record, Record)
        receiver.recorded(record.state)
    if state is State.ENDING:
        receiver.receive(Extents(FRAMES[0][0]))
        receiver.receive(End(1, receiver_chain(), SIZE))
    if state is State.DONE:
        receiver.failed(Code.BUG, "over")
        receiver.drained()
    return receiver


def receiver_chain() -> str:
    sender = sender_in(State.STREAM)
    sender.frame(FRAMES[0][0], 512)
    return sender._chain.hex()


def sender_in(state: State) -> Sender:
    sender = Sender(OPENING, PLAN, new_digest=new_digest, duplex=True)
    sender.start()
    if state is State.GREET:
        return sender
    sender.receive(Hello(duplex=True))
    if state is State.OPENING:
        return sender
    sender.receive(Ack(0, IDENTITY))
    if state in {State.ENDING, State.DONE}:
        for frame, covered in FRAMES:
            sender.frame(frame, covered)
        sender.source_ended()
        sender.validated()
        sender.intent_recorded()
    if state is State.DONE:
        chain = sender._chain.hex()
        sender.receive(Committed(sender.transfer, OPENING.goal, len(FRAMES), chain, SIZE))
    return sender


SENDER_STATES = (State.GREET, State.OPENING, State.STREAM, State.ENDING, State.DONE)
SIDES: list[tuple[Callable[[State], Receiver | Sender], Mapping[Any, Any], State]] = [
    *((receiver_in, RECEIVER, state) for state in State),
    *((sender_in, SENDER, state) for state in SENDER_STATES),
]


@pytest.mark.parametrize("kind", MESSAGES, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize(
    ("make", "table", "state"),
    SIDES,
    ids=[f"{make.__name__}-{state.name}" for make, _, state in SIDES],
)
def test_a_message_is_in_the_table_or_refused(
    make: Callable[[State], Receiver | Sender],
    table: Mapping[State, Mapping[type[Message], State]],
    state: State,
    kind: type[Message],
) -> None:
    session = make(state)
    assert session.state is state
    wrong = f"a message of type {kind.__name__} came when {state.value}"
    try:
        session.receive(MESSAGES[kind])
    except RemoteProtocolError as error:
        text = str(error)
    else:
        text = ""
    allowed = kind in table.get(state, {}) or kind in {Ping, Abort}
    assert (text == wrong) is not allowed
    if kind is Ping:
        assert (text, session.state) == ("", state)
    if not allowed:
        assert session.state is state


class WatchedReceiver(Receiver):
    """Notes every change of its state."""

    seen: ClassVar[set[tuple[State, State]]] = set()

    def __setattr__(self, name: str, value: object) -> None:
        if name == "_state" and isinstance(value, State):
            self.seen.add((getattr(self, "_state", value), value))
        super().__setattr__(name, value)


class WatchedSender(Sender):
    """Notes every change of its state."""

    seen: ClassVar[set[tuple[State, State]]] = set()

    def __setattr__(self, name: str, value: object) -> None:
        if name == "_state" and isinstance(value, State):
            self.seen.add((getattr(self, "_state", value), value))
        super().__setattr__(name, value)


def run_every_way() -> None:
    """Converse duplex and one-way, with a fresh target and with one that holds the goal."""
    state: TargetState = Unknown()
    for _ in range(2):
        for duplex in (True, False):
            receiver = WatchedReceiver(size=SIZE, state=state, new_digest=new_digest)
            host = Host(bytearray(SIZE), receiver)
            sender = WatchedSender(OPENING, PLAN, new_digest=new_digest, duplex=duplex)
            source = Source(sender, FRAMES)
            converse(source, host)
            if not duplex:
                host.run(receiver.end_of_stream())
            assert (source.finish.code, host.finish.code) == (0, 0)
        state = receiver.target


def test_the_picture_shows_every_step_that_a_side_makes_of_itself() -> None:
    run_every_way()
    # COMMITTED instead of the first ACK: the sender compares before it is done.
    compares = {(State.DONE, State.STREAM)}
    for table, name, seen, besides in (
        (RECEIVER, "RECEIVER_STEPS", WatchedReceiver.seen, set()),
        (SENDER, "SENDER_STEPS", WatchedSender.seen, compares),
    ):
        steps = {(before, after) for before, _, after in SCRIPT[name]}
        arrows = {(state, after) for state, row in table.items() for after in row.values()}
        changes = {(before, after) for before, after in seen if before is not after}
        assert steps <= changes, "drawn, but never seen"
        assert changes <= arrows | steps | besides, "seen, but not drawn"


def test_section_8_of_the_specification_is_up_to_date() -> None:
    text = SCRIPT["SPEC"].read_text()
    assert SCRIPT["BEGIN"] + SCRIPT["drawn"]() + SCRIPT["END"] in text


def test_the_script_tells_a_stale_page_from_a_fresh_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "SPEC.md"
    page.write_text(f"before\n{SCRIPT['BEGIN']}old\n{SCRIPT['END']}after\n")
    main = SCRIPT["main"]
    monkeypatch.setitem(main.__globals__, "SPEC", page)
    monkeypatch.setattr("sys.argv", ["spec_states.py", "--check"])
    assert main() == 1
    monkeypatch.setattr("sys.argv", ["spec_states.py"])
    assert main() == 0
    assert page.read_text().startswith("before\n")
    assert page.read_text().endswith("after\n")
    monkeypatch.setattr("sys.argv", ["spec_states.py", "--check"])
    assert main() == 0
