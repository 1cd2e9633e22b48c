"""A place where processes of one user on one host meet: further connections join a session.

Each connection to a host starts a process there. All but the first give their descriptors to the
first, over a socket that has a name but no file, and wait until it is done with them. The name is a
secret of theirs, which each hears first of all on its standard input: arguments can be read by all.
"""

import contextlib
import errno
import os
import re
import secrets
import socket
import struct
import time
from collections.abc import Iterator

from blockstream.errors import ConnectionLostError

_NAME = b"\0blockstream-"
_TOKEN_BYTES = 32  # hex digits, and the end of a line
_BACKLOG = 128  # strangers may call as well
_JOIN_SECONDS = 30.0
_POLL_SECONDS = 0.02
_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid


@contextlib.contextmanager
def gathered(token: str, count: int) -> Iterator[list[tuple[int, int]]]:
    """Wait until `count` others have joined; give their (standard input, output), in their order.

    Raises:
        ConnectionLostError: If they do not come in time.
    """
    with contextlib.ExitStack() as stack:
        place = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        place.bind(_NAME + token.encode())
        place.listen(_BACKLOG)
        found: dict[int, tuple[int, int]] = {}
        deadline = time.monotonic() + _JOIN_SECONDS
        while len(found) < count:
            place.settimeout(max(0.001, deadline - time.monotonic()))
            try:
                guest, _ = place.accept()
            except TimeoutError:
                raise ConnectionLostError(
                    f"only {len(found)} of {count} further connections came within "
                    f"{_JOIN_SECONDS:.0f} s"
                ) from None
            if not _is_ours(guest):
                guest.close()
                continue
            stack.enter_context(guest)
            number, pair = _taken(guest)
            for fd in pair:
                stack.callback(os.close, fd)
            if 0 <= number < count:
                found[number] = pair
        yield [found[number] for number in range(count)]


def join(token: str, number: int) -> None:
    """Give our standard input and output to the session, and wait until it ends.

    Raises:
        ConnectionLostError: If there is none in time.
    """
    deadline = time.monotonic() + _JOIN_SECONDS
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as guest:
        while True:
            try:
                guest.connect(_NAME + token.encode())
                break
            except OSError as error:
                if error.errno != errno.ECONNREFUSED or time.monotonic() > deadline:
                    raise ConnectionLostError("there is no session to join") from error
                time.sleep(_POLL_SECONDS)  # whoever makes it has no other way to tell us
        if not _is_ours(guest):
            raise ConnectionLostError("somebody else waits where the session should")
        socket.send_fds(guest, [number.to_bytes(2, "big")], [0, 1])
        # Only the session may hold them, or nobody would see an end.
        nothing = os.open(os.devnull, os.O_RDWR)
        os.dup2(nothing, 0)
        os.dup2(nothing, 1)
        os.close(nothing)
        with contextlib.suppress(OSError):
            guest.recv(1)


def new_token() -> str:
    """Return the secret of a new session."""
    return secrets.token_hex(_TOKEN_BYTES // 2)


def tell_token(token: str, fd: int) -> None:
    """Tell a process on the other host the secret, before all else.

    Raises:
        ConnectionLostError: If it hears nothing any more.
    """
    try:
        os.write(fd, token.encode() + b"\n")
    except OSError as error:
        raise ConnectionLostError("a connection ended before it was used") from error


def heard_token(fd: int) -> str:
    """Return the secret that `tell_token` told.

    Raises:
        ConnectionLostError: If it does not come.
    """
    heard = b""
    while len(heard) <= _TOKEN_BYTES:
        piece = os.read(fd, _TOKEN_BYTES + 1 - len(heard))
        if not piece:
            raise ConnectionLostError("the connection ended before it was used")
        heard += piece
    text = heard.decode(errors="replace").removesuffix("\n")
    if not re.fullmatch(r"[0-9a-f]{32}", text):
        raise ConnectionLostError("the connection does not begin with the secret of a session")
    return text


def _is_ours(guest: socket.socket) -> bool:
    """Tell whether the other end is a process of our own user."""
    raw = guest.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return bool(_CREDENTIALS.unpack(raw)[1] == os.geteuid())


def _taken(guest: socket.socket) -> tuple[int, tuple[int, int]]:
    """Take what a guest brings.

    Raises:
        ConnectionLostError: If that is nothing.
    """
    guest.settimeout(_JOIN_SECONDS)
    try:
        message, descriptors, _, _ = socket.recv_fds(guest, 2, 2)
    except TimeoutError:
        message, descriptors = b"", []
    if len(message) != 2 or len(descriptors) != 2:
        for fd in descriptors:
            os.close(fd)
        raise ConnectionLostError("a further connection brought nothing")
    return int.from_bytes(message, "big"), (descriptors[0], descriptors[1])
