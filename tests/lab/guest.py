"""A small virtual host with real device-mapper, LVM and sshd, started from the lab's image."""

import compileall
import contextlib
import io
import json
import os
import py_compile
import shutil
import signal
import socket
import subprocess
import tarfile
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.lab.image import HERE, ROOT, Image
from tests.lab.warm import PORT as WARM_PORT
from tests.machine import PROCESSORS

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


@dataclass(frozen=True, slots=True)
class Disk:
    """A disk of a guest, `/dev/disk/lab-NAME` there.

    Attributes:
        name: Its serial number.
        mib: Its size.
        block: Its logical block, in bytes.
    """

    name: str
    mib: int
    block: int = 512


@dataclass
class Guest:
    """One running guest.

    Attributes:
        name: Its host name.
        folder: Its disks, sockets and keys.
        image: What it was started from.
        port: Where its sshd is reached, on 127.0.0.1.
        forwards: Further ports of the guest, and where each is reached.
    """

    name: str
    folder: Path
    image: Image
    port: int
    disks: Sequence[Disk]
    lan: Path | None = None
    forwards: Mapping[int, int] = field(default_factory=dict)
    console: list[str] = field(default_factory=list)
    _process: subprocess.Popen[str] | None = None
    _listener: threading.Thread = field(default_factory=threading.Thread)

    def start(self) -> None:
        """Start it, and wait until its sshd listens.

        Raises:
            GuestError: If it does not in time.
        """
        for disk in self.disks:
            path = self._path(disk)
            if not path.exists():
                with path.open("wb") as file:
                    file.truncate(disk.mib << 20)
        process = subprocess.Popen(
            self._command(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        self._process = process
        ready = threading.Event()
        self._listener = threading.Thread(target=self._listen, args=(process, ready), daemon=True)
        self._listener.start()
        if not ready.wait(_BOOT_SECONDS):
            raise GuestError(f"{self.name} is not ready:\n{self.said()}")

    def _listen(self, process: subprocess.Popen[str], ready: threading.Event) -> None:
        if process.stdout is None:
            return
        with process.stdout:
            for line in process.stdout:
                self.console.append(line.rstrip())
                if line.startswith("T ready"):
                    ready.set()

    def _path(self, disk: Disk) -> Path:
        return self.folder / f"{disk.name}.raw"

    def _command(self) -> list[str]:
        number = 2 if self.name == "dst" else 1
        address = f"lab.ip=10.77.0.{number}/24" if self.lan else ""
        forwards = {22: self.port, **self.forwards}
        rules = ",".join(f"hostfwd=tcp:127.0.0.1:{ours}-:{port}" for port, ours in forwards.items())
        words = [
            *("qemu-system-x86_64", "-accel", "tcg,thread=multi,tb-size=256", "-cpu", "max"),
            *(*PROCESSORS, "-m", "768", "-M", "pc", "-nodefaults", "-no-user-config"),
            *("-display", "none", "-serial", "stdio", "-no-reboot"),
            *("-kernel", str(self.image.kernel), "-initrd", str(self.image.ramdisk)),
            *("-monitor", f"unix:{self.folder}/mon,server=on,wait=off"),
            *("-device", "virtio-rng-pci"),
            *_drive("root", self.image.root, "readonly=on"),
            *_drive("seed", self.folder / "seed.tar", "readonly=on"),
            *("-netdev", f"user,id=ctl,restrict=on,{rules}"),
            *("-device", "virtio-net-pci,netdev=ctl,romfile="),
        ]
        for disk in self.disks:
            # These tests are about logic; what a power cut loses is tested elsewhere.
            how = "cache=unsafe,discard=unmap,detect-zeroes=off,aio=threads"
            block = f",logical_block_size={disk.block},physical_block_size={disk.block}"
            words += _drive(disk.name, self._path(disk), how, block if disk.block != 512 else "")
        if self.lan is not None:
            role = "on" if self.name == "dst" else "off"
            lan = f"stream,id=lan,server={role},addr.type=unix,addr.path={self.lan}"
            card = f"virtio-net-pci,netdev=lan,romfile=,mac=52:54:00:77:00:0{number}"
            words += ["-netdev", lan, "-device", card]
        line = f"console=ttyS0 quiet panic=-1 lab.name={self.name} {address}"
        return [*words, "-append", line.strip()]

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
            *("ssh", *_OPTIONS, "-o", socket_path, "-i", key, "-p", str(self.port)),
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
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self._listener.join()
            self._process = None
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


def _drive(name: str, path: Path, how: str, more: str = "") -> list[str]:
    drive = f"file={path},if=none,id={name},format=raw,{how}"
    return ["-drive", drive, "-device", f"virtio-blk-pci,drive={name},serial={name}{more}"]


def free_port() -> int:
    """Return a port that nobody uses now."""
    with socket.socket() as probe:
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
    lan = folder / "lan" if len(names) > 1 else None
    made = []
    try:
        _keygen(folder / "pair")
        # Whoever listens comes first.
        for name in sorted(names):
            home = folder / name
            home.mkdir()
            _keygen(home / "key")
            _seed(home, folder / "pair")
            ports = {port: free_port() for port in (WARM_PORT, *forwards)}
            guest = Guest(name, home, image, free_port(), disks, lan, ports)
            made.append(guest)
            guest.start()
            guest.warm_up()
        yield sorted(made, key=lambda guest: names.index(guest.name))
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
        "#!/bin/sh\n{ printf '%s\\0' \"$@\" | od -An -v -tx1 | tr -d ' \\n'; echo; exec cat; } "
        f"| exec busybox nc 127.0.0.1 {WARM_PORT}\n"
    )
    with tarfile.open(home / "seed.tar", "w") as tar:
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
    with (home / "seed.tar").open("ab") as file:
        file.truncate(-(-file.tell() // 4096) * 4096)
