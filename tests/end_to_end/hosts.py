"""Real processes with a state directory of their own, and small disks to move."""

import functools
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

from blockstream.errors import BlockstreamError
from blockstream.events import schema
from blockstream.jobs.target_admin import adopt
from blockstream.pipeline.target_status import status_at
from blockstream.pipeline.token import ResumeToken
from blockstream_protocol import HEAD_BYTES, MAGIC, FrameType

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "blockstream"]


@dataclass(frozen=True, slots=True)
class Ended:
    """How a process ended.

    Attributes:
        status: Exit status; negative for a signal.
        out: Its standard output.
        err: Its standard error.
        peak: Its largest resident size, in KiB.
    """

    status: int
    out: bytes
    err: str
    peak: int = 0

    @property
    def events(self) -> list[dict[str, Any]]:
        """The lines of --json but the last; every line must be one, as the schema says."""
        *lines, end = [_as_declared(line) for line in self.err.splitlines()]
        assert end["event"] == "end", end
        return lines

    @property
    def end(self) -> dict[str, Any]:
        """The last line of --json."""
        end = _as_declared(self.err.splitlines()[-1])
        assert (end["event"], end["status"]) == ("end", self.status), end
        return end

    @property
    def results(self) -> list[dict[str, Any]]:
        """The lines of --json where they are what was asked for."""
        return [_as_declared(line) for line in self.out.decode().splitlines()]


@functools.cache
def _validators() -> dict[str, Draft202012Validator]:
    """Return what holds each kind of event against the schema."""
    kinds = schema()["oneOf"]
    assert isinstance(kinds, list)
    return {each["properties"]["event"]["const"]: Draft202012Validator(each) for each in kinds}


def _as_declared(line: str) -> dict[str, Any]:
    """Return an event that is as the schema says."""
    found = json.loads(line)
    _validators()[found["event"]].validate(found)
    assert isinstance(found, dict)
    return found


class Zygote:
    """The process that all others fork from."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control = ours
        self._lock = threading.Lock()
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603  # ourselves
                [sys.executable, Path(__file__).with_name("zygote.py"), str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'protocol'}"},
                stdin=subprocess.DEVNULL,
            )

    def start(self, order: Mapping[str, object], descriptors: Sequence[int]) -> int:
        """Start a process; return the descriptor that tells its number and its end."""
        reading, writing = os.pipe()
        with self._lock:
            message = json.dumps(order).encode()
            socket.send_fds(self._control, [message], [*descriptors, writing])
        os.close(writing)
        return reading

    def close(self) -> None:
        """End it."""
        self._control.close()
        self._process.wait()


class Process:
    """One running command."""

    def __init__(self, result: int, out: int | None, err: int) -> None:
        self._result = os.fdopen(result, "rb")
        self.pid = int(self._result.readline())
        self.ended: Ended | None = None
        self._out: list[bytes] = []
        self._err: list[bytes] = []
        self._readers = [
            threading.Thread(target=_drain, args=(fd, kept), daemon=True)
            for fd, kept in ((out, self._out), (err, self._err))
            if fd is not None
        ]
        for reader in self._readers:
            reader.start()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal."""
        os.kill(self.pid, number)

    def stopped(self) -> bool:
        """Tell whether it was stopped by SIGSTOP."""
        return self.state() == "T"

    def state(self) -> str:
        """Return the kernel's letter for what it does; empty once it is gone."""
        try:
            return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return ""

    def said(self) -> str:
        """Return what it wrote to standard error so far."""
        return b"".join(self._err).decode()

    def wait(self) -> Ended:
        """Wait for its end."""
        line = self._result.readline().split()
        self._result.close()
        for reader in self._readers:
            reader.join()
        out, err = b"".join(self._out), b"".join(self._err).decode()
        self.ended = Ended(int(line[0]), out, err, int(line[1]))
        return self.ended


def _drain(fd: int, kept: list[bytes]) -> None:
    with os.fdopen(fd, "rb", buffering=0) as file:
        while part := file.read(1 << 20):
            kept.append(part)


@dataclass(frozen=True, slots=True)
class Piped:
    """How both ends of `send | recv` ended."""

    send: Ended
    recv: Ended

    @property
    def statuses(self) -> tuple[int, int]:
        """Both exit statuses."""
        return self.send.status, self.recv.status


Words = Sequence[str | Path]

# A CHECKPOINT after each frame, so that small disks have something durable to resume.
OFTEN = {"CHECKPOINT_SECONDS": 0.0}


