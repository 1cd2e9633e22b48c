"""Where an ssh connection leads, over which hosts, and whose keys are trusted on the way.

asyncssh would go over a `ProxyJump` by itself, but with host keys checked by the configuration
alone, which may switch the checking off. So each host on the way is connected to from here.
"""

import asyncio
import contextlib
import os
import re
import shlex
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

import asyncssh
from asyncssh.encryption import get_encryption_algs
from asyncssh.kex import get_kex_algs
from asyncssh.mac import get_mac_algs
from asyncssh.public_key import get_public_key_algs

from blockstream.transports.host_keys import (
    HostKeyPolicy,
    KnownHosts,
    key_name,
    known_hosts,
    needs_key,
    remember,
)
from blockstream.transports.ssh_config import SshConfig, SshConfigError, has_ssh, ssh_config
from blockstream.transports.user_keys import Offers, offers

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
_LONGEST_WAY = 8
_SHELL = "/bin/sh"
_JUMP = re.compile(
    r"(?:ssh://)?(?:(?P<user>[^@]+)@)?(?P<host>\[[^\]]+\]|[^:\[\]]+)(?::(?P<port>\d{1,5}))?/?"
)


class NotTrustedError(Exception):
    """A host on the way does not show a key that is known, or does not let us in."""


class UnreachableError(Exception):
    """There is no connection."""


@dataclass(frozen=True, slots=True)
class Destination:
    """A host that is connected to.

    Attributes:
        host: As the user, or the configuration, named it.
        port: 0 for what ssh's configuration says.
        user: Empty for what ssh's configuration says.
        policy: What becomes of an unknown host key.
        config_file: Configuration to use in place of the user's; empty for the user's.
        config: What the system's ssh would do.
    """

    host: str
    port: int
    user: str
    policy: HostKeyPolicy
    config_file: str
    config: SshConfig

    @property
    def connect_seconds(self) -> float:
        """How long to wait for a connection."""
        return self.config.connect_seconds or _CONNECT_SECONDS


def destination(
    host: str,
    *,
    port: int = 0,
    user: str = "",
    policy: HostKeyPolicy = HostKeyPolicy.STRICT,
    config_file: str = "",
) -> Destination:
    """Look up what ssh's configuration says of a host.

    Raises:
        UnreachableError: If it cannot be understood.
    """
    try:
        config = ssh_config(host, port=port, user=user, config_file=config_file)
    except SshConfigError as error:
        raise UnreachableError(f"no connection to {host}: {error}") from error
    return Destination(host, port, user, policy, config_file, config)


@contextlib.asynccontextmanager
async def connected(where: Destination) -> AsyncIterator[asyncssh.SSHClientConnection]:
    """Connect, over every host that the configuration names as a jump.

    Raises:
        NotTrustedError: If one of the hosts is not trusted, or lets us not in.
        UnreachableError: If there is no connection.
    """
    if not has_ssh():
        say("ssh is not installed here: its configuration is read as asyncssh understands it")
    async with contextlib.AsyncExitStack() as stack:
        connection: asyncssh.SSHClientConnection | None = None
        for stop in _way(where):
            with _explained(stop):
                connection = await stack.enter_async_context(await _connect(stop, connection))
        if connection is not None:
            yield connection


def _way(where: Destination, length: int = 1) -> list[Destination]:
    """Return the hosts to connect to, one through the other; the last is the destination.

    As ssh does it: the first of a list of jumps may have jumps of its own, the others are reached
    from the one before.
    """
    if length > _LONGEST_WAY:
        raise UnreachableError(f"the ProxyJump of {where.host} goes in a circle")
    way: list[Destination] = []
    for text in where.config.jumps.split(","):
        jump = _JUMP.fullmatch(text.strip())
        if jump is None:
            continue
        host, port = jump["host"].strip("[]"), int(jump["port"] or 0)
        if host == where.host and port in {0, where.config.port}:
            continue  # `Host *` with a jump: the jump itself is reached directly
        stop = destination(
            host,
            port=port,
            user=jump["user"] or "",
            policy=where.policy,
            config_file=where.config_file,
        )
        way += _way(stop, length + 1) if not way else [stop]
    return [*way, where]


class _Client(asyncssh.SSHClient):
    """Offers our keys, one by one."""

    def __init__(self, keys: Offers) -> None:
        self._left = iter(keys.pairs)

    def public_key_auth_requested(self) -> asyncssh.SSHKeyPair | None:
        return next(self._left, None)


