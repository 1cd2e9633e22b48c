"""Scripts of ours that start servers end them, whenever they are ended."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def below(parent: int) -> set[int]:
    """Return all processes that a process has started."""
    found, todo = set[int](), [parent]
    while todo:
        pid = todo.pop()
        for task in Path(f"/proc/{pid}/task").glob("*/children"):
            new = {int(word) for word in task.read_text().split()} - found
            found |= new
            todo += new
    return found


@pytest.mark.slow
@pytest.mark.timeout(100)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
@pytest.mark.parametrize("early", [False, True])
def test_a_server_ends_with_its_script(number: signal.Signals, early: bool) -> None:
    started = subprocess.Popen(  # noqa: S603  # our own
        [sys.executable, str(ROOT / "scripts" / "s3-up"), "localstack"],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert started.stdout is not None
    try:
        while early and not below(started.pid):  # at once: it hardly knows of it itself
            assert started.poll() is None
        while not early and not started.stdout.readline().startswith("# blockstream store init"):
            assert started.poll() is None
        servers = below(started.pid)
        assert servers
        started.send_signal(number)
        assert started.wait(60) == 0
        assert not [pid for pid in servers if Path(f"/proc/{pid}").exists()]
    finally:
        started.kill()
        started.stdout.close()
