"""The memory of a running QEMU goes over: the guest counts on there, or on here, never twice."""

import shlex
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from blockstream.errors import InterruptedTransferError
from blockstream.jobs.migration.guests import FarHost
from blockstream.jobs.migration.live import LiveGuest
from blockstream.linux.qmp import connected
from blockstream.locations.ssh import Remote, Way
from blockstream.run import Run
from blockstream.transfers.peer_options import PeerOptions
from tests.machine import BOOT, DISK_BYTES, IDLE_BOOT, Machine, machine, wrong_records

pytestmark = [
    pytest.mark.slow,
    pytest.mark.needs("qemu-system-x86_64"),
    pytest.mark.timeout(120),
]


@pytest.fixture
def boot() -> bytes:
    return BOOT


@pytest.fixture
def disk(tmp_path: Path, boot: bytes) -> Path:
    path = tmp_path / "disk"
    path.write_bytes(boot)
    with path.open("r+b") as file:
        file.truncate(DISK_BYTES)
    return path


@pytest.fixture
def memory() -> int:
    return 32


@pytest.fixture
def machines(tmp_path: Path, disk: Path, memory: int) -> Iterator[tuple[Machine, Machine]]:
    """One that runs, and the name of one that does not yet."""
    words = f"driver=raw,file.driver=file,file.filename={disk},file.locking=off"
    a, b = tmp_path / "a", tmp_path / "b"
    with machine(a, words, memory) as here, machine(b, words, memory) as there:
        here.start()
        yield here, there


def guest(here: Machine, there: Machine) -> LiveGuest:
    uri = f"unix:{there.folder}/memory"
    far = FarHost(Remote("there", "/dev/vg/vm"), PeerOptions(Way(rsh="sh -c {command}")), Run())
    incoming = shlex.join(there.command("-incoming", uri))
    return LiveGuest(str(here.monitor), incoming, uri, 0.3, far, Run())


def test_a_guest_goes_over_and_counts_on(machines: tuple[Machine, Machine], disk: Path) -> None:
    here, there = machines
    moving = guest(here, there)
    assert moving.problems() == []
    assert moving.prepare()
    here.wait_beyond(here.last)  # it runs on
    began = moving.pause()
    assert time.monotonic() - 10 < began <= time.monotonic()
    stood = here.last
    time.sleep(0.3)
    assert here.last == stood
    assert there.last == 0
    moving.start_there()
    there.wait_beyond(stood)
    assert min(there.numbers()) == here.last + 1  # no record twice, none left out
    here.wait_for_end()  # it must never write to its disk again
    there.kill()
    assert wrong_records(disk.read_bytes(), here.numbers() + there.numbers()) == []


@pytest.mark.parametrize("boot", [IDLE_BOOT])
def test_a_guest_that_qemu_stops_because_it_idles_goes_over_at_once(
    machines: tuple[Machine, Machine], disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = machines
    moving = guest(here, there)
    monkeypatch.setattr("blockstream.jobs.migration.live._CRAWL", 1 << 30)  # nothing is held back
    monkeypatch.setattr("blockstream.jobs.migration.live._LEAST_KEPT", 0)
    monkeypatch.setattr("blockstream.jobs.migration.live._KEPT_PART", 1 << 40)
    while moving.prepare():  # QEMU looks for changes at a moment of its own
        moving.call_off()
        there.wait_for_end()
    stopped, stood = time.monotonic(), here.last
    assert moving.pause() <= stopped
    assert here.last == stood
    moving.start_there()
    there.wait_beyond(stood)
    there.kill()
    assert wrong_records(disk.read_bytes(), here.numbers() + there.numbers()) == []


@pytest.mark.parametrize("boot", [BOOT, IDLE_BOOT])
@pytest.mark.parametrize("memory", [32, 600])
def test_a_guest_runs_on_until_we_are_ready(machines: tuple[Machine, Machine], memory: int) -> None:
    here, there = machines
    moving = guest(here, there)
    while not moving.prepare():  # on a busy machine, QEMU may be faster than who watches it
        moving.call_off()
        there.wait_for_end()
    with connected(str(here.monitor)) as qmp:
        before = qmp.ask("query-migrate")["ram"]["remaining"]
        here.wait_beyond(here.last + 10)
        assert qmp.ask("query-migrate")["status"] == "active"
        assert 0 < qmp.ask("query-migrate")["ram"]["remaining"] <= before <= 256 << 20


@pytest.mark.parametrize("memory", [32, 600])
@pytest.mark.parametrize("kept", [4 << 10, 1 << 20, 16 << 20])
@pytest.mark.parametrize("boot", [IDLE_BOOT])
def test_a_guest_that_is_said_to_run_on_does(
    machines: tuple[Machine, Machine], kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is left when we come to look, as on a busy machine."""
    here, there = machines
    monkeypatch.setattr("blockstream.jobs.migration.live._LEAST_KEPT", kept)
    monkeypatch.setattr("blockstream.jobs.migration.live._KEPT_PART", 1 << 40)
    moving = guest(here, there)
    runs = moving.prepare()
    with connected(str(here.monitor)) as qmp:
        if runs:
            here.wait_beyond(here.last + 10)
        assert (qmp.ask("query-status")["status"] == "running") == runs
    moving.call_off()
    here.wait_beyond(here.last)


@pytest.mark.parametrize("paused", [False, True])
def test_a_guest_that_is_called_back_counts_on_here(
    machines: tuple[Machine, Machine], paused: bool
) -> None:
    here, there = machines
    moving = guest(here, there)
    moving.prepare()
    if paused:
        moving.pause()
    again = guest(here, there)  # as a run does that comes after one which died
    again.roll_back()
    again.call_off()
    here.wait_beyond(here.last)
    there.wait_for_end()
    assert there.last == 0
    moving.prepare()  # and it can be tried again
    moving.pause()
    moving.start_there()
    there.wait_beyond(here.last)


def test_a_guest_whose_other_host_dies_counts_on_here(
    machines: tuple[Machine, Machine],
) -> None:
    here, there = machines
    moving = guest(here, there)
    moving.prepare()
    moving.pause()
    there.kill()
    with pytest.raises(InterruptedTransferError, match="QEMU's migration failed"):
        moving.start_there()
    moving.roll_back()
    moving.call_off()
    here.wait_beyond(here.last)


def test_nobody_waits_there(machines: tuple[Machine, Machine]) -> None:
    here, there = machines
    far = guest(here, there).far
    moving = LiveGuest(str(here.monitor), "true", f"unix:{there.folder}/nobody", 0.3, far, Run())
    with pytest.raises(InterruptedTransferError, match="No such file or directory"):
        moving.prepare()
    moving.call_off()
    here.wait_beyond(here.last)


def test_what_is_wrong_is_said_before(machines: tuple[Machine, Machine], tmp_path: Path) -> None:
    here, there = machines
    moving = guest(here, there)
    with connected(str(here.monitor)) as qmp:
        qmp.ask("stop")
    assert "is paused" in moving.problems()[0]
    here.kill()
    assert "no QEMU answers at" in moving.problems()[0]
    path = tmp_path / "other"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        far = moving.far
        deaf = LiveGuest(str(path), "", "", 0.3, far, Run())
        other.settimeout(20)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("blockstream.linux.qmp._SECONDS", 0.2)
            assert "somebody else may hold it" in deaf.problems()[0]
