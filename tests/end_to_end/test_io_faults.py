"""Whatever a disk does wrong, and whenever: the exit status says so, and no state promises more
than the disk holds.

The n-th request fails, for n = 1, 2, 3, ... until a run meets no fault.
"""

import errno
import os
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from blockstream.errors import (
    BlockstreamError,
    ExitStatus,
    IntegrityError,
    InterruptedTransferError,
    SourceError,
    TargetError,
)
from blockstream.pipeline.target_status import TargetStatus, read_status
from blockstream.transfers.receive_options import ReceiveRequest
from blockstream_protocol import Clean, Dirty
from tests.devices import Rigged, rigged
from tests.end_to_end.streams import Sent, checkpoints_every, stored, taken, taken_with_barriers

pytestmark = [
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.needs("nbdkit:python", "nbdfuse"),
    pytest.mark.timeout(120),
]

SIZE = 4 << 20
CHECKPOINT = 1 << 20
# Where the source has zeros; the target has none, so they must be written.
ZEROS = ((600_064, 700_416), (2 << 20, (2 << 20) + 65536))


class Bench:
    """A rigged target, and the stream that goes onto it."""

    def __init__(self, folder: Path, rig: Rigged, stream: Path, goal: bytes) -> None:
        self.folder = folder
        self.rig = rig
        self.stream = stream
        self.goal = goal
        self.base = bytes(byte ^ 0xFF for byte in goal)
        self.runs = 0
        self.renew()

    @property
    def device(self) -> str:
        return self.rig.devices["t"]

    def renew(self) -> None:
        """Begin anew: a healthy disk of another content, of which nothing is known."""
        self.rig.order()
        fd = os.open(self.rig.image("t"), os.O_WRONLY)
        os.pwrite(fd, self.base, 0)
        os.close(fd)
        self.runs += 1

    @property
    def state_dir(self) -> Path:
        return self.folder / f"state-{self.runs}"

    def receive(self, *, verify: bool = False) -> None:
        request = ReceiveRequest(self.device, self.state_dir, verify=verify)
        taken_with_barriers(request, self.stream)

    def status(self) -> TargetStatus:
        (folder,) = (self.state_dir / "targets").iterdir()
        return read_status(folder)

    def medium(self) -> bytes:
        return self.rig.image("t").read_bytes()

    def check_journal(self) -> None:
        """Whatever the journal calls durable must be on the medium."""
        state = self.status().state
        assert isinstance(state, Dirty)
        assert self.medium()[: state.end] == self.goal[: state.end]

    def check_repaired(self) -> None:
        """On a healthy device the same command finishes."""
        self.rig.order()
        self.receive()
        assert isinstance(self.status().state, Clean)
        assert self.medium() == self.goal


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    folder = tmp_path_factory.mktemp("faults")
    goal = bytearray(random.Random(4).randbytes(SIZE))  # noqa: S311
    for start, end in ZEROS:
        goal[start:end] = bytes(end - start)
    source = folder / "source"
    source.write_bytes(goal)
    (folder / "t").write_bytes(bytes(SIZE))
    with checkpoints_every(CHECKPOINT):
        stream = stored(Sent(str(source), folder / "sent"), folder / "stream")
    with rigged(folder, folder / "t") as rig:
        yield Bench(folder, rig, stream, bytes(goal))


@pytest.fixture(autouse=True)
def renewed(bench: Bench) -> None:
    bench.renew()


FAULTS = [
    pytest.param("write", errno.EIO, id="write EIO"),
    pytest.param("write", errno.ENOSPC, id="write ENOSPC"),
    pytest.param("flush", errno.EIO, id="flush EIO"),
    pytest.param("flush", errno.ENOSPC, id="flush ENOSPC"),
]


@pytest.mark.parametrize(("what", "code"), FAULTS)
def test_a_request_that_fails_once_is_never_forgotten(bench: Bench, what: str, code: int) -> None:
    """The disk fails once and is well again: what a second flush says then is a lie."""
    for number in count(1):
        bench.renew()
        bench.rig.order(fail=what, at=number, errno=code)
        error = failure_of(bench)
        if not bench.rig.hits():
            break
        assert isinstance(error, TargetError), f"request {number}: {error!r}"
        assert error.exit_status == ExitStatus.TARGET
        assert re.search(r"at offset \d+ could|could not be flushed", str(error))
        # The cache of a block device knows no other error (fs/buffer.c, drivers/block/loop.c).
        assert os.strerror(errno.EIO) in str(error)
        bench.check_journal()
        bench.check_repaired()
    assert error is None
    assert number > 3, "there were fewer faults than barriers"
    assert bench.medium() == bench.goal


