"""Further connections of a session find it, are told apart, and end with it."""

import os
import secrets
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from blockstream.errors import ConnectionLostError
from blockstream.linux import meeting
from blockstream.linux.meeting import gathered, join

ROOT = Path(__file__).parents[2]


def guest(token: str, number: int) -> "subprocess.Popen[bytes]":
    """Start a process that joins with its own standard input and output."""
    program = f"from blockstream.linux.meeting import join; join({token!r}, {number})"
    return subprocess.Popen(  # noqa: S603  # ourselves
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'protocol'}"},
    )


@pytest.mark.slow
def test_each_guest_gives_its_descriptors_in_its_place() -> None:
    token = secrets.token_hex(16)
    guests = [guest(token, number) for number in (2, 0, 1)]
    with gathered(token, 3) as pairs:
        for process, number in zip(guests, (2, 0, 1), strict=True):
            assert process.stdin is not None
            process.stdin.write(b"to %d" % number)
            process.stdin.close()
            os.write(pairs[number][1], b"from %d" % number)
        for number, (reading, _) in enumerate(pairs):
            assert os.read(reading, 100) == b"to %d" % number
    for process, number in zip(guests, (2, 0, 1), strict=True):
        assert process.wait(10) == 0
        assert process.stdout is not None
        assert process.stdout.read() == b"from %d" % number
        process.stdout.close()


def test_guests_that_do_not_come_are_not_waited_for_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(meeting, "_JOIN_SECONDS", 0.05)
    with pytest.raises(ConnectionLostError, match="only 0 of 2"), gathered("t" * 32, 2):
        pass


def test_a_session_that_is_not_there_is_not_waited_for_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(meeting, "_JOIN_SECONDS", 0.05)
    with pytest.raises(ConnectionLostError, match="no session to join"):
        join("n" * 32, 0)


def test_somebody_elses_process_is_sent_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meeting, "_JOIN_SECONDS", 0.3)
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    token = secrets.token_hex(16)
    waits = threading.Event()
    # It has to listen before anybody can call.
    listen = socket.socket.listen

    def listening(self: socket.socket, backlog: int) -> None:
        listen(self, backlog)
        waits.set()

    monkeypatch.setattr(socket.socket, "listen", listening)

    def call() -> None:
        waits.wait(5)
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as caller:
            caller.connect(b"\0blockstream-" + token.encode())

    caller = threading.Thread(target=call, daemon=True)
    caller.start()
    with pytest.raises(ConnectionLostError, match="only 0 of 1"), gathered(token, 1):
        pass
    caller.join()
