"""A target that loses power, or whose device fails or lies, ends with what was promised."""

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.conftest import DISKS
from tests.lab.guest import Guest, guests
from tests.lab.image import ROOT, Image
from tests.lab.test_lvm_sources import digest, make_thick

MIB = 1 << 20


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """A disk of this host."""
    path = tmp_path / "disk"
    path.write_bytes(random.Random(1).randbytes(32 * MIB))  # noqa: S311  # the same each time
    return path


def sending(disk: Path, guest: Guest, target: str, *words: str) -> subprocess.Popen[str]:
    """Start to send a disk of this host to a device of a guest."""
    *way, account = guest.ssh_words()
    command = ["-m", "blockstream", "send", str(disk), f"{account}:{target}", "--json"]
    return subprocess.Popen(
        [sys.executable, *command, "--rsh", " ".join(way), *words],
        env=os.environ
        | {
            "PYTHONPATH": f"{ROOT}:{ROOT / 'protocol'}",
            "BLOCKSTREAM_STATE_DIR": str(disk.parent / "state"),
        },
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    _, said = process.communicate(timeout=200)
    return process.returncode, said


def same(disk: Path, guest: Guest, target: str) -> bool:
    here = subprocess.run(["sha256sum", disk], capture_output=True, text=True, check=True)
    return digest(guest, target) == here.stdout.split()[0]


@pytest.mark.parametrize("how", ["error", "flakey"])
def test_a_device_that_fails_ends_the_transfer_and_once_it_works_the_same_command_goes_on(
    lab: Guest, disk: Path, how: str
) -> None:
    make_thick(lab)
    sectors = 32 * MIB // 512
    half = sectors // 2
    good = f"0 {half} linear /dev/vg/vm 0"
    rest = {
        "error": f"{half} {half} error",
        "flakey": f"{half} {half} flakey /dev/vg/vm {half} 0 100 1 error_writes",
    }[how]
    lab.run("dmsetup create bad", data=f"{good}\n{rest}\n".encode())
    try:
        status, said = ended(sending(disk, lab, "/dev/mapper/bad"))
        assert status == 13, said
        assert "Input/output error" in said
        whole = f"0 {sectors} linear /dev/vg/vm 0\n".encode()
        lab.run("dmsetup suspend bad && dmsetup reload bad && dmsetup resume bad", data=whole)
        status, said = ended(sending(disk, lab, "/dev/mapper/bad"))
        assert status == 0, said
        assert same(disk, lab, "/dev/mapper/bad")
    finally:
        lab.run("dmsetup remove bad")


def test_a_device_that_loses_writes_is_caught_by_reading_back(lab: Guest, disk: Path) -> None:
    make_thick(lab)
    # An earlier test may have left the same bytes in the same place.
    lab.run("dd if=/dev/zero of=/dev/vg/vm bs=1M oflag=direct status=none; true")
    sectors = 32 * MIB // 512
    lies = f"0 {sectors} flakey /dev/vg/vm 0 0 100 1 drop_writes\n".encode()
    lab.run("dmsetup create bad", data=lies)
    try:
        status, said = ended(sending(disk, lab, "/dev/mapper/bad", "--verify"))
        assert status == 13, said
        assert "does not hold what was written to it" in said
    finally:
        lab.run("dmsetup remove bad")


@pytest.fixture
def brittle(lab_image: Image) -> Iterator[Guest]:
    """A host of one test alone, which may lose its power."""
    with guests(lab_image, "src", disks=DISKS) as (guest,):
        guest.run(
            "pvcreate -qq -ff -y /dev/disk/lab-pv0 && vgcreate -qq -s 1M vg /dev/disk/lab-pv0"
        )
        make_thick(guest, mib=32)
        make_thick(guest, "state", 16)
        guest.run("mkfs.ext4 -q /dev/vg/state")
        mount(guest)
        yield guest


def mount(guest: Guest) -> None:
    """Let journals lie on a disk: all else of the guest is in its memory."""
    guest.run("mkdir -p /var/lib/blockstream && mount /dev/vg/state /var/lib/blockstream")


@pytest.mark.parametrize("sender_dies", [False, True])
def test_a_host_that_lost_its_power_after_an_ack_has_what_it_acknowledged(
    brittle: Guest, disk: Path, sender_dies: bool
) -> None:
    there = "until mountpoint -q /var/lib/blockstream; do sleep 0.2; done; blockstream"
    words = ["--bwlimit", "2M", "--compress", "none", "--remote-command", there]
    running = sending(disk, brittle, "/dev/vg/vm", *words)
    durable = 0
    while durable < 8 * MIB:
        assert running.stderr is not None
        event = json.loads(running.stderr.readline())
        durable = event.get("durable", 0)
    brittle.kill()
    if sender_dies:
        running.send_signal(signal.SIGKILL)
        running.communicate()
    brittle.start()
    brittle.run("vgchange -qq -ay vg")
    mount(brittle)
    if sender_dies:
        running = sending(disk, brittle, "/dev/vg/vm", *words)
    status, said = ended(running)
    assert status == 0, said
    assert same(disk, brittle, "/dev/vg/vm")
    events = [json.loads(line) for line in said.splitlines()]
    (committed,) = [event for event in events if event["event"] == "sent"]
    wire = committed["counts"]["wire"]
    if sender_dies:
        assert wire < 32 * MIB - durable + 2 * MIB, (wire, durable)
