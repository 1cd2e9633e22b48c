"""Which host keys count, so that asyncssh is never left to decide that none has to be checked.

An empty list of files switches asyncssh's checking off, as `UserKnownHostsFile none` does; so the
list is always made here, and an empty one means that every host is unknown.
"""

import contextlib
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

_USER_FILES = ("~/.ssh/known_hosts", "~/.ssh/known_hosts2")
_GLOBAL_FILES = ("/etc/ssh/ssh_known_hosts", "/etc/ssh/ssh_known_hosts2")
_SSH = "ssh"
_SECONDS = 20.0


class HostKeyPolicy(StrEnum):
    """What becomes of a host whose key is not known. A changed key is always refused."""

    STRICT = "strict"
    ACCEPT_NEW = "accept-new"


class SshConfigError(Exception):
    """The system's ssh refuses its own configuration."""


@dataclass(frozen=True, slots=True)
class SshConfig:
    """What the system's ssh would do for a host.

    Attributes:
        hostname: What to connect to; empty for the name as given.
        port: Where; 0 for the default.
        user: As whom; empty for the default.
        alias: Name under which its key is looked up; empty for its own.
        user_files: Files of known hosts; a new one is added to the first.
        global_files: The same, of the system.
        jumps: Hosts that the way leads through, as `ProxyJump` has them; empty for none.
        command: Whether it leads through a command.
    """

    hostname: str = ""
    port: int = 0
    user: str = ""
    alias: str = ""
    user_files: tuple[Path, ...] = field(default_factory=lambda: _paths(_USER_FILES))
    global_files: tuple[Path, ...] = field(default_factory=lambda: _paths(_GLOBAL_FILES))
    jumps: str = ""
    command: bool = False

    @property
    def proxied(self) -> bool:
        """Whether it is not reached directly."""
        return bool(self.jumps) or self.command

    @property
    def files(self) -> list[str]:
        """The files of known hosts that there are and that can be read."""
        found = []
        for path in (*self.user_files, *self.global_files):
            with contextlib.suppress(OSError), path.open("rb"):
                found.append(str(path))
        return found


def has_ssh() -> bool:
    """Return whether the system's ssh is there to be asked."""
    return shutil.which(_SSH) is not None


def ssh_config(host: str, *, port: int = 0, user: str = "", config_file: str = "") -> SshConfig:
    """Ask `ssh -G` what it would do; without it, return the defaults.

    Raises:
        SshConfigError: If ssh does not understand its configuration.
    """
    program = shutil.which(_SSH)
    if program is None or host.startswith("-"):
        return SshConfig()
    command = [program, "-G"]
    command += ["-F", config_file] if config_file else []
    command += ["-p", str(port)] if port else []
    command += ["-l", user] if user else []
    try:
        done = subprocess.run(  # noqa: S603  # the user's own ssh, as itself would be run
            [*command, "--", host],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_SECONDS,
            check=True,
        )
    except subprocess.CalledProcessError as error:
        raise SshConfigError(error.stderr.decode(errors="replace").strip()) from error
    except (OSError, subprocess.SubprocessError):
        return SshConfig()
    return parsed(done.stdout.decode(errors="replace"))


def parsed(text: str) -> SshConfig:
    """Parse what `ssh -G` prints: a keyword and its value a line."""
    values: dict[str, str] = {}
    for line in text.splitlines():
        keyword, _, value = line.strip().partition(" ")
        values.setdefault(keyword.lower(), value.strip())
    port = values.get("port", "")
    return SshConfig(
        hostname=values.get("hostname", ""),
        port=int(port) if port.isdecimal() else 0,
        user=values.get("user", ""),
        alias=_unless_none(values, "hostkeyalias"),
        user_files=_files(values, "userknownhostsfile", _USER_FILES),
        global_files=_files(values, "globalknownhostsfile", _GLOBAL_FILES),
        jumps=_unless_none(values, "proxyjump"),
        command=bool(_unless_none(values, "proxycommand")),
    )


def _unless_none(values: Mapping[str, str], keyword: str) -> str:
    value = values.get(keyword, "")
    return "" if value.lower() == "none" else value


def _files(values: Mapping[str, str], keyword: str, default: Iterable[str]) -> tuple[Path, ...]:
    """Return the files of a keyword; `none` is no file, which never means "do not check"."""
    if keyword not in values:
        return _paths(default)
    return _paths(name for name in values[keyword].split() if name.lower() != "none")


def _paths(names: Iterable[str]) -> tuple[Path, ...]:
    return tuple(Path(name).expanduser() for name in names)
