"""What is run on the other host is run once, or nobody is told that it was."""

from collections.abc import Callable
from pathlib import Path

import pytest

from blockstream.errors import ConnectionLostError, InterruptedTransferError
from blockstream.jobs.migration.guests import CommandGuest, FarHost
from blockstream.locations.ssh import Remote, Way
from blockstream.run import Run
from blockstream.transfers.peer_options import PeerOptions

pytestmark = pytest.mark.slow


def far(rsh: str = "sh -c {command}") -> FarHost:
    return FarHost(Remote("there", "/dev/vg/vm"), PeerOptions(Way(rsh=rsh)), Run())


def guest(start: str, rsh: str = "sh -c {command}") -> CommandGuest:
    return CommandGuest("true", start, "true", far(rsh), Run())


def test_what_was_made_ready_runs_when_it_is_told_to(tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    moving = guest(f"echo once >>{ran}  # a remark")
    moving.prepare()
    assert not ran.exists()
    moving.start_there()
    assert ran.read_text() == "once\n"


def test_what_was_made_ready_and_called_off_never_runs(tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    moving = guest(f"touch {ran}")
    moving.prepare()
    moving.call_off()
    moving.call_off()
    assert not ran.exists()
    moving.start_there()  # without having been prepared
    assert ran.exists()


def test_a_connection_that_ended_meanwhile_is_made_again(tmp_path: Path) -> None:
    ran, times = tmp_path / "ran", tmp_path / "times"
    rsh = f"sh -c 'echo x >>{times}; [ $(wc -l <{times}) = 1 ] || exec sh -c \"$0\"' {{command}}"
    moving = guest(f"echo once >>{ran}", rsh)
    moving.prepare()
    while not times.exists():
        pass
    ready = moving._ready
    assert ready is not None
    while not ready._has_ended():
        pass
    moving.start_there()
    assert ran.read_text() == "once\n"


@pytest.mark.parametrize("prepared", [True, False])
@pytest.mark.parametrize(
    ("start", "error", "said"),
    [
        ("echo no memory >&2; exit 7", InterruptedTransferError, "status 7: no memory"),
        ("exit 255", ConnectionLostError, "was lost"),
    ],
)
def test_what_fails_is_told_from_what_is_not_known(
    prepared: bool, start: str, error: type[Exception], said: str
) -> None:
    moving = guest(start)
    if prepared:
        moving.prepare()
    with pytest.raises(error, match=said) as caught:
        moving.start_there()
    assert type(caught.value) is error


def test_a_command_that_leaves_its_output_to_others_is_not_waited_for_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("blockstream.jobs.migration.guests.COMMAND_SECONDS", 0.3)
    with pytest.raises(ConnectionLostError, match="must not hold its output"):
        guest("sleep 3 &").start_there()


@pytest.mark.parametrize("do", [CommandGuest.pause, CommandGuest.roll_back])
def test_a_hook_of_this_host_that_fails_says_what_it_said(
    do: Callable[[CommandGuest], object],
) -> None:
    bad = "echo so; echo what >&2; exit 3"
    moving = CommandGuest(bad, "", bad, far(), Run())
    with pytest.raises(InterruptedTransferError, match="failed with status 3: what"):
        do(moving)
