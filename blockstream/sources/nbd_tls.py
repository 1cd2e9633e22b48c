"""TLS round a socket that one thread reads while others write."""

import select
import socket
import ssl
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

from blockstream.errors import AuthenticationError


class SecuredSocket:
    """A socket inside TLS. One thread may receive while another one sends.

    OpenSSL's connection is one thing that one thread may touch at a time, so nobody waits inside
    of it: who has to wait for the other side does so outside, and lets others in.
    """

    def __init__(self, plain: socket.socket, certificates: str, hostname: str) -> None:
        """Take over a socket and begin TLS: the server's certificate must be signed for its name.

        Args:
            plain: The socket, with the time that it may wait.
            certificates: Folder of ours; empty for the authorities of this host.
            hostname: Name that the server's certificate must have.

        Raises:
            AuthenticationError: If our own certificates cannot be used.
            OSError: If it fails.
        """
        self._seconds = plain.gettimeout()
        self._lock = threading.Lock()
        self._socket = _context(certificates).wrap_socket(plain, server_hostname=hostname)
        self._socket.setblocking(False)

    def gettimeout(self) -> float | None:
        """Return how long each call waits at most, in seconds."""
        return self._seconds

    def settimeout(self, seconds: float | None) -> None:
        """Limit how long each call waits for the other side, in seconds."""
        self._seconds = seconds

    def recv_into(self, view: memoryview) -> int:
        """Receive what there is; 0 at the end. One thread at a time.

        Raises:
            OSError: If it fails, or nothing comes in time.
        """
        return self._done(partial(self._socket.recv_into, view))

    def sendall(self, data: bytes) -> None:
        """Send. One thread at a time.

        Raises:
            OSError: If it fails, or nothing is taken in time.
        """
        rest = memoryview(data)
        while rest:
            rest = rest[self._done(partial(self._socket.send, rest)) :]

    def shutdown(self, how: int) -> None:
        """End the connection under whoever uses it."""
        # Not SSLSocket's own: it drops TLS, and whoever still receives would take what is
        # enciphered for the data.
        socket.socket.shutdown(self._socket, how)

    def close(self) -> None:
        """Close it. Nobody may be using it."""
        self._socket.close()

    def _done(self, step: Callable[[], int]) -> int:
        while True:
            with self._lock:
                try:
                    return step()
                except ssl.SSLWantReadError:
                    event = select.POLLIN
                except ssl.SSLWantWriteError:
                    event = select.POLLOUT
            self._wait(event)

    def _wait(self, event: int) -> None:
        waiting = select.poll()
        waiting.register(self._socket, event)
        if not waiting.poll(None if self._seconds is None else self._seconds * 1000):
            raise TimeoutError


def _context(certificates: str) -> ssl.SSLContext:
    folder = Path(certificates)
    try:
        context = ssl.create_default_context(
            cafile=folder / "ca-cert.pem" if certificates else None
        )
        if certificates and (folder / "client-cert.pem").exists():
            context.load_cert_chain(folder / "client-cert.pem", folder / "client-key.pem")
    except OSError as error:
        raise AuthenticationError(
            f"{certificates}: the certificates cannot be used: {error.strerror or error}; "
            "nothing was sent; ca-cert.pem is needed there, and client-cert.pem with "
            "client-key.pem if the server asks for them"
        ) from error
    return context
