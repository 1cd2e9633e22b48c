"""What we run ends with us, and what it left running on purpose goes on."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from blockstream.linux.children import Ended, run_guarded

pytestmark = pytest.mark.slow

SHELL = ("/bin/sh", "-c")
PROGRAM = """
import signal
import sys
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whoever runs the tests may ignore it
from blockstream.linux.children import run_guarded
run_guarded(["/bin/sh", "-c", sys.argv[1]], 60)
"""


def _until(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _runs(pid: int) -> bool:
    try:
        # A zombie has ended; who collects it is not our matter.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_program_says_what_it_says() -> None:
    done = run_guarded([*SHELL, "read x; echo out $x; echo err >&2; exit 7"], 30)
    assert done == Ended(7, "out\n", "err\n")
    assert run_guarded([*SHELL, "kill -9 $$"], 30).status == -signal.SIGKILL


def test_its_parent_is_us() -> None:
    assert run_guarded([*SHELL, "echo $PPID"], 30).out == f"{os.getpid()}\n"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_a_program_does_not_outlive_us(tmp_path: Path, number: signal.Signals) -> None:
    """A slow pause command went on after its migration had been killed, and stopped the guest."""
    pids, stopped = tmp_path / "pids", tmp_path / "stopped"
    script = f"trap '' HUP; sleep 300 & echo $$ $! >{pids}.new; mv {pids}.new {pids}; "
    script += f"wait; touch {stopped}"
    ours = subprocess.Popen([sys.executable, "-c", PROGRAM, script])  # noqa: S603  # this test's
    try:
        _until(pids.exists)
        both = [int(word) for word in pids.read_text().split()]
        assert all(_runs(pid) for pid in both)
        ours.send_signal(number)
        ours.wait(30)
        _until(lambda: not any(_runs(pid) for pid in both))
    finally:
        ours.kill()
    assert not stopped.exists()


def test_what_takes_too_long_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    with pytest.raises(TimeoutError):
        run_guarded([*SHELL, f"trap '' TERM; sleep 300 & echo $! >{pids}; wait; sleep 300"], 2)
    _until(lambda: not _runs(int(pids.read_text())))


def test_what_it_leaves_running_on_purpose_goes_on_and_is_not_waited_for(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    began = time.monotonic()
    run_guarded([*SHELL, f"sleep 60 & echo $! >{pid}"], 30)
    assert time.monotonic() - began < 30
    left = int(pid.read_text())
    time.sleep(0.2)
    assert _runs(left)
    os.kill(left, signal.SIGKILL)


def test_what_cannot_be_run_is_said_by_the_shell() -> None:
    done = run_guarded(["/nowhere/at/all"], 30)
    assert done.status == 127
    assert "/nowhere/at/all" in done.err
