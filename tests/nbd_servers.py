"""NBD servers: those of others, and one of ours that says whatever a test wants."""

import socket
import ssl
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.devices import process

HAVE_OPTION, ANSWER = 0x49484156454F5054, 0x0003E889045565A9
EXPORT_NAME, LIST, STARTTLS, GO, STRUCTURED_REPLY, LIST_META, SET_META = 1, 3, 5, 7, 8, 9, 10
ACK, SERVER, INFO, META = 1, 2, 3, 4
UNSUPPORTED, POLICY, TLS_REQUIRED, UNKNOWN = (0x80000000 + code for code in (1, 2, 5, 6))
DONE = 1
NONE, DATA, HOLE, STATUS, ERROR, ERROR_OFFSET = 0, 1, 2, 5, 0x8001, 0x8002
READ_ONLY, MULTI = 2, 256


@contextmanager
def nbdkit(folder: Path, *words: str | Path, name: str = "nbd") -> Iterator[str]:
    """Serve with nbdkit; give the location of the default export."""
    path = folder / f"{name}.sock"
    command: list[str | Path] = ["nbdkit", "-f", "-P", folder / f"{name}.pid", "-U", path, *words]
    with process(command, lambda: _listens(path)):
        yield f"nbd+unix:///?socket={path}"
    path.unlink(missing_ok=True)


@contextmanager
def qemu_nbd(folder: Path, image: Path, *words: str) -> Iterator[str]:
    """Serve an image with qemu-nbd as export `vm`; give its location."""
    path = folder / "qemu.sock"
    command: list[str | Path] = [
        "qemu-nbd",
        "-t",
        "-r",
        "-f",
        "qcow2",
        "-k",
        path,
        "-x",
        "vm",
        *words,
        image,
    ]
    with process(command, lambda: _listens(path)):
        yield f"nbd+unix:///vm?socket={path}"
    path.unlink(missing_ok=True)


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as line, suppress(OSError):
        line.connect(str(path))
        return True
    return False


@contextmanager
def scripted(folder: Path, *scripts: Callable[[socket.socket], None]) -> Iterator[str]:
    """Serve each connection by the next script, the last one again and again."""
    path = folder / "scripted.sock"
    lines: list[socket.socket] = []
    threads: list[threading.Thread] = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            with suppress(OSError):
                while True:
                    line, _ = listener.accept()
                    script = scripts[min(len(lines), len(scripts) - 1)]
                    lines.append(line)
                    threads.append(threading.Thread(target=run, args=(script, line)))
                    threads[-1].start()

        def run(script: Callable[[socket.socket], None], line: socket.socket) -> None:
            with line, suppress(OSError, EOFError):
                script(line)

        server = threading.Thread(target=serve)
        server.start()
        try:
            yield f"nbd+unix:///?socket={path}"
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            for line in lines:
                with suppress(OSError):
                    line.shutdown(socket.SHUT_RDWR)
            server.join()
            for thread in threads:
                thread.join()
    path.unlink()


def make_certificates(folder: Path) -> Path:
    """Make an authority, certificates of a server, another host and a client, and a stranger's."""
    for name in ("ca", "stranger"):
        words = ["-subj", f"/CN={name}", "-keyout", f"{name}-key.pem", "-out", f"{name}-cert.pem"]
        _openssl(folder, "req", "-x509", "-days", "2", *words)
    for name, host in (("server", "localhost"), ("other", "elsewhere"), ("client", "me")):
        words = ["-addext", f"subjectAltName=DNS:{host}", "-keyout", f"{name}-key.pem"]
        words += ["-CA", "ca-cert.pem", "-CAkey", "ca-key.pem", "-out", f"{name}-cert.pem"]
        _openssl(folder, "req", "-x509", "-days", "2", "-subj", f"/CN={host}", *words)
    return folder


def _openssl(folder: Path, *words: str) -> None:
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command = ["openssl", *words, *curve]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)  # noqa: S603


