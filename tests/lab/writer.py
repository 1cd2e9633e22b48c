"""Not a test: a program for a guest that writes numbered records and notes each that is durable.

    writer.py DEVICE LOG RATE

Each record is 4096 bytes: number and block as <QQ, the SHA-256 of those, zeros. What LOG holds, 16
bytes a record, was on the device before it was noted.
"""

import hashlib
import mmap
import os
import random
import struct
import sys
import time

BLOCK = 4096


def main() -> None:
    """Write until somebody ends us."""
    device, log, rate = sys.argv[1], sys.argv[2], float(sys.argv[3])
    disk = os.open(device, os.O_RDWR | os.O_DIRECT | os.O_DSYNC)
    noted = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
    blocks = os.lseek(disk, 0, os.SEEK_END) // BLOCK
    page = mmap.mmap(-1, BLOCK)
    rng = random.Random(1)  # noqa: S311  # the same each time
    number, due = 0, time.monotonic()
    while True:
        number += 1
        block = int(blocks * rng.random() ** 8)  # a few are written often
        head = struct.pack("<QQ", number, block)
        page[:] = (head + hashlib.sha256(head).digest()).ljust(BLOCK, b"\0")
        os.pwrite(disk, page, block * BLOCK)
        os.write(noted, head)
        due += 1 / rate
        time.sleep(max(0.0, due - time.monotonic()))


if __name__ == "__main__":
    main()
