"""Many jobs share one process and one loop; what stops one of them leaves the others alone."""

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from blockstream.captures.interface import Captured
from blockstream.errors import InterruptedTransferError
from blockstream.locations.ssh import Remote, Way
from blockstream.pipeline.target_status import status_at
from blockstream.run import Run
from blockstream.sources.disk import DiskSource
from blockstream.transfers.copy import copy
from blockstream.transfers.peer_options import PeerOptions
from blockstream.transfers.push import push
from blockstream.transfers.receive_options import ReceiveRequest
from blockstream.transfers.send import TransferOptions
from blockstream_protocol import Clean, Dirty
from tests.end_to_end.far_host import far_command, far_status
from tests.end_to_end.hosts import Host

MIB = 1 << 20
COPIES, PUSHES = 10, 2

pytestmark = pytest.mark.slow


class HeldSource(DiskSource):
    """A disk of which the second half is not read before everybody may."""

    def __init__(self, path: str, gate: threading.Event) -> None:
        super().__init__(path)
        self._gate = gate
        self.waits = threading.Event()

    def read_into(self, offsets: Sequence[int], lengths: Sequence[int], buffer: memoryview) -> None:
        """Read, once that is allowed."""
        if offsets[0] >= self.size // 2:
            self.waits.set()
            assert self._gate.wait(60)
        super().read_into(offsets, lengths, buffer)


@dataclass
class Job:
    """One disk on its way.

    Attributes:
        disk: What is sent.
        target: Where it goes.
        source: Reads it.
        work: Sends it.
        run: What it was handed.
    """

    disk: Path
    target: Path
    source: HeldSource
    work: Callable[[Run], Awaitable[object]]
    run: Run = field(default_factory=Run)


def copying(host: Host, number: int, gate: threading.Event) -> Job:
    """Return a copy on this host."""
    disk, target = host.disk(f"disk-{number}", 4 * MIB), host.folder / f"copy-{number}"
    source, state = HeldSource(str(disk), gate), host.folder / "state"
    what = Captured(disk.name, str(disk), source, f"goal-{number}")
    how = TransferOptions(state, target=str(target))
    where = ReceiveRequest(str(target), state, create=not target.exists())
    return Job(disk, target, source, lambda run: copy(what, how, where, run))


def pushing(host: Host, number: int, gate: threading.Event) -> Job:
    """Return a transfer to another host."""
    disk, target = host.disk(f"disk-{number}", 4 * MIB), host.folder / f"copy-{number}"
    source, state = HeldSource(str(disk), gate), host.folder / "state"
    what, how = Captured(disk.name, str(disk), source, f"goal-{number}"), TransferOptions(state)
    there = Remote("lab", str(target))
    where = ReceiveRequest(str(target), state, create=not target.exists())
    options = PeerOptions(Way(rsh="sh -c {command}"), far_command(host))
    return Job(disk, target, source, lambda run: push(what, how, there, where, options, run))


def all_of(host: Host, gate: threading.Event) -> list[Job]:
    copies = [copying(host, number, gate) for number in range(COPIES)]
    return copies + [pushing(host, COPIES + number, gate) for number in range(PUSHES)]


@pytest.mark.parametrize("stopped", [3, COPIES], ids=["a-copy", "a-push"])
def test_one_of_ten_copies_and_two_pushes_is_stopped_and_the_others_go_on(
    host: Host, stopped: int
) -> None:
    gate = threading.Event()
    with contextlib.ExitStack() as stack:
        jobs = all_of(host, gate)
        for job in jobs:
            stack.callback(job.source.close)
        ended = asyncio.run(_run(jobs, stopped, gate))
    for number, job in enumerate(jobs):
        if number != stopped:
            assert ended[number] is None
            assert job.target.read_bytes() == job.disk.read_bytes()
    error = ended[stopped]
    assert isinstance(error, InterruptedTransferError)
    assert "the same command" in str(error)
    assert "cancelled" in str(error)
    assert _state(host, stopped) == "dirty"
    # No thread of theirs is left, and the same again finishes it.
    assert [each.name for each in threading.enumerate() if each.name == "work"] == []
    gate.set()
    again = copying if stopped < COPIES else pushing
    job = again(host, stopped, gate)
    with contextlib.closing(job.source):
        asyncio.run(_alone(job))
    assert job.target.read_bytes() == job.disk.read_bytes()
    assert _state(host, stopped) == "clean"


async def _run(
    jobs: Sequence[Job], stopped: int, gate: threading.Event
) -> dict[int, BaseException | None]:
    """Run all of them, cancel one, and let the others go on; return how each ended."""
    ended: dict[int, BaseException | None] = {}

    async def one(number: int) -> None:
        try:
            await jobs[number].work(jobs[number].run)
        except InterruptedTransferError as error:
            ended[number] = error
        else:
            ended[number] = None

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(number)) for number in range(len(jobs))]
        for job in jobs:
            assert await asyncio.to_thread(job.source.waits.wait, 60)
        tasks[stopped].cancel()
        await asyncio.sleep(0)
        gate.set()
    return ended


async def _alone(job: Job) -> None:
    await job.work(job.run)


def _state(host: Host, number: int) -> str:
    target = host.folder / f"copy-{number}"
    if number >= COPIES:
        return str(far_status(host, target)["state"])
    state = status_at(str(target), host.folder / "state").state
    return {Clean: "clean", Dirty: "dirty"}.get(type(state), "unknown")
