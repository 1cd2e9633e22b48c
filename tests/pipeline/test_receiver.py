"""No error is forgotten for another's sake, and no flush is tried twice."""

import os
import time
from collections.abc import Callable
from contextlib import closing

import blake3
import pytest

from blockstream.errors import IntegrityError, InterruptedTransferError, ReadBackError, TargetError
from blockstream.linux.streams import WakeableReader
from blockstream.pipeline.progress import Progress
from blockstream.pipeline.receiver import Applying, FrameReader, ReceiveEngine
from blockstream.pipeline.samples import BaseCheck
from blockstream_protocol import (
    IDLE_SECONDS,
    MAGIC,
    Checkpoint,
    Effect,
    End,
    Extent,
    Extents,
    Frame,
    FrameType,
    Hello,
    Kind,
    Open,
    Plan,
    Receiver,
    Table,
    TargetState,
    Unknown,
    Verify,
    Write,
    control_frame,
    encode,
    encode_table,
    parse_table,
    plain_frame,
)

SIZE = 8192


class CountingApplier:
    """An applier that keeps nothing, and counts flushes and records."""

    def __init__(self) -> None:
        self.flushes = 0
        self.records: list[TargetState] = []
        self.broken: BaseException | None = None

    def prepare(
        self, opening: Open, plan: Plan, *, resumed: bool, first: int, moment: int | None
    ) -> None:
        pass

    def record(self, state: TargetState) -> None:
        self.records.append(state)

    def write(self, seq: int, frame: Frame, table: Table) -> None:
        pass

    def flush(self) -> None:
        self.flushes += 1
        if self.broken is not None:
            raise self.broken

    def read_back(self, frame_digest: bytes, extents: list[Extent]) -> None:
        pass

    def leave(self) -> None:
        pass

    def check_base(self, samples: str) -> BaseCheck:
        return BaseCheck()

    def samples(self) -> str:
        return ""


@pytest.fixture
def applier() -> CountingApplier:
    return CountingApplier()


@pytest.fixture
def applying(applier: CountingApplier) -> Applying:
    """Return a receiver that took one frame and a checkpoint whose flush is still to come."""
    session = Receiver(size=SIZE, state=Unknown(), new_digest=blake3.blake3)
    result = Applying(session, applier, Progress())
    plan = Plan.whole(SIZE)
    digest = plan.digest(blake3.blake3).hex()
    opening = Open(size=SIZE, base="", goal="g", plan=digest, ranges=1, total=SIZE)
    result.perform(session.receive(Hello()))
    result.perform(session.receive(opening))
    raw = encode_table([Extent(0, 4096, Kind.DATA)]) + b"x" * 4096
    frame = plain_frame(FrameType.EXTENTS, raw, blake3.blake3)
    chain = blake3.blake3(opening.identity(blake3.blake3) + frame.digest).hexdigest()
    effects = session.receive(Extents(frame))
    assert isinstance(effects[0], Verify)
    (write,) = session.verified(0, parse_table(raw).extents)
    assert isinstance(write, Write)
    assert session.receive(Checkpoint(1, chain)) == []
    waiting: list[Effect] = session.written(0)
    assert len(waiting) == 1
    return result


def test_a_cut_is_followed_by_one_last_barrier(
    applying: Applying, applier: CountingApplier
) -> None:
    error = applying.given_up([InterruptedTransferError("cut")])
    assert isinstance(error, InterruptedTransferError)
    assert applier.flushes == 1
    assert applying.session.durable.frames == 1


@pytest.mark.parametrize(
    "later", [TargetError("EIO"), ReadBackError("differs")], ids=["flush", "read back"]
)
def test_a_bad_target_after_a_cut_is_flushed_no_more(
    applying: Applying, applier: CountingApplier, later: BaseException
) -> None:
    error = applying.given_up([InterruptedTransferError("cut"), later])
    assert isinstance(error, BaseExceptionGroup)
    assert error.exceptions[0] is later
    assert applier.flushes == 0
    assert applying.session.durable.frames == 0


def test_a_bad_frame_that_came_before_a_cut_decides_although_it_was_found_later(
    applying: Applying, applier: CountingApplier
) -> None:
    bad = IntegrityError("no table")
    error = applying.given_up([InterruptedTransferError("cut"), bad])
    assert isinstance(error, BaseExceptionGroup)
    assert error.exceptions[0] is bad
    assert applier.flushes == 1


def test_a_last_barrier_that_fails_is_not_repeated(
    applying: Applying, applier: CountingApplier
) -> None:
    applier.broken = TargetError("EIO")
    error = applying.given_up([InterruptedTransferError("cut")])
    assert isinstance(error, BaseExceptionGroup)
    assert applier.flushes == 1
    assert len(applier.records) == 1


class SlowApplier(CountingApplier):
    """An applier that takes its time; meanwhile the clock ticks."""

    def __init__(self, pause: Callable[[], None]) -> None:
        super().__init__()
        self._pause = pause

    def prepare(
        self, opening: Open, plan: Plan, *, resumed: bool, first: int, moment: int | None
    ) -> None:
        self._pause()

    def flush(self) -> None:
        super().flush()
        self._pause()


def test_a_sender_is_not_silent_while_nobody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Undo logs and flushes took longer than a sender may be silent: it had pinged all the time."""
    now = [0.0]

    def pause() -> None:
        for _ in range(3):
            now[0] += IDLE_SECONDS / 2
            receiving.tick()

    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    plan = Plan.whole(SIZE)
    digest = plan.digest(blake3.blake3).hex()
    opening = Open(size=SIZE, base="", goal="g", plan=digest, ranges=1, total=SIZE)
    raw = encode_table([Extent(0, SIZE, Kind.DATA)]) + b"x" * SIZE
    frame = plain_frame(FrameType.EXTENTS, raw, blake3.blake3)
    chain = blake3.blake3(opening.identity(blake3.blake3) + frame.digest).hexdigest()
    said = [control_frame(each, blake3.blake3) for each in (Hello(duplex=True), opening)]
    said += [frame, control_frame(End(1, chain, SIZE), blake3.blake3)]
    session = Receiver(size=SIZE, state=Unknown(), new_digest=blake3.blake3)
    applier = SlowApplier(pause)
    reading, writing = os.pipe()
    try:
        os.write(writing, MAGIC + b"".join(encode(each) for each in said))
        with closing(WakeableReader(reading)) as reader:
            applying = Applying(session, applier, Progress(), lambda _message: None)
            frames = FrameReader(reader)
            receiving = ReceiveEngine(applying, frames, Progress(), workers=1)
            finish = receiving.run()
    finally:
        os.close(reading)
        os.close(writing)
    assert (finish.code, applier.flushes) == (0, 1)
