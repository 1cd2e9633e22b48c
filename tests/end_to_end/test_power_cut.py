"""Whenever the power fails, the journal promises nothing that the target has lost.

Target and journal lie on two disks whose writes and flushes are logged in one order. A cut is a
place in that log: what each disk had flushed by then is there, of the rest each write is whole,
torn at a sector, or lost. Not modelled: misdirected writes, tearing inside a sector.
"""

import json
import random
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import blake3
import pytest

from blockstream.errors import BlockstreamError
from blockstream.linux.identity import Identity
from blockstream.linux.state_directory import JournalFiles
from blockstream.pipeline.direct import DirectApplier
from blockstream.pipeline.journal import SLOT_BYTES, Journal
from blockstream.pipeline.token import ResumeToken
from blockstream.targets.disk import DiskTarget
from blockstream.transfers.receive_options import ReceiveRequest
from blockstream_protocol import Clean, Dirty, TargetState
from tests.devices import loop_device, mounted, rigged, run, tmpfs
from tests.disk_log import Logged, lose_power, read_log
from tests.end_to_end.streams import Sent, checkpoints_every, stored, taken, taken_with_barriers

pytestmark = [
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.needs("nbdkit:python", "nbdfuse", "mkfs.ext4"),
    pytest.mark.timeout(300),
]

SIZE = 8 << 20
JOURNAL_DISK = 6 << 20
SECTOR = 512
IDENTITY = Identity("power-cut", lasting=True)


@dataclass(frozen=True)
class Recording:
    """One increment, as the two disks saw it.

    Attributes:
        folder: Where everything lies.
        base: The target before.
        goal: The target afterwards.
        plan: Ranges that the increment may write, as (offset, end).
        journal: The disk of the journal before.
        log: What reached either disk, in order.
    """

    folder: Path
    base: bytes
    goal: bytes
    plan: list[tuple[int, int]]
    journal: bytes
    log: list[Logged]

    @property
    def source(self) -> Sent:
        return Sent(
            str(self.folder / "goal"),
            self.folder / "sent",
            base="monday",
            goal="tuesday",
            extents=str(self.folder / "changes"),
        )


@dataclass(frozen=True)
class Boot:
    """The two disks as they are after a cut."""

    target: bytes
    journal: bytes


def changed(base: bytes) -> tuple[bytes, list[tuple[int, int]]]:
    """Return another content, and where it differs: with zeros, and with whole frames."""
    seeded = random.Random(6)  # noqa: S311
    goal, position = bytearray(base), 0
    plan: list[tuple[int, int]] = []
    while position < SIZE - (512 << 10):
        start = position + seeded.randrange(1, 64) * SECTOR
        end = start + seeded.choice([1, 8, 100, 700]) * SECTOR
        goal[start:end] = seeded.randbytes(end - start) if len(plan) % 7 else bytes(end - start)
        plan.append((start, end))
        position = end
    return bytes(goal), plan


def record(folder: Path) -> Recording:
    """Let a real receiver take an increment onto logged disks."""
    seeded = random.Random(5)  # noqa: S311
    base = seeded.randbytes(SIZE)
    goal, plan = changed(base)
    (folder / "base").write_bytes(base)
    (folder / "goal").write_bytes(goal)
    (folder / "t").write_bytes(bytes(SIZE))
    extents = [{"offset": a, "length": b - a, "kind": "data"} for a, b in plan]
    head = {"format": "blockstream-extents", "version": 1, "size": SIZE, "meaning": "changed"}
    (folder / "changes").write_text(json.dumps(head | {"extents": extents}))
    (folder / "j").write_bytes(bytes(JOURNAL_DISK))
    run("mkfs.ext4", "-q", "-b", "1024", "-N", "64", "-J", "size=1", folder / "j")
    with rigged(folder, folder / "t", folder / "j", log=True) as rig:
        with mounted(rig.devices["j"], folder / "state") as state_dir:
            request = ReceiveRequest(rig.devices["t"], state_dir)
            first = Sent(str(folder / "base"), folder / "sent", goal="monday")
            with checkpoints_every(1):
                taken(request, stored(first, folder / "stream"))
                run("sync", "-f", state_dir)
                start = rig.log.stat().st_size
                journal = rig.image("j").read_bytes()
                blank = Recording(folder, base, goal, plan, journal, [])
                stream = stored(blank.source, folder / "stream")
            with suppress(BlockstreamError):
                taken_with_barriers(request, stream, ahead=1)
            log = read_log(rig.log.read_bytes()[start:])
        assert rig.image("t").read_bytes() == goal
    return replace(blank, log=log)


def cut(recording: Recording, seeded: random.Random) -> Boot:
    """Return what the disks hold after a power cut at a random place."""
    log = recording.log
    first = next(i for i, entry in enumerate(log) if entry.disk == "t" and entry.what != "F")
    place = seeded.randint(first + 1, len(log))
    disks = {"t": bytearray(recording.base), "j": bytearray(recording.journal)}
    lose_power(log[:place], disks, seeded)
    return Boot(bytes(disks["t"]), bytes(disks["j"]))


