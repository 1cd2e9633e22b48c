"""Not a test: a real guest of QEMU that writes numbered records, and runs within a second.

It is a boot sector (`data/machine/boot.s`). Record I lies in block 1 + I * 7919 % 8192 of 4096
bytes, begins with I and the block as <II, and I is said on the serial line when it is on the disk.
"""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

BOOT = (Path(__file__).parent / "data" / "machine" / "boot.bin").read_bytes()
IDLE_BOOT = BOOT[:509] + b"\0" + BOOT[510:]  # between two records, its memory does not change
BLOCK = 4096
DISK_BYTES = 64 << 20
_SECONDS = 60.0


def block_of(number: int) -> int:
    """Return where a record lies, in blocks."""
    return 1 + number * 7919 % 8192


# With room for a second one: without, QEMU before 8.1 emulates no barriers between the first one
# and the threads of devices. Then a notice of virtio is lost now and then, and a disk hangs.
PROCESSORS = ("-smp", "1,maxcpus=2")


@dataclass(frozen=True, slots=True)
class Machine:
    """One QEMU.

    Attributes:
        folder: Where its monitor `qmp`, its `console` and its `pid` are.
        disk: QEMU's words for its disk, after `-blockdev node-name=d0,`.
        memory: Its memory, in MiB.
    """

    folder: Path
    disk: str
    memory: int = 32

    @property
    def monitor(self) -> Path:
        """Its QMP socket."""
        return self.folder / "qmp"

    def command(self, *more: str) -> list[str]:
        """Return what starts it; it goes into the background when it is ready."""
        return [
            *(
                "qemu-system-x86_64",
                "-accel",
                "tcg",
                *PROCESSORS,
                "-m",
                str(self.memory),
                "-M",
                "pc",
                "-nodefaults",
            ),
            *("-display", "none", "-serial", f"file:{self.folder}/console", "-daemonize"),
            *("-qmp", f"unix:{self.monitor},server=on,wait=off"),
            *("-pidfile", f"{self.folder}/pid"),
            *("-blockdev", f"node-name=d0,{self.disk}", "-device", "virtio-blk-pci,drive=d0"),
            *more,
        ]

    def start(self) -> None:
        """Start it, and wait until it writes."""
        subprocess.run(self.command(), check=True)
        self.wait_beyond(0)

    def numbers(self) -> list[int]:
        """Return what it said so far."""
        with suppress(FileNotFoundError):
            text = (self.folder / "console").read_text()
            return [int(line, 16) for line in text[: text.rfind("\n") + 1].split()]
        return []

    @property
    def last(self) -> int:
        """The last number that it said; 0 for none."""
        return max(self.numbers(), default=0)

    def wait_beyond(self, number: int) -> None:
        """Wait until it has said a later number."""
        deadline = time.monotonic() + _SECONDS
        while self.last <= number:
            assert time.monotonic() < deadline, self.numbers()[-5:]
            time.sleep(0.02)

    @property
    def runs(self) -> bool:
        """Whether there is such a process."""
        pid = self._pid
        return pid > 0 and Path(f"/proc/{pid}").exists()

    def wait_for_end(self) -> None:
        """Wait until the process is gone."""
        deadline = time.monotonic() + _SECONDS
        while self.runs:
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def kill(self) -> None:
        """End it at once."""
        if self.runs:
            os.kill(self._pid, signal.SIGKILL)
            self.wait_for_end()

    @property
    def _pid(self) -> int:
        # QEMU removes the file as it ends.
        with suppress(FileNotFoundError, ValueError):
            return int((self.folder / "pid").read_text())
        return 0


@contextmanager
def machine(folder: Path, disk: str, memory: int = 32) -> Iterator[Machine]:
    """Name one, and end it whoever started it."""
    folder.mkdir()
    made = Machine(folder, disk, memory)
    try:
        yield made
    finally:
        made.kill()


def wrong_records(disk: bytes, numbers: list[int]) -> list[int]:
    """Return the blocks that do not hold the last of these records that belongs there."""
    last = {block_of(number): number for number in sorted(numbers)}
    return [
        block
        for block, number in last.items()
        if disk[block * BLOCK :][:8] != number.to_bytes(4, "little") + block.to_bytes(4, "little")
    ]
