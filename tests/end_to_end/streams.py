"""Streams made and taken in this process, for tests that do it hundreds of times."""

import asyncio
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from blockstream.captures.options import CaptureOptions, StateOptions
from blockstream.captures.plain import PlainCapture
from blockstream.errors import NotFoundError
from blockstream.locations.local import LocalDisk
from blockstream.pipeline.compression import CompressionChoice
from blockstream.pipeline.target_status import read_status
from blockstream.pipeline.token import ResumeToken
from blockstream.run import Run
from blockstream.transfers.receive import ReceiveResult, receive
from blockstream.transfers.receive_options import ReceiveRequest
from blockstream.transfers.send import TransferOptions, send
from blockstream_protocol import HEAD_BYTES, MAGIC, Clean, Dirty, FrameType
from tests.running import entered, nothing_held


@contextmanager
def checkpoints_every(count: int) -> Iterator[None]:
    """Let senders of this process mark every `count` bytes: small disks have many barriers then."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("blockstream_protocol._sender.CHECKPOINT_BYTES", count)
        yield


@dataclass(frozen=True)
class Sent:
    """What is sent into a file.

    Attributes:
        source: The disk.
        state_dir: Where the sender remembers it.
        base: As `send --base`.
        goal: As `send --goal`.
        extents: As `send --extents`.
        resume: As `send --resume`.
    """

    source: str
    state_dir: Path
    base: str = ""
    goal: str = ""
    extents: str = ""
    resume: ResumeToken | None = None


def stored(what: Sent, path: Path) -> Path:
    """Send into a file."""
    states = StateOptions(what.base, what.goal, what.extents, what.resume)
    capture = PlainCapture(LocalDisk(what.source), CaptureOptions(what.state_dir, states))
    how = TransferOptions(what.state_dir, CompressionChoice(0), resume=what.resume)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    try:
        with entered(capture.open(nothing_held, Run())) as (disk,):
            asyncio.run(send(disk, how, fd, Run()))
    finally:
        os.close(fd)
    return path


def taken(request: ReceiveRequest, stream: Path) -> ReceiveResult:
    """Receive from a file."""
    fd = os.open(stream, os.O_RDONLY)
    try:
        return asyncio.run(receive(request, fd, Run()))
    finally:
        os.close(fd)


def taken_with_barriers(request: ReceiveRequest, stream: Path, *, ahead: int = 0) -> ReceiveResult:
    """Receive from a pipe that gives the next part when the checkpoint before it is durable.

    So every checkpoint has its barrier. With `ahead` that many more parts come before, so that
    their writes meet the barriers of others.
    """
    read_end, write_end = os.pipe()
    ended = threading.Event()
    feeder = threading.Thread(target=_feed, args=(request, stream, write_end, ended, ahead))
    feeder.start()
    try:
        return asyncio.run(receive(request, read_end, Run()))
    finally:
        ended.set()
        os.close(read_end)
        feeder.join()


def _feed(
    request: ReceiveRequest, stream: Path, fd: int, ended: threading.Event, ahead: int
) -> None:
    marks = [0] * (ahead + 1)
    with suppress(BrokenPipeError), os.fdopen(fd, "wb", buffering=0) as pipe:
        for part, frames in _parts(stream.read_bytes()):
            while _durable_frames(request.state_dir) < marks[-1 - ahead] and not ended.wait(0.002):
                continue
            marks.append(frames)
            while part:
                part = part[pipe.write(part) :]


def _parts(stream: bytes) -> Iterator[tuple[bytes, int]]:
    """Cut a stream after its checkpoints; give each part and how many data frames end there."""
    start, position, frames = 0, len(MAGIC), 0
    while position < len(stream):
        kind = FrameType(stream[position])
        position += HEAD_BYTES + int.from_bytes(stream[position + 6 : position + 10], "little")
        frames += kind is FrameType.EXTENTS
        if kind is FrameType.CHECKPOINT or position == len(stream):
            yield stream[start:position], frames
            start = position


def _durable_frames(state_dir: Path) -> int:
    for folder in (state_dir / "targets").glob("*/journal"):
        with suppress(NotFoundError):  # made, but nothing is recorded yet
            state = read_status(folder.parent).state
            if isinstance(state, Dirty | Clean):
                return state.frames
    return 0
