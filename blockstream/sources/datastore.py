"""Files of a VMware datastore over HTTPS: ranges of `/folder/PATH?dcPath=...&dsName=...`."""

import hashlib
import http.client
import re
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote, urlencode

from blockstream.errors import (
    AuthenticationError,
    NotFoundError,
    SourceError,
)

# virt-v2v's curl waits 2,000 s; but a server that says nothing for five minutes says nothing more.
_SECONDS: Final = 300.0
_ATTEMPTS: Final = 6
_FIRST_PAUSE_SECONDS: Final = 0.2
# Larger ones fail on a vCenter, and are hardly faster (kubevirt/containerized-data-importer#3752).
_MOST_BYTES: Final = 2 << 20
# A host has room for about 48 (VDDK guide, "NFC Session Limits"), and others read there, too.
_MOST_READS: Final = 32
_PATH = re.compile(r"\[(?P<store>[^\]]+)\] ?(?P<path>.+)", re.DOTALL)
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")


@dataclass(frozen=True, slots=True)
class Server:
    """Whom we speak to, and how we know that it is the one.

    Attributes:
        host: Name or address.
        port: Usually 443.
        context: Checks the certificate.
    """

    host: str
    port: int
    context: ssl.SSLContext

    def __str__(self) -> str:
        """What people call it."""
        return self.host if self.port == 443 else f"{self.host}:{self.port}"


def pinned(host: str, port: int, thumbprint: str) -> Server:
    """Return a server that has to show the one certificate with that SHA-256.

    Raises:
        NotFoundError: If nobody answers.
        AuthenticationError: If it shows another one.
    """
    try:
        text = ssl.get_server_certificate((host, port), timeout=_SECONDS)
    except OSError as error:
        raise NotFoundError(f"nobody answers at {host}:{port}: {error}") from error
    shown = hashlib.sha256(ssl.PEM_cert_to_DER_cert(text)).hexdigest()
    if shown != thumbprint:
        raise AuthenticationError(
            f"{host}:{port} shows a certificate with the SHA-256 {shown}, and not {thumbprint}; "
            "nothing was asked"
        )
    context = ssl.create_default_context(cadata=text)
    # It vouches for itself, whatever name is in it and whoever signed it.
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return Server(host, port, context)


@dataclass(frozen=True, slots=True)
class DatastorePath:
    """A file in a datastore.

    Attributes:
        datacenter: Inventory path of the datacenter, as `dcPath` wants it.
        datastore: Name of the datastore.
        path: The file's path in it, without a slash in front.
    """

    datacenter: str
    datastore: str
    path: str

    def __str__(self) -> str:
        """As VMware writes it."""
        return f"[{self.datastore}] {self.path}"

    @classmethod
    def parse(cls, text: str, datacenter: str) -> "DatastorePath":
        """Read `[STORE] FOLDER/FILE`.

        Raises:
            SourceError: If it is not that.
        """
        found = _PATH.fullmatch(text)
        if found is None:
            raise SourceError(f"{text!r} is no path in a datastore; nothing was read")
        return cls(datacenter, found["store"], found["path"])

    @property
    def target(self) -> str:
        """What a request asks for."""
        query = urlencode({"dcPath": self.datacenter, "dsName": self.datastore})
        return f"/folder/{quote(self.path)}?{query}"


class _TryAgainError(Exception):
    """What may go better the next time."""


