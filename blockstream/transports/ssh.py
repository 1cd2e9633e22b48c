"""An ssh connection in a process of its own that only relays bytes.

`python -m blockstream.transports.ssh HOST -- COMMAND` runs COMMAND there, with this process's
standard input, output and error as its own. One Python process encrypts about 200 MiB a second
however many connections it has, so each connection gets one.
"""

import argparse
import asyncio
import contextlib
import errno
import os
import signal
import socket
import sys
from collections import deque
from dataclasses import dataclass

import asyncssh
import uvloop

from blockstream.errors import ExitStatus
from blockstream.transports.host_keys import HostKeyPolicy, SshConfig, ssh_config

# Those with AES in hardware first.
_CIPHERS = (
    "aes128-gcm@openssh.com",
    "aes256-gcm@openssh.com",
    "chacha20-poly1305@openssh.com",
    "aes256-ctr",
    "aes128-ctr",
)
_CONNECT_SECONDS = 30
_KEEPALIVE_SECONDS = 15
_KEEPALIVE_COUNT = 6
_STDIN, _STDOUT, _STDERR = 0, 1, 2
_PIECE = 1 << 18
# Of several connections that are fed in turn, each needs more at hand than a window holds, or it
# waits for the slowest of them.
_AHEAD_BYTES = 4 << 20
# What ssh itself says when the connection, and not the command, failed.
_NO_CONNECTION = 255


@dataclass(frozen=True, slots=True)
class Destination:
    """Where a connection leads.

    Attributes:
        host: As the user named it.
        port: 0 for what ssh's configuration says.
        user: Empty for what ssh's configuration says.
        policy: What becomes of an unknown host key.
        config: What the system's ssh would do.
        config_file: Configuration to use in place of the user's; empty for the user's.
    """

    host: str
    port: int
    user: str
    policy: HostKeyPolicy
    config: SshConfig
    config_file: str = ""

    @property
    def address(self) -> tuple[str, int]:
        """Name and port to connect to."""
        return self.config.hostname or self.host, self.port or self.config.port or 22

    @property
    def key_name(self) -> str:
        """The name under which a known_hosts file has its key."""
        name, port = self.config.alias or self.address[0], self.address[1]
        return name if port == 22 or self.config.alias else f"[{name}]:{port}"


class UnknownHostError(Exception):
    """The host's key is not known, or not the known one."""


