"""Kill either end at any named point: the same command again finishes what was begun."""

import random
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from blockstream.pipeline.failpoints import NAMES
from tests.end_to_end.hosts import Ended, Host, Process, Words, Zygote, failing_at, wait_until
from tests.rotation import share

ACTIONS = ("kill", "stop", "leave")
LEFT = 99  # what `leave` exits with
SIZE = 3 << 20

# What of these is passed only once in a transfer, or not in every way to apply one.
ONCE = {
    "send.hello",
    "send.open",
    "send.before_intent",
    "send.after_intent",
    "send.after_end",
    "recv.ready",
    "recv.before_clean",
    "recv.after_clean",
    "recv.spool_complete",
    "recv.undo_saved",
}
ONLY_IN = {"recv.spool_complete": "stage", "recv.undo_saved": "undo"}


@dataclass(frozen=True, slots=True)
class Case:
    """One way to die: where, at which time there, how, and in which way to apply."""

    point: str
    hit: int
    action: str
    apply: str
    full: bool = False

    @property
    def limited(self) -> bool:
        """Whether the sender must be slow: to have slices, or not to outrun the barriers."""
        return self.point == "send.mid_frame" or (self.hit > 1 and self.point.startswith("recv."))

    def __str__(self) -> str:
        kind = "full" if self.full else "delta"
        return f"{self.point}-{self.hit}-{self.action}-{self.apply}-{kind}"


def cases() -> Iterator[Case]:
    """Every point and action, at its first and second hit; each way to apply has its turn."""
    turn = 0
    for point in NAMES:
        for action in ACTIONS:
            for hit in (1,) if point in ONCE else (1, 2):
                turn += 1
                apply = ONLY_IN.get(point, ("direct", "stage", "undo")[turn % 3])
                yield Case(point, hit, action, apply, full=turn % 4 == 0)
    # The points of the target's journal, also where the spool has one of its own.
    for point in ("recv.plan_written", "recv.journal_unsynced", "recv.after_record"):
        for hit in range(3, 7):
            yield Case(point, hit, "kill", "stage")
    for point in ("recv.before_write", "recv.mid_write", "recv.before_clean", "recv.after_clean"):
        yield Case(point, 2, "kill", "stage")


@dataclass(slots=True)
class Setting:
    """Two disks, a target that holds the first, and the commands that bring it to the second."""

    host: Host
    target: Path
    before: bytes
    after: bytes
    send: Words
    recv: Words

    def run(self, case: Case | None = None) -> tuple[Ended, Ended]:
        """Run the command, failing as the case says; a process that was stopped is killed."""
        failing = failing_at(f"{case.point}:{case.hit}:{case.action}") if case else {}
        sends = case is not None and case.point.startswith("send.")
        sender, receiver = self.host.start_pipe(
            self.send, self.recv, failing if sends else {}, {} if sends else failing
        )
        if case is not None and case.action == "stop":
            wait_for_stop(*((sender, receiver) if sends else (receiver, sender)))
        return sender.wait(), receiver.wait()


def wait_for_stop(one: Process, peer: Process) -> None:
    """Wait until one process is stopped, see that the other is not helped by it, and kill it."""
    wait_until(one.stopped)
    assert peer.state() in {"S", "R", "D", "Z", ""}
    one.signal(signal.SIGKILL)


@pytest.fixture(scope="module")
def disks(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """An old disk, a new one, and the list of what changed: several frames, noise and zeros."""
    host = Host(tmp_path_factory.mktemp("disks"), zygote)
    old, new = host.disk("old", SIZE), host.folder / "new"
    noise = random.Random(3)  # noqa: S311  # the same each time
    changed = bytearray(old.read_bytes())
    for offset in range(0, SIZE, 3 << 18):
        changed[offset : offset + 500_000] = noise.randbytes(500_000)
    changed[1 << 20 : (1 << 20) + 65_536] = bytes(65_536)
    new.write_bytes(changed)
    return old, new, host.list_changes("changes", new, old)


def setting(host: Host, case: Case, disks: tuple[Path, Path, Path]) -> Setting:
    """Make a target that holds the old disk, and the words that bring it to the new one."""
    old, new, changes = disks
    target = host.folder / "target"
    target.write_bytes(old.read_bytes())
    host.adopt(target, "A")
    send: list[str | Path] = [new, "--goal", "B"]
    if not case.full:
        send += ["--base", "A", "--extents", changes]
    if case.limited:
        send += ["--bwlimit", "20M"]
    recv: Words = ["--apply", case.apply, target]
    return Setting(host, target, old.read_bytes(), new.read_bytes(), send, recv)


@pytest.mark.slow
@pytest.mark.parametrize("case", share(list(cases())), ids=str)
def test_same_command_again_finishes_what_died(
    eager: Host, case: Case, disks: tuple[Path, Path, Path]
) -> None:
    it = setting(eager, case, disks)
    died, peer = it.run(case)
    if case.point.startswith("recv."):
        died, peer = peer, died
    assert died.status == (LEFT if case.action == "leave" else -signal.SIGKILL), (died, peer)
    check_peer(case, peer)
    sent, received = it.run()
    assert (sent.status, received.status) == (0, 0), (sent, received)
    assert it.target.read_bytes() == it.after
    assert eager.holds(it.target, "B")
    assert eager.status(it.target)["staged"] == ""


def check_peer(case: Case, peer: Ended) -> None:
    """A sender that has said END does not hear of it; everybody else is interrupted."""
    if case.point == "send.after_end":
        assert peer.status == 0
    elif case.point.startswith("send."):
        assert (peer.status, peer.err.startswith("blockstream: ")) == (11, True)
    else:
        assert peer.status in {0, 11}


@pytest.mark.parametrize(
    "case",
    [
        Case("send.first_data", 2, "kill", "direct"),
        Case("recv.after_write", 1, "kill", "direct"),
        Case("recv.spool_complete", 1, "kill", "stage"),
    ],
    ids=str,
)
def test_same_command_again_finishes_the_commonest_deaths(
    eager: Host, case: Case, disks: tuple[Path, Path, Path]
) -> None:
    test_same_command_again_finishes_what_died(eager, case, disks)


@pytest.mark.slow
@pytest.mark.parametrize("point", [n for n in NAMES if n.startswith("recv.")])
def test_target_is_never_called_whole_while_it_is_not(
    eager: Host, point: str, disks: tuple[Path, Path, Path]
) -> None:
    case = Case(point, 1, "kill", ONLY_IN.get(point, "direct"))
    it = setting(eager, case, disks)
    it.run(case)
    status = eager.status(it.target)
    if status["state"] == "clean":
        expected = {"A": it.before, "B": it.after}[str(status["id"])]
        assert it.target.read_bytes() == expected
