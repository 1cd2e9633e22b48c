"""Whoever uses the volumes that move: how it is made to stand still, and to go on elsewhere."""

import contextlib
import os
import select
import shlex
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from blockstream.errors import BlockstreamError, ConnectionLostError, InterruptedTransferError
from blockstream.interfaces import Link
from blockstream.linux.buffers import write_stream
from blockstream.linux.children import run_guarded
from blockstream.locations.ssh import Remote, open_link
from blockstream.run import Run
from blockstream.transfers.peer_options import PeerOptions

_NO_CONNECTION: Final = 255
_PIECE: Final = 65_536
_LONGEST: Final = 1 << 20
COMMAND_SECONDS: Final = 600.0
_CONNECT_SECONDS: Final = 60.0
_STEP_SECONDS: Final = 0.2  # how soon a stop is noticed
_READY: Final = "blockstream-ready"


class Guest(Protocol):
    """Whoever uses the volumes. Each method but the first raises a BlockstreamError if it fails."""

    def problems(self) -> list[str]:
        """Return why it cannot be moved, as far as is found without a change."""

    def prepare(self) -> bool:
        """Do what takes long, while the guest runs on.

        Returns:
            Whether it still runs: one that idles may be stopped by then.
        """

    def call_off(self) -> None:
        """Undo `prepare`, even after a run that died in it; it may not have been called."""

    def pause(self) -> float:
        """Let it stand still: when this returns, nothing is written any more.

        Returns:
            When it began to stand still, by the clock of `time.monotonic`.
        """

    def start_there(self) -> None:
        """Let it run on the other host.

        Raises:
            ConnectionLostError: If nobody knows whether it does. OutcomeUnknownError as well.
            BlockstreamError: If it does not.
        """

    def roll_back(self) -> None:
        """Let it run here again, whether `pause` was done or not."""


@dataclass(frozen=True, slots=True)
class FarHost:
    """Where the guest goes, as a place for commands.

    Attributes:
        where: The other host.
        options: How it is reached.
        run: Stops what is waited for there.
    """

    where: Remote
    options: PeerOptions
    run: Run

    @property
    def name(self) -> str:
        """What people call it."""
        return self.where.account

    def readied(self, command: str, what: str) -> "ReadyCommand":
        """Connect, and let a command wait there until it is told to run."""
        return ReadyCommand(self, command, what)

    def command(self, command: str, what: str, *, data: Iterable[bytes] = ()) -> str:
        """Run a command of its shell; return what it wrote.

        Args:
            command: For the shell there.
            what: What it is for, in messages.
            data: Given to it as standard input.

        Raises:
            ConnectionLostError: If nobody knows how it ended.
            InterruptedTransferError: If it failed.
        """
        link = open_link(self.where, command, self.options.way)
        with contextlib.closing(link):
            with contextlib.suppress(BrokenPipeError):
                for piece in data:
                    write_stream(link.to_peer, [memoryview(piece)])
            return _outcome(link, what, self.run)


class ReadyCommand:
    """A command that waits on the other host for one line, so that no handshake is in its way."""

    def __init__(self, far: FarHost, command: str, what: str) -> None:
        """Connect, without waiting until that is done."""
        self._far = far
        self._command = command
        self._what = what
        # Without the line, because the connection ended, nothing is run.
        script = f"echo {_READY}; read line && {{ {command}\n}}"
        waiting = f"sh -c {shlex.quote(script)}"
        self._link = open_link(far.where, waiting, far.options.way)
        self._is_ready = self._waited = False

    def wait(self) -> None:
        """Wait until it is ready there; where nobody is reached, `run` says so."""
        if self._waited:
            return
        self._waited = True
        wanted, said = _READY.encode() + b"\n", b""
        poll = select.poll()
        poll.register(self._link.from_peer, select.POLLIN)
        deadline = time.monotonic() + _CONNECT_SECONDS
        while not self._is_ready and _comes(poll, deadline, self._far.run):
            piece = os.read(self._link.from_peer, 1)  # what follows is the command's
            if not piece:
                return
            said += piece
            self._is_ready = said.endswith(wanted)

    def run(self) -> None:
        """Let it run, over another connection if this one has ended meanwhile.

        Raises:
            ConnectionLostError: If nobody knows how it ended.
            InterruptedTransferError: If it failed.
        """
        with contextlib.closing(self._link):
            self.wait()
            if self._is_ready and not self._has_ended():
                with contextlib.suppress(BrokenPipeError):
                    write_stream(self._link.to_peer, [memoryview(b"run\n")])
                _outcome(self._link, self._what, self._far.run)
                return
        self._far.command(self._command, self._what)

    def close(self) -> None:
        """Forget it."""
        self._link.close()

    def _has_ended(self) -> bool:
        poll = select.poll()
        poll.register(self._link.from_peer, select.POLLIN)
        return bool(poll.poll(0))


