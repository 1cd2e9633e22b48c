"""Starts real processes quickly: all modules are loaded once, each process forks from here.

Not a test. `hosts.py` speaks to it over a socket: an order is a line of JSON with descriptors, the
answers go to the pipe that came last among them.
"""

import gc
import importlib
import json
import os
import pkgutil
import resource
import signal
import socket
import sys
from typing import Any


def load() -> None:
    """Import every module of blockstream, failpoints included."""
    os.environ["BLOCKSTREAM_TESTING"] = "1"
    import blockstream

    for module in pkgutil.walk_packages(blockstream.__path__, "blockstream."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    gc.collect()
    gc.freeze()  # a collection in a child would copy all of it


def serve(control: socket.socket) -> dict[str, Any]:
    """Take orders until the end of the socket; returns only in a child that has one to execute."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nurses need not be waited for
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whoever runs the tests may ignore it
    while True:
        data, descriptors, _, _ = socket.recv_fds(control, 1 << 20, 16)
        if not data:
            sys.exit(0)
        order = json.loads(data)
        if os.fork() == 0:
            control.close()
            nurse(descriptors.pop())
            for number, descriptor in zip(order["as"], descriptors, strict=True):
                os.dup2(descriptor, number)
            for descriptor in descriptors:
                if descriptor not in order["as"]:
                    os.close(descriptor)
            return dict(order)
        for descriptor in descriptors:
            os.close(descriptor)


def nurse(result: int) -> None:
    """Fork the process itself, wait for it, and tell how it ended; returns only in that process."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    pid = os.fork()
    if pid == 0:
        os.close(result)
        return
    os.write(result, f"{pid}\n".encode())
    # The nurse must not keep the pipes of the process open.
    os.closerange(0, 3)
    os.closerange(3, result)
    os.closerange(result + 1, 256)
    _, status, usage = os.wait4(pid, 0)
    os.write(result, f"{os.waitstatus_to_exitcode(status)} {usage.ru_maxrss}\n".encode())
    os._exit(0)


def execute(order: dict[str, Any]) -> None:
    """Be the command that was ordered."""
    os.environ.clear()
    os.environ.update({"BLOCKSTREAM_FAILPOINT": "none:0:kill"} | order["environment"])
    if order["file_limit"]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (order["file_limit"], resource.RLIM_INFINITY))
    if order["uid"]:
        os.setgroups([])
        os.setgid(order["uid"])
        os.setuid(order["uid"])
    sys.argv = ["blockstream", *order["arguments"]]
    for side in ("_sender", "_receiver"):
        vars(sys.modules[f"blockstream_protocol.{side}"]).update(order["limits"])
    if "PACK_BYTES" in order["limits"]:
        small_packs(int(order["limits"]["PACK_BYTES"]))
    from blockstream.__main__ import main

    try:
        main()
    except SystemExit as leaving:
        leave(leaving)


def small_packs(size: int) -> None:
    """Let packs of a store end after so many bytes."""
    from blockstream.pipeline import packs
    from blockstream.repository import compaction
    from blockstream.transfers import save

    packs.PackSink.__init__.__defaults__ = (size,)
    compaction.compact.__kwdefaults__ = {"worth": compaction.WORTH, "pack_bytes": size}
    vars(save)["PACK_BYTES"] = size


def leave(leaving: SystemExit) -> None:
    """End as the interpreter would, but for taking all modules apart, which takes 50 ms."""
    status = leaving.code if isinstance(leaving.code, int) else 1
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        status = 120  # what the interpreter says of standard output that cannot be flushed
    os._exit(status)


if __name__ == "__main__":
    load()
    execute(serve(socket.socket(fileno=int(sys.argv[1]))))
