"""Joins two network namespaces by a line that delays and limits, where the kernel has no netem.

    scripts/forwarder.py --delay 50 --rate 125000000      milliseconds one way, bytes a second

Makes bench-a (10.98.0.1) and bench-b (10.98.0.2), each with a TUN device that this process reads
and writes; prints READY; ends with SIGTERM, and takes both away again. As root.
"""

import argparse
import ctypes
import fcntl
import heapq
import os
import select
import signal
import struct
import subprocess
import sys
import time

_TUNSETIFF = 0x400454CA
_IFF_TUN, _IFF_NO_PI = 0x0001, 0x1000
_CLONE_NEWNET = 0x40000000
_MTU = 65_000  # fewer packets for a forwarder in Python; TCP makes full use of it
_QUEUE_BYTES = 16 << 20
_HOSTS = (("bench-a", "10.98.0.1", "10.98.0.2"), ("bench-b", "10.98.0.2", "10.98.0.1"))


def main() -> int:
    """Make the hosts and move packets until told to end."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--delay", type=float, default=0.0, help="milliseconds, one way")
    parser.add_argument("--rate", type=float, default=1e12, help="bytes a second, each way")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        ends = [host(*names) for names in _HOSTS]
        print("READY", flush=True)
        forward(ends, options.delay / 1000, options.rate)
    finally:
        for name, _, _ in _HOSTS:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)
    return 0


def host(name: str, address: str, peer: str) -> int:
    """Make a namespace with a TUN device; return the device's descriptor."""
    subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)
    subprocess.run(["ip", "netns", "add", name], check=True)
    home = os.open("/proc/self/ns/net", os.O_RDONLY)
    there = os.open(f"/run/netns/{name}", os.O_RDONLY)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.setns(there, _CLONE_NEWNET)
    try:
        fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", b"line", _IFF_TUN | _IFF_NO_PI))
    finally:
        libc.setns(home, _CLONE_NEWNET)
        os.close(home)
        os.close(there)
    for words in (
        ["addr", "add", address, "peer", peer, "dev", "line"],
        ["link", "set", "lo", "up"],
        ["link", "set", "line", "mtu", str(_MTU), "txqueuelen", "1000", "up"],
    ):
        subprocess.run(["ip", "-n", name, *words], check=True)
    return fd


def forward(ends: list[int], delay: float, rate: float) -> None:
    """Give each packet to the other end when its time has come."""
    poll = select.epoll()
    for fd in ends:
        poll.register(fd, select.EPOLLIN)
    other = {ends[0]: ends[1], ends[1]: ends[0]}
    free = dict.fromkeys(ends, 0.0)
    waiting: list[tuple[float, int, int, bytes]] = []
    number = 0
    while True:
        pause = max(0.0, waiting[0][0] - time.monotonic()) if waiting else -1
        for fd, _ in poll.poll(pause):
            for packet in packets(fd):
                now = time.monotonic()
                start = max(now, free[fd])
                if (start - now) * rate > _QUEUE_BYTES:
                    continue  # a full queue drops
                free[fd] = start + len(packet) / rate
                number += 1
                heapq.heappush(waiting, (free[fd] + delay, number, other[fd], packet))
        now = time.monotonic()
        while waiting and waiting[0][0] <= now:
            _, _, target, packet = heapq.heappop(waiting)
            try:
                os.write(target, packet)
            except BlockingIOError:
                continue


def packets(fd: int) -> list[bytes]:
    """Read what is there."""
    found = []
    try:
        while len(found) < 64:
            found.append(os.read(fd, _MTU + 64))
    except BlockingIOError:
        pass
    return found


if __name__ == "__main__":
    sys.exit(main())