class Host:
    """A host that boots again and again, from two images in memory."""

    def __init__(self, folder: Path, journal: str) -> None:
        self.target = folder / "t"
        self._folder = folder
        self._journal = journal

    @contextmanager
    def booted(self, boot: Boot) -> Iterator[Path]:
        """Give the state directory after the cut; mounting it is the file system's recovery."""
        self.target.write_bytes(boot.target)
        (self._folder / "j").write_bytes(boot.journal)
        with mounted(self._journal, self._folder / "state") as place:
            yield place


@contextmanager
def hosts(folder: Path) -> Iterator[Host]:
    with tmpfs(folder / "host", "32m") as place:
        (place / "j").write_bytes(bytes(JOURNAL_DISK))
        with loop_device(place / "j") as device:
            yield Host(place, device)


def state_in(state_dir: Path) -> TargetState:
    """Read the journal as the receiver does."""
    (folder,) = (state_dir / "targets").iterdir()
    with JournalFiles.opened(folder, SLOT_BYTES) as files:
        return Journal(files, blake3.blake3, SIZE).state


def broken_promise(recording: Recording, state: TargetState, target: bytes) -> str:
    """Say what the journal promises and the target does not hold; empty if there is nothing."""
    position = 0
    for start, end in [*recording.plan, (SIZE, SIZE)]:
        if target[position:start] != recording.base[position:start]:
            return f"bytes {position} to {start} are not in the plan"
        position = end
    match state:
        case Clean(id="tuesday"):
            return "" if target == recording.goal else "CLEAN, but not the goal"
        case Dirty(goal="tuesday", plan=plan, end=durable):
            if list(plan) != recording.plan:
                return "the plan is another"
            for start, end in plan:
                last = min(end, durable)
                if target[start:last] != recording.goal[start:last]:
                    return f"bytes {start} to {last} are called durable"
            return ""
    return f"the target was written, but the journal says {state}"


def finish(recording: Recording, state: TargetState, target: Path, state_dir: Path) -> None:
    """Let the real receiver continue from what it finds."""
    token = ResumeToken.of(state) if isinstance(state, Dirty) else None
    request = replace(recording.source, resume=token, base="", goal="") if token else None
    stream = stored(request or recording.source, recording.folder / "rest")
    result = taken(ReceiveRequest(str(target), state_dir), stream)
    assert result.written == (token is not None)
    assert target.read_bytes() == recording.goal
    assert isinstance(state_in(state_dir), Clean)


def broken_states(recording: Recording, count: int, *, finish_every: int = 0) -> list[str]:
    """Cut the power `count` times and return what was broken."""
    broken = []
    with hosts(recording.folder) as host:
        for seed in range(count):
            boot = cut(recording, random.Random(seed))  # noqa: S311
            with host.booted(boot) as state_dir:
                state = state_in(state_dir)
                promise = broken_promise(recording, state, boot.target)
                if promise:
                    broken.append(f"seed {seed}: {promise}")
                elif finish_every and seed % finish_every == 0:
                    finish(recording, state, host.target, state_dir)
    return broken


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    """The image of a disk is known as that disk, so that its journal is found."""
    monkeypatch.setattr("blockstream.targets.disk.identity_of", lambda _fd: IDENTITY)


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("blockstream.targets.disk.identity_of", lambda _fd: IDENTITY)
        return record(tmp_path_factory.mktemp("power"))


def test_the_recording_has_barriers_to_cut_between(recording: Recording) -> None:
    kinds = [(entry.disk, entry.what) for entry in recording.log]
    assert kinds.count(("t", "F")) >= 4
    assert kinds.count(("j", "F")) > kinds.count(("t", "F"))
    assert kinds.count(("t", "W")) >= 8
    assert kinds.count(("t", "Z")) >= 4


def test_no_promise_is_broken_and_every_transfer_can_be_finished(recording: Recording) -> None:
    assert broken_states(recording, 40, finish_every=4) == []


def test_no_promise_is_broken_in_300_states(recording: Recording) -> None:
    assert broken_states(recording, 300, finish_every=20) == []


# The tests of the test: two wrong orders must be seen.


def test_a_journal_that_comes_first_is_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = DirectApplier.record

    def journal_first(applier: DirectApplier, state: TargetState) -> None:
        real(applier, state)
        applier._target.flush()

    monkeypatch.setattr(DirectApplier, "flush", lambda _applier: None)
    monkeypatch.setattr(DirectApplier, "record", journal_first)
    assert len(broken_states(record(tmp_path), 40)) >= 10


def test_a_target_that_is_never_flushed_is_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DiskTarget, "flush", lambda _target: None)
    assert len(broken_states(record(tmp_path), 40)) >= 30
