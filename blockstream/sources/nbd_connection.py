"""One connection to an NBD server: several threads ask, and one of those that wait reads for all.

Plain sockets and the threads that are there anyway, because a reply then goes from the kernel
straight into the caller's buffer: asyncio's streams took five times the processor time for a GiB
(2.4 s against 0.5, in turn on the same two cores), and a loop of its own would add two switches of
threads to each read.
"""

import contextlib
import os
import re
import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self
from urllib.parse import unquote, urlsplit

from blockstream.errors import AuthenticationError, NotFoundError, SourceError, UsageError
from blockstream.formats.nbd import ABORT, MOST_NAME_BYTES, Export, Step, Wish, opened
from blockstream.formats.nbd_replies import GOODBYE, Replies, Request

if TYPE_CHECKING:
    from blockstream.sources.nbd_tls import SecuredSocket

PORT: Final = 10809
_SCHEME: Final = re.compile(r"nbd(s?)(\+unix)?")
# Requests in flight from one thread: what they ask must fit into the server's socket, or both
# sides would wait to send. 64 of 28 bytes do, from many threads.
_WINDOW: Final = 64
# What is read with the head of a reply: small replies come many at once, of large ones only
# this much is copied.
_STAGE_BYTES: Final = 16 << 10

_LOOK: Final = "look at both sides' certificates (--tls-certificates)"


class LineLostError(Exception):
    """The connection is no more; what was not answered may be asked on another one."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to wait, in seconds.

    Attributes:
        connect: Until somebody answers.
        greeting: Until the export is open.
        reply: For any byte, while something was asked.
        pauses: Before each new attempt, once a connection was lost.
    """

    connect: float = 10.0
    greeting: float = 30.0
    reply: float = 60.0
    pauses: tuple[float, ...] = (0.1, 0.3, 1.0, 3.0, 10.0)


@dataclass(frozen=True, slots=True)
class Place:
    """Where an export is.

    Attributes:
        location: As typed.
        export: Its name; empty for the server's own choice.
        host: Name or address; empty for a socket of this host.
        port: TCP port.
        socket: Path of a socket of this host.
        tls: Whether all must be inside TLS.
        certificates: Folder with ca-cert.pem, client-cert.pem and client-key.pem; empty for the
            authorities of this host, and no certificate of our own.
        hostname: Name that the server's certificate must have.
    """

    location: str
    export: str
    host: str
    port: int
    socket: str
    tls: bool
    certificates: str
    hostname: str

    @classmethod
    def of(cls, location: str) -> Self:
        """Take apart `nbd://HOST[:PORT]/EXPORT` and its like; the same as libnbd takes.

        Raises:
            UsageError: If it is none.
        """
        try:
            parts = urlsplit(location)
            port, host = parts.port or PORT, parts.hostname or ""
            # Not parse_qsl, to which a plus is a blank: a path may have one.
            pairs = [each.split("=", 1) for each in parts.query.split("&") if each]
            words = {unquote(word): unquote(value) for word, value in pairs}
        except ValueError as error:
            raise UsageError(f"{location} names no NBD export: {error}") from None
        scheme = _SCHEME.fullmatch(parts.scheme)
        if scheme is None or parts.username is not None or parts.fragment:
            raise UsageError(f"{location} is not nbd://HOST[:PORT]/EXPORT")
        tls, unix = bool(scheme[1]), bool(scheme[2])
        place = cls(
            location=location,
            export=unquote(parts.path.removeprefix("/"), errors="surrogateescape"),
            host="" if unix else host,
            port=port,
            socket=words.pop("socket", ""),
            tls=tls,
            certificates=words.pop("tls-certificates", ""),
            hostname=words.pop("tls-hostname", "") or host or "localhost",
        )
        place.check(words, unix=unix, netloc=parts.netloc)
        return place

    def check(self, unknown: dict[str, str], *, unix: bool, netloc: str) -> None:
        """Refuse what makes no sense.

        Raises:
            UsageError: If something does.
        """
        if unix and (netloc or not self.socket):
            raise UsageError(f"{self.location} names no socket: nbd+unix:///EXPORT?socket=PATH")
        if not unix and (self.socket or not self.host):
            raise UsageError(f"{self.location} names no host: nbd://HOST[:PORT]/EXPORT")
        if unknown:
            raise UsageError(
                f"{self.location}: {', '.join(sorted(unknown))} is not known; known are socket, "
                "tls-certificates and tls-hostname"
            )
        if self.certificates and not self.tls:
            raise UsageError(f"{self.location}: certificates need nbds:// or nbds+unix://")
        if len(os.fsencode(self.export)) > MOST_NAME_BYTES or "\0" in self.export + self.socket:
            raise UsageError(f"{self.location} names no export that NBD can name")

    @property
    def key(self) -> str:
        """Text that no other export has."""
        where = f"{self.host}:{self.port}" if self.host else str(Path(self.socket).absolute())
        return f"nbd:{where}/{self.export}"