async def _connect(
    where: Destination, tunnel: asyncssh.SSHClientConnection | None
) -> asyncssh.SSHClientConnection:
    config = where.config
    async with contextlib.AsyncExitStack() as stack:
        # First of all, because where nobody listens, no key is the matter.
        sock = await _socket(where, tunnel)
        failing = stack.enter_context(contextlib.ExitStack())
        if sock is not None:
            failing.callback(sock.close)
        known = await _known_hosts(where, tunnel)
        keys = await stack.enter_async_context(offers(config))
        try:
            connection = await asyncssh.connect(
                config.hostname,
                config.port,
                **_line(where, tunnel, sock),
                known_hosts=lambda host, _address, port: known.of(host, port or 22),
                server_host_key_algs=_host_key_algorithms(where, known),
                host_key_alias=config.alias or None,
                client_factory=lambda: _Client(keys),
                client_keys=None,
                username=config.user or (),
                signature_algs=_algorithms(config, "pubkeyacceptedalgorithms"),
                gss_auth=config.gssapi,
                gss_kex=False,
                connect_timeout=where.connect_seconds,
                keepalive_interval=_KEEPALIVE_SECONDS,
                keepalive_count_max=_KEEPALIVE_COUNT,
                compression_algs=None,
                agent_forwarding=False,
                request_pty=False,
                send_env=None,
                env=None,
            )
        except asyncssh.PermissionDenied as error:
            # Its own text may hold what was tried.
            unusable = f" ({'; '.join(keys.unusable)})" if keys.unusable else ""
            raise NotTrustedError(
                f"{where.host} accepts none of our keys{unusable}; nothing was sent; try "
                f"`{_ssh(where)} true`"
            ) from error
        except asyncssh.HostKeyNotVerifiable as error:
            # Where nothing is known of it, `_known_hosts` has said so.
            name = key_name(config)
            raise NotTrustedError(
                f"{where.host} is not trusted: it shows another host key than "
                f"{' or '.join(known.files)} has for {name}; nothing was sent; if the host was set "
                f"up anew, take the old key out by `ssh-keygen -R '{name}'`; if it was not, "
                "somebody stands in between"
            ) from error
        failing.pop_all()
        return connection


def _line(
    where: Destination, tunnel: asyncssh.SSHClientConnection | None, sock: socket.socket | None
) -> dict[str, Any]:
    """Return how the host is reached, and by which algorithms it is talked to."""
    config = where.config
    ciphers = config.allowed("ciphers", _CIPHERS) or _algorithms(config, "ciphers")
    return {
        "tunnel": tunnel,
        # As ssh runs it: what the shell becomes can be ended, and no shell stays.
        "proxy_command": [_SHELL, "-c", f"exec {config.command}"] if config.command else None,
        "sock": sock,
        # No file of ssh's: what they say is in our own arguments.
        "config": None,
        "kex_algs": _algorithms(config, "kexalgorithms"),
        "encryption_algs": ciphers,
        "mac_algs": _algorithms(config, "macs"),
    }


def _host_key_algorithms(where: Destination, known: KnownHosts) -> list[str]:
    """Return by which of the known keys the host may show itself, as the configuration allows.

    Raises:
        NotTrustedError: By none.
    """
    config = where.config
    shown = known.algorithms(config.alias or config.hostname, config.port)
    names = config.preferred("hostkeyalgorithms", shown)
    if not names:
        raise NotTrustedError(
            f"{where.host} is not trusted: HostKeyAlgorithms allows none of its known keys "
            f"({', '.join(shown)}); nothing was sent"
        )
    return names


def _algorithms(config: SshConfig, keyword: str) -> Any:
    """Return what the configuration allows of what asyncssh can; its own choice without one.

    Raises:
        SshConfigError: If that is nothing.
    """
    if not config.algorithms or keyword not in config.algorithms:
        return ()
    names = config.preferred(keyword, _KNOWN_ALGORITHMS[keyword]())
    if not names:
        raise SshConfigError(f"none of its {keyword} is known to asyncssh; --rsh ssh has more")
    return names


def _names(algorithms: list[bytes]) -> list[str]:
    return [name.decode() for name in algorithms]


_KNOWN_ALGORITHMS = {
    "kexalgorithms": lambda: _names(get_kex_algs()),
    "ciphers": lambda: _names(get_encryption_algs()),
    "macs": lambda: _names(get_mac_algs()),
    "pubkeyacceptedalgorithms": lambda: _names(get_public_key_algs()),
}


