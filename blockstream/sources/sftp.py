"""Files of an ESXi host over ssh: the few requests of SFTP that reading takes.

Version 3 (draft-ietf-secsh-filexfer-02), as OpenSSH's server speaks it, which is ESXi's, too.
"""

import os
import struct
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NoReturn

from blockstream.errors import NotFoundError, SourceError
from blockstream.extents import ExtentMap
from blockstream.interfaces import Link
from blockstream.linux.buffers import write_stream
from blockstream.linux.identity import Identity, Node

# ESXi keeps it there; the others are those of Linux, for a host that stands in for one.
SERVERS: Final = (
    "/usr/lib/vmware/openssh/bin/sftp-server",
    "/usr/lib/openssh/sftp-server",
    "/usr/libexec/openssh/sftp-server",
)
COMMAND: Final = (
    f"for s in {' '.join(SERVERS)}; do test -x $s && exec $s -R; done; "
    "echo 'there is no sftp-server' >&2; exit 1"
)
_VERSION: Final = 3
_INIT, _VERSION_IS, _OPEN, _READ, _FSTAT = 1, 2, 3, 5, 8
_HANDLE, _DATA, _ATTRS = 102, 103, 105
_NO_SUCH_FILE: Final = 2
_READ_FLAG: Final = 1
_SIZE_FLAG: Final = 1
_CHUNK: Final = 32 << 10  # every server gives that much at once
# So many are asked for before the first has come, or the way there and back would be waited for.
_AHEAD: Final = 64
_MOST_BYTES: Final = 256 << 10  # of a packet, as OpenSSH's own client


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A range that was asked for."""

    offset: int
    view: memoryview


class Sftp:
    """A server at the other end of a link; used from several threads, one at a time."""

    def __init__(self, link: Link) -> None:
        """Greet it.

        Raises:
            SourceError: If nobody answers, or in another version.
        """
        self.name = link.name
        self._link = link
        self._lock = threading.Lock()
        self._number = 0
        self._send(struct.pack(">BI", _INIT, _VERSION))
        kind, body = self._packet()
        if kind != _VERSION_IS or body[:4] != struct.pack(">I", _VERSION):
            raise SourceError(f"{self.name} speaks no SFTP of version {_VERSION}; nothing was sent")

    def open(self, path: str) -> tuple[bytes, int]:
        """Open a file; return its handle and its size.

        Raises:
            NotFoundError: If it is not there.
            SourceError: If it cannot be opened.
        """
        with self._lock:
            name = os.fsencode(path)
            self._ask(_OPEN, _text(name) + struct.pack(">II", _READ_FLAG, 0))
            kind, _, body = self._answer()
            if kind != _HANDLE:
                self._fail(path, body)
            handle = _unpacked(body)
            self._ask(_FSTAT, _text(handle))
            kind, _, body = self._answer()
            if kind != _ATTRS or not int.from_bytes(body[:4], "big") & _SIZE_FLAG:
                self._fail(path, body)
            return handle, int.from_bytes(body[4:12], "big")

    def read_into(self, path: str, handle: bytes, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from a file.

        Raises:
            SourceError: If it cannot be read, or ends before.
        """
        todo = [
            _Wanted(offset + start, buffer[start : start + _CHUNK])
            for start in range(0, len(buffer), _CHUNK)
        ]
        todo.reverse()
        asked: dict[int, _Wanted] = {}
        with self._lock:
            while todo or asked:
                while todo and len(asked) < _AHEAD:
                    wanted = todo.pop()
                    where = struct.pack(">QI", wanted.offset, len(wanted.view))
                    asked[self._ask(_READ, _text(handle) + where)] = wanted
                kind, number, body = self._answer()
                answered = asked.pop(number, None)
                if kind != _DATA or answered is None:
                    self._fail(path, body)
                data = _unpacked(body)
                if not 0 < len(data) <= len(answered.view):
                    raise SourceError(f"{self.name}:{path}: an answer of {len(data)} bytes")
                answered.view[: len(data)] = data
                if len(data) < len(answered.view):
                    rest = answered.view[len(data) :]
                    todo.append(_Wanted(answered.offset + len(data), rest))

    def _fail(self, path: str, body: bytes) -> NoReturn:
        """Say why a request failed.

        Raises:
            NotFoundError: If there is no such file.
            SourceError: Whatever else.
        """
        status = int.from_bytes(body[:4], "big")
        if status == _NO_SUCH_FILE:
            raise NotFoundError(f"{self.name}:{path} does not exist; END was not sent")
        said = _unpacked(body[4:]).decode(errors="replace")
        raise SourceError(f"{self.name}:{path} cannot be read: {said}; END was not sent")

    def _ask(self, kind: int, body: bytes) -> int:
        self._number = (self._number + 1) & 0xFFFFFFFF
        self._send(struct.pack(">BI", kind, self._number) + body)
        return self._number

    def _answer(self) -> tuple[int, int, bytes]:
        kind, body = self._packet()
        return kind, int.from_bytes(body[:4], "big"), body[4:]

    def _send(self, packet: bytes) -> None:
        try:
            whole = memoryview(struct.pack(">I", len(packet)) + packet)
            write_stream(self._link.to_peer, [whole])
        except OSError as error:
            raise self._lost(str(error.strerror)) from error

    def _packet(self) -> tuple[int, bytes]:
        length = int.from_bytes(self._exactly(4), "big")
        if not 1 <= length <= _MOST_BYTES:
            raise self._lost(f"it sends a packet of {length} bytes")
        data = self._exactly(length)
        return data[0], data[1:]

    def _exactly(self, count: int) -> bytes:
        data = bytearray()
        while len(data) < count:
            piece = os.read(self._link.from_peer, count - len(data))
            if not piece:
                raise self._lost("it ended")
            data += piece
        return bytes(data)

    def _lost(self, why: str) -> SourceError:
        status, words = self._link.ended()
        return SourceError(
            f"the connection to {self.name} was lost: {why}, with status {status}"
            f"{f'; it said: {words}' if words else ''}; END was not sent; send again"
        )


class SftpFile:
    """A file of such a server as a source, frozen while a snapshot lies above it."""

    immutable = False
    is_still = True
    alignment = 1
    read_ahead = 0  # the server is asked by one thread at a time
    nodes: frozenset[Node] = frozenset()

    def __init__(self, server: Sftp, path: str) -> None:
        """Open it.

        Raises:
            NotFoundError: If it is not there.
            SourceError: If it cannot be opened.
        """
        self.name = f"{server.name}:{path}"
        self.identity = Identity(f"sftp:{self.name}", lasting=True)
        self.warnings: list[str] = []
        self._server = server
        self._path = path
        self._handle, self.size = server.open(path)

    def extents(self) -> ExtentMap:
        """Return one DATA extent: nobody tells of holes."""
        return ExtentMap.whole(self.size)

    def read_into(self, offsets: Sequence[int], lengths: Sequence[int], buffer: memoryview) -> None:
        """Fill `buffer`; see `interfaces.Source`."""
        position = 0
        for offset, length in zip(offsets, lengths, strict=True):
            view = buffer[position : position + length]
            self._server.read_into(self._path, self._handle, offset, view)
            position += length

    def validate(self) -> None:
        """Trust the snapshot above it."""

    def close(self) -> None:
        """Leave it to the server, which ends with the connection."""


def _text(data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + data


def _unpacked(body: bytes) -> bytes:
    return body[4 : 4 + int.from_bytes(body[:4], "big")]
