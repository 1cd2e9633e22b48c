"""Guests in User-Mode Linux: a kernel as a process of this host, at nearly its speed.

One processor, and its flushes do not reach this host: `qemu.py` has both. Network without rights:
a pair of sockets leads to QEMU's user network, which forwards our ports, and UDP to the other host.
"""

import os
import socket
import subprocess
from dataclasses import dataclass
from typing import IO

from tests.lab.hardware import ADDRESSES, MEMORY_MIB, Group, Hardware, Power, started
from tests.lab.image import UML_MODULES, Image


@dataclass(frozen=True, slots=True)
class UmlPower:
    """A kernel that runs, and the gateway of its network."""

    _kernel: Group
    _gateway: Group

    @property
    def console(self) -> IO[str]:
        """What the kernel says."""
        return self._kernel.console

    def cut(self) -> None:
        """Kill both: a gateway that stayed would keep connections to a guest that is gone."""
        self._kernel.cut()
        self._gateway.cut()
        self._gateway.console.close()


def start(hardware: Hardware, image: Image) -> Power:
    """Start a guest."""
    card, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with card, far:
        # It wonders about a network without a card.
        gateway = started(
            _gateway(hardware, far.fileno()), [far.fileno()], stderr=subprocess.DEVNULL
        )
        kernel = started(_command(hardware, image, card.fileno()), [card.fileno()])
    return UmlPower(kernel, gateway)


def _gateway(hardware: Hardware, fd: int) -> list[str]:
    return [
        *("qemu-system-x86_64", "-M", "none", "-nodefaults", "-display", "none"),
        *("-monitor", "none", "-netdev", f"user,id=user,restrict=on,{hardware.forward_rules}"),
        *("-netdev", f"dgram,id=guest,local.type=fd,local.str={fd}"),
        *("-netdev", "hubport,id=port0,hubid=0,netdev=user"),
        *("-netdev", "hubport,id=port1,hubid=0,netdev=guest"),
    ]


def _command(hardware: Hardware, image: Image, card: int) -> list[str]:
    words = [
        *("taskset", "--cpu-list", str(_processor(hardware.name))),
        *("linux.uml", f"umid={hardware.name}", f"uml_dir={hardware.folder}"),
        *(f"mem={MEMORY_MIB}M", f"initrd={image.ramdisk}", "quiet", "panic=1"),
        *("con=null", "con0=fd:0,fd:1", "ssl=null"),
        f"ubd0r={image.root}",
        f"ubd1r={hardware.path('seed')}",
        f"vec0:transport=fd,fd={card},depth=128,gro=1,mac=52:54:00:88:00:00",
    ]
    words += [
        f"ubd{number}={hardware.path(disk.name)}" for number, disk in enumerate(hardware.disks, 2)
    ]
    if hardware.lan:
        words.append(_lan(hardware))
    return [*words, f"lab.modules={UML_MODULES}", *hardware.boot_words("ubd")]


def _processor(name: str) -> int:
    """Choose one processor for a guest, another for its peer.

    The kernel traces the processes of the guest: each page fault goes from one to the other and
    back. On one processor that takes a third of the time that it takes between two.
    """
    allowed = sorted(os.sched_getaffinity(0))
    return allowed[(os.getpid() + list(ADDRESSES).index(name)) % len(allowed)]


def _lan(hardware: Hardware) -> str:
    ours, theirs = hardware.lan_ports
    # A pair of sockets would do, but not after `ip link set eth1 down`: the driver closes it.
    tunnel = f"src=127.0.0.1,dst=127.0.0.1,udp=1,srcport={ours},dstport={theirs}"
    session = "tx_session=0x77,rx_session=0x77"
    return f"vec1:transport=l2tpv3,{tunnel},{session},depth=128,gro=1,mac={hardware.card}"