class Datastore:
    """Reads files of one server's datastores, from several threads at once.

    Each thread that reads has a connection of its own, which others take over.
    """

    def __init__(self, server: Server, cookie: Callable[[str], str]) -> None:
        """Open nothing yet.

        Args:
            server: Whom to ask.
            cookie: Returns a cookie that is not the given one, which the server refused.
        """
        self._server = server
        self._new_cookie = cookie
        self._cookie = cookie("")
        self._lock = threading.Lock()
        self._idle: list[http.client.HTTPSConnection] = []
        self._closed = threading.Event()
        self._room = threading.BoundedSemaphore(_MOST_READS)

    def size(self, path: DatastorePath) -> int:
        """Return the bytes of a file, and see that the server gives ranges of it.

        Raises:
            SourceError: If it does not.
            NotFoundError: If it is not there.
        """
        return self._persistently(path, 0, memoryview(bytearray(1)))

    def read_into(self, path: DatastorePath, offset: int, view: memoryview) -> None:
        """Fill `view` from a file; what may be a passing trouble is tried again, some times.

        Raises:
            SourceError: If it cannot be read.
            NotFoundError: If it is not there.
            AuthenticationError: If the server does not know us any more.
        """
        for start in range(0, len(view), _MOST_BYTES):
            self._persistently(path, offset + start, view[start : start + _MOST_BYTES])

    def stop(self) -> None:
        """Let what is tried again fail at once; any thread."""
        self._closed.set()

    def close(self) -> None:
        """Close the connections."""
        self.stop()
        with self._lock:
            for each in self._idle:
                each.close()
            self._idle.clear()

    def _persistently(self, path: DatastorePath, offset: int, view: memoryview) -> int:
        pause = _FIRST_PAUSE_SECONDS
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                with self._room:
                    return self._once(path, offset, view)
            except (_TryAgainError, OSError, http.client.HTTPException) as error:
                if isinstance(error, ssl.SSLCertVerificationError):
                    raise AuthenticationError(
                        f"{self._server} shows a certificate that is not trusted: "
                        f"{error.verify_message}; nothing was read"
                    ) from error
                if attempt == _ATTEMPTS or self._closed.wait(pause):
                    raise SourceError(
                        f"{path}: {len(view)} bytes at offset {offset} cannot be read from "
                        f"{self._server}: {str(error) or type(error).__name__}, {attempt} times; "
                        "END was not sent; send again"
                    ) from error
                pause *= 2
        raise SourceError(f"{path} cannot be read")

    def _once(self, path: DatastorePath, offset: int, view: memoryview) -> int:
        """Fill `view`; return the file's size."""
        connection = self._taken()
        cookie = self._cookie
        whole = False
        try:
            last = offset + len(view) - 1
            headers = {"Cookie": cookie, "Range": f"bytes={offset}-{last}"}
            connection.request("GET", path.target, headers=headers)
            response = connection.getresponse()
            if response.status != http.client.PARTIAL_CONTENT:
                self._refused(response, path, offset, len(view), cookie)
            size = self._check_range(response, path, offset, last)
            _fill(response, view)
            whole = True
        finally:
            if whole and not self._closed.is_set():
                with self._lock:
                    self._idle.append(connection)
            else:
                connection.close()
        return size

    def _taken(self) -> http.client.HTTPSConnection:
        with self._lock:
            if self._idle:
                return self._idle.pop()
        return http.client.HTTPSConnection(
            self._server.host, self._server.port, timeout=_SECONDS, context=self._server.context
        )

    def _check_range(
        self, response: http.client.HTTPResponse, path: DatastorePath, first: int, last: int
    ) -> int:
        said = response.getheader("Content-Range") or ""
        found = _RANGE.fullmatch(said)
        if found is None or (int(found[1]), int(found[2])) != (first, last):
            raise SourceError(
                f"{path}: bytes {first} to {last} were asked for, and {self._server} gave "
                f"{said!r}; nothing was put in their place and END was not sent"
            )
        return int(found[3])

    def _refused(
        self,
        response: http.client.HTTPResponse,
        path: DatastorePath,
        offset: int,
        length: int,
        cookie: str,
    ) -> None:
        """Say what an answer means that is not the range.

        Raises:
            _TryAgainError: If it may go better the next time.
            BlockstreamError: If not.
        """
        where = f"{path} (dcPath {self._server}/{path.datacenter})"
        match response.status:
            case 200:
                raise SourceError(
                    f"{self._server} ignores ranges: it gave all of {path} where {length} bytes at "
                    f"offset {offset} were asked for; END was not sent; is there a proxy between?"
                )
            case 401:
                # The session knows whether another thread has renewed it meanwhile.
                self._cookie = self._new_cookie(cookie)
                raise _TryAgainError(f"{self._server} does not know the session")
            case 403:
                raise SourceError(
                    f"{where} may not be read; END was not sent; the user needs the privileges "
                    "Datastore.Browse and Datastore.FileManagement on its datastore"
                )
            case 404:
                raise NotFoundError(f"{where} does not exist; END was not sent")
            case 416:
                raise SourceError(
                    f"{where} ends before byte {offset + length}, so it is not as large as its "
                    "descriptor says; END was not sent"
                )
            case status:
                raise _TryAgainError(
                    f"HTTP status {status} ({response.reason}); with 500, another program may "
                    "have the file open"
                )


def _fill(response: http.client.HTTPResponse, view: memoryview) -> None:
    """Read the body, which must be exactly as long as what is wanted."""
    while view:
        count = response.readinto(view)
        if not count:
            raise _TryAgainError(f"the answer ended {len(view)} bytes too early")
        view = view[count:]
    if response.read(1):
        raise _TryAgainError("the answer was longer than the range")
