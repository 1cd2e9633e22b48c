"""The sender believes nothing that its own frames do not prove."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from blockstream_protocol import (
    CHECKPOINT_BYTES,
    CHECKPOINT_SECONDS,
    IDLE_SECONDS,
    OWED_SECONDS,
    PING_SECONDS,
    SENDER,
    Abort,
    Ack,
    Checkpoint,
    Clean,
    Code,
    Committed,
    Dirty,
    End,
    Extents,
    Finish,
    Frame,
    Hello,
    LocalProtocolError,
    Message,
    Open,
    Ping,
    Plan,
    PlanRows,
    ReceiverPolicy,
    RecordIntent,
    Refuse,
    RemoteProtocolError,
    Send,
    Sender,
    State,
    Stream,
    Unknown,
    Validate,
    link,
)
from blockstream_protocol import _plan as plan_module
from blockstream_protocol import _sender as sender_module
from tests.protocol.host import (
    Host,
    Source,
    converse,
    frames_of,
    new_digest,
    opening_of,
    sectors,
)

SIZE = 4096
PLAN = sectors(0, 1, 3, size=SIZE)
IMAGE = b"n" * 512 + bytes(512) + b"n" * 3072
FRAMES = frames_of(PLAN, IMAGE)
OPENING = opening_of(PLAN, size=SIZE, base="b")
HEX = "1" * 64
BASE = Clean("b", "", Plan.whole(SIZE), HEX, 1, HEX, samples="5" * 64)


def chain_at(count: int, opening: Open = OPENING) -> str:
    chain = opening.identity(new_digest)
    for frame, _ in FRAMES[:count]:
        chain = link(new_digest, chain, frame.digest)
    return chain.hex()


COMMITTED = Committed(OPENING.identity(new_digest).hex(), "g", 3, chain_at(3), 1536)


def sender_of(opening: Open = OPENING, *, duplex: bool = True, plan: Plan = PLAN) -> Sender:
    return Sender(opening, plan, new_digest=new_digest, duplex=duplex, software="test")


def streaming(acked: int = 0) -> Sender:
    sender = sender_of()
    sender.start()
    sender.receive(Hello(duplex=True))
    sender.receive(Ack(acked, chain_at(acked)))
    return sender


def ended() -> Sender:
    sender = streaming()
    for frame, covered in FRAMES:
        sender.frame(frame, covered)
    sender.source_ended()
    sender.validated()
    sender.intent_recorded()
    return sender


def refused(call: Callable[..., object], *arguments: object) -> tuple[Code, str]:
    with pytest.raises(RemoteProtocolError) as caught:
        call(*arguments)
    return caught.value.code, str(caught.value)


def at(sender: Sender) -> State:
    return sender.state


# The whole way.


def test_every_step_waits_for_the_one_before() -> None:
    sender = sender_of()
    assert sender.start() == [Send(Hello(duplex=True, software="test"))]
    effects = sender.receive(Hello(duplex=True))
    assert effects == [Send(OPENING), Send(PlanRows(PLAN.rows()))]
    assert sender.receive(Ack(0, chain_at(0))) == [Stream(0, bytes.fromhex(chain_at(0)))]
    for frame, covered in FRAMES:
        assert sender.frame(frame, covered) == [Send(Extents(frame))]
    assert sender.receive(Ack(2, chain_at(2))) == []
    assert sender.acked == 2
    assert sender.source_ended() == [Validate()]
    assert sender.validated() == [RecordIntent(COMMITTED)]
    assert at(sender) is State.STREAM
    assert sender.intent_recorded() == [Send(End(3, chain_at(3), 1536))]
    assert at(sender) is State.ENDING
    assert sender.receive(Ack(3, chain_at(3))) == []
    assert sender.receive(COMMITTED) == [Finish(0, committed=COMMITTED)]
    assert at(sender) is State.DONE
    assert sender.end_of_stream() == []
    assert sender.transfer == COMMITTED.transfer


def test_a_one_way_sender_says_everything_and_promises_nothing_of_the_outcome() -> None:
    source = Source(sender_of(duplex=False), FRAMES)
    source.run(source.sender.start())
    kinds = [type(message) for message in source.sent]
    assert kinds == [Hello, Open, PlanRows, Extents, Extents, Extents, End]
    assert source.finish == Finish(0, committed=COMMITTED)
    assert source.sender.end_of_stream() == []


def test_a_full_copy_sends_no_plan() -> None:
    plan = Plan.whole(SIZE)
    sender = sender_of(opening_of(plan, size=SIZE), duplex=False, plan=plan)
    kinds = [type(effect.message) for effect in sender.start() if isinstance(effect, Send)]
    assert kinds == [Hello, Open]


def test_a_large_plan_travels_in_several_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_module, "PLAN_FRAME_BYTES", 16)
    monkeypatch.setattr(sender_module, "PLAN_FRAME_BYTES", 16, raising=False)
    sender = sender_of()
    sender.start()
    effects = sender.receive(Hello(duplex=True))
    rows = PLAN.rows()
    assert effects == [Send(OPENING), Send(PlanRows(rows[:16])), Send(PlanRows(rows[16:]))]


# Both sides together.


@pytest.mark.parametrize("trusts", [False, True])
def test_both_sides_agree(trusts: bool) -> None:
    host = Host.of(b"o" * SIZE, BASE)
    source = Source(sender_of(), FRAMES, trusts)
    converse(source, host)
    assert source.finish.committed == host.finish.committed == COMMITTED
    assert host.image == b"n" * 512 + bytes(512) + b"o" * 512 + b"n" * 512 + b"o" * 2048


@pytest.mark.parametrize("trusts", [False, True])
def test_a_cut_transfer_continues_where_it_was_durable(trusts: bool) -> None:
    half = Dirty("b", "g", PLAN, COMMITTED.transfer, 2, chain_at(2), 1024, 1024)
    host = Host.of(SIZE, half)
    source = Source(sender_of(), FRAMES, trusts)
    converse(source, host)
    assert source.finish.committed == COMMITTED
    assert [type(message) for message in source.sent].count(Extents) == 1
    assert source.sender.acked in {2, 3}


def test_a_commit_that_was_not_heard_is_found_the_next_time() -> None:
    host = Host.of(SIZE, BASE)
    source = Source(sender_of(), FRAMES)
    converse(source, host, swallow=Committed)
    code, _ = refused(source.sender.end_of_stream)
    assert code is Code.UNKNOWN
    again, second = Source(sender_of(), FRAMES), Host.of(SIZE, host.receiver.target)
    converse(again, second)
    assert again.finish == Finish(0, committed=COMMITTED, written=False)
    assert not any(isinstance(message, Extents) for message in again.sent)
    assert second.recorded == []


def test_a_refusal_reaches_the_sender() -> None:
    host = Host.of(SIZE, Unknown())
    source = Source(sender_of(), FRAMES)
    source.run(source.sender.start())
    for message in (*source.sent, OPENING):
        host.take(message)
    assert refused(host.take, PlanRows(PLAN.rows()))[0] is Code.REFUSED
    host.run(host.receiver.failed(Code.REFUSED, "no"))
    host.run(host.receiver.drained())
    source.take(host.sent[0])
    code, text = refused(source.take, host.sent[1])
    assert (code, text) == (Code.REFUSED, "no")


def test_a_dry_run_tells_the_sender_nothing_and_hangs_up() -> None:
    host = Host.of(SIZE, BASE, ReceiverPolicy(dry_run=True))
    source = Source(sender_of(), FRAMES)
    converse(source, host)
    assert host.finish == Finish(0, written=False)
    assert refused(source.sender.end_of_stream)[0] is Code.INTERRUPTED


# Resume.


def test_frames_before_the_resume_point_are_proved_not_sent() -> None:
    sender = streaming(acked=2)
    assert sender.replayed(FRAMES[0][0].digest, 512) == []
    with pytest.raises(LocalProtocolError):
        sender.frame(*FRAMES[2])
    assert sender.replayed(FRAMES[1][0].digest, 512) == []
    assert sender.frame(*FRAMES[2]) == [Send(Extents(FRAMES[2][0]))]
    assert sender.source_ended() == [Validate()]
    assert sender.validated() == [RecordIntent(COMMITTED)]


def test_a_source_that_changed_before_the_resume_point_is_refused() -> None:
    sender = streaming(acked=2)
    sender.replayed(FRAMES[0][0].digest, 512)
    code, text = refused(sender.replayed, bytes(32), 512)
    assert (code, "not what it was" in text) == (Code.SOURCE, True)


def test_a_source_that_cannot_change_believes_the_chain() -> None:
    sender = streaming(acked=2)
    assert sender.trusted(1024) == []
    assert sender.frame(*FRAMES[2]) == [Send(Extents(FRAMES[2][0]))]
    assert sender.source_ended() == [Validate()]


def test_a_start_from_nothing_must_be_our_own_transfer() -> None:
    sender = sender_of()
    sender.start()
    sender.receive(Hello(duplex=True))
    assert refused(sender.receive, Ack(0, HEX))[0] is Code.SOURCE


def test_a_one_way_sender_continues_from_its_token() -> None:
    opening = replace(OPENING, frames=2, chain=chain_at(2))
    source = Source(sender_of(opening, duplex=False), FRAMES)
    source.run(source.sender.start())
    assert [type(message) for message in source.sent] == [Hello, Open, PlanRows, Extents, End]
    assert source.finish.committed == COMMITTED


@pytest.mark.parametrize("given", [0, 1, 2])
def test_a_source_that_gives_less_than_planned_is_not_the_source(given: int) -> None:
    sender = streaming()
    for frame, covered in FRAMES[:given]:
        sender.frame(frame, covered)
    for end in (sender.settle, sender.source_ended):
        code, text = refused(end)
        assert code is Code.SOURCE
        assert text.startswith(f"the source gave {given * 512} of 1536 planned bytes in {given} fr")


def test_a_source_that_ends_before_the_resume_point_is_not_the_source() -> None:
    sender = streaming(acked=3)
    sender.replayed(FRAMES[0][0].digest, 1536)
    assert refused(sender.settle)[0] is Code.SOURCE
    assert refused(sender.source_ended)[0] is Code.SOURCE


# COMMITTED.


@pytest.mark.parametrize(
    "other",
    [
        replace(COMMITTED, transfer=HEX),
        replace(COMMITTED, goal="h"),
        replace(COMMITTED, frames=2),
        replace(COMMITTED, chain=HEX),
        replace(COMMITTED, total=1535),
    ],
    ids=["transfer", "goal", "frames", "chain", "total"],
)
def test_a_commit_of_something_else_is_no_commit(other: Committed) -> None:
    code, text = refused(ended().receive, other)
    assert (code, "something else" in text) == (Code.UNKNOWN, True)


def already(committed: Committed) -> Sender:
    sender = sender_of()
    sender.start()
    sender.receive(Hello(duplex=True))
    chain = bytes.fromhex(committed.chain)
    assert sender.receive(committed) == [Stream(committed.frames, chain)]
    return sender


def test_a_goal_that_is_there_already_is_believed_after_comparison() -> None:
    sender = already(COMMITTED)
    for frame, covered in FRAMES:
        assert sender.replayed(frame.digest, covered) == []
    assert sender.source_ended() == [Validate()]
    assert sender.validated() == [Finish(0, committed=COMMITTED, written=False)]
    assert at(sender) is State.DONE


def test_a_goal_that_is_there_with_another_content_is_refused() -> None:
    sender = already(replace(COMMITTED, frames=1, chain=HEX))
    code, text = refused(sender.replayed, FRAMES[0][0].digest, 512)
    assert (code, text) == (
        Code.REFUSED,
        "the target already holds 'g', but by another transfer, or with another content; "
        "nothing was written; give this state another name",
    )


@pytest.mark.parametrize(
    "other",
    [replace(COMMITTED, transfer=HEX), replace(COMMITTED, goal="h")],
    ids=["transfer", "goal"],
)
def test_the_commit_of_another_transfer_is_never_ours(other: Committed) -> None:
    sender = sender_of()
    sender.start()
    sender.receive(Hello(duplex=True))
    code, text = refused(sender.receive, other)
    assert (code, "with another content" in text) == (Code.REFUSED, True)


def test_a_receiver_that_holds_the_goal_may_hang_up_while_we_compare() -> None:
    sender = already(COMMITTED)
    assert sender.end_of_stream() == []
    assert sender.tick(10 * IDLE_SECONDS) == []


# What a receiver may say, and may not.


@pytest.mark.parametrize("frames", [1, 4])
def test_acknowledgements_never_go_back_nor_ahead(frames: int) -> None:
    sender = streaming()
    for frame, covered in FRAMES:
        sender.frame(frame, covered)
    sender.receive(Ack(2, chain_at(2)))
    code, text = refused(sender.receive, Ack(frames, HEX))
    assert (code, text) == (Code.INTEGRITY, f"the receiver acknowledged {frames} frames")


@pytest.mark.parametrize(
    ("code", "means"), [(13, Code.TARGET), (12, Code.INTEGRITY), (0, Code.INTERRUPTED), (99, 11)]
)
def test_an_abort_ends_it_with_the_receivers_code(code: int, means: int) -> None:
    assert refused(streaming().receive, Abort(code, "\x1b[1mno\nspace")) == (means, "[1mno space")


@pytest.mark.parametrize("answer", [Hello(version=2), Hello(digest="x")])
def test_a_receiver_of_another_version_is_refused(answer: Hello) -> None:
    sender = sender_of()
    sender.start()
    assert refused(sender.receive, answer)[0] is Code.REFUSED


@pytest.mark.parametrize(
    ("answers", "code"),
    [([], Code.INTERRUPTED), ([Hello(duplex=True)], Code.INTERRUPTED)],
)
def test_a_receiver_that_hangs_up_early_is_a_cut(answers: list[Message], code: Code) -> None:
    sender = sender_of()
    sender.start()
    for answer in answers:
        sender.receive(answer)
    assert refused(sender.end_of_stream)[0] is code


def test_a_connection_lost_after_the_end_leaves_the_outcome_unknown() -> None:
    assert refused(ended().end_of_stream)[0] is Code.UNKNOWN
    assert refused(ended().tick, IDLE_SECONDS) == (
        Code.UNKNOWN,
        "the receiver was silent for 90 s",
    )


# Time and checkpoints.


def test_a_silent_receiver_gets_pings_and_is_given_up() -> None:
    sender = streaming()
    assert sender.tick(PING_SECONDS - 1) == []
    assert sender.tick(PING_SECONDS) == [Send(Ping())]
    assert sender.tick(PING_SECONDS + 1) == []
    sender.frame(*FRAMES[0], now=40.0)
    assert sender.tick(40.0 + PING_SECONDS - 1) == [], "a frame is as good as a ping"
    assert sender.receive(Ping(), now=50.0) == []
    assert sender.tick(IDLE_SECONDS + 49) == [Send(Ping())]
    assert refused(sender.tick, IDLE_SECONDS + 50)[0] is Code.INTERRUPTED


def test_a_receiver_that_only_pings_is_given_up() -> None:
    sender = sender_of()
    sender.start()
    for now in range(60, int(OWED_SECONDS), 60):
        sender.receive(Ping(), float(now))
        sender.tick(float(now))
    sender.receive(Ping(), OWED_SECONDS)
    code, text = refused(sender.tick, OWED_SECONDS)
    assert (code, "did not say HELLO" in text) == (Code.INTERRUPTED, True)


def test_what_a_receiver_does_takes_what_it_takes() -> None:
    for sender in (streaming(), ended()):
        for now in range(60, 100 * int(OWED_SECONDS), 60):
            sender.receive(Ping(), float(now))
            sender.tick(float(now))


def test_a_one_way_sender_has_nobody_to_ping() -> None:
    sender = sender_of(duplex=False)
    sender.start()
    assert sender.tick(10 * IDLE_SECONDS) == []


def test_a_checkpoint_comes_with_time() -> None:
    sender = streaming()
    assert len(sender.frame(*FRAMES[0], now=CHECKPOINT_SECONDS - 0.1)) == 1
    effects = sender.frame(*FRAMES[1], now=CHECKPOINT_SECONDS)
    assert effects[1:] == [Send(Checkpoint(2, chain_at(2)))]
    assert len(sender.frame(*FRAMES[2], now=2 * CHECKPOINT_SECONDS - 0.1)) == 1
    # One that stops asks once for what is not asked for yet.
    assert sender.interrupted() == [Send(Checkpoint(3, chain_at(3)))]
    assert sender.interrupted() == []


def test_a_checkpoint_comes_with_bytes() -> None:
    sender = streaming()
    frame = FRAMES[0][0]
    large = Frame(frame.kind, frame.codec, CHECKPOINT_BYTES - 1, frame.digest, b"")
    assert len(sender.frame(large, 512)) == 1
    assert len(sender.frame(frame, 512)) == 2
    assert len(sender.frame(frame, 512)) == 1


# Failures, and calls out of order.


def test_a_failure_is_told_and_ends_it() -> None:
    sender = streaming()
    assert sender.failed(Code.SOURCE, "x" * 5000) == [
        Send(Abort(Code.SOURCE, "x" * 1000)),
        Finish(Code.SOURCE, "x" * 5000),
    ]
    assert sender.failed(Code.SOURCE, "again") == []
    assert sender.tick(1e9) == []


def test_calls_out_of_order_are_bugs() -> None:
    with pytest.raises(LocalProtocolError):
        sender_of().frame(*FRAMES[0])
    with pytest.raises(LocalProtocolError):
        sender_of().intent_recorded()


def test_a_refusal_before_hello_is_heard() -> None:
    sender = sender_of()
    sender.start()
    assert refused(sender.receive, Refuse(10, "busy")) == (Code.REFUSED, "busy")


def test_a_table_that_admits_what_nobody_handles_is_a_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SENDER[State.GREET], End, State.OPENING)
    with pytest.raises(LocalProtocolError, match="no handler for End"):
        sender_of().receive(End(0, HEX, 0))


# Another goal.


def test_a_sender_that_heard_what_is_unfinished_opens_with_its_goal() -> None:
    sender = sender_of()
    sender.start()
    aimed = replace(OPENING, goal="unfinished")
    sender.aim(aimed)
    (opening, *_) = sender.receive(Hello(duplex=True))
    assert opening == Send(aimed)
    assert sender.transfer == aimed.identity(new_digest).hex()


def test_an_opening_cannot_change_once_it_was_sent_nor_its_plan() -> None:
    with pytest.raises(LocalProtocolError, match="too late"):
        streaming().aim(replace(OPENING, goal="other"))
    with pytest.raises(LocalProtocolError, match="another plan"):
        sender_of().aim(replace(OPENING, plan=HEX))


@pytest.mark.parametrize("late", [Ack(0, HEX), COMMITTED, Refuse(10, "no"), Abort(11, "no")])
def test_what_was_on_its_way_when_we_gave_up_changes_nothing(late: Message) -> None:
    sender = streaming()
    sender.failed(Code.SOURCE, "the disk is gone")
    assert sender.receive(late) == []


@pytest.mark.parametrize("sender", [streaming, ended])
def test_a_refusal_counts_at_any_time(sender: Callable[[], Sender]) -> None:
    code, said = refused(sender().receive, Refuse(10, "it does not fit any more"))
    assert (code, said) == (Code.REFUSED, "it does not fit any more")


def test_what_was_sent_is_settled_when_it_is_acknowledged() -> None:
    sender = streaming()
    for frame, covered in FRAMES:
        sender.frame(frame, covered)
    assert sender.settle() == [Send(Checkpoint(3, chain_at(3)))]
    assert not sender.settled
    sender.receive(Ack(2, chain_at(2)))
    assert not sender.settled
    sender.receive(Ack(3, chain_at(3)))
    assert sender.settled
    assert sender.settle() == []
    assert sender.source_ended() == [Validate()]
