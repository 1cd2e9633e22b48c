"""Volumes of real LVM keep the promises of `captures.interface.Capture`, in a guest."""

from collections.abc import Callable

import pytest

from tests.contracts.captures import PROMISES
from tests.lab.guest import Guest
from tests.lab.image import ROOT
from tests.lab.test_lvm_sources import make_thick, make_thin

MAKERS: dict[str, Callable[..., None]] = {"thick": make_thick, "thin": make_thin}
# Runs in the guest, behind the promises themselves.
VOLUME = """
import mmap
import os
import random
import subprocess
import sys
from pathlib import Path

from blockstream.captures.options import CaptureOptions, LvmOptions
from blockstream.captures.registry import capture_of
from blockstream.locations.local import LocalDisk

DEVICE, SIZE, BLOCK = "/dev/vg/vm", 8 << 20, 65536


class Volume:
    is_frozen = True

    def __init__(self):
        self._rng = random.Random(7)
        self._before = self._names()
        for _ in range(10):
            self.write()

    def _names(self):
        words = ["lvs", "--noheadings", "-o", "lv_name", "vg"]
        return set(subprocess.run(words, check=True, capture_output=True).stdout.decode().split())

    async def capture(self, number):
        how = LvmOptions("last" if number else "", rotate=True, snapshot_size=16 << 20)
        options = CaptureOptions(Path("/root/state"), lvm=how, target="somewhere")
        return await capture_of(LocalDisk(DEVICE), options, Run())

    def contents(self):
        page = mmap.mmap(-1, SIZE)
        fd = os.open(DEVICE, os.O_RDONLY | os.O_DIRECT)
        assert os.preadv(fd, [page], 0) == SIZE
        os.close(fd)
        return [bytes(page)]

    def write(self):
        page = mmap.mmap(-1, BLOCK)
        fd = os.open(DEVICE, os.O_WRONLY | os.O_DIRECT)
        for _ in range(5):
            page[:] = self._rng.randbytes(BLOCK)
            os.pwrite(fd, page, self._rng.randrange(SIZE // BLOCK) * BLOCK)
        os.fsync(fd)
        os.close(fd)

    def leftovers(self):
        return self._names() - self._before


check(Volume(), sys.argv[1])
"""


@pytest.mark.parametrize("promise", PROMISES)
@pytest.mark.parametrize("kind", MAKERS)
def test_a_volume_keeps_the_promises_of_a_capture(lab: Guest, kind: str, promise: str) -> None:
    MAKERS[kind](lab, mib=8)
    promises = (ROOT / "tests/contracts/captures.py").read_text()
    lab.run(f"rm -rf /root/state; python3 - {promise}", data=f"{promises}\n{VOLUME}".encode())
