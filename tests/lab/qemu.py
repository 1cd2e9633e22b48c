"""Guests in QEMU without KVM: virtio, flushes that reach this host, several processors; slow."""

import os
from pathlib import Path

from tests.lab.hardware import MEMORY_MIB, Hardware, Power, started
from tests.lab.image import Image
from tests.machine import PROCESSORS

# With more than one, QEMU emulates each in a thread of its own.
_SMP = ("-smp", os.environ["LAB_PROCESSORS"]) if "LAB_PROCESSORS" in os.environ else PROCESSORS


def start(hardware: Hardware, image: Image) -> Power:
    """Start a guest."""
    return started(_command(hardware, image))


def _command(hardware: Hardware, image: Image) -> list[str]:
    words = [
        *("qemu-system-x86_64", "-accel", "tcg,thread=multi,tb-size=256", "-cpu", "max"),
        *(*_SMP, "-m", str(MEMORY_MIB), "-M", "pc", "-nodefaults", "-no-user-config"),
        *("-display", "none", "-serial", "stdio", "-no-reboot", "-monitor", "none"),
        *("-kernel", str(image.kernel), "-initrd", str(image.ramdisk)),
        *("-device", "virtio-rng-pci"),
        *_drive("root", image.root, "readonly=on"),
        *_drive("seed", hardware.path("seed"), "readonly=on"),
        *("-netdev", f"user,id=ctl,restrict=on,{hardware.forward_rules}"),
        *("-device", "virtio-net-pci,netdev=ctl,romfile="),
    ]
    for disk in hardware.disks:
        how = "cache=writeback,discard=unmap,detect-zeroes=off,aio=threads"
        words += _drive(disk.name, hardware.path(disk.name), how)
    if hardware.lan:
        words += ["-netdev", _lan(hardware)]
        words += ["-device", f"virtio-net-pci,netdev=lan,romfile=,mac={hardware.card}"]
    line = ["console=ttyS0", "quiet", "panic=-1", *hardware.boot_words("vd")]
    return [*words, "-append", " ".join(line)]


def _lan(hardware: Hardware) -> str:
    ends = [
        f"{end}.type=inet,{end}.host=127.0.0.1,{end}.port={port}"
        for end, port in zip(("local", "remote"), hardware.lan_ports, strict=True)
    ]
    return ",".join(["dgram,id=lan", *ends])


def _drive(name: str, path: Path, how: str) -> list[str]:
    drive = f"file={path},if=none,id={name},format=raw,{how}"
    return ["-drive", drive, "-device", f"virtio-blk-pci,drive={name}"]
