"""A small virtual host with real device-mapper, LVM and sshd, started from the lab's image."""

import compileall
import contextlib
import io
import json
import os
import py_compile
import shutil
import socket
import subprocess
import tarfile
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.lab import qemu, uml
from tests.lab.hardware import ADDRESSES, Disk, Hardware, Power
from tests.lab.image import HERE, ROOT, Image
from tests.lab.warm import PORT as WARM_PORT

# The figures behind the limits are those of a quiet machine; a slow one raises the factor once.
_PATIENCE = float(os.environ.get("LAB_PATIENCE", "5"))
_BOOT_SECONDS = 12 * _PATIENCE
_COMMAND_SECONDS = 12 * _PATIENCE
_OPTIONS = (
    *("-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no", "-o", "LogLevel=ERROR"),
    *("-o", "UserKnownHostsFile=/dev/null", "-o", "ControlMaster=auto", "-o", "ControlPersist=600"),
)


class GuestError(AssertionError):
    """A command in a guest failed, or the guest did."""


@dataclass(frozen=True, slots=True)
class Done:
    """What a command in a guest said, and how it ended."""

    status: int
    out: str
    err: str


@dataclass
class Guest:
    """One running guest.

    Attributes:
        hardware: What it is made of.
        image: What it is started from.
        console: What it said.
    """

    hardware: Hardware
    image: Image
    console: list[str] = field(default_factory=list)
    _power: Power | None = None
    _listener: threading.Thread = field(default_factory=threading.Thread)

    @property
    def name(self) -> str:
        """Its host name."""
        return self.hardware.name

    @property
    def folder(self) -> Path:
        """Its disks, sockets and keys."""
        return self.hardware.folder

    @property
    def forwards(self) -> Mapping[int, int]:
        """Ports of the guest, and where each is reached on 127.0.0.1."""
        return self.hardware.forwards

    def start(self) -> None:
        """Start it, and wait until its sshd listens.

        Raises:
            GuestError: If it does not in time.
        """
        self.hardware.make_disks()
        power = (uml if self.image.engine == "uml" else qemu).start(self.hardware, self.image)
        self._power = power
        ready = threading.Event()
        self._listener = threading.Thread(target=self._listen, args=(power, ready), daemon=True)
        self._listener.start()
        if not ready.wait(_BOOT_SECONDS):
            raise GuestError(f"{self.name} is not ready:\n{self.said()}")

    def _listen(self, power: Power, ready: threading.Event) -> None:
        with power.console as console:
            for line in console:
                self.console.append(line.rstrip())
                if line.startswith("T ready"):
                    ready.set()

    # Commands.

    def ssh(self, command: str, *, limit: float = _COMMAND_SECONDS, data: bytes = b"") -> Done:
        """Run a command of the shell; return how it ended."""
        done = subprocess.run(
            [*self.ssh_words(), command],
            input=data,
            capture_output=True,
            timeout=limit,
            check=False,
        )
        out, err = (text.decode(errors="replace") for text in (done.stdout, done.stderr))
        return Done(done.returncode, out, err)

    def run(self, command: str, *, limit: float = _COMMAND_SECONDS, data: bytes = b"") -> str:
        """Run a command of the shell that must succeed; return what it wrote.

        Raises:
            GuestError: If it failed, with all that is known.
        """
        done = self.ssh(command, limit=limit, data=data)
        if done.status:
            raise GuestError(
                f"{self.name}: {command} ended with {done.status}:\n{done.out}{done.err}\n"
                f"{self.said()}"
            )
        return done.out

    def start_command(self, command: str) -> subprocess.Popen[bytes]:
        """Start a command of the shell, and do not wait for it."""
        pipe = subprocess.PIPE
        words = [*self.ssh_words(), command]
        return subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe)

    def ssh_words(self) -> list[str]:
        """Return the command that leads there."""
        socket_path = f"ControlPath={self.folder}/cm"
        key = str(self.folder / "key")
        return [
            *("ssh", *_OPTIONS, "-o", socket_path, "-i", key, "-p", str(self.forwards[22])),
            "root@127.0.0.1",
        ]

    def blockstream(self, *words: object, **environment: str) -> Done:
        """Run blockstream there."""
        return self.start_blockstream(*words, **environment).wait()

    def start_blockstream(self, *words: object, **environment: str) -> "Running":
        """Start blockstream there."""
        return Running(self, [str(word) for word in words], environment)

    def warm_up(self) -> None:
        """Load blockstream once for all of its commands."""
        program = (HERE / "warm.py").read_bytes()
        self.run("cat >/root/warm.py", data=program)
        self.run(
            "setsid python3 /root/warm.py >/root/warm.log 2>&1 </dev/null & "
            "until grep -q READY /root/warm.log; do "
            "kill -0 $! || { cat /root/warm.log >&2; exit 1; }; sleep 0.2; done"
        )

    def said(self) -> str:
        """Return the last lines of its console."""
        return "\n".join(self.console[-40:])

    # Ends.

    def kill(self) -> None:
        """Cut its power."""
        if self._power is not None:
            self._power.cut()
            self._listener.join()
            self._power = None
        with contextlib.suppress(OSError):
            (self.folder / "cm").unlink()

    def stop(self) -> None:
        """Take it away."""
        subprocess.run([*self.ssh_words(), "-O", "exit"], capture_output=True, check=False)
        self.kill()


