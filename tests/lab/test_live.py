"""A guest that runs moves to another host with its memory: it counts on, and no record is lost.

The guest is a QEMU of this host, whose disk is a volume of a virtual host, by qemu-nbd there.
"""

import contextlib
import itertools
import json
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.conftest import NBD_PORT, figure
from tests.lab.guest import Guest, Running
from tests.lab.test_lvm_sources import make_thin, names
from tests.lab.test_migrate import report
from tests.machine import BOOT, Machine, machine

MIB = 64
STOP_EXPORT = "pkill qemu-nbd; while pgrep qemu-nbd >/dev/null; do sleep 0.1; done; sync"
RUNS = int(os.environ.get("LAB_RUNS", "1"))


# Lets the volume be reached from this host.
# A guest that waits for its memory holds no lock of its disk yet; qemu-nbd would.
_DISK = "driver=raw,file.driver=host_device,file.filename=/dev/vg/vm,file.locking=off"
EXPORT = f"qemu-nbd --fork --image-opts --cache=none --aio=native -t -e 4 -x vm {_DISK}"


def disk_of(guest: Guest) -> str:
    port = guest.forwards[NBD_PORT]
    server = f"file.server.type=inet,file.server.host=127.0.0.1,file.server.port={port}"
    return f"driver=raw,file.driver=nbd,{server},file.export=vm,cache.direct=on"


@pytest.fixture
def pair(src: Guest, dst: Guest, tmp_path: Path) -> Iterator[tuple[Machine, Machine]]:
    """A guest that runs on the first host, and one that is only named, of the second."""
    make_thin(src, "vm", MIB)
    make_thin(dst, "other", 4)
    src.run("dd of=/dev/vg/vm oflag=direct conv=sync bs=4k status=none", data=BOOT)
    src.run(EXPORT)
    a, b = (machine(tmp_path / guest.name, disk_of(guest)) for guest in (src, dst))
    with a as here, b as there:
        here.start()
        forward(src, "/root/qmp", here.monitor)
        yield here, there
        here.kill()
        there.kill()
        forward(src, "/root/qmp", here.monitor, "cancel")
        for guest in (src, dst):
            guest.run(STOP_EXPORT)


def forward(guest: Guest, path: str, ours: Path, how: str = "forward") -> None:
    """Let a socket of this host be reached from the guest."""
    words = guest.ssh_words()
    subprocess.run([*words[:-1], "-O", how, "-R", f"{path}:{ours}", words[-1]], check=True)
    if how == "cancel":
        guest.run(f"rm -f {path}")


@contextlib.contextmanager
def who_starts_it(dst: Guest, there: Machine, uri: str) -> Iterator[None]:
    """Start the machine of the second host when that one asks for it."""
    stop = threading.Event()
    dst.run("rm -f /root/wanted /root/waits")

    def wait() -> None:
        while not stop.wait(0.2):
            if dst.ssh("test -e /root/wanted").status == 0:
                subprocess.run(there.command("-incoming", uri), check=True)
                dst.run("touch /root/waits")
                return

    thread = threading.Thread(target=wait)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@contextlib.contextmanager
def moving(src: Guest, dst: Guest, there: Machine, **environment: str) -> Iterator[Running]:
    """Begin to move the guest."""
    uri = f"unix:{there.folder}/memory"
    incoming = f"{EXPORT} && touch /root/wanted; until test -e /root/waits; do sleep 0.1; done"
    live = ["--live", "--qmp", "/root/qmp", "--incoming", incoming, "--uri", uri]
    way = ["--rsh", "ssh", "--remote-command", "blockstream-warm", "--max-downtime", "15"]
    way += ["--on-no-converge", "go"]
    with who_starts_it(dst, there, uri):
        yield src.start_blockstream(
            *("migrate", "vg/vm", "dst:vg/vm", "--create", "--pool", "pool", "--json"),
            *(*live, *way),
            **environment,
        )


def wrong_blocks(guest: Guest, numbers: list[int]) -> int:
    """Return how many blocks of the volume do not hold the last of these records."""
    script = (
        "import json, struct, sys\n"
        "disk, last = open('/dev/vg/vm', 'rb'), {}\n"
        "for number in sorted(json.load(sys.stdin)):\n"
        "    last[1 + number * 7919 % 8192] = number\n"
        "bad = 0\n"
        "for block, number in last.items():\n"
        "    disk.seek(block * 4096)\n"
        "    bad += struct.unpack('<II', disk.read(8)) != (number, block)\n"
        "print(bad)\n"
    )
    guest.run("cat >/root/blocks.py", data=script.encode())
    guest.run("blockdev --flushbufs /dev/vg/vm")
    assert numbers
    return int(guest.run("python3 /root/blocks.py", data=json.dumps(numbers).encode()))


@pytest.mark.parametrize("run", range(RUNS))
def test_a_running_guest_moves_and_counts_on(
    src: Guest, dst: Guest, pair: tuple[Machine, Machine], run: int
) -> None:
    here, there = pair
    seen: list[float] = []
    done_watching = threading.Event()

    def watch() -> None:
        last = here.last
        while not done_watching.wait(0.01):
            if max(here.last, there.last) > last:
                last = max(here.last, there.last)
                seen.append(time.monotonic())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        with moving(src, dst, there) as running:
            values = report(running.wait())
        there.wait_beyond(here.last + 20)
    finally:
        done_watching.set()
        watcher.join()
    here.wait_for_end()
    there.kill()
    dst.run(STOP_EXPORT)
    numbers = here.numbers() + there.numbers()
    assert numbers == list(range(1, len(numbers) + 1))  # it never booted, and wrote each once
    assert wrong_blocks(dst, numbers) == 0
    assert wrong_blocks(src, numbers) > 0  # what was written after it had moved
    gap = max(later - earlier for earlier, later in itertools.pairwise(seen))
    figure("live", records=len(numbers), downtime=values["downtime"], gap=gap)
    assert 0 < values["downtime"] < 120  # type: ignore[operator]
    assert names(src) == {"pool", "vm"}


def test_a_guest_whose_memory_cannot_go_over_counts_on_here(
    src: Guest, dst: Guest, pair: tuple[Machine, Machine]
) -> None:
    here, there = pair
    with moving(src, dst, there, BLOCKSTREAM_FAILPOINT="migrate.before_start:1:stop") as running:
        running.wait_for_stop()
        there.kill()
        running.signal("CONT")
        done = running.wait()
    assert done.status == 11, done.err
    assert "QEMU's migration failed" in done.err
    assert "the guest runs here again" in done.err
    here.wait_beyond(here.last)
    dst.run(STOP_EXPORT)
    ended = src.blockstream("migrate", "--abort", "vg/vm")
    assert ended.status == 0, ended.err
