"""Disks of other hosts, `[USER@]HOST:/PATH`, and the way there."""

import importlib.util
import re
import shlex
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from blockstream.errors import NotFoundError, UsageError
from blockstream.words import printable

if TYPE_CHECKING:
    from blockstream.transports.command import PipedLink

_ROUND_TRIP_SECONDS = 5.0
# `DOMAIN\user` is a user of a Windows domain.
USER = r"[A-Za-z0-9._+][A-Za-z0-9._@+\\-]*"
_HOST = rf"(?:(?P<user>{USER})@)?(?P<host>\[[0-9A-Za-z:.%_-]+\]|[A-Za-z0-9._-]+)"
_SHORT = re.compile(rf"{_HOST}:(?P<path>/.+)", re.DOTALL)
_NAMED = re.compile(rf"{_HOST}::(?P<path>[A-Za-z0-9._-]{{1,64}})")
_LONG = re.compile(rf"ssh://{_HOST}(?::(?P<port>\d{{1,5}}))?(?P<path>/.+)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Remote:
    """A disk of another host.

    Attributes:
        host: Name or address, as ssh is given it.
        path: The disk's absolute path there.
        user: Empty for what ssh's configuration says.
        port: 0 for what ssh's configuration says.
        name: In place of a path, the name that a policy of `serve` gives it.
    """

    host: str
    path: str
    user: str = ""
    port: int = 0
    name: str = ""
    what: ClassVar[str] = (
        "is on another host, and here only a disk of this one will do; nothing was done; run it "
        "over there"
    )

    def __str__(self) -> str:
        """What people call it."""
        return f"{self.account}::{self.name}" if self.name else f"{self.account}:{self.path}"

    @property
    def key(self) -> str:
        """What tells it from every other one."""
        return f"{self} port {self.port}" if self.port else str(self)

    @property
    def account(self) -> str:
        """USER@HOST, or HOST."""
        return f"{self.user}@{self.host}" if self.user else self.host


def remote(location: str) -> Remote | None:
    """Return the host and path in `[USER@]HOST:/PATH` or `ssh://[USER@]HOST[:PORT]/PATH`, or None.

    `[USER@]HOST::NAME` is a disk that `serve` there knows by name.

    Raises:
        UsageError: If it can only be meant as such, and is none.
    """
    named = _NAMED.fullmatch(location)
    if named is not None and not named["host"].startswith("-"):
        return Remote(named["host"].strip("[]"), "", named["user"] or "", name=named["path"])
    long = location.startswith("ssh://")
    found = (_LONG if long else _SHORT).fullmatch(location)
    if found is None:
        if long:
            raise UsageError(f"{printable(location)} is not ssh://[USER@]HOST[:PORT]/PATH")
        return None
    port = int(found.groupdict().get("port") or 0)
    host = found["host"].strip("[]")
    if host.startswith("-") or port > 0xFFFF:  # ssh would take it for an option
        raise UsageError(f"{location} names no host")
    return Remote(host, found["path"], found["user"] or "", port)


@dataclass(frozen=True, slots=True)
class Way:
    """How another host is reached.

    Attributes:
        rsh: Program that leads there; empty for our own ssh.
        host_keys: What becomes of unknown host keys, for our own ssh: a `HostKeyPolicy`.
        ssh_config: Configuration for our own ssh, in place of the user's.
    """

    rsh: str = ""
    host_keys: str = "strict"
    ssh_config: str = ""


@dataclass(frozen=True, slots=True)
class HostFolder:
    """Where several disks go on another host: each to the path that it has here, or to a folder.

    Attributes:
        host: The host; its path is empty, or that of the folder with a slash at its end.
    """

    host: Remote
    what: ClassVar[str] = Remote.what

    def __str__(self) -> str:
        """What people call it."""
        return str(self.host)

    @property
    def key(self) -> str:
        """See `Location`."""
        return self.host.key

    def place_of(self, path: str) -> Remote:
        """Return where a disk of this host goes."""
        there = Path(path).absolute()
        folder = self.host.path
        return replace(self.host, path=f"{folder}{there.name}" if folder else str(there))


def host_folder(location: str) -> HostFolder | None:
    """Return the place of several disks in `[USER@]HOST:` or `[USER@]HOST:/FOLDER/`; else None."""
    host, colon, folder = location.rpartition(":")
    if not colon or (folder and not folder.endswith("/")):
        return None
    inside = remote(f"{host}:{folder or '/'}_")  # of any disk in it
    if inside is None or inside.name:
        return None
    return HostFolder(replace(inside, path=inside.path.removesuffix("_") if folder else ""))


def open_link(where: Remote, command: str, way: Way) -> "PipedLink":
    """Run a command, for its shell, on another host.

    Raises:
        UsageError: If `rsh` is no command.
        NotFoundError: If there is no such program here.
    """
    return open_links(where, [command], way)[0]


def open_links(where: Remote, commands: Sequence[str], way: Way) -> "list[PipedLink]":
    """Run commands on another host, each over a connection of its own. See `open_link`."""
    from blockstream.transports.command import CommandLink

    if way.rsh:
        return [
            CommandLink(_rsh_command(where, command, way.rsh), where.account)
            for command in commands
        ]
    if importlib.util.find_spec("asyncssh") is None:
        raise NotFoundError(
            "our own ssh needs asyncssh, which is not installed here (the extra `ssh` brings it); "
            "nothing was sent; give --rsh ssh to use the system's"
        )
    options = ["--host-keys", way.host_keys]
    options += ["--config", way.ssh_config] if way.ssh_config else []
    options += ["--port", str(where.port)] if where.port else []
    options += ["--user", where.user] if where.user else []
    many = [[*options, "--", where.host, command] for command in commands]
    if len(many) > 1:
        from blockstream.transports.relays import relays  # multiprocessing

        return relays(many, where.account)
    ours = [sys.executable, "-m", "blockstream.transports.ssh"]
    return [CommandLink([*ours, *words], where.account) for words in many]


def round_trip(where: Remote, way: Way) -> float | None:
    """Return the seconds to a host and back; None where only another program knows the way."""
    if way.rsh:
        return None
    from blockstream.transports.ssh_config import SshConfigError, ssh_config

    try:
        config = ssh_config(
            where.host, port=where.port, user=where.user, config_file=way.ssh_config
        )
    except SshConfigError:
        return None  # who connects says it
    if not config.is_direct:
        return None
    try:
        began = time.monotonic()
        with socket.create_connection((config.hostname, config.port), _ROUND_TRIP_SECONDS):
            return time.monotonic() - began
    except OSError:
        return None


def _rsh_command(where: Remote, command: str, rsh: str) -> Sequence[str]:
    """Return the program's arguments; `{host}` and `{command}` may say where these belong."""
    try:
        words = shlex.split(rsh)
    except ValueError as error:
        raise UsageError(f"--rsh {rsh!r} is no command: {error}") from None
    if not words:
        raise UsageError("--rsh is empty")
    if any("{command}" in word for word in words):
        return [
            word.replace("{host}", where.account).replace("{command}", command) for word in words
        ]
    if where.port:
        words += ["-p", str(where.port)]
    return [*words, where.account, command]