class Running:
    """A blockstream that runs in a guest.

    Attributes:
        pid: Its number there.
    """

    def __init__(self, guest: Guest, words: list[str], environment: Mapping[str, str]) -> None:
        self._guest = guest
        self._socket = socket.create_connection(("127.0.0.1", guest.forwards[WARM_PORT]))
        self._file = self._socket.makefile("rb")
        order = {"words": words, "environment": dict(environment)}
        self._socket.sendall(json.dumps(order).encode() + b"\n")
        self._socket.settimeout(_COMMAND_SECONDS)
        self.pid = int(self._file.readline() or 0)

    def wait(self, seconds: float = _COMMAND_SECONDS * 6) -> Done:
        """Wait for its end."""
        self._socket.settimeout(seconds)
        with self._socket, self._file:
            line = self._file.readline()
        if not line:
            raise GuestError(f"{self._guest.name} is gone:\n{self._guest.said()}")
        return Done(**json.loads(line))

    def wait_for_stop(self) -> None:
        """Wait until it has stopped itself."""
        place = f"/proc/{self.pid}"
        self._guest.run(
            f"until grep -q '^State:.T' {place}/status; do [ -d {place} ] || exit 1; "
            "sleep 0.05; done"
        )

    def signal(self, name: str) -> None:
        """Send it a signal."""
        self._guest.run(f"kill -{name} {self.pid}")


def free_port(kind: int = socket.SOCK_STREAM) -> int:
    """Return a port that nobody uses now."""
    with socket.socket(type=kind) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def guests(
    image: Image, *names: str, disks: Sequence[Disk], forwards: Sequence[int] = ()
) -> Iterator[list[Guest]]:
    """Run guests until the block ends; several have a network between them, and keys for it.

    Args:
        image: What they start from.
        names: `src`, `dst`, or one of them.
        disks: Disks of each.
        forwards: Ports of each that are reached from here.
    """
    # Paths of sockets must be short.
    folder = Path(tempfile.mkdtemp(prefix="bslab-", dir="/dev/shm"))
    lan = {name: free_port(socket.SOCK_DGRAM) for name in ADDRESSES} if len(names) > 1 else {}
    made = []
    try:
        _keygen(folder / "pair")
        for name in names:
            home = folder / name
            home.mkdir()
            _keygen(home / "key")
            _seed(home, folder / "pair")
            ports = {port: free_port() for port in (22, WARM_PORT, *forwards)}
            guest = Guest(Hardware(name, home, disks, ports, lan), image)
            made.append(guest)
            guest.start()
        for guest in made:
            guest.warm_up()
        yield made
    finally:
        for guest in made:
            guest.stop()
        shutil.rmtree(folder, ignore_errors=True)


def _keygen(path: Path) -> None:
    words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "lab", "-f", str(path)]
    subprocess.run(words, check=True)


def _seed(home: Path, pair: Path) -> None:
    """Write what a guest has to know at its start, as a disk that holds a tar."""
    config = (
        "Host *\n  StrictHostKeyChecking no\n  UserKnownHostsFile /dev/null\n  LogLevel ERROR\n"
    )
    keys = (home / "key.pub").read_text() + pair.with_suffix(".pub").read_text()
    program = '#!/bin/sh\nexec python3 -m blockstream "$@"\n'
    warm = (
        "#!/usr/bin/busybox sh\n{ echo $#; printf '%s\\0' \"$@\"; exec busybox cat; } "
        f"| exec busybox nc 127.0.0.1 {WARM_PORT}\n"
    )
    with tarfile.open(home / "seed.raw", "w") as tar:
        for name, text, mode in (
            ("root/.ssh/authorized_keys", keys, 0o600),
            ("root/.ssh/id_ed25519", pair.read_text(), 0o600),
            ("root/.ssh/config", config, 0o600),
            ("usr/local/bin/blockstream", program, 0o755),
            ("usr/local/bin/blockstream-warm", warm, 0o755),
            ("usr/lib/python3/dist-packages/blockstream.pth", "/opt/b\n", 0o644),
        ):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode, entry.mtime = len(text.encode()), mode, int(time.time())
            tar.addfile(entry, io.BytesIO(text.encode()))
        with tempfile.TemporaryDirectory() as work:
            for package in ("blockstream", "protocol/blockstream_protocol"):
                copy = Path(work) / Path(package).name
                shutil.copytree(ROOT / package, copy, ignore=shutil.ignore_patterns("__pycache__"))
                # An emulated processor takes ten seconds to compile all of it.
                unchecked = py_compile.PycInvalidationMode.UNCHECKED_HASH
                compileall.compile_dir(copy, quiet=1, invalidation_mode=unchecked)
                tar.add(copy, f"opt/b/{copy.name}")
    with (home / "seed.raw").open("ab") as file:
        file.truncate(-(-file.tell() // 4096) * 4096)