@dataclass(slots=True)
class Host:
    """Runs commands with one state directory.

    Attributes:
        folder: Where disks lie.
        zygote: What processes fork from.
        limits: Limits of the protocol that are others for it, by name.
        uid: Whose processes they are; 0 for our own.
        file_limit: How large its processes may make a file, in bytes; 0 for no limit.
        environment: Additions to the environment of all its processes.
        started: Its processes.
    """

    folder: Path
    zygote: Zygote
    limits: Mapping[str, float] = field(default_factory=dict)
    uid: int = 0
    file_limit: int = 0
    environment: dict[str, str] = field(default_factory=dict)
    started: list[Process] = field(default_factory=list)

    @property
    def state_dir(self) -> Path:
        """Where journals lie."""
        return self.folder / "state"

    def start(
        self,
        words: Words,
        stdin: int | None = None,
        stdout: int | None = None,
        environment: Mapping[str, str] | None = None,
        extra: Mapping[int, int] | None = None,
    ) -> Process:
        """Start a command.

        Args:
            words: Its command line.
            stdin: Its standard input; the caller's. Nothing by default.
            stdout: Its standard output; the caller's. Kept by default.
            environment: Additions to the environment.
            extra: Further descriptors: which number is which of ours.
        """
        nothing = os.open(os.devnull, os.O_RDONLY)
        err, err_end = os.pipe()
        out, out_end = os.pipe() if stdout is None else (None, stdout)
        more = dict(extra or {})
        order = {
            "arguments": list(map(str, words)),
            "environment": self._environment(environment),
            "limits": dict(self.limits),
            "uid": self.uid,
            "file_limit": self.file_limit,
            "as": [0, 1, 2, *more],
        }
        given = [nothing if stdin is None else stdin, out_end, err_end, *more.values()]
        result = self.zygote.start(order, given)
        os.close(nothing)
        os.close(err_end)
        if out is not None:
            os.close(out_end)
        self.started.append(Process(result, out, err))
        return self.started[-1]

    def close(self) -> None:
        """End what a failed test left behind."""
        for process in self.started:
            if process.ended is None:
                with suppress(ProcessLookupError):
                    process.signal(signal.SIGKILL)
                process.wait()

    def _environment(self, more: Mapping[str, str] | None) -> dict[str, str]:
        basic = {"PATH": os.environ["PATH"], "HOME": str(self.folder), "LC_ALL": "C.UTF-8"}
        basic |= self.environment
        return basic | {"BLOCKSTREAM_STATE_DIR": str(self.state_dir)} | dict(more or {})

    def run(
        self,
        *words: str | Path,
        data: bytes | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> Ended:
        """Run a command to its end, with `data` as its standard input."""
        if data is None:
            return self.start(words, environment=environment).wait()
        reading, writing = os.pipe()
        process = self.start(words, stdin=reading, environment=environment)
        os.close(reading)
        feeder = threading.Thread(target=_feed, args=(writing, data), daemon=True)
        feeder.start()
        ended = process.wait()
        feeder.join()
        return ended

    def stream(self, *words: str | Path) -> bytes:
        """Return the stream that `send` makes."""
        ended = self.run("send", "-q", *words)
        assert ended.status == 0, ended.err
        return ended.out

    def pipe(
        self,
        send: Words,
        recv: Words,
        send_environment: Mapping[str, str] | None = None,
        recv_environment: Mapping[str, str] | None = None,
    ) -> Piped:
        """Run `send ... | recv ...`."""
        sender, receiver = self.start_pipe(send, recv, send_environment, recv_environment)
        return Piped(sender.wait(), receiver.wait())

    def start_pipe(
        self,
        send: Words,
        recv: Words,
        send_environment: Mapping[str, str] | None = None,
        recv_environment: Mapping[str, str] | None = None,
    ) -> tuple[Process, Process]:
        """Start `send ... | recv ...`."""
        reading, writing = os.pipe()
        receiver = self.start(["recv", *recv], stdin=reading, environment=recv_environment)
        sender = self.start(["send", *send], stdout=writing, environment=send_environment)
        os.close(reading)
        os.close(writing)
        return sender, receiver

    def cut(self, target: Path, words: Words, data: bytes) -> Ended:
        """Let `recv` have `data` and no more; what was confirmed in it must be durable then."""
        ended = self.run("recv", target, *words, data=data)
        assert self.durable(target) == count_messages(data, FrameType.CHECKPOINT), ended
        return ended

    def durable(self, target: Path) -> int:
        """Return how many frames of an unfinished transfer are durable."""
        try:
            token = status_at(str(target), self.state_dir).token
        except BlockstreamError:
            return 0
        return ResumeToken.parse(token).frames if token else 0

    # Disks.

    def disk(self, name: str, size: int = 300_000, seed: int = 1) -> Path:
        """Make a disk of text, zeros and noise, always the same for the same arguments."""
        path = self.folder / name
        path.write_bytes(content(size, seed))
        return path

    def blank(self, name: str, size: int) -> Path:
        """Make a disk that is one hole."""
        path = self.folder / name
        with path.open("wb") as file:
            file.truncate(size)
        return path

    def changed(self, name: str, old: Path, seed: int = 7) -> Path:
        """Make a disk that differs from `old` in a few places: noise, zeros, and its last bytes."""
        path = self.folder / name
        path.write_bytes(altered(old.read_bytes(), seed))
        return path

    def list_changes(self, name: str, new: Path, old: Path) -> Path:
        """Write the list of changes from `old` to `new`."""
        ended = self.run("extents", "-q", new, "--since", old)
        assert ended.status == 0, ended.err
        path = self.folder / name
        path.write_bytes(ended.out)
        return path

    def list_everything(self, name: str, size: int) -> Path:
        """Write a list that says all of a disk has changed."""
        path = self.folder / name
        extents = [{"offset": 0, "length": size, "kind": "data"}]
        head = {"format": "blockstream-extents", "version": 1, "size": size}
        path.write_text(json.dumps({**head, "meaning": "changed", "extents": extents}))
        return path

    # State.

    def status(self, target: Path) -> dict[str, object]:
        """Return what `status` says of a target; read by ourselves, which takes no process."""
        found = status_at(str(target), self.state_dir)
        return {
            "state": type(found.state).__name__.lower(),
            "id": getattr(found.state, "id", None),
            "token": found.token,
            "staged": found.staged,
            "undo": found.undo,
        }

    def adopt(self, target: Path, state: str) -> None:
        """Say which state a target holds."""
        adopt(str(target), state, self.state_dir, force_base=False)

    def holds(self, target: Path, state: str) -> bool:
        """Tell whether a target is CLEAN at a state."""
        status = self.status(target)
        return (status["state"], status["id"]) == ("clean", state)


def _feed(fd: int, data: bytes) -> None:
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
    except BrokenPipeError:
        pass
    finally:
        os.close(fd)


def content(size: int, seed: int) -> bytes:
    """Return text, zeros and noise in turn."""
    source = random.Random(seed)  # noqa: S311  # the same each time
    parts: list[bytes] = []
    length = 0
    while length < size:
        step = source.choice((4096, 20_480, 65_536))
        kind = source.randrange(3)
        if kind == 0:
            part = bytes(step)
        elif kind == 1:
            part = source.randbytes(step)
        else:
            part = (f"line {source.randrange(100)} of a log\n" * step).encode()[:step]
        parts.append(part)
        length += step
    return b"".join(parts)[:size]


def altered(old: bytes, seed: int) -> bytes:
    """Return `old` with noise, zeros and new last bytes."""
    source = random.Random(seed)  # noqa: S311  # the same each time
    new = bytearray(old)
    for _ in range(4):
        length = source.choice((512, 4096, 16_384))
        offset = source.randrange(max(1, len(new) - length))
        new[offset : offset + length] = source.randbytes(length)
    hole = source.randrange(max(1, len(new) - 8192))
    new[hole : hole + 8192] = bytes(8192)
    new[-3:] = source.randbytes(3)
    return bytes(new[: len(old)])


def count_messages(stream: bytes, kind: FrameType) -> int:
    """Return how many whole messages of a kind lie in a stream, or in the beginning of one."""
    count, position = 0, len(MAGIC)
    while position + HEAD_BYTES <= len(stream):
        end = position + HEAD_BYTES + int.from_bytes(stream[position + 6 : position + 10], "little")
        count += stream[position] == kind and end <= len(stream)
        position = end
    return count


def wait_until(condition: Callable[[], object], seconds: float = 10.0) -> None:
    """Wait for something that another process does, which nobody can announce to us."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.005)


def failing_at(failpoint: str) -> dict[str, str]:
    """Return what makes a process fail at a point: NAME:HIT:ACTION."""
    return {"BLOCKSTREAM_FAILPOINT": failpoint}
