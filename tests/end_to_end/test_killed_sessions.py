"""Kill either end of an ssh session at any named point: it goes on, if need be when asked again."""

import shlex
from dataclasses import dataclass
from pathlib import Path

import pytest

from blockstream.pipeline.failpoints import NAMES
from tests.end_to_end.far_host import far_command, far_status
from tests.end_to_end.hosts import Ended, Host, Words, failing_at
from tests.end_to_end.test_kill_matrix import ONCE, ONLY_IN, disks
from tests.rotation import share
from tests.ssh_server import SshServer

__all__ = ["disks"]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(90), pytest.mark.needs("sshd")]
ACTIONS = ("kill", "leave")


@dataclass(frozen=True, slots=True)
class Case:
    """Where one end dies, the how manyeth time it comes there, and how."""

    point: str
    hit: int
    action: str
    full: bool
    ours: bool

    def __str__(self) -> str:
        kind, way = "full" if self.full else "delta", "ours" if self.ours else "system"
        return f"{self.point}-{self.hit}-{self.action}-{kind}-{way}"


def cases(end: str) -> list[Case]:
    """Every point of one end and action; hits, kinds of transfer and ways have their turns."""
    found = []
    for number, (point, action) in enumerate((p, a) for p in NAMES for a in ACTIONS):
        hit = 1 if point in ONCE else 1 + number // 2 % 2
        found.append(Case(point, hit, action, full=number % 4 >= 2, ours=number % 3 == 0))
    return [case for case in found if case.point.startswith(end)]


def dying_once(host: Host, case: Case) -> str:
    """Return a command of the other host that dies as the case says, the first time only."""
    point = f"BLOCKSTREAM_FAILPOINT={case.point}:{case.hit}:{case.action}"
    script = (
        f"if mkdir {shlex.quote(str(host.folder / 'died'))} 2>/dev/null; "
        f"then export BLOCKSTREAM_TESTING=1 {point}; fi; "
        f'exec {far_command(host)} "$@"'
    )
    return shlex.join(["sh", "-c", script, "far"])


def words_of(case: Case, host: Host, server: SshServer, disks: tuple[Path, Path, Path]) -> Words:
    """Make the target that holds the old disk, and the command that brings it to the new one."""
    old, new, changes = disks
    target = host.folder / "target"
    target.write_bytes(old.read_bytes())
    far = Host(host.folder, host.zygote)
    state = {"BLOCKSTREAM_STATE_DIR": f"{host.folder}/far-state"}
    assert far.run("adopt", target, "--id", "A", environment=state).status == 0
    words: list[str | Path] = ["send", new, f"lab:{target}", "--goal", "B", "--retry", "2"]
    if not case.full:
        words += ["--base", "A", "--extents", changes]
    words += ["--apply", ONLY_IN.get(case.point, "direct"), "--compress", "none"]
    if case.ours:
        return [*words, "--ssh-config", str(server.config)]
    return [*words, "--rsh", f"ssh -F {server.config}"]


def finished(host: Host, ended: Ended, disks: tuple[Path, Path, Path]) -> None:
    """See that the target holds the new disk, and that its host knows."""
    assert ended.status == 0, ended.err
    target = host.folder / "target"
    assert target.read_bytes() == disks[1].read_bytes()
    assert far_status(host, target)["id"] == "B"


@pytest.mark.parametrize("case", share(cases("recv.")), ids=str)
def test_a_receiver_that_dies_is_started_again_and_goes_on(
    eager: Host, server: SshServer, case: Case, disks: tuple[Path, Path, Path]
) -> None:
    words = words_of(case, eager, server, disks)
    ended = eager.run(*words, "--remote-command", dying_once(eager, case))
    assert (eager.folder / "died").exists()
    # After the last of these points COMMITTED has been said.
    assert ("connecting again" in ended.err) == (case.point != "recv.after_clean")
    finished(eager, ended, disks)


@pytest.mark.parametrize("case", share(cases("send.")), ids=str)
def test_a_sender_that_dies_leaves_what_the_same_command_finishes(
    eager: Host, server: SshServer, case: Case, disks: tuple[Path, Path, Path]
) -> None:
    words = [*words_of(case, eager, server, disks), "--remote-command", far_command(eager)]
    if case.point == "send.mid_frame":
        words += ["--bwlimit", "20M"]
    died = eager.run(*words, environment=failing_at(f"{case.point}:{case.hit}:{case.action}"))
    assert died.status == (-9 if case.action == "kill" else 99), died.err
    finished(eager, eager.run(*words), disks)
