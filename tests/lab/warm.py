"""Runs blockstream in a guest without loading it each time, which takes a second there.

Not a test: it is copied into the guest. Each connection brings one line of JSON, {"words": [...],
"environment": {...}}; a process forks for it, and its end is answered: {"status", "out", "err"}.
Or the line says how many words follow, each ended by a zero byte: the rest of the connection is
the standard input and output of that process then. So does `blockstream-warm` in a guest.
"""

import gc
import importlib
import json
import os
import pkgutil
import signal
import socket
import sys
import tempfile

PORT = 4040
OTHERS = (
    "transports.ssh",
    "transports.destination",
    "stores.s3",
    "stores.encrypted",
    "stores.keys",
)


def load() -> None:
    """Import every module but those of other libraries, whose threads would not survive a fork."""
    os.environ |= {"BLOCKSTREAM_TESTING": "1", "BLOCKSTREAM_FAILPOINT": "none:0:kill"}
    import blockstream

    for module in pkgutil.walk_packages(blockstream.__path__, "blockstream."):
        if any(module.name == f"blockstream.{name}" for name in OTHERS):
            continue
        try:
            importlib.import_module(module.name)
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] == "blockstream":
                raise
            # It needs a library that guests do not have.
    gc.freeze()


def serve() -> None:
    """Take connections for ever."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that answer
    listener = socket.create_server(("", PORT))
    while True:
        connection, _ = listener.accept()
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            listener.close()
            answer(connection)
            os._exit(0)
        connection.close()


def answer(connection: socket.socket) -> None:
    """Run one command and tell how it ended."""
    line = until(connection, b"\n")
    if not line.startswith("{"):
        converse(connection, [until(connection, b"\0") for _ in range(int(line))])
    order = json.loads(line)
    files = [tempfile.TemporaryFile() for _ in range(2)]  # noqa: SIM115  # the process ends soon
    pid = os.fork()
    if pid == 0:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for number, file in enumerate(files, 1):
            os.dup2(file.fileno(), number)
        connection.close()
        os.environ.update(order["environment"])
        execute(order["words"])
    connection.sendall(f"{pid}\n".encode())
    _, status = os.waitpid(pid, 0)
    texts = []
    for file in files:
        file.seek(0)
        texts.append(file.read().decode(errors="replace"))
    out, err = texts
    values = {"status": os.waitstatus_to_exitcode(status), "out": out, "err": err}
    connection.sendall(json.dumps(values).encode() + b"\n")


def until(connection: socket.socket, end: bytes) -> str:
    """Read up to a byte, and none of what follows: that is not ours."""
    text = bytearray()
    while (byte := connection.recv(1)) != end:
        if not byte:
            os._exit(1)
        text += byte
    return text.decode()


def converse(connection: socket.socket, words: list[str]) -> None:
    """Be a command that somebody speaks with."""
    log = os.open("/root/warm-errors", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for number, fd in enumerate((connection.fileno(), connection.fileno(), log)):
        os.dup2(fd, number)
    connection.close()
    execute(words)


def execute(words: list[str]) -> None:
    """Be the command."""
    sys.argv = ["blockstream", *words]
    from blockstream.__main__ import main

    status = 1
    try:
        main()
    except SystemExit as leaving:
        status = leaving.code if isinstance(leaving.code, int) else 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    load()
    sys.stdout.write("READY\n")
    sys.stdout.flush()
    serve()
