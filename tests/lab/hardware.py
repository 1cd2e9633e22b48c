"""What a guest is made of, whatever runs it."""

import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Protocol

ADDRESSES = {"src": "10.77.0.1/24", "dst": "10.77.0.2/24"}
CONTROL_ADDRESS = "10.0.2.15"  # what QEMU's user network gives its only host
MEMORY_MIB = 768


@dataclass(frozen=True, slots=True)
class Disk:
    """A disk of a guest, `/dev/disk/lab-NAME` there.

    Attributes:
        name: Its name.
        mib: Its size.
    """

    name: str
    mib: int


@dataclass(frozen=True, slots=True)
class Hardware:
    """One guest before it is switched on.

    Attributes:
        name: Its host name, `src` or `dst`.
        folder: Where its disks and sockets lie.
        disks: Its disks, `NAME.raw` in the folder.
        forwards: Ports of the guest, and where each is reached on 127.0.0.1.
        lan: The UDP port of each host of the network that it shares with others; empty for none.
    """

    name: str
    folder: Path
    disks: Sequence[Disk]
    forwards: Mapping[int, int]
    lan: Mapping[str, int] = field(default_factory=dict)

    def path(self, name: str) -> Path:
        """Return where a disk lies."""
        return self.folder / f"{name}.raw"

    @property
    def drives(self) -> list[str]:
        """The names of all disks, in their order: the first holds what it must know."""
        return ["seed", *(disk.name for disk in self.disks)]

    @property
    def card(self) -> str:
        """The address of its card in the network that it shares."""
        return f"52:54:00:77:00:0{1 + list(ADDRESSES).index(self.name)}"

    @property
    def forward_rules(self) -> str:
        """Words for QEMU's user network."""
        return ",".join(
            f"hostfwd=tcp:127.0.0.1:{ours}-{CONTROL_ADDRESS}:{port}"
            for port, ours in self.forwards.items()
        )

    @property
    def lan_ports(self) -> tuple[int, int]:
        """Its own port in that network, and the other host's."""
        (other,) = (port for name, port in self.lan.items() if name != self.name)
        return self.lan[self.name], other

    def boot_words(self, disk: str) -> list[str]:
        """Return what the guest's scripts read from the kernel's command line.

        Args:
            disk: What the kernel calls disks, without their letter; `a` is the root disk.
        """
        names = (f"{disk}{chr(ord('b') + n)}:{name}" for n, name in enumerate(self.drives))
        words = [f"lab.root={disk}a", f"lab.name={self.name}", f"lab.disks={','.join(names)}"]
        return [*words, f"lab.ip={ADDRESSES[self.name]}"] if self.lan else words

    def make_disks(self) -> None:
        """Make those that are not there yet."""
        for disk in self.disks:
            if not self.path(disk.name).exists():
                with self.path(disk.name).open("wb") as file:
                    file.truncate(disk.mib << 20)


class Power(Protocol):
    """A guest that is switched on."""

    @property
    def console(self) -> IO[str]:
        """What it says, until it is off."""

    def cut(self) -> None:
        """Take its power away, and wait until nothing of it runs."""


@dataclass(frozen=True, slots=True)
class Group:
    """A process with all that it starts: ends when told to, or when we do, however we end."""

    process: subprocess.Popen[str]

    @property
    def console(self) -> IO[str]:
        """What it says."""
        assert self.process.stdout is not None
        return self.process.stdout

    def cut(self) -> None:
        """Kill all of it."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def started(
    command: Sequence[str], fds: Sequence[int] = (), stderr: int = subprocess.STDOUT
) -> Group:
    """Start a command; what it writes is its console.

    Args:
        command: Its words.
        fds: Descriptors that it gets.
        stderr: Where its standard error goes.
    """
    # A signal at the end of the parent would reach one process only: User-Mode Linux has many.
    keeper = 'setsid "$@" & read -r _; kill -s KILL -- "-$!"; wait'
    return Group(
        subprocess.Popen(
            ["sh", "-c", keeper, "sh", *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            errors="replace",
            pass_fds=fds,
            start_new_session=True,
            env=os.environ | {"TMPDIR": "/dev/shm"},  # where the memory of a guest is  # noqa: S108
        )
    )