def failure_of(bench: Bench, *, verify: bool = False) -> BlockstreamError | None:
    try:
        bench.receive(verify=verify)
    except BlockstreamError as error:
        return error
    except BaseExceptionGroup as group:
        # The last barrier failed, too: the first error is the cause.
        return next(e for e in group.exceptions if isinstance(e, BlockstreamError))
    return None


@pytest.mark.parametrize("what", ["write", "flush"])
def test_a_disk_that_stays_broken_stays_dirty(bench: Bench, what: str) -> None:
    bench.rig.order(fail=what, at=2, times=1_000_000, errno=errno.EIO)
    for _ in range(3):
        assert isinstance(failure_of(bench), TargetError)
        bench.check_journal()
    bench.check_repaired()


def test_a_read_back_that_fails_is_no_success(bench: Bench) -> None:
    for number in count(1, 3):
        bench.renew()
        bench.rig.order(fail="read", at=number, errno=errno.EIO)
        error = failure_of(bench, verify=True)
        if not bench.rig.hits():
            break
        if error is None:  # what failed was no read of ours: udev, or the kernel's own
            continue
        assert isinstance(error, TargetError)
        assert re.search(r"bytes at offset \d+ cannot be read back", str(error))
        bench.check_journal()
        bench.check_repaired()
    assert number > 4


def test_a_write_that_was_dropped_is_found_by_reading_back(bench: Bench) -> None:
    found = 0
    for number in count(1):
        bench.renew()
        bench.rig.order(drop=number)
        bench.receive()
        if not bench.rig.hits():
            break
        assert bench.medium() != bench.goal  # exit status 0: nobody can see it without looking
        bench.renew()
        bench.rig.order(drop=number)
        error = failure_of(bench, verify=True)
        assert isinstance(error, IntegrityError)
        assert error.exit_status == ExitStatus.INTEGRITY
        assert "reads back differently" in str(error)
        bytes_from = re.search(r"(\d+) bytes from offset (\d+)", str(error))
        assert bytes_from is not None
        length, offset = map(int, bytes_from.groups())
        medium = bench.medium()
        assert medium[offset : offset + length] != bench.goal[offset : offset + length]
        bench.check_journal()
        bench.check_repaired()
        found += 1
    assert found > 3


@pytest.mark.parametrize("at", [0, 1_234_432, SIZE - 512], ids=["first", "middle", "last"])
def test_a_source_that_cannot_be_read_sends_no_end(bench: Bench, at: int) -> None:
    os.pwrite(fd := os.open(bench.rig.image("t"), os.O_WRONLY), bench.goal, 0)
    os.close(fd)
    bench.rig.order(bad=at)
    cut = bench.folder / "cut"
    with pytest.raises(SourceError, match=r"bytes at offset \d+ cannot be read: Input") as caught:
        stored(Sent(bench.device, bench.state_dir), cut)
    assert caught.value.exit_status == ExitStatus.SOURCE
    assert "END was not sent" in str(caught.value)
    found = re.search(r"(\d+) bytes at offset (\d+)", str(caught.value))
    assert found is not None
    length, offset = map(int, found.groups())
    assert offset <= at < offset + length
    target = bench.folder / f"target-{at}"
    with pytest.raises(InterruptedTransferError):
        taken(ReceiveRequest(str(target), bench.state_dir, create=True), cut)


def test_the_shell_sees_13_and_then_0(bench: Bench) -> None:
    command = [sys.executable, "-m", "blockstream", "recv", "--state-dir", str(bench.state_dir)]
    bench.rig.order(fail="flush", at=1, errno=errno.EIO)
    for wanted in (13, 0):
        with bench.stream.open("rb") as stream:
            done = subprocess.run(  # noqa: S603
                [*command, bench.device], stdin=stream, capture_output=True, text=True, check=False
            )
        assert done.returncode == wanted, done.stderr
        assert ("could not be flushed" in done.stderr) == (wanted == 13)
    assert bench.medium() == bench.goal