class _Waiter:
    """A thread that waits while another one reads.

    One lock each: a condition would wake all of them for each reply.

    Attributes:
        batch: What it has asked.
        gate: Opened when all of that is answered, or when it has to do something.
        reads: Whether it is to read now.
    """

    def __init__(self, batch: Sequence[Request]) -> None:
        self.batch = batch
        self.gate = threading.Lock()
        self.gate.acquire()
        self.reads = False


class Line:
    """A connection with an open export."""

    def __init__(self, place: Place, bitmap: str, patience: Patience) -> None:
        """Connect, and open the export.

        Args:
            place: Where it is.
            bitmap: A dirty bitmap of QEMU's that must be there; empty for none.
            patience: How long to wait.

        Raises:
            NotFoundError: If nobody listens there, or there is no such export or bitmap.
            AuthenticationError: If TLS fails, or is wanted by one side only.
            SourceError: If the server refuses, or is none.
            LineLostError: If the connection ends meanwhile.
        """
        self._place = place
        self._in_doubt = False
        self._plain = _connected(place, patience.connect)
        self._socket: socket.socket | SecuredSocket = self._plain
        try:
            wish = Wish(place.location, place.export, place.tls, bitmap)
            self.export = self._opened(wish, patience.greeting)
            self._socket.settimeout(patience.reply)
        except BaseException:
            self._socket.close()
            raise
        self._replies = Replies(place.location, self.export)
        self._sending = threading.Lock()
        self._lock = threading.Lock()
        self._has_reader = False
        self._waiting: list[_Waiter] = []
        self.lost: Exception | None = None
        self._stage = memoryview(bytearray(_STAGE_BYTES))
        self._staged = self._stage[:0]

    def ask(self, requests: Sequence[Request]) -> None:
        """Ask, and wait for all answers; any thread.

        Buffers are nobody else's any more when this returns or raises.

        Raises:
            LineLostError: If the connection ends before; some may be done.
            NbdError: If the server does not keep to the protocol.
        """
        for start in range(0, len(requests), _WINDOW):
            batch = requests[start : start + _WINDOW]
            self._exchange(batch)
            if any(request.goes_away for request in batch):
                self._lose(LineLostError("the server shuts down"))
                self._raise_lost()

    def close(self) -> None:
        """Take leave. Nobody may be asking."""
        if self.lost is None:
            with contextlib.suppress(OSError):
                self._socket.sendall(GOODBYE)
        self._socket.close()

    # Asking.

    def _exchange(self, batch: Sequence[Request]) -> None:
        try:
            with self._sending:
                self._raise_lost()
                self._socket.sendall(b"".join(map(self._replies.ask, batch)))
        except OSError as error:
            self._lose(error)  # whoever reads notices, and then nobody touches our buffers
        if not self._becomes_reader(batch):
            return
        try:
            for request in batch:
                while not request.done:
                    self._take()
        except BaseException as error:
            self._lose(error)
            raise
        finally:
            self._hand_over()

    def _becomes_reader(self, batch: Sequence[Request]) -> bool:
        """Wait until all of a batch is done, or until nobody else reads."""
        with self._lock:
            if _all_done(batch):
                return False
            if not self._has_reader:
                self._raise_lost()
                self._has_reader = True
                return True
            mine = _Waiter(batch)
            self._waiting.append(mine)
        mine.gate.acquire()
        if not mine.reads and not _all_done(batch):
            self._raise_lost()
        return mine.reads

    def _wake_done(self) -> None:
        """Let those go whose requests are all answered."""
        with self._lock:
            for each in [each for each in self._waiting if _all_done(each.batch)]:
                self._waiting.remove(each)
                each.gate.release()

    def _hand_over(self) -> None:
        """Let another one read; all go, if the connection is lost."""
        with self._lock:
            self._has_reader = False
            while self._waiting and not self._has_reader:
                each = self._waiting.pop(0)
                each.reads = self._has_reader = self.lost is None
                each.gate.release()

    def _take(self) -> None:
        """Take one reply, whoever asked for it."""
        before = self._replies.answered
        steps = self._replies.take()
        data = b""
        with contextlib.suppress(StopIteration):
            wanted = next(steps)
            while True:
                if isinstance(wanted, int):
                    data = bytes(self._filled(memoryview(bytearray(wanted))))
                else:
                    self._filled(wanted)
                wanted = steps.send(data)
        if self._replies.answered > before:
            self._wake_done()

    def _filled(self, view: memoryview) -> memoryview:
        """Fill memory with what comes next."""
        rest = view
        while rest:
            if not self._staged:
                if len(rest) >= _STAGE_BYTES:
                    rest = rest[self._received(rest) :]
                    continue
                self._staged = self._stage[: self._received(self._stage)]
            count = min(len(rest), len(self._staged))
            rest[:count] = self._staged[:count]
            rest, self._staged = rest[count:], self._staged[count:]
        return view

    def _received(self, view: memoryview) -> int:
        try:
            count = self._socket.recv_into(view)
        except TimeoutError:
            raise LineLostError(
                f"the server did not answer within {self._socket.gettimeout():.0f} s"
            ) from None
        except OSError as error:
            raise LineLostError(f"the connection failed: {error.strerror or error}") from error
        if not count:
            raise LineLostError("the server hung up")
        return count

    def _lose(self, error: BaseException) -> None:
        """Let all who wait know that nothing will come any more."""
        with self._lock:
            if self.lost is None:
                self.lost = error if isinstance(error, Exception) else LineLostError("interrupted")
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def _raise_lost(self) -> None:
        if isinstance(self.lost, SourceError):
            raise self.lost
        if self.lost is not None:
            why = getattr(self.lost, "strerror", None) or str(self.lost)
            raise LineLostError(why) from self.lost

    # Opening.

    def _opened(self, wish: Wish, seconds: float) -> Export:
        """Do what the handshake says, all of it within some seconds."""
        deadline = time.monotonic() + seconds
        steps = opened(wish)
        try:
            step = next(steps)
            while True:
                step = steps.send(self._done(step, deadline))
        except StopIteration as stop:
            found: Export = stop.value
            return found
        except (AuthenticationError, NotFoundError):
            with contextlib.suppress(OSError):
                self._socket.sendall(ABORT)
            raise
        except TimeoutError:
            raise LineLostError(f"the server did not open it within {seconds:.0f} s") from None
        except OSError as error:
            raise self._failed(error) from error

    def _done(self, step: Step, deadline: float) -> bytes:
        data = bytearray(step.take)
        view = memoryview(data)
        if step.send:
            self._limit(deadline)
            self._socket.sendall(step.send)
        if step.secure:
            self._limit(deadline)
            self._in_doubt = True
            self._socket = self._secured()
        while view:
            self._limit(deadline)
            count = self._socket.recv_into(view)
            if not count:
                raise self._hung_up()
            view = view[count:]
            self._in_doubt = False
        return bytes(data)

    def _secured(self) -> "SecuredSocket":
        from blockstream.sources.nbd_tls import SecuredSocket  # ssl: 13 ms

        return SecuredSocket(self._plain, self._place.certificates, self._place.hostname)

    def _hung_up(self) -> Exception:
        """Return what it means, which depends: with TLS 1.3 a client is refused after the fact."""
        if self._in_doubt:
            return AuthenticationError(
                f"{self._place.location}: the server hung up as soon as TLS had begun, as those do "
                f"that do not accept our certificate; nothing was sent; {_LOOK}"
            )
        return LineLostError("the server hung up before the export was open")

    def _limit(self, deadline: float) -> None:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._socket.settimeout(left)

    def _failed(self, error: OSError) -> Exception:
        """Return what an error in the handshake means."""
        if self._place.tls:
            import ssl

            if isinstance(error, (ssl.SSLEOFError, ConnectionError)):
                return self._hung_up()
            if isinstance(error, ssl.SSLError):
                reason = getattr(error, "verify_message", "") or error.reason or error
                return AuthenticationError(
                    f"{self._place.location}: TLS failed: {reason}; nothing was sent in clear; "
                    f"{_LOOK}"
                )
        return LineLostError(f"the connection failed: {error.strerror or error}")


def _all_done(batch: Sequence[Request]) -> bool:
    return all(request.done for request in batch)


def _connected(place: Place, seconds: float) -> socket.socket:
    """Connect.

    Raises:
        NotFoundError: If nobody listens there.
        LineLostError: If it fails otherwise.
    """
    try:
        if place.host:
            found = socket.create_connection((place.host, place.port), seconds)
            found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return found
        return _connected_here(place.socket, seconds)
    except (FileNotFoundError, ConnectionRefusedError, socket.gaierror) as error:
        raise NotFoundError(
            f"{place.location}: nobody answers there: {error.strerror}; nothing was sent; start "
            "the NBD server, or look at the name"
        ) from error
    except OSError as error:
        raise LineLostError(f"it cannot be reached: {error.strerror or error}") from error


def _connected_here(path: str, seconds: float) -> socket.socket:
    found = socket.socket(socket.AF_UNIX)
    try:
        found.settimeout(seconds)
        found.connect(path)
    except BaseException:
        found.close()
        raise
    return found