def keyring(folder: Path, certificates: Path, **files: str) -> Path:
    """Make a folder of certificates under the names that both sides look for."""
    folder.mkdir()
    for name, source in files.items():
        (folder / f"{name}-cert.pem").write_bytes(
            (certificates / f"{source}-cert.pem").read_bytes()
        )
        (folder / f"{name}-key.pem").write_bytes((certificates / f"{source}-key.pem").read_bytes())
    return folder


def taken(line: socket.socket, count: int) -> bytes:
    """Take exactly so many bytes."""
    data = bytearray()
    while len(data) < count:
        piece = line.recv(count - len(data))
        if not piece:
            raise EOFError
        data += piece
    return bytes(data)


def open_export(
    line: socket.socket,
    size: int,
    flags: int = READ_ONLY,
    least: int = 1,
    most: int = 32 << 20,
    bitmap: str = "",
    tls: ssl.SSLContext | None = None,
) -> socket.socket:
    """Greet and open, as a server with structured replies and base:allocation; the bitmap is 2.

    Returns what to go on with: the line, or TLS round it, once that was asked for.
    """
    line.sendall(greeting())
    taken(line, 4)
    while True:
        _, option, length = struct.unpack(">QII", taken(line, 16))
        taken(line, length)
        if option == SET_META:
            line.sendall(context(1, "base:allocation"))
            if bitmap:
                line.sendall(context(2, f"qemu:dirty-bitmap:{bitmap}"))
        elif option == GO:
            line.sendall(export(size, flags) + blocks(least, max(least, 512), most))
        line.sendall(answer(option, ACK))
        if option == STARTTLS and tls is not None:
            line = tls.wrap_socket(line, server_side=True)
        if option == GO:
            return line


def asked(line: socket.socket) -> tuple[int, int, int, int]:
    """Take a request; return its type, cookie, offset and length."""
    _, _, kind, cookie, offset, length = struct.unpack(">IHHQQI", taken(line, 28))
    return kind, cookie, offset, length


# What servers say, byte by byte.


def greeting(flags: int = 3, magic: bytes = b"NBDMAGIC", kind: int = HAVE_OPTION) -> bytes:
    return magic + struct.pack(">QH", kind, flags)


def answer(option: int, kind: int, data: bytes = b"", magic: int = ANSWER) -> bytes:
    return struct.pack(">QIII", magic, option, kind, len(data)) + data


def context(number: int, name: str, option: int = SET_META) -> bytes:
    return answer(option, META, struct.pack(">I", number) + name.encode())


def export(size: int, flags: int = READ_ONLY) -> bytes:
    return answer(GO, INFO, struct.pack(">HQH", 0, size, flags | 1))


def blocks(least: int, preferred: int, most: int) -> bytes:
    return answer(GO, INFO, struct.pack(">HIII", 3, least, preferred, most))


def listed(name: str) -> bytes:
    return answer(LIST, SERVER, struct.pack(">I", len(name)) + name.encode())


def simple(cookie: int, error: int = 0, data: bytes = b"") -> bytes:
    return struct.pack(">IIQ", 0x67446698, error, cookie) + data


def chunk(cookie: int, kind: int, payload: bytes = b"", flags: int = DONE) -> bytes:
    return struct.pack(">IHHQI", 0x668E33EF, flags, kind, cookie, len(payload)) + payload


def data(cookie: int, offset: int, content: bytes, flags: int = DONE) -> bytes:
    return chunk(cookie, DATA, struct.pack(">Q", offset) + content, flags)


def hole(cookie: int, offset: int, length: int, flags: int = DONE) -> bytes:
    return chunk(cookie, HOLE, struct.pack(">QI", offset, length), flags)


def status(cookie: int, *rows: tuple[int, int], number: int = 1, flags: int = DONE) -> bytes:
    packed = b"".join(struct.pack(">II", *row) for row in rows)
    return chunk(cookie, STATUS, struct.pack(">I", number) + packed, flags)


def fault(
    cookie: int, error: int, text: bytes = b"", flags: int = DONE, kind: int = ERROR
) -> bytes:
    tail = struct.pack(">Q", 0) if kind == ERROR_OFFSET else b""
    return chunk(cookie, kind, struct.pack(">IH", error, len(text)) + text + tail, flags)
