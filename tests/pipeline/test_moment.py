"""The moment of a state travels beside it, also over lanes; who does not know it skips it."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, closing

import pytest

from blockstream.linux.streams import WakeableReader
from blockstream.pipeline.frame_sink import PipeSink
from blockstream.pipeline.limiter import Limiter
from blockstream.pipeline.progress import Progress
from blockstream.pipeline.receiver import FrameReader
from blockstream_protocol import FrameType, Hello, Message, Moment, Open, Ping
from blockstream_protocol import _frames as frames_module

OPENING = Open(4096, "", "g", "0" * 64, 1, 4096)
SAID: list[Message] = [Hello(), Moment(7), OPENING, Ping(), Ping(), Ping(), Ping()]


def heard(lanes: int) -> Iterator[FrameType]:
    """Say all of it over so many lanes; give the types of what is read from them."""
    with ExitStack() as stack:
        pipes = [os.pipe() for _ in range(lanes)]
        for fd in (fd for pipe in pipes for fd in pipe):
            stack.callback(os.close, fd)
        reading, writing = zip(*pipes, strict=True)
        with closing(PipeSink(writing[0], Limiter(None), Progress(), *writing[1:])) as outlet:
            for message in SAID:
                outlet.send(message)
        readers = [stack.enter_context(closing(WakeableReader(fd))) for fd in reading]
        frames = FrameReader(*readers)
        for _ in range(len(SAID) - 1):
            frame = frames.next(memoryview(bytearray(1 << 16)))
            if frame is not None:
                yield frame.kind


@pytest.mark.parametrize("lanes", [1, 2, 3])
@pytest.mark.parametrize("known", [True, False], ids=["known", "skipped"])
def test_the_moment_is_read_or_skipped_and_all_else_keeps_its_order(
    monkeypatch: pytest.MonkeyPatch, lanes: int, *, known: bool
) -> None:
    if not known:  # as by the versions before it
        monkeypatch.setattr(frames_module, "_KNOWN", frames_module._KNOWN - {FrameType.MOMENT})
    kinds = list(heard(lanes))
    assert (FrameType.MOMENT in kinds) == known
    rest = [kind for kind in kinds if kind is not FrameType.MOMENT]
    wanted = [FrameType.HELLO, FrameType.OPEN, *[FrameType.PING] * 4]
    assert rest == wanted[: len(rest)]
