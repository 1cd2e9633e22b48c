"""Somebody else's write to a real device is noticed; what writes nothing is not taken for one."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from blockstream.pipeline.samples import sampled_ranges
from tests.lab.guest import Done, Guest
from tests.lab.test_lvm_sources import make_thick, make_thin, ok

MIB = 1 << 20
SIZE = 24 * MIB
DISK = "/dev/disk/lab-pv1"
_PARTITION = """
import fcntl, os, struct, sys
fd = os.open("{disk}", os.O_RDONLY)
part = struct.pack("qqi64s64sxxxx", {start}, {size}, {number}, b"", b"")
keep = __import__("ctypes").create_string_buffer(part)
address = __import__("ctypes").addressof(keep)
fcntl.ioctl(fd, 0x1269, struct.pack("iiiiQ", {what}, 0, len(part), 0, address))
"""


def unsampled() -> int:
    """Return the offset of a block of which no sample has anything."""
    taken = sampled_ranges(SIZE)
    return next(
        at
        for at in range(2 * MIB, SIZE, 4096)
        if not any(start < at + 4096 and at < start + length for start, length in taken)
    )


@contextmanager
def free_disk(lab: Guest) -> Iterator[str]:
    """Take a disk out of the volume group."""
    lab.run(f"vgreduce -qq vg {DISK} && pvremove -qq {DISK}")
    try:
        yield DISK
    finally:
        lab.run(f"pvcreate -qq -ff -y {DISK} && vgextend -qq vg {DISK}")


@contextmanager
def partition(lab: Guest, disk: str) -> Iterator[str]:
    """Make two partitions; give the name of the first."""
    device = lab.run(f"readlink -f {disk}").strip()
    for number, start, size in ((1, MIB, SIZE), (2, 64 * MIB, MIB)):
        words = {"disk": disk, "start": start, "size": size, "number": number, "what": 1}
        lab.run("python3 -", data=_PARTITION.format(**words).encode())
    name = lab.run(f"ls -d /sys/class/block/{device.rpartition('/')[2]}*1").strip()
    numbers = lab.run(f"cat {name}/dev").strip().split(":")
    node = "/dev/lab-part"
    lab.run(f"rm -f {node}; mknod {node} b {numbers[0]} {numbers[1]}")
    try:
        yield node
    finally:
        lab.run(f"rm {node}")
        for number in (1, 2):
            words = {"disk": disk, "start": 0, "size": 0, "number": number, "what": 2}
            lab.run("python3 -", data=_PARTITION.format(**words).encode())


class Target:
    """A device with a state on it, and an increment onto that."""

    def __init__(self, lab: Guest, device: str) -> None:
        self.lab = lab
        self.device = device
        lab.run(
            f"cd /root && rm -f a b && head -c {SIZE} /dev/urandom >a && cp a b && head -c 4096 "
            "/dev/urandom | dd of=b bs=4096 seek=256 conv=notrunc status=none"
        )
        lab.run("cd /root && blockstream extents b --since a >changes")

    def at_base(self) -> None:
        # A disk of its own is larger.
        words = ("--goal", "A", "--force-larger")
        self.lab.run("rm -rf /var/lib/blockstream")
        ok(self.lab.blockstream("send", "/root/a", self.device, *words))

    def increment(self, *more: str) -> Done:
        words = ("--base", "A", "--goal", "B", "--extents", "/root/changes", "--force-larger")
        return self.lab.blockstream("send", "/root/b", self.device, *words, *more)

    def write(self, device: str, offset: int) -> None:
        """Write a block, the same that is there, past the cache."""
        words = f"bs=4096 count=1 iflag=direct skip={offset // 4096}"
        self.lab.run(
            f"dd if={device} of=/run/block {words} status=none && dd if=/run/block of={device} "
            f"bs=4096 oflag=direct seek={offset // 4096} conv=notrunc status=none"
        )


@pytest.mark.parametrize("kind", ["thick", "thin", "disk", "partition"])
def test_a_block_that_somebody_wrote_is_noticed(lab: Guest, kind: str) -> None:
    with devices(lab, kind) as device:
        target = Target(lab, device)
        target.at_base()
        target.write(device, unsampled())
        refused = target.increment()
        assert refused.status == 10, refused.err
        assert "the kernel counts" in refused.err
        assert "sectors written" in refused.err
        taken = ok(target.increment("--check-base"))
        assert "held the base" in taken.err
        # What nobody wrote is the base, whatever else is done to it.
        target.at_base()
        lab.run(f"dd if={device} of=/dev/null bs=1M status=none")
        if kind in {"thick", "thin"}:
            lab.run("lvcreate -qq -y -n other -L 4M vg && lvremove -qq -f vg/other")
            lab.run("lvs vg >/dev/null; vgchange -qq --addtag x vg")
        done = ok(target.increment())
        assert "by samples alone" not in done.err
        if kind == "partition":
            target.at_base()
            target.write(DISK, MIB + unsampled())
            refused = target.increment()
            assert refused.status == 10, refused.err
            assert " around " in refused.err


@pytest.mark.parametrize("kind", ["thick", "thin"])
def test_a_volume_that_was_attached_anew_is_known_by_samples(lab: Guest, kind: str) -> None:
    with devices(lab, kind) as device:
        target = Target(lab, device)
        target.at_base()
        lab.run("lvchange -qq -an vg/vm && lvchange -qq -ay vg/vm")
        done = ok(target.increment())
        assert "by samples alone, because the device was attached anew" in done.err


def test_where_the_kernel_does_not_count_samples_do(lab: Guest) -> None:
    with devices(lab, "disk") as device:
        target = Target(lab, device)
        target.at_base()
        node = lab.run(f"readlink -f {device}").strip().rpartition("/")[2]
        lab.run(f"echo 0 >/sys/block/{node}/queue/iostats")
        try:
            done = ok(target.increment())
        finally:
            lab.run(f"echo 1 >/sys/block/{node}/queue/iostats")
        assert "by samples alone, because the kernel does not count writes" in done.err


@contextmanager
def devices(lab: Guest, kind: str) -> Iterator[str]:
    """Give a device of a kind."""
    if kind in {"thick", "thin"}:
        (make_thick if kind == "thick" else make_thin)(lab, "vm", SIZE // MIB)
        yield "/dev/vg/vm"
        return
    with free_disk(lab) as disk:
        if kind == "disk":
            yield disk
            return
        with partition(lab, disk) as part:
            yield part
