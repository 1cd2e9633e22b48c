"""A way to "another host" that breaks: `cutter.py PLAN COMMAND`, for --rsh.

Not a test. PLAN is a file with a line of JSON a connection, taken from the top: after how many
bytes `to` the far program, or `from` it, the connection is cut; `piece` is the most that goes over
at once. Without a line left, nothing is cut.
"""

import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path


def main() -> int:
    """Run COMMAND in a shell and move bytes until it ends, or the plan says otherwise."""
    plan, command = Path(sys.argv[1]), sys.argv[2]
    with plan.open("r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # several connections may begin at once
        lines = file.read().splitlines()
        file.seek(0)
        file.truncate()
        file.write("\n".join(lines[1:]))
    limits = json.loads(lines[0]) if lines else {}
    far = subprocess.Popen(  # noqa: S602  # as sshd would
        command,
        shell=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    cut = threading.Event()

    def pump(reading: int, writing: int, limit: int | None) -> None:
        try:
            left = limit
            while left is None or left > 0:
                most = limits.get("piece", 1 << 16)
                data = os.read(reading, most if left is None else min(left, most))
                if not data:
                    os.close(writing)
                    return
                if left is not None:
                    left -= len(data)
                while data:
                    data = data[os.write(writing, data) :]
        except OSError:
            return
        cut.set()
        # As a host that lost its line: nothing is said, and nobody hears.
        os.killpg(far.pid, signal.SIGKILL)

    assert far.stdin is not None
    assert far.stdout is not None
    to_far = threading.Thread(
        target=pump, args=(0, far.stdin.fileno(), limits.get("to")), daemon=True
    )
    from_far = threading.Thread(
        target=pump, args=(far.stdout.fileno(), 1, limits.get("from")), daemon=True
    )
    to_far.start()
    from_far.start()
    status = far.wait()
    if not cut.is_set():
        from_far.join(5)
    os._exit(255 if cut.is_set() else status)


if __name__ == "__main__":
    sys.exit(main())
