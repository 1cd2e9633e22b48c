"""The receiver writes only what was planned and verified, and promises only what is durable."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest

from blockstream_protocol import (
    IDLE_SECONDS,
    OWED_SECONDS,
    PING_SECONDS,
    RECEIVER,
    Abort,
    Ack,
    CheckBase,
    Checkpoint,
    Clean,
    Code,
    Committed,
    Dirty,
    Effect,
    End,
    Extent,
    Extents,
    Finish,
    Flush,
    Frame,
    Hello,
    Kind,
    LocalProtocolError,
    Message,
    Moment,
    Open,
    Ping,
    Plan,
    PlanRows,
    Prepare,
    ReadBack,
    Receiver,
    ReceiverPolicy,
    Record,
    Refuse,
    RemoteProtocolError,
    Send,
    State,
    TakeSamples,
    TargetState,
    Unknown,
    Verify,
    Write,
    link,
    told,
)
from tests.protocol.host import (
    Host,
    frames_of,
    new_digest,
    one_way,
    opening_of,
    sectors,
    wire_of,
)

SIZE = 4096
PLAN = sectors(0, 1, 3, size=SIZE)
IMAGE = b"n" * 512 + bytes(512) + b"n" * 3072
FRAMES = [frame for frame, _ in frames_of(PLAN, IMAGE)]
OPENING = opening_of(PLAN, size=SIZE, base="b")
HEX = "1" * 64


def chain_at(count: int, opening: Open = OPENING, frames: list[Frame] = FRAMES) -> bytes:
    chain = opening.identity(new_digest)
    for frame in frames[:count]:
        chain = link(new_digest, chain, frame.digest)
    return chain


BASE = Clean("b", "", Plan.whole(SIZE), HEX, 1, HEX, samples="5" * 64)
END = End(3, chain_at(3).hex(), 1536)
HALF = Dirty("b", "g", PLAN, OPENING.identity(new_digest).hex(), 2, chain_at(2).hex(), 1024, 1024)


def checkpoint(count: int) -> Checkpoint:
    return Checkpoint(count, chain_at(count).hex())


def receiver_at(
    state: TargetState = BASE, policy: ReceiverPolicy | None = None, size: int = SIZE
) -> Receiver:
    return Receiver(size=size, state=state, new_digest=new_digest, policy=policy, facts={"n": 1})


def opened(receiver: Receiver, *, duplex: bool = True, opening: Open = OPENING) -> list[Effect]:
    receiver.receive(Hello(duplex=duplex))
    receiver.receive(opening)
    return receiver.receive(PlanRows(PLAN.rows()))


def streaming(state: TargetState = BASE, policy: ReceiverPolicy | None = None) -> Receiver:
    """Return a duplex receiver that waits for the first frame."""
    receiver = receiver_at(state, policy)
    effects = opened(receiver)
    if isinstance(effects[0], CheckBase):
        receiver.base_checked("")
    (record,) = receiver.prepared()
    assert isinstance(record, Record)
    receiver.recorded(record.state)
    return receiver


def held(receiver: Receiver) -> TargetState:
    return receiver.target


def at(receiver: Receiver) -> State:
    return receiver.state


def admit(receiver: Receiver, *numbers: int) -> None:
    for number in numbers:
        receiver.receive(Extents(FRAMES[number]))


def verify(receiver: Receiver, *numbers: int) -> list[Effect]:
    effects: list[Effect] = []
    for number in numbers:
        start = [0, 512, 1536][number]
        kind = Kind.ZERO if number == 1 else Kind.DATA
        effects += receiver.verified(number, [Extent(start, 512, kind)])
    return effects


def written(receiver: Receiver, *numbers: int) -> list[Effect]:
    return [effect for number in numbers for effect in receiver.written(number)]


def refused(call: object, *arguments: object) -> tuple[Code, str]:
    assert callable(call)
    with pytest.raises(RemoteProtocolError) as caught:
        call(*arguments)
    return caught.value.code, str(caught.value)


# The whole way.


def test_nothing_happens_before_its_turn_and_nobody_is_told_before_it_is_durable() -> None:
    receiver = receiver_at()
    (answer,) = receiver.receive(Hello(duplex=True))
    assert isinstance(answer, Send)
    assert isinstance(answer.message, Hello)
    assert answer.message.target == {"n": 1}
    assert receiver.receive(OPENING) == []
    assert receiver.opening == OPENING
    assert receiver.receive(PlanRows(PLAN.rows()[:16])) == []
    assert receiver.receive(PlanRows(PLAN.rows()[16:])) == [CheckBase("5" * 64)]
    assert receiver.base_checked("") == [Prepare(PLAN, resumed=False)]
    dirty = replace(HALF, frames=0, chain=chain_at(0).hex(), end=0, covered=0)
    assert receiver.prepared() == [Record(dirty)]
    assert held(receiver) == BASE
    assert receiver.recorded(dirty) == [Send(Ack(0, chain_at(0).hex()))]
    assert held(receiver) == dirty
    assert at(receiver) is State.STREAM
    assert receiver.receive(Extents(FRAMES[0])) == [Verify(0, FRAMES[0])]
    assert receiver.receive(Extents(FRAMES[1])) == [Verify(1, FRAMES[1])]
    assert receiver.receive(checkpoint(2)) == []
    assert verify(receiver, 0) == [Write(0, [Extent(0, 512, Kind.DATA)])]
    assert verify(receiver, 1) == [Write(1, [Extent(512, 512, Kind.ZERO)])]
    assert receiver.written(1) == [], "writes may end in any order, a barrier covers a prefix"
    assert receiver.written(0) == [Flush()]
    assert receiver.durable.frames == 0
    assert receiver.flushed() == [Record(HALF)]
    assert receiver.durable.frames == 0
    assert receiver.recorded(HALF) == [Send(Ack(2, chain_at(2).hex()))]
    assert receiver.durable.frames == 2
    admit(receiver, 2)
    assert receiver.receive(END) == []
    verify(receiver, 2)
    assert receiver.written(2) == [Flush()]
    assert receiver.flushed() == [TakeSamples()]
    (record,) = receiver.samples_taken("6" * 64)
    identity = OPENING.identity(new_digest).hex()
    goal = Clean("g", "b", PLAN, identity, 3, chain_at(3).hex(), "6" * 64)
    assert record == Record(goal)
    committed = Committed(identity, "g", 3, chain_at(3).hex(), 1536)
    assert receiver.recorded(goal) == [Send(committed), Finish(0, committed=committed)]
    assert held(receiver) == goal
    assert at(receiver) is State.DONE
    assert receiver.end_of_stream() == []


def test_a_one_way_stream_is_committed_only_at_its_end() -> None:
    host = Host.of(SIZE, BASE)
    frames = frames_of(PLAN, IMAGE)
    for message in one_way(OPENING, PLAN, frames):
        host.take(message)
    assert not any(isinstance(state, Clean) for state in host.recorded)
    host.run(host.receiver.end_of_stream())
    assert isinstance(host.recorded[-1], Clean)
    assert host.finish.code == 0
    assert [message for message in host.sent if isinstance(message, Ack)] == []


def test_a_barrier_that_was_running_when_the_end_came_is_not_the_last_one() -> None:
    receiver = streaming()
    admit(receiver, 0, 1)
    verify(receiver, 0, 1)
    written(receiver, 0, 1)
    assert receiver.receive(checkpoint(2)) == [Flush()]
    short = End(2, chain_at(2).hex(), 1024)
    assert receiver.receive(short) == []
    (record,) = receiver.flushed()
    assert isinstance(record, Record)
    assert isinstance(record.state, Dirty)
    code, text = refused(receiver.recorded, record.state)
    assert (code, text.startswith("the stream covers 1024 of 1536")) == (Code.INTEGRITY, True)


def test_a_barrier_in_a_one_way_stream_does_not_commit_before_the_end_of_input() -> None:
    receiver = receiver_at()
    opened(receiver, duplex=False)
    receiver.base_checked("")
    (record,) = receiver.prepared()
    assert isinstance(record, Record)
    assert receiver.recorded(record.state) == []
    admit(receiver, 0, 1, 2)
    verify(receiver, 0, 1, 2)
    written(receiver, 0, 1, 2)
    assert receiver.receive(checkpoint(3)) == [Flush()]
    assert receiver.receive(END) == []
    (record,) = receiver.flushed()
    assert isinstance(record, Record)
    assert isinstance(record.state, Dirty)
    assert receiver.recorded(record.state) == []
    assert receiver.end_of_stream() == [Flush()]


# Barriers.


def test_one_barrier_at_a_time_and_the_next_when_it_is_due() -> None:
    receiver = streaming()
    admit(receiver, 0)
    verify(receiver, 0)
    written(receiver, 0)
    assert receiver.receive(checkpoint(1)) == [Flush()]
    admit(receiver, 1)
    assert receiver.receive(checkpoint(2)) == []
    verify(receiver, 1)
    assert written(receiver, 1) == []
    (record,) = receiver.flushed()
    assert isinstance(record, Record)
    effects = receiver.recorded(record.state)
    assert effects == [Send(Ack(1, chain_at(1).hex())), Flush()]


def test_a_slow_target_gets_its_barriers_though_checkpoints_run_ahead() -> None:
    receiver = streaming()
    admit(receiver, 0)
    receiver.receive(checkpoint(1))
    admit(receiver, 1)
    receiver.receive(checkpoint(2))
    verify(receiver, 0, 1)
    assert written(receiver, 0) == [Flush()]


def test_a_checkpoint_of_what_is_durable_already_costs_no_flush() -> None:
    receiver = streaming()
    assert receiver.receive(checkpoint(0)) == []
    assert receiver.receive(checkpoint(0)) == []


def test_read_back_comes_between_flush_and_record() -> None:
    receiver = streaming(policy=ReceiverPolicy(read_back=True))
    admit(receiver, 0, 1)
    verify(receiver, 0, 1)
    written(receiver, 0, 1)
    receiver.receive(checkpoint(2))
    assert receiver.flushed() == [ReadBack(0, 2)]
    assert receiver.read_back() == [Record(HALF)]
    receiver.recorded(HALF)
    admit(receiver, 2)
    verify(receiver, 2)
    written(receiver, 2)
    assert receiver.receive(END) == [Flush()]
    assert receiver.flushed() == [ReadBack(2, 3)]
    assert receiver.read_back() == [TakeSamples()]


def test_read_back_has_nothing_to_do_where_all_is_durable() -> None:
    receiver = streaming(policy=ReceiverPolicy(read_back=True))
    admit(receiver, 0, 1, 2)
    verify(receiver, 0, 1, 2)
    written(receiver, 0, 1, 2)
    receiver.receive(checkpoint(3))
    receiver.flushed()
    (record,) = receiver.read_back()
    assert isinstance(record, Record)
    receiver.recorded(record.state)
    assert receiver.receive(END) == [Flush()]
    assert receiver.flushed() == [TakeSamples()]


# Order and place.

BAD_EXTENTS = {
    "before the one before": ([Extent(512, 512, 1), Extent(0, 512, 1)], "comes after 1024"),
    "overlapping": ([Extent(0, 1024, 1), Extent(512, 512, 1)], "comes after 1024"),
    "between two ranges": ([Extent(1024, 512, 1)], "plan does not hold 512 bytes at offset 1024"),
    "over the end of a range": ([Extent(512, 1024, 2)], "plan does not hold 1024 bytes"),
    "over a gap": ([Extent(0, 2048, 2)], "plan does not hold 2048 bytes"),
    "after the last range": ([Extent(2048, 512, 2)], "plan does not hold 512 bytes at offset 2048"),
    "with a start inside a sector": ([Extent(100, 412, 1)], "is not aligned"),
    "with an end inside a sector": ([Extent(0, 100, 1)], "is not aligned"),
}


@pytest.mark.parametrize(("extents", "text"), BAD_EXTENTS.values(), ids=list(BAD_EXTENTS))
def test_an_extent_out_of_place_is_refused_before_it_is_written(
    extents: list[Extent], text: str
) -> None:
    receiver = streaming()
    admit(receiver, 0)
    code, message = refused(receiver.verified, 0, extents)
    assert code is Code.INTEGRITY
    assert text in message


def test_order_holds_across_frames() -> None:
    receiver = streaming()
    admit(receiver, 0, 1)
    verify(receiver, 0)
    assert "comes after 512" in refused(receiver.verified, 1, [Extent(0, 512, 1)])[1]


def test_order_holds_across_a_resume() -> None:
    receiver = streaming(HALF)
    receiver.receive(Extents(FRAMES[2]))
    assert "comes after 1024" in refused(receiver.verified, 2, [Extent(512, 512, 1)])[1]


def test_an_extent_may_touch_the_one_before() -> None:
    receiver = streaming()
    admit(receiver, 0)
    effects = receiver.verified(0, [Extent(0, 512, 1), Extent(512, 512, 2)])
    assert effects == [Write(0, [Extent(0, 512, 1), Extent(512, 512, 2)])]


@pytest.mark.parametrize(
    "message",
    [Checkpoint(0, chain_at(0).hex()), Checkpoint(1, HEX), checkpoint(2), END],
    ids=["fewer", "other chain", "more", "end"],
)
def test_a_count_or_chain_that_is_not_ours_shows_loss(message: Message) -> None:
    receiver = streaming()
    admit(receiver, 0)
    code, text = refused(receiver.receive, message)
    assert code is Code.INTEGRITY
    assert text.startswith("frames are missing, doubled or exchanged")


@pytest.mark.parametrize("total", [0, 1535, 1537])
def test_an_end_with_another_total_is_refused(total: int) -> None:
    receiver = streaming()
    admit(receiver, 0, 1, 2)
    verify(receiver, 0, 1, 2)
    written(receiver, 0, 1, 2)
    assert refused(receiver.receive, replace(END, total=total))[0] is Code.INTEGRITY


def test_an_end_before_the_plan_is_covered_is_refused() -> None:
    receiver = streaming()
    code, text = refused(receiver.receive, End(0, chain_at(0).hex(), 0))
    assert (code, "covers 0 of 1536" in text) == (Code.INTEGRITY, True)


# The opening.


def test_a_source_that_is_larger_is_refused() -> None:
    receiver = receiver_at(size=SIZE - 512)
    receiver.receive(Hello())
    code, text = refused(receiver.receive, OPENING)
    assert (code, text) == (Code.REFUSED, "the source has 4096 bytes, the target only 3584")


def test_a_larger_target_is_taken_only_where_it_is_allowed() -> None:
    receiver = receiver_at(size=SIZE + 512)
    receiver.receive(Hello())
    assert refused(receiver.receive, OPENING)[0] is Code.REFUSED
    allowed = receiver_at(size=SIZE + 512, policy=ReceiverPolicy(allow_larger=True))
    assert opened(allowed) == [CheckBase("5" * 64)]


@pytest.mark.parametrize(
    "opening",
    [
        replace(OPENING, total=1024),
        replace(OPENING, plan=HEX),
        replace(OPENING, ranges=1),
        replace(OPENING, base="", ranges=2),
        replace(OPENING, ranges=0),
    ],
    ids=["total", "digest", "too many rows", "full", "none announced"],
)
def test_a_plan_that_was_not_announced_is_refused(opening: Open) -> None:
    receiver = receiver_at()
    receiver.receive(Hello())

    def go_on() -> None:
        receiver.receive(opening)
        receiver.receive(PlanRows(PLAN.rows()))

    assert refused(go_on)[0] is Code.INTEGRITY


def test_an_increment_without_changes_commits_at_once() -> None:
    none = Plan.whole(0)
    opening = opening_of(none, size=SIZE, base="b")
    host = Host.of(SIZE, BASE)
    for message in one_way(opening, none, []):
        host.take(message)
    host.run(host.receiver.end_of_stream())
    assert host.finish.code == 0
    assert host.recorded[-1] == Clean(
        "g", "b", none, opening.identity(new_digest).hex(), 0, chain_at(0, opening).hex(), "5" * 64
    )


def test_what_is_clean_has_the_moment_that_was_said_before_the_opening() -> None:
    none = Plan.whole(0)
    opening = opening_of(none, size=SIZE, base="b")
    host = Host.of(SIZE, BASE)
    hello, *rest = one_way(opening, none, [])
    for message in (hello, Moment(7), *rest):
        host.take(message)
    host.run(host.receiver.end_of_stream())
    state = host.recorded[-1]
    assert isinstance(state, Clean)
    assert (state.moment, told(state)["moment"]) == (7, 7)
    assert "moment" not in told(replace(state, moment=None))
    # It is no part of what the transfer is.
    assert state.transfer == opening.identity(new_digest).hex()


def test_a_wrong_base_is_refused_and_nothing_was_asked_of_the_target() -> None:
    receiver = receiver_at(replace(BASE, id="x"))
    code, text = refused(opened, receiver)
    assert (code, "holds 'x'" in text) == (Code.REFUSED, True)
    assert receiver.failed(code, text) == []
    assert receiver.drained() == [
        Send(Refuse(Code.REFUSED, text)),
        Finish(Code.REFUSED, text, written=False),
    ]


def test_a_target_that_somebody_wrote_to_is_refused() -> None:
    receiver = receiver_at()
    opened(receiver)
    assert refused(receiver.base_checked, "sampled ranges differ")[0] is Code.REFUSED


def test_a_dry_run_ends_after_the_decision() -> None:
    receiver = receiver_at(policy=ReceiverPolicy(dry_run=True))
    assert opened(receiver) == [CheckBase("5" * 64)]
    assert receiver.base_checked("") == [Finish(0, written=False)]
    assert receiver.state is State.DONE
    written_to = receiver_at(policy=ReceiverPolicy(dry_run=True))
    opened(written_to)
    assert refused(written_to.base_checked, "sampled ranges differ")[0] is Code.REFUSED


def test_a_forced_base_is_believed() -> None:
    receiver = receiver_at(Unknown(), policy=ReceiverPolicy(force_base=True))
    assert opened(receiver) == [Prepare(PLAN, resumed=False)]


# Resume.


def test_a_duplex_receiver_tells_where_to_resume() -> None:
    receiver = receiver_at(HALF)
    assert opened(receiver) == [Prepare(PLAN, resumed=True)]
    assert receiver.prepared() == [Record(HALF)]
    assert receiver.recorded(HALF) == [Send(Ack(2, chain_at(2).hex()))]
    assert receiver.receive(Extents(FRAMES[2])) == [Verify(2, FRAMES[2])]


def test_another_transfer_of_the_same_base_starts_from_nothing() -> None:
    receiver = receiver_at(replace(HALF, transfer=HEX, goal="f"))
    assert opened(receiver) == [Prepare(PLAN, resumed=False)]
    (record,) = receiver.prepared()
    assert isinstance(record, Record)
    assert receiver.recorded(record.state) == [Send(Ack(0, chain_at(0).hex()))]


def test_a_one_way_stream_may_continue_at_exactly_the_durable_mark() -> None:
    receiver = receiver_at(HALF)
    token = replace(OPENING, frames=2, chain=chain_at(2).hex())
    assert opened(receiver, duplex=False, opening=token) == [Prepare(PLAN, resumed=True)]


def test_a_one_way_stream_may_begin_again() -> None:
    receiver = receiver_at(HALF)
    assert opened(receiver, duplex=False) == [Prepare(PLAN, resumed=True)]
    assert receiver.durable.frames == 0


@pytest.mark.parametrize(
    ("state", "frames", "chain"),
    [
        (HALF, 1, chain_at(1).hex()),
        (HALF, 3, chain_at(3).hex()),
        (HALF, 2, HEX),
        (HALF, 2, ""),
        (replace(HALF, transfer=HEX), 2, chain_at(2).hex()),
    ],
    ids=["before", "after", "other chain", "no chain", "other transfer"],
)
def test_a_one_way_stream_from_anywhere_else_is_refused(
    state: TargetState, frames: int, chain: str
) -> None:
    opening = replace(OPENING, frames=frames, chain=chain)
    code, text = refused(lambda: opened(receiver_at(state), duplex=False, opening=opening))
    assert (code, text.startswith("the stream continues after")) == (Code.REFUSED, True)


# The goal is there already.

DONE_ALREADY = Clean(
    "g", "b", PLAN, OPENING.identity(new_digest).hex(), 3, chain_at(3).hex(), "5" * 64
)


def test_a_duplex_sender_is_told_what_the_target_holds() -> None:
    receiver = receiver_at(DONE_ALREADY)
    committed = Committed(DONE_ALREADY.transfer, "g", 3, chain_at(3).hex(), 1536)
    assert opened(receiver) == [CheckBase("5" * 64)]
    assert receiver.base_checked("") == [
        Send(committed),
        Finish(0, committed=committed, written=False),
    ]


@pytest.mark.parametrize("duplex", [True, False])
def test_a_goal_that_somebody_wrote_to_is_not_there(duplex: bool) -> None:
    increment = receiver_at(DONE_ALREADY)
    assert opened(increment, duplex=duplex) == [CheckBase("5" * 64)]
    code, text = refused(increment.base_checked, "3 sectors")
    assert (code, text.endswith("since its last commit: 3 sectors")) == (Code.REFUSED, True)
    forced = receiver_at(DONE_ALREADY, ReceiverPolicy(force_base=True))
    opened(forced, duplex=duplex)
    assert forced.base_checked("3 sectors") == [Prepare(PLAN, resumed=False)]
    full = receiver_at(DONE_ALREADY)
    full.receive(Hello(duplex=duplex))
    whole = Plan.whole(SIZE)
    assert full.receive(opening_of(whole, size=SIZE)) == [CheckBase("5" * 64)]
    assert full.base_checked("3 sectors") == [Prepare(whole, resumed=False)]


def test_a_one_way_stream_to_what_is_there_is_compared_and_writes_nothing() -> None:
    host = Host.of(IMAGE, DONE_ALREADY)
    wire = wire_of(one_way(OPENING, PLAN, frames_of(PLAN, IMAGE)))
    finish = host.feed(wire)
    assert (finish.code, finish.written) == (0, False)
    assert not any(isinstance(effect, Write | Flush | Record) for effect in host.did)


@pytest.mark.parametrize("frames", [1, 2, 3])
def test_a_continuation_of_what_was_committed_meanwhile_has_nothing_to_do(frames: int) -> None:
    """Its token was asked for before the commit."""
    opening = replace(OPENING, frames=frames, chain=chain_at(frames).hex())
    receiver = receiver_at(DONE_ALREADY)
    opened(receiver, duplex=False, opening=opening)
    assert receiver.base_checked("") == []
    for seq in range(frames, 3):
        admit(receiver, seq)
        assert verify(receiver, seq) == []
    receiver.receive(End(3, chain_at(3).hex(), 1536))
    (finish,) = receiver.end_of_stream()
    assert isinstance(finish, Finish)
    assert (finish.code, finish.written) == (0, False)


def test_a_continuation_with_another_content_is_refused() -> None:
    opening = replace(OPENING, frames=2, chain=HEX)
    receiver = receiver_at(DONE_ALREADY)
    opened(receiver, duplex=False, opening=opening)
    receiver.base_checked("")
    admit(receiver, 2)
    verify(receiver, 2)
    code, _ = refused(lambda: receiver.receive(End(3, chain_at(3).hex(), 1536)))
    assert code is Code.INTEGRITY
    other = receiver_at(replace(DONE_ALREADY, transfer=HEX))
    opened(other, duplex=False, opening=opening)
    code, text = refused(other.base_checked, "")
    assert (code, text.startswith("the stream continues after")) == (Code.REFUSED, True)


def test_another_content_under_the_same_goal_is_refused() -> None:
    host = Host.of(IMAGE, DONE_ALREADY)
    other = frames_of(PLAN, b"o" * SIZE)
    finish = host.feed(wire_of(one_way(OPENING, PLAN, other)))
    assert finish.code == Code.REFUSED
    assert "with another content" in finish.text
    assert not any(isinstance(effect, Write | Flush | Record) for effect in host.did)


def test_checkpoints_of_a_stream_that_is_only_compared_ask_for_nothing() -> None:
    receiver = receiver_at(DONE_ALREADY)
    opened(receiver, duplex=False)
    receiver.base_checked("")
    assert receiver.state is State.SKIM
    admit(receiver, 0)
    assert verify(receiver, 0) == []
    assert receiver.receive(checkpoint(1)) == []


# Failures.


def test_what_was_confirmed_before_a_cut_is_kept() -> None:
    receiver = streaming()
    admit(receiver, 0, 1)
    receiver.receive(checkpoint(2))
    verify(receiver, 0, 1)
    receiver.failed(Code.INTERRUPTED, "cut")
    assert written(receiver, 0, 1) == [], "after a failure nothing begins by itself"
    assert receiver.drained() == [Flush()]
    assert receiver.flushed() == [Record(HALF)]
    assert receiver.recorded(HALF) == [
        Send(Abort(Code.INTERRUPTED, "cut")),
        Finish(Code.INTERRUPTED, "cut", written=True),
    ]
    assert receiver.drained() == []


@pytest.mark.parametrize("code", [Code.TARGET, Code.BUG, Code.REFUSED])
def test_after_a_failure_of_the_target_nothing_is_flushed(code: Code) -> None:
    receiver = streaming()
    admit(receiver, 0, 1)
    receiver.receive(checkpoint(2))
    verify(receiver, 0, 1)
    receiver.failed(code, "EIO")
    written(receiver, 0, 1)
    (message, finish) = receiver.drained()
    assert finish == Finish(code, "EIO", written=True)
    kind = Refuse if code is Code.REFUSED else Abort
    assert message == Send(kind(code, "EIO"))


def test_a_target_that_fails_after_a_cut_is_not_flushed_either() -> None:
    receiver = streaming()
    admit(receiver, 0, 1)
    receiver.receive(checkpoint(2))
    verify(receiver, 0, 1)
    receiver.failed(Code.INTERRUPTED, "cut")
    receiver.written(0)
    receiver.failed(Code.TARGET, "EIO")
    receiver.failed(Code.INTERRUPTED, "cut again")
    assert receiver.drained()[-1] == Finish(Code.TARGET, "EIO", written=True)


@pytest.mark.parametrize("code", [Code.TARGET, Code.INTEGRITY])
def test_a_last_barrier_that_fails_is_not_repeated(code: Code) -> None:
    receiver = streaming()
    admit(receiver, 0, 1)
    receiver.receive(checkpoint(2))
    verify(receiver, 0, 1)
    receiver.failed(Code.INTERRUPTED, "cut")
    written(receiver, 0, 1)
    assert receiver.drained() == [Flush()]
    receiver.failed(code, "again")
    said = (Code.TARGET, "again") if code is Code.TARGET else (Code.INTERRUPTED, "cut")
    assert receiver.drained()[-1] == Finish(*said, written=True)


def test_a_barrier_that_was_running_at_a_failure_still_counts() -> None:
    receiver = streaming()
    admit(receiver, 0, 1)
    verify(receiver, 0, 1)
    written(receiver, 0, 1)
    receiver.receive(checkpoint(2))
    receiver.failed(Code.INTERRUPTED, "cut")
    assert receiver.flushed() == [Record(HALF)]
    assert receiver.recorded(HALF) == []
    assert receiver.durable.frames == 2
    assert receiver.drained()[-1] == Finish(Code.INTERRUPTED, "cut", written=True)


def test_a_stop_between_the_end_and_its_barrier_commits_nothing() -> None:
    receiver = streaming()
    admit(receiver, 0, 1, 2)
    verify(receiver, 0, 1, 2)
    written(receiver, 0, 1, 2)
    assert receiver.receive(END) == [Flush()]
    receiver.stop("Ctrl-C")
    (record,) = receiver.flushed()
    assert isinstance(record, Record)
    assert isinstance(record.state, Dirty)


def test_a_commit_that_was_recorded_despite_a_stop_is_a_commit() -> None:
    receiver = streaming()
    admit(receiver, 0, 1, 2)
    verify(receiver, 0, 1, 2)
    written(receiver, 0, 1, 2)
    receiver.receive(END)
    receiver.flushed()
    receiver.stop("Ctrl-C")
    (record,) = receiver.samples_taken("6" * 64)
    assert isinstance(record, Record)
    assert isinstance(receiver.recorded(record.state)[-1], Finish)
    assert receiver.drained() == []


def test_a_peers_long_text_does_not_travel_back_whole() -> None:
    receiver = streaming()
    receiver.failed(Code.BUG, "x" * 5000)
    (message, _) = receiver.drained()
    assert message == Send(Abort(Code.BUG, "x" * 1000))


@pytest.mark.parametrize("broken", [Write, Flush])
def test_a_broken_target_is_left_dirty(broken: type[Effect]) -> None:
    host = Host.of(SIZE, BASE, broken=frozenset({broken}))
    finish = host.feed(wire_of(one_way(OPENING, PLAN, frames_of(PLAN, IMAGE))))
    assert finish.code == Code.TARGET
    assert isinstance(host.receiver.target, Dirty)
    assert sum(isinstance(effect, Flush) for effect in host.did) <= 1


# The end of input, time, and calls out of order.


@pytest.mark.parametrize("steps", range(5))
def test_the_end_of_input_before_the_end_is_an_interruption(steps: int) -> None:
    receiver = receiver_at()
    messages: list[Message] = [Hello(duplex=False), OPENING, PlanRows(PLAN.rows())]
    for message in messages[:steps]:
        receiver.receive(message)
    code, text = refused(receiver.end_of_stream)
    assert code is Code.INTERRUPTED
    assert text == ("the input is empty" if not steps else "the stream was cut before its end")


def test_a_duplex_sender_that_hangs_up_before_the_commit_is_cut() -> None:
    receiver = streaming()
    admit(receiver, 0, 1, 2)
    receiver.receive(END)
    assert refused(receiver.end_of_stream)[0] is Code.INTERRUPTED


def test_the_senders_abort_is_an_interruption_in_its_own_words() -> None:
    code, text = refused(streaming().receive, Abort(Code.SOURCE, "snapshot\n\x1b[1mgone"))
    assert (code, text) == (Code.INTERRUPTED, "the sender gave up: snapshot [1mgone")


def test_a_silent_peer_gets_pings_and_is_given_up() -> None:
    receiver = streaming()
    assert receiver.tick(PING_SECONDS - 1) == []
    assert receiver.tick(PING_SECONDS) == [Send(Ping())]
    assert receiver.tick(PING_SECONDS + 1) == []
    assert receiver.receive(Ping(), now=50.0) == []
    assert receiver.tick(IDLE_SECONDS + 49) == [Send(Ping())]
    code, text = refused(receiver.tick, IDLE_SECONDS + 50)
    assert (code, text) == (Code.INTERRUPTED, "the sender was silent for 90 s")


def test_a_one_way_stream_may_be_slow() -> None:
    receiver = receiver_at()
    opened(receiver, duplex=False)
    assert receiver.tick(10 * IDLE_SECONDS) == []


@pytest.mark.parametrize("duplex", [True, False])
def test_after_the_end_time_asks_for_nothing(duplex: bool) -> None:
    receiver = receiver_at(policy=ReceiverPolicy(dry_run=True))
    opened(receiver, duplex=duplex)
    receiver.base_checked("")
    assert receiver.tick(10 * IDLE_SECONDS) == []
    assert receiver.end_of_stream() == []


def test_after_a_commit_time_asks_for_nothing() -> None:
    host = Host.of(SIZE, BASE)
    host.feed(wire_of(one_way(OPENING, PLAN, frames_of(PLAN, IMAGE))))
    assert host.receiver.tick(1e9) == []


def test_calls_out_of_order_are_bugs() -> None:
    fresh = receiver_at()
    for call in (fresh.prepared, fresh.flushed, fresh.read_back, fresh.drained):
        with pytest.raises(LocalProtocolError):
            call()
    with pytest.raises(LocalProtocolError):
        fresh.base_checked("")
    with pytest.raises(LocalProtocolError):
        fresh.samples_taken("")
    with pytest.raises(LocalProtocolError):
        fresh.recorded(HALF)
    receiver = streaming()
    admit(receiver, 0, 1)
    with pytest.raises(LocalProtocolError):
        verify(receiver, 1)


def test_a_table_that_admits_what_nobody_handles_is_a_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RECEIVER[State.GREET], Ack, State.OPENING)
    with pytest.raises(LocalProtocolError, match="no handler for Ack"):
        receiver_at().receive(Ack(0, HEX))


def test_what_cannot_happen_is_a_bug_and_not_a_guess() -> None:
    fresh = receiver_at(Unknown())
    for inside in (fresh._already, fresh._give_up, fresh._known_opening):
        with pytest.raises(LocalProtocolError):
            inside()


# What is granted.


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        (ReceiverPolicy(name="vm"), "for another target"),
        (ReceiverPolicy(largest=SIZE - 1), "4096 bytes, 4095 are allowed"),
        (ReceiverPolicy(bases=frozenset({"a", ""})), "the base 'b' is not allowed"),
    ],
)
def test_an_opening_beyond_what_is_granted_is_refused(policy: ReceiverPolicy, said: str) -> None:
    receiver = receiver_at(policy=policy)
    receiver.receive(Hello(duplex=True))
    with pytest.raises(RemoteProtocolError, match=said) as caught:
        receiver.receive(replace(OPENING, name="other"))
    assert caught.value.code is Code.REFUSED


def test_an_opening_within_what_is_granted_is_taken() -> None:
    policy = ReceiverPolicy(name="vm", largest=SIZE, bases=frozenset({"b"}))
    receiver = receiver_at(policy=policy)
    receiver.receive(Hello(duplex=True))
    assert receiver.receive(replace(OPENING, name="vm")) == []


def _patience(receiver: Receiver, chatter: Callable[[float], object]) -> float:
    """Return for how many seconds a sender is borne that says only this, twice a minute."""
    for now in range(30, 10**6, 30):
        chatter(float(now))
        try:
            receiver.tick(float(now))
        except RemoteProtocolError as error:
            if error.code is Code.INTERRUPTED and "nothing came of what it owes" in str(error):
                return float(now)
            raise
    return math.inf


def _chatter(receiver: Receiver, what: str, now: float) -> None:
    match what:
        case "ping":
            receiver.receive(Ping(), now)
        case "checkpoint" if at(receiver) is State.STREAM:
            receiver.receive(checkpoint(receiver.durable.frames), now)
    receiver.heard(now)  # bytes of a frame that never ends, or of one that is skipped


@pytest.mark.parametrize("what", ["ping", "bytes", "checkpoint"])
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_what_is_owed_has_a_limit_whatever_else_comes(steps: int, what: str) -> None:
    """A session stayed alive for ever by a PING, or one byte, in each minute and a half."""
    receiver = receiver_at() if steps < 3 else streaming()
    messages: list[Message] = [Hello(duplex=True), OPENING]
    for message in messages[:steps] if steps < 3 else []:
        receiver.receive(message)
    assert at(receiver) is [State.OPENING, State.PLANNING, State.STREAM][steps - 1]
    assert _patience(receiver, partial(_chatter, receiver, what)) == OWED_SECONDS


def test_a_frame_pays_what_is_owed_until_the_next_one() -> None:
    receiver = streaming()
    receiver.receive(Extents(FRAMES[0]), OWED_SECONDS - 30)
    verify(receiver, 0)
    assert _patience(receiver, partial(receiver.receive, Ping())) == 2 * OWED_SECONDS - 30


def test_nothing_is_owed_by_a_sender_that_said_all_but_the_end() -> None:
    """END waits until all disks of a set are there, which may take days."""
    receiver = streaming()
    admit(receiver, 0, 1, 2)
    verify(receiver, 0, 1, 2)
    assert _patience(receiver, partial(receiver.receive, Ping())) == math.inf


def test_what_takes_long_here_is_no_debt_of_the_sender() -> None:
    receiver = receiver_at()
    opened(receiver)
    assert at(receiver) is State.DECIDING
    for now in range(60, 6000, 60):
        receiver.receive(Ping(), float(now))
        receiver.tick(float(now))
    receiver.base_checked("")
    (record,) = receiver.prepared()
    assert isinstance(record, Record)
    receiver.recorded(record.state)
    receiver.tick(6000.0)
    for now in range(6060, 12000, 60):
        receiver.busy(float(now))
        receiver.tick(float(now))
    with pytest.raises(RemoteProtocolError, match="owes"):
        _ping_and_tick(receiver, 11940 + OWED_SECONDS)


def _ping_and_tick(receiver: Receiver, now: float) -> None:
    receiver.receive(Ping(), now)
    receiver.tick(now)


def test_a_sender_that_continues_may_read_again_what_is_here() -> None:
    size = 1 << 40
    plan = Plan.whole(size)
    opening = Open(
        size=size,
        base="",
        goal="g",
        plan=plan.digest(new_digest).hex(),
        ranges=1,
        total=size,
    )
    transfer = opening.identity(new_digest).hex()
    half = Dirty("", "g", plan, transfer, 1 << 19, HEX, 1 << 39, 1 << 39)
    receiver = receiver_at(half, size=size)
    receiver.receive(Hello(duplex=True))
    receiver.receive(opening)
    (record,) = receiver.prepared()
    assert isinstance(record, Record)
    receiver.recorded(record.state)
    limit = OWED_SECONDS + (1 << 19)
    last = limit - limit % 30 + 30
    assert _patience(receiver, partial(receiver.receive, Ping())) == last


def test_bytes_of_a_slow_frame_count_as_life() -> None:
    receiver = streaming()
    receiver.heard(IDLE_SECONDS)
    assert receiver.tick(2 * IDLE_SECONDS - 1)
    with pytest.raises(RemoteProtocolError, match="silent"):
        receiver.tick(2 * IDLE_SECONDS)
