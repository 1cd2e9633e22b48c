"""The first signal is heard, whatever a command waits for; what was begun is taken back."""

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.end_to_end.hosts import Host, Words, failing_at, wait_until

pytestmark = pytest.mark.slow

MIB = 1 << 20
KEYS = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_DEFAULT_REGION": "us-east-1"}


class Mute:
    """A server that takes connections and says nothing.

    Attributes:
        port: Where it listens.
        reached: Set once somebody has come.
    """

    def __init__(self) -> None:
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self.reached = threading.Event()
        self._lines: list[socket.socket] = []
        threading.Thread(target=self._take, daemon=True).start()

    def _take(self) -> None:
        while True:
            try:
                line, _ = self._listening.accept()
            except OSError:
                return
            self._lines.append(line)
            self.reached.set()

    def close(self) -> None:
        """Hang up."""
        for each in [self._listening, *self._lines]:
            each.close()


@pytest.fixture
def mute() -> Iterator[Mute]:
    with closing(Mute()) as made:
        yield made


def stopped(host: Host, words: Words, waits: Callable[[], object], **more: str) -> str:
    """Start a command, signal it once it waits, and return what it said."""
    process = host.start(words, environment=more)
    wait_until(waits)
    process.signal(signal.SIGTERM)
    ended = process.wait()
    assert ended.status == 11, ended.err
    assert "stopped by SIGTERM" in ended.err
    return ended.err


def reader_of(fifo: Path) -> Callable[[], bool]:
    """Return what tells whether somebody has opened a FIFO for reading."""

    def look() -> bool:
        try:
            os.close(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK))
        except OSError:
            return False
        return True

    return look


@pytest.mark.parametrize("command", ["convert", "merge", "inspect", "extents"])
def test_of_a_pipe_into_which_nobody_writes(host: Host, command: str) -> None:
    disk, fifo = host.disk("disk"), host.folder / "fifo"
    os.mkfifo(fifo)
    # Held open, or the look of somebody who opens it would be its end.
    held = os.open(fifo, os.O_RDWR)
    try:
        words: dict[str, Words] = {
            "convert": ["convert", fifo],
            "merge": ["merge", fifo, fifo],
            "inspect": ["inspect", fifo],
            "extents": ["send", disk, host.folder / "copy", "--create", "--extents", fifo],
        }
        process = host.start(words[command])
        opened = f"/proc/{process.pid}/fd"
        wait_until(lambda: any(str(fifo) in _target(each) for each in Path(opened).iterdir()))
        process.signal(signal.SIGTERM)
        ended = process.wait()
    finally:
        os.close(held)
    assert ended.status == 11, ended.err
    assert "stopped by SIGTERM" in ended.err


def _target(path: Path) -> str:
    try:
        return str(path.readlink())
    except OSError:
        return ""


@pytest.mark.parametrize("command", ["send", "verify", "extents"])
def test_of_an_nbd_server_that_says_nothing(host: Host, mute: Mute, command: str) -> None:
    place, copy = f"nbd://127.0.0.1:{mute.port}/x", host.disk("copy")
    words: dict[str, Words] = {
        "send": ["send", place, copy],
        "verify": ["verify", place, copy],
        "extents": ["extents", place],
    }
    stopped(host, words[command], mute.reached.is_set)


@pytest.mark.parametrize("command", ["send", "restore", "prune", "verify", "compact"])
def test_of_a_store_that_does_not_answer(host: Host, mute: Mute, command: str) -> None:
    """`prune` went on for ever after it had said that it was stopped, and heard no signal more."""
    place, disk = "s3://bucket/store", host.disk("disk")
    words: dict[str, Words] = {
        "send": ["send", disk, f"{place}/vm"],
        "restore": ["restore", f"{place}/vm", disk],
        "prune": ["store", "prune", place, "--keep", "last=1"],
        "verify": ["store", "verify", place],
        "compact": ["store", "compact", place],
    }
    way = ["--endpoint-url", f"http://127.0.0.1:{mute.port}"]
    stopped(host, [*words[command], *way], mute.reached.is_set, **KEYS)


def test_of_another_host_that_says_nothing(host: Host) -> None:
    disk, began = host.disk("disk"), host.folder / "began"
    way = ["--rsh", f"sh -c 'touch {began}; exec sleep 600'"]
    said = stopped(host, ["send", disk, "lab:/x", *way], began.exists)
    assert "the same command continues" in said


def test_of_a_vcenter_that_says_nothing(host: Host, mute: Mute) -> None:
    place = f"vsphere://ann@127.0.0.1:{mute.port}/DC/vm/mail"
    password = {"BLOCKSTREAM_VSPHERE_PASSWORD": "secret"}
    stopped(host, ["send", place, host.folder / "copy"], mute.reached.is_set, **password)


def test_a_staged_stream_that_is_being_applied_is_stopped_and_finished_later(host: Host) -> None:
    """It was applied to its end before the signal was heard, however long that took."""
    disk, target = host.disk("disk", 48 * MIB), host.disk("target", 48 * MIB)
    stream = host.stream(disk, "--goal", "a")
    words: Words = ["recv", "--apply", "stage", target]
    died = host.run(*words, data=stream, environment=failing_at("recv.spool_complete:1:kill"))
    assert died.status == -9
    reading, writing = os.pipe()
    process = host.start(words, reading, environment=failing_at("recv.mid_write:1:stop"))
    os.close(reading)
    feeder = threading.Thread(target=_feed, args=(writing, stream), daemon=True)
    feeder.start()
    wait_until(process.stopped)
    process.signal(signal.SIGTERM)
    process.signal(signal.SIGCONT)
    ended = process.wait()
    feeder.join()
    assert ended.status == 11, ended.err
    assert f"{target} is half-written, but all has arrived" in ended.err
    assert host.run("apply", target).status == 0
    assert target.read_bytes() == disk.read_bytes()


def _feed(fd: int, data: bytes) -> None:
    with os.fdopen(fd, "wb") as file:
        try:
            file.write(data)
        except BrokenPipeError:
            return