async def _socket(
    where: Destination, tunnel: asyncssh.SSHClientConnection | None
) -> socket.socket | None:
    """Connect to a host's port, to the first of its addresses that answers.

    Returns:
        None where something lies between.

    Raises:
        UnreachableError: If it has no address.
        OSError: If none answers.
    """
    if tunnel is not None or where.config.command:
        return None
    config, loop = where.config, asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(
            config.hostname, config.port, family=config.family, type=socket.SOCK_STREAM
        )
    except OSError:
        raise UnreachableError(
            f"no connection to {where.host}: its name cannot be resolved"
        ) from None
    failure: OSError = TimeoutError()
    for family, kind, protocol, _, address in found:
        sock = socket.socket(family, kind, protocol)
        sock.setblocking(False)
        try:
            if config.bind_address:
                sock.bind((config.bind_address, 0))
            await asyncio.wait_for(loop.sock_connect(sock, address), where.connect_seconds)
        except OSError as error:
            sock.close()
            failure = error
        except BaseException:
            sock.close()
            raise
        else:
            return sock
    raise failure


@contextlib.contextmanager
def _explained(where: Destination) -> Iterator[None]:
    try:
        yield
    except SshConfigError as error:
        raise UnreachableError(f"no connection to {where.host}: {error}") from error
    except (OSError, ValueError, asyncssh.Error) as error:
        raise UnreachableError(f"no connection to {where.host}: {reason(error)}") from error


async def _known_hosts(
    where: Destination, tunnel: asyncssh.SSHClientConnection | None
) -> KnownHosts:
    """Return the known hosts, never none; with accept-new, a host that no file has is added.

    Raises:
        NotTrustedError: If nothing is known of the host.
    """
    config = where.config
    shown = await _shown(where, tunnel) if needs_key(config) else None
    known = known_hosts(config, where.host, shown)
    for text in known.skipped:
        say(f"{text}, and are left out, as ssh does")
    if known.know(config.alias or config.hostname, config.port):
        return known
    if where.policy is not HostKeyPolicy.ACCEPT_NEW:
        raise NotTrustedError(_advice(where, "its host key is not known"))
    key = shown or await _shown(where, tunnel)
    line = f"{key_name(config)} {key.export_public_key().decode().strip()}\n"
    try:
        remember(config, line)
    except (OSError, SshConfigError) as error:
        raise NotTrustedError(f"the key of {where.host} cannot be noted: {error}") from error
    say(f"the key of {where.host} is new and was noted: {key.get_fingerprint()}")
    return KnownHosts(asyncssh.import_known_hosts(line), known.files, ())


async def _shown(
    where: Destination, tunnel: asyncssh.SSHClientConnection | None
) -> asyncssh.SSHKey:
    """Return the key that a host shows.

    Raises:
        NotTrustedError: If it shows none.
    """
    config = where.config
    line = _line(where, tunnel, await _socket(where, tunnel))
    for each in ("encryption_algs", "mac_algs"):
        del line[each]
    asking = asyncssh.get_server_host_key(config.hostname, config.port, **line)
    key = await asyncio.wait_for(asking, where.connect_seconds)
    if key is None:
        raise NotTrustedError(_advice(where, "it shows no host key"))
    return key


def _advice(where: Destination, what: str) -> str:
    return (
        f"{where.host} is not trusted: {what}; nothing was sent; if it is the right host, "
        f"`{_ssh(where)} true` shows its key and notes it, or give --host-keys accept-new"
    )


def _ssh(where: Destination) -> str:
    """Return how the system's ssh is asked for the same host."""
    words = ["ssh", *(["-F", where.config_file] if where.config_file else [])]
    words += ["-p", str(where.port)] if where.port else []
    return shlex.join([*words, f"{where.user}@{where.host}" if where.user else where.host])


def reason(error: Exception) -> str:
    """Return why, in the words of the system or of asyncssh."""
    if isinstance(error, TimeoutError):
        return error.strerror or "no answer in time"
    if isinstance(error, OSError):
        return f"{error.filename or ''}: {_plain(error)}".removeprefix(": ")
    return getattr(error, "reason", "") or type(error).__name__


def _plain(error: OSError) -> str:
    """Return the system's words for an error, without asyncio's round them."""
    return os.strerror(error.errno) if error.errno else str(error)


def say(text: str) -> None:
    """Say a line to whoever started us."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()