def _comes(poll: select.poll, deadline: float, run: Run) -> bool:
    """Wait until something comes, or nothing will.

    Raises:
        InterruptedTransferError: If it is stopped meanwhile.
    """
    while not poll.poll(_STEP_SECONDS * 1000):
        run.check()
        if time.monotonic() >= deadline:
            return False
    return True


def _outcome(link: Link, what: str, run: Run) -> str:
    """Wait for the end of a command on the other host; return what it wrote.

    Raises:
        ConnectionLostError: If nobody knows how it ended.
        InterruptedTransferError: If it failed.
    """
    said = bytearray()
    link.hang_up()
    deadline = time.monotonic() + COMMAND_SECONDS
    poll = select.poll()
    poll.register(link.from_peer, select.POLLIN)
    while len(said) < _LONGEST:
        if not _comes(poll, deadline, run):
            raise ConnectionLostError(
                f"{what} did not end on {link.name} within {COMMAND_SECONDS:.0f} s; what it leaves "
                "running must not hold its output: `CMD >/dev/null 2>&1 &`"
            )
        piece = os.read(link.from_peer, _PIECE)
        if not piece:
            break
        said += piece
    status, words = link.ended()
    if status == _NO_CONNECTION or status < 0:
        raise ConnectionLostError(f"the connection to {link.name} was lost: {what}: {words}")
    if status:
        raise InterruptedTransferError(
            f"{what} failed on {link.name} with status {status}: {words or 'without a word'}"
        )
    return said.decode(errors="replace")


def run_here(command: str | Sequence[str], what: str, run: Run) -> str:
    """Run a command on this host, for the shell if it is a line; return what it wrote.

    It does not outlive us: a command that stops the guest must not do so when nobody is left to
    wake it.

    Raises:
        InterruptedTransferError: If it failed.
    """
    words = ["/bin/sh", "-c", command] if isinstance(command, str) else command
    try:
        done = run_guarded(words, COMMAND_SECONDS, run.heeding)
    except TimeoutError:
        raise InterruptedTransferError(
            f"{what} did not end within {COMMAND_SECONDS:.0f} s, and was ended"
        ) from None
    except OSError as error:
        raise InterruptedTransferError(f"{what} cannot be run: {error.strerror}") from error
    run.check(f"{what} was ended")
    if done.status:
        said = (done.err or done.out).strip()[-500:] or "without a word"
        raise InterruptedTransferError(f"{what} failed with status {done.status}: {said}")
    return done.out


def problem_of(ask: Callable[[], object]) -> list[str]:
    """Return what an attempt complained of, as a list of none or one."""
    try:
        ask()
    except BlockstreamError as error:
        return [str(error)]
    return []


@dataclass(slots=True)
class CommandGuest:
    """A guest that is known by commands; an empty one does nothing.

    Attributes:
        pause_here: Lets it stand still, on this host.
        start_command: Lets it run, on the other host.
        wake: Lets it run here again.
        far: The other host.
        run: Says what is done, and stops it.
    """

    pause_here: str
    start_command: str
    wake: str
    far: FarHost
    run: Run
    _ready: ReadyCommand | None = None

    def problems(self) -> list[str]:
        """Nothing is known of it."""
        return []

    def prepare(self) -> bool:
        """Connect, so that the guest need not wait for that. See `Guest`."""
        if self.start_command:
            self._ready = self.far.readied(self.start_command, "--start")
            self._ready.wait()
        return True

    def call_off(self) -> None:
        """Give the connection back. See `Guest`."""
        if self._ready is not None:
            self._ready.close()
            self._ready = None

    def pause(self) -> float:
        """Let it stand still. See `Guest`."""
        began = time.monotonic()
        self._here("--pause", self.pause_here)
        return began

    def start_there(self) -> None:
        """Let it run on the other host. See `Guest`."""
        if self.start_command:
            self.run.tell(f"on {self.far.name}: {self.start_command}")
            ready = self._ready or self.far.readied(self.start_command, "--start")
            self._ready = None
            ready.run()

    def roll_back(self) -> None:
        """Let it run here again. See `Guest`."""
        self._here("--roll-back", self.wake)

    def _here(self, option: str, command: str) -> None:
        if command:
            self.run.tell(f"here: {command}")
            run_here(command, option, self.run)
