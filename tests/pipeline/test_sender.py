"""A sender that hears answers notices a peer that is gone, even while a full pipe holds it."""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import blake3
import pytest

from blockstream.errors import BlockstreamError, ConnectionLostError
from blockstream.linux.streams import widen_pipe
from blockstream.pipeline.frame_sink import PipeSink
from blockstream.pipeline.limiter import Limiter
from blockstream.pipeline.progress import Progress
from blockstream.pipeline.sender import SendEngine, SendOptions
from blockstream.sources.disk import DiskSource
from blockstream_protocol import Ack, Hello, Kind, Open, RemoteProtocolError, Sender
from blockstream_protocol import _sender as sender_module

SIZE = 4 << 20


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for fd in ends:
        os.close(fd)


def engine_for(source: DiskSource, outlet: PipeSink) -> tuple[SendEngine, Sender]:
    extents = source.extents().filled(Kind.DATA)
    plan = extents.plan()
    digest = plan.digest(blake3.blake3).hex()
    opening = Open(SIZE, "", "goal", digest, len(plan), plan.total)
    session = Sender(opening, plan, new_digest=blake3.blake3, duplex=True, now=time.monotonic())
    options = SendOptions(answers=True)
    return SendEngine(session, source, extents, outlet, Progress(), options), session


@pytest.mark.parametrize("speaks", [False, True])
def test_a_peer_that_takes_nothing_and_says_nothing_is_given_up(
    tmp_path: Path, pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch, speaks: bool
) -> None:
    monkeypatch.setattr(sender_module, "IDLE_SECONDS", 0.1)
    monkeypatch.setattr(sender_module, "PING_SECONDS", 0.02)
    disk = tmp_path / "disk"
    disk.write_bytes(os.urandom(SIZE))
    failed: list[BaseException] = []
    with (
        closing(DiskSource(str(disk))) as source,
        closing(PipeSink(pipe[1], Limiter(None), Progress())) as outlet,
    ):
        engine, session = engine_for(source, outlet)

        def run() -> None:
            try:
                engine.run()
            except (ConnectionLostError, RemoteProtocolError) as error:
                failed.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        if speaks:  # so that workers fill the pipe, which nobody reads
            engine.receive(Hello(duplex=True))
            engine.receive(Ack(0, session.transfer))
        deadline = time.monotonic() + 10
        while thread.is_alive() and time.monotonic() < deadline:
            engine.tick()
            thread.join(0.01)
        assert not thread.is_alive()
    assert isinstance(failed[0], ConnectionLostError)
    assert "silent" in str(failed[0])


@pytest.mark.parametrize("trusts", [False, True])
def test_a_source_that_cannot_change_is_read_again_unless_it_is_surely_the_same(
    tmp_path: Path, pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch, trusts: bool
) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(os.urandom(SIZE))
    read: list[int] = []
    real = DiskSource.read_into

    def noted(self: DiskSource, offsets: list[int], lengths: list[int], buffer: memoryview) -> None:
        read.extend(offsets)
        real(self, offsets, lengths, buffer)

    monkeypatch.setattr(DiskSource, "read_into", noted)
    widen_pipe(pipe[1])
    with (
        closing(DiskSource(str(disk))) as source,
        closing(PipeSink(pipe[1], Limiter(None), Progress())) as outlet,
    ):
        source.immutable = True
        engine, _ = engine_for(source, outlet)
        engine._options.may_trust = lambda: trusts
        thread = threading.Thread(target=lambda: _quietly(engine), daemon=True)
        thread.start()
        engine.receive(Hello(duplex=True))
        engine.receive(Ack(3, "0" * 64))
        deadline = time.monotonic() + 10
        while not read and time.monotonic() < deadline:
            time.sleep(0.001)
        engine.fail(ConnectionLostError("enough"))
        thread.join(10)
        assert not thread.is_alive()
    assert min(read) == (3 << 20 if trusts else 0)


def test_a_peer_that_greets_twice_breaks_a_rule(tmp_path: Path, pipe: tuple[int, int]) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(SIZE))
    with (
        closing(DiskSource(str(disk))) as source,
        closing(PipeSink(pipe[1], Limiter(None), Progress())) as outlet,
    ):
        engine, session = engine_for(source, outlet)
        engine._options.choose = lambda _hello: session._opening
        engine.perform(session.start())
        engine.receive(Hello(duplex=True))
        with pytest.raises(RemoteProtocolError, match="Hello came when"):
            engine.receive(Hello(duplex=True))


def _quietly(engine: SendEngine) -> None:
    with suppress(ConnectionLostError, BlockstreamError):
        engine.run()
