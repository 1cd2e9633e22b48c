"""Further connections of a session find it, are told apart, and end with it."""

import os
import secrets
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from blockstream.errors import ConnectionLostError
from blockstream.linux import stream_join
from blockstream.linux.stream_join import gathered, heard_token, join, new_token, tell_token

ROOT = Path(__file__).parents[2]


def guest(token: str, number: int) -> "subprocess.Popen[bytes]":
    """Start a process that joins with its own standard input and output."""
    program = f"from blockstream.linux.stream_join import join; join({token!r}, {number})"
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
    monkeypatch.setattr(stream_join, "_JOIN_SECONDS", 0.05)
    with pytest.raises(ConnectionLostError, match="only 0 of 2"), gathered("t" * 32, 2):
        pass


def test_a_session_that_is_not_there_is_not_waited_for_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stream_join, "_JOIN_SECONDS", 0.05)
    with pytest.raises(ConnectionLostError, match="no session to join"):
        join("n" * 32, 0)


def test_somebody_elses_process_is_sent_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_join, "_JOIN_SECONDS", 0.3)
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


def test_a_strangers_socket_is_given_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """He may have guessed the name, and waits there."""
    token = secrets.token_hex(16)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as place:
        place.bind(b"\0blockstream-" + token.encode())
        place.listen(1)
        monkeypatch.setattr(os, "geteuid", lambda: 12345)
        with pytest.raises(ConnectionLostError, match="somebody else waits"):
            join(token, 0)
        guest, _ = place.accept()
        with guest:
            assert guest.recv(10) == b""


def test_strangers_are_closed_at_once_and_counted_nowhere() -> None:
    token, closed = secrets.token_hex(16), threading.Event()
    ours = stream_join._is_ours
    turn = iter([False, False])

    def stranger(guest: socket.socket) -> bool:
        return next(turn, True) and ours(guest)

    def call() -> None:
        for _ in range(2):
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as caller:
                while caller.connect_ex(b"\0blockstream-" + token.encode()):
                    time.sleep(0.01)
                caller.settimeout(10)
                assert caller.recv(1) == b""
        closed.set()
        process.append(guest(token, 0))

    process: list[subprocess.Popen[bytes]] = []
    caller = threading.Thread(target=call)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(stream_join, "_is_ours", stranger)
        caller.start()
        with gathered(token, 1) as pairs:
            assert closed.is_set()
            assert len(pairs) == 1
        caller.join()
    (joined,) = process
    joined.communicate(timeout=10)


@pytest.mark.parametrize("said", [b"", b"0" * 32, b"x" * 33, b"0" * 40])
def test_what_is_no_secret_is_refused(said: bytes) -> None:
    reading, writing = os.pipe()
    os.write(writing, said)
    os.close(writing)
    with pytest.raises(ConnectionLostError):
        heard_token(reading)
    os.close(reading)


def test_a_secret_is_heard_and_nothing_after_it() -> None:
    reading, writing = os.pipe()
    token = new_token()
    tell_token(token, writing)
    os.write(writing, b"stream")
    assert heard_token(reading) == token
    assert os.read(reading, 100) == b"stream"
    for fd in (reading, writing):
        os.close(fd)