def main() -> int:
    """Relay until the command there ends; return its exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("host")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--user", default="")
    parser.add_argument("--host-keys", type=HostKeyPolicy, default=HostKeyPolicy.STRICT)
    parser.add_argument("--config", default="")
    parser.add_argument("command")
    options = parser.parse_args()
    # Whoever started us minds these, and ends us by ending our input.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    config = ssh_config(
        options.host, port=options.port, user=options.user, config_file=options.config
    )
    where = Destination(
        options.host, options.port, options.user, options.host_keys, config, options.config
    )
    try:
        return uvloop.run(_relayed(where, options.command))
    except UnknownHostError as error:
        _say(str(error))
        return ExitStatus.AUTHENTICATION
    except asyncssh.PermissionDenied:
        # Its own text may hold what was tried.
        _say(f"{where.host} accepts none of our keys; try `ssh {where.host} true`")
        return ExitStatus.AUTHENTICATION
    except asyncssh.HostKeyNotVerifiable as error:
        _say(_advice(where, str(error.reason)))
        return ExitStatus.AUTHENTICATION
    except (OSError, asyncssh.Error, TimeoutError) as error:
        _say(f"no connection to {where.host}: {_reason(error)}")
        return _NO_CONNECTION


async def _relayed(where: Destination, command: str) -> int:
    """Connect, run the command, and move bytes until it ends."""
    known = await _known_hosts(where)
    # By the name that the user gave, because that is what the configuration is about.
    async with asyncssh.connect(
        where.host,
        where.port or (),
        config=[where.config_file] if where.config_file else (),
        username=where.user or (),
        known_hosts=known,
        host_key_alias=where.config.alias or (),
        encryption_algs=_CIPHERS,
        compression_algs=None,
        connect_timeout=_CONNECT_SECONDS,
        keepalive_interval=_KEEPALIVE_SECONDS,
        keepalive_count_max=_KEEPALIVE_COUNT,
        agent_forwarding=False,
        request_pty=False,
        send_env=None,
        env=None,
    ) as connection:
        relay = _Relay()
        channel, _ = await connection.create_session(lambda: relay, command, encoding=None)
        await relay.ended
        status = channel.get_exit_status()
    if status is None or status < 0:  # the line broke, or a signal ended it
        _say(f"the command on {where.host} did not end by itself")
        return _NO_CONNECTION
    return int(status)


class _Relay(asyncssh.SSHClientSession[bytes]):
    """Moves bytes between an ssh channel and our own three descriptors.

    Nothing is kept but what a full pipe did not take: the channel is paused until it does.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[None] = self._loop.create_future()
        self._waiting: deque[bytes] = deque()
        self._over = False
        for fd in (_STDIN, _STDOUT):
            os.set_blocking(fd, False)  # our ends of the pipes are ours alone

    def connection_made(self, chan: asyncssh.SSHClientChannel[bytes]) -> None:
        self._channel = chan
        chan.set_write_buffer_limits(high=_AHEAD_BYTES)

    def session_started(self) -> None:
        self._loop.add_reader(_STDIN, self._read)

    def pause_writing(self) -> None:
        self._loop.remove_reader(_STDIN)

    def resume_writing(self) -> None:
        if not self._over:
            self._loop.add_reader(_STDIN, self._read)

    def data_received(self, data: bytes, datatype: int | None) -> None:
        if datatype == asyncssh.EXTENDED_DATA_STDERR:
            with contextlib.suppress(OSError):
                os.write(_STDERR, data)
            return
        self._waiting.append(data)
        if len(self._waiting) == 1:
            self._write()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_of_input()
        if exc is not None:
            _say(f"the connection broke: {_reason(exc)}")
        if self._waiting:
            os.set_blocking(_STDOUT, True)
            self._write()
        if not self.ended.done():
            self.ended.set_result(None)

    def _read(self) -> None:
        try:
            data = os.read(_STDIN, _PIECE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self._channel.write(data)
        else:
            self._end_of_input()
            with contextlib.suppress(OSError):
                self._channel.write_eof()

    def _end_of_input(self) -> None:
        self._over = True
        self._loop.remove_reader(_STDIN)

    def _write(self) -> None:
        """Write what waits; the rest when the pipe has room."""
        while self._waiting:
            data = self._waiting.popleft()
            try:
                written = os.write(_STDOUT, data)
            except BlockingIOError:
                written = 0
            except OSError:
                self._waiting.clear()
                self._channel.abort()  # whoever started us has gone
                break
            if written < len(data):
                self._waiting.appendleft(data[written:])
                self._channel.pause_reading()
                self._loop.add_writer(_STDOUT, self._write)
                return
        self._loop.remove_writer(_STDOUT)
        self._channel.resume_reading()


async def _known_hosts(where: Destination) -> asyncssh.SSHKnownHosts:
    """Return the known hosts, never None; with accept-new, a host that no file has is added.

    Raises:
        UnknownHostError: If nothing is known of the host.
    """
    known = asyncssh.read_known_hosts(where.config.files) if where.config.files else _nobody()
    host, port = where.address
    name = where.config.alias or host
    address = _address_of(host)
    keys, authorities, *_ = known.match(name, address, port)
    if keys or authorities:
        return known
    if not address and not where.config.proxied:
        raise OSError(errno.ENOENT, "its name cannot be resolved")
    if where.policy is not HostKeyPolicy.ACCEPT_NEW:
        raise UnknownHostError(_advice(where, "its host key is not known"))
    config = [where.config_file] if where.config_file else ()
    shown = asyncssh.get_server_host_key(where.host, where.port or (), config=config)
    key = await asyncio.wait_for(shown, _CONNECT_SECONDS)
    if key is None:
        raise UnknownHostError(_advice(where, "it shows no host key"))
    line = f"{where.key_name} {key.export_public_key().decode().strip()}\n"
    _remember(where.config, line)
    _say(f"the key of {where.host} is new and was noted: {key.get_fingerprint()}")
    return asyncssh.import_known_hosts(line)


def _nobody() -> asyncssh.SSHKnownHosts:
    return asyncssh.import_known_hosts("")


def _address_of(host: str) -> str:
    try:
        return str(socket.getaddrinfo(host, None)[0][4][0])
    except OSError:
        return ""


def _remember(config: SshConfig, line: str) -> None:
    """Add a line to the user's known hosts.

    Raises:
        UnknownHostError: If there is no file for it.
    """
    if not config.user_files:
        raise UnknownHostError("ssh's configuration names no file for new host keys")
    path = config.user_files[0]
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "w") as file:
            file.write(line)
    except OSError as error:
        raise UnknownHostError(f"{path} cannot be written: {error.strerror}") from error


def _advice(where: Destination, what: str) -> str:
    port = where.address[1]
    option = f"-p {port} " if port != 22 else ""
    return (
        f"{where.host} is not trusted: {what}; nothing was sent; if it is the right host, "
        f"`ssh {option}{where.host} true` shows its key and notes it, or give "
        "--host-keys accept-new"
    )


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer within {_CONNECT_SECONDS} s"
    if isinstance(error, OSError):
        return f"{error.filename or ''}: {error.strerror or error}".removeprefix(": ")
    return getattr(error, "reason", "") or type(error).__name__


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
