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
from dataclasses import dataclass, replace

import asyncssh

from blockstream.transports.host_keys import (
    HostKeyPolicy,
    SshConfig,
    SshConfigError,
    has_ssh,
    ssh_config,
)

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
    def address(self) -> tuple[str, int]:
        """Name and port to connect to."""
        return self.config.hostname or self.host, self.port or self.config.port or 22

    @property
    def key_name(self) -> str:
        """The name under which a known_hosts file has its key."""
        name, port = self.config.alias or self.address[0], self.address[1]
        return name if port == 22 or self.config.alias else f"[{name}]:{port}"


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
    if not has_ssh():
        config = _read_by_asyncssh(config, host, config_file)
    return Destination(host, port, user, policy, config_file, config)


@contextlib.asynccontextmanager
async def connected(where: Destination) -> AsyncIterator[asyncssh.SSHClientConnection]:
    """Connect, over every host that the configuration names as a jump.

    Raises:
        NotTrustedError: If one of the hosts is not trusted, or lets us not in.
        UnreachableError: If there is no connection.
    """
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
        if host == where.host and port in {0, where.address[1]}:
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


async def _connect(
    where: Destination, tunnel: asyncssh.SSHClientConnection | None
) -> asyncssh.SSHClientConnection:
    known = await _known_hosts(where, tunnel)
    # By the name that the user gave, because that is what the configuration is about.
    return await asyncssh.connect(
        where.host,
        where.port or (),
        # Always given: not given would be what the configuration says.
        tunnel=tunnel,
        known_hosts=known,
        config=[where.config_file] if where.config_file else (),
        username=where.user or (),
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
    )


@contextlib.contextmanager
def _explained(where: Destination) -> Iterator[None]:
    try:
        yield
    except asyncssh.PermissionDenied as error:
        # Its own text may hold what was tried.
        raise NotTrustedError(
            f"{where.host} accepts none of our keys; nothing was sent; try `{_ssh(where)} true`"
        ) from error
    except asyncssh.HostKeyNotVerifiable as error:
        # Where nothing is known of it, `_known_hosts` has said so.
        raise NotTrustedError(
            f"{where.host} is not trusted: it shows another host key than "
            f"{' or '.join(where.config.files)} has for {where.key_name}; nothing was sent; if "
            "the host was set up anew, take the old key out by "
            f"`ssh-keygen -R '{where.key_name}'`; if it was not, somebody stands in between"
        ) from error
    except asyncssh.ConfigParseError as error:
        raise UnreachableError(f"no connection to {where.host}: {error}") from error
    except ValueError as error:  # the text of an error with keys is not for showing
        raise UnreachableError(
            f"no connection to {where.host}: one of our keys cannot be used "
            f"({type(error).__name__}); try `{_ssh(where)} true`"
        ) from error
    except (OSError, asyncssh.Error, TimeoutError) as error:
        raise UnreachableError(f"no connection to {where.host}: {reason(error)}") from error


async def _known_hosts(
    where: Destination, tunnel: asyncssh.SSHClientConnection | None
) -> asyncssh.SSHKnownHosts:
    """Return the known hosts, never None; with accept-new, a host that no file has is added.

    Raises:
        NotTrustedError: If nothing is known of the host.
    """
    known = _read(where.config.files)
    host, port = where.address
    name = where.config.alias or host
    direct = tunnel is None and not where.config.command
    address = _address_of(host) if direct else ""
    keys, authorities, *_ = known.match(name, address, port)
    if keys or authorities:
        return known
    if direct and not address:
        raise UnreachableError(f"no connection to {where.host}: its name cannot be resolved")
    if where.policy is not HostKeyPolicy.ACCEPT_NEW:
        raise NotTrustedError(_advice(where, "its host key is not known"))
    config = [where.config_file] if where.config_file else ()
    shown = asyncssh.get_server_host_key(where.host, where.port or (), tunnel=tunnel, config=config)
    key = await asyncio.wait_for(shown, _CONNECT_SECONDS)
    if key is None:
        raise NotTrustedError(_advice(where, "it shows no host key"))
    line = f"{where.key_name} {key.export_public_key().decode().strip()}\n"
    _remember(where.config, line)
    say(f"the key of {where.host} is new and was noted: {key.get_fingerprint()}")
    return asyncssh.import_known_hosts(line)


def _read(files: list[str]) -> asyncssh.SSHKnownHosts:
    try:
        # Without a file asyncssh would take it that nothing is to be checked.
        return asyncssh.read_known_hosts(files) if files else asyncssh.import_known_hosts("")
    except ValueError as error:
        raise NotTrustedError(f"{' or '.join(files)} cannot be understood: {error}") from error


def _address_of(host: str) -> str:
    try:
        return str(socket.getaddrinfo(host, None)[0][4][0])
    except OSError:
        return ""


def _remember(config: SshConfig, line: str) -> None:
    """Add a line to the user's known hosts.

    Raises:
        NotTrustedError: If there is no file for it.
    """
    if not config.user_files:
        raise NotTrustedError("ssh's configuration names no file for new host keys")
    path = config.user_files[0]
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "w") as file:
            file.write(line)
    except OSError as error:
        raise NotTrustedError(f"{path} cannot be written: {error.strerror}") from error


def _read_by_asyncssh(config: SshConfig, host: str, config_file: str) -> SshConfig:
    """Return what the configuration says where no ssh is installed to ask."""
    try:
        read = asyncssh.SSHClientConnectionOptions(
            host=host, config=[config_file] if config_file else (), known_hosts=b""
        )
    except (OSError, ValueError, asyncssh.Error):
        return config
    jumps = read.tunnel if isinstance(read.tunnel, str) and read.tunnel.lower() != "none" else ""
    return replace(
        config,
        hostname=read.host,
        port=read.port,
        alias=read.host_key_alias or "",
        jumps=jumps,
        command=bool(read.proxy_command),
    )


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
        return f"no answer within {_CONNECT_SECONDS} s"
    if isinstance(error, OSError):
        return f"{error.filename or ''}: {error.strerror or error}".removeprefix(": ")
    return getattr(error, "reason", "") or type(error).__name__


def say(text: str) -> None:
    """Say a line to whoever started us."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()
