"""What the system's ssh would do for a host, as `ssh -G` says it.

ssh itself is the only one that reads its configuration: the user's and the system's, with `Match
exec`, `Include`, canonical names and all. What it prints without having expanded is expanded here
(ssh_config(5), "TOKENS").
"""

import getpass
import hashlib
import os
import re
import shutil
import socket
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_SSH: Final = "ssh"
_SECONDS: Final = 20.0
_USER_FILES: Final = "~/.ssh/known_hosts ~/.ssh/known_hosts2"
_GLOBAL_FILES: Final = "/etc/ssh/ssh_known_hosts /etc/ssh/ssh_known_hosts2"
_IDENTITIES: Final = ("~/.ssh/id_ed25519", "~/.ssh/id_ecdsa", "~/.ssh/id_rsa")
_FAMILIES: Final = {"inet": socket.AF_INET, "inet6": socket.AF_INET6}
_TOKEN: Final = re.compile(r"%(.)")
_VARIABLE: Final = re.compile(r"\$\{(\w+)\}")


class SshConfigError(Exception):
    """The system's ssh refuses its own configuration, or we cannot do what it says."""


@dataclass(frozen=True, slots=True)
class SshConfig:
    """What the system's ssh would do for a host.

    Attributes:
        hostname: What to connect to.
        port: Where.
        user: As whom; empty for whoever we are.
        alias: Name under which its key is looked up; empty for its own.
        identities: Files of keys, whether they are there or not.
        certificates: Files of certificates for those.
        identities_only: Whether of the agent's keys only those count that are among `identities`.
        agent: Socket of the agent; empty for none.
        user_files: Files of known hosts; a new one is added to the first.
        global_files: The same, of the system.
        known_hosts_command: Prints more of them, with tokens that only the key gives; or empty.
        revoked: File of host keys that nobody trusts; empty for none.
        jumps: Hosts that the way leads through, as `ProxyJump` has them; empty for none.
        command: Command that it leads through; empty for none.
        family: Of addresses; 0 for any.
        bind_address: Address of ours to connect from; empty for any.
        connect_seconds: How long to wait for a connection; 0 for the default.
        algorithms: By ssh's keyword, the names that are allowed, best first.
        gssapi: Whether Kerberos may be tried.
        keys_allowed: Whether keys may be offered at all.
    """

    hostname: str
    port: int = 22
    user: str = ""
    alias: str = ""
    identities: tuple[Path, ...] = ()
    certificates: tuple[Path, ...] = ()
    identities_only: bool = False
    agent: str = ""
    user_files: tuple[Path, ...] = ()
    global_files: tuple[Path, ...] = ()
    known_hosts_command: str = ""
    revoked: str = ""
    jumps: str = ""
    command: str = ""
    family: int = 0
    bind_address: str = ""
    connect_seconds: float = 0.0
    algorithms: Mapping[str, Sequence[str]] | None = None
    gssapi: bool = False
    keys_allowed: bool = True

    @property
    def is_direct(self) -> bool:
        """Whether it is reached without a host or a command in between."""
        return not (self.jumps or self.command)

    def allowed(self, keyword: str, ours: Sequence[str]) -> list[str]:
        """Return what of `ours` is allowed, in our order."""
        names = (self.algorithms or {}).get(keyword)
        return list(ours) if names is None else [name for name in ours if name in names]

    def preferred(self, keyword: str, ours: Sequence[str]) -> list[str]:
        """Return what of `ours` is allowed, in the order of the configuration."""
        names = (self.algorithms or {}).get(keyword)
        return list(ours) if names is None else [name for name in names if name in ours]


def has_ssh() -> bool:
    """Return whether the system's ssh is there to be asked."""
    return shutil.which(_SSH) is not None


def ssh_config(host: str, *, port: int = 0, user: str = "", config_file: str = "") -> SshConfig:
    """Ask `ssh -G` what it would do; without it, let asyncssh read the files.

    Raises:
        SshConfigError: If ssh does not understand its configuration, or cannot be asked.
    """
    if host.startswith("-"):
        raise SshConfigError(f"{host} is no host")
    program = shutil.which(_SSH)
    if program is None:
        return _read_by_asyncssh(host, port, user, config_file)
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
    except subprocess.TimeoutExpired:
        raise SshConfigError(f"`ssh -G {host}` did not end within {_SECONDS:.0f} s") from None
    except OSError as error:
        raise SshConfigError(f"ssh cannot be run: {error.strerror}") from error
    # Names of files may have any bytes.
    return parsed(host, os.fsdecode(done.stdout))


def parsed(host: str, text: str) -> SshConfig:
    """Parse what `ssh -G` prints of `host`: a keyword and its value a line.

    Raises:
        SshConfigError: If it has a token that nobody knows.
    """
    values: dict[str, list[str]] = {}
    for line in text.splitlines():
        keyword, _, value = line.strip().partition(" ")
        values.setdefault(keyword.lower(), []).append(value.strip())

    def one(keyword: str, default: str = "") -> str:
        value = values.get(keyword, [default])[0]
        return "" if value.lower() == "none" else value

    port = one("port")
    expand = Tokens(
        name=host,
        hostname=one("hostname", host),
        port=int(port) if port.isdecimal() else 22,
        user=one("user"),
        alias=one("hostkeyalias"),
        jumps=one("proxyjump"),
    )
    family, seconds = one("addressfamily"), one("connecttimeout")
    methods = one("preferredauthentications", "publickey").split(",")
    lists = (
        *("ciphers", "kexalgorithms", "macs", "pubkeyacceptedalgorithms"),
        *("hostkeyalgorithms", "casignaturealgorithms"),
    )
    return SshConfig(
        hostname=expand.hostname,
        port=expand.port,
        user=expand.user,
        alias=expand.alias,
        identities=tuple(map(expand.path, _named(values, "identityfile"))),
        certificates=tuple(map(expand.path, _named(values, "certificatefile"))),
        identities_only=one("identitiesonly") == "yes",
        agent=_agent(values, expand),
        user_files=_files(values.get("userknownhostsfile", [_USER_FILES])[0], expand),
        global_files=_files(values.get("globalknownhostsfile", [_GLOBAL_FILES])[0], expand),
        known_hosts_command=one("knownhostscommand"),
        revoked=str(expand.path(revoked)) if (revoked := one("revokedhostkeys")) else "",
        jumps=expand.jumps,
        command=expand.text(one("proxycommand")),
        family=_FAMILIES.get(family, 0),
        bind_address=one("bindaddress"),
        connect_seconds=float(seconds) if seconds.isdecimal() else 0.0,
        algorithms={each: one(each).split(",") for each in lists if one(each)},
        gssapi=one("gssapiauthentication") == "yes",
        keys_allowed=one("pubkeyauthentication", "yes") not in {"no", "false"}
        and "publickey" in methods,
    )


@dataclass(frozen=True, slots=True)
class Tokens:
    """What stands for `%h` and the like.

    Attributes:
        name: The host as the user gave it.
        hostname: What that leads to.
        port: Its port.
        user: Who we are there.
        alias: Name for its key; empty for its own.
        jumps: Hosts in between.
    """

    name: str
    hostname: str
    port: int
    user: str
    alias: str = ""
    jumps: str = ""

    def text(self, template: str, more: Mapping[str, str] | None = None) -> str:
        """Return a text with its tokens replaced.

        Args:
            template: The text.
            more: Tokens that only some texts have.

        Raises:
            SshConfigError: If one means nothing.
        """
        if "%" not in template:
            return template
        known = self._known()

        def value(token: re.Match[str]) -> str:
            if more is not None and token[1] in more:
                return more[token[1]]
            if token[1] not in known:
                raise SshConfigError(f"{token[0]} means nothing in {template!r}")
            return known[token[1]]()

        return _TOKEN.sub(value, template)

    def path(self, template: str) -> Path:
        """Return the path of a file, as an absolute one."""
        with_variables = _VARIABLE.sub(lambda found: os.environ.get(found[1], ""), template)
        return Path(self.text(with_variables)).expanduser()

    def _known(self) -> dict[str, Callable[[], str]]:
        return {
            "%": lambda: "%",
            "C": self._digest,
            "d": lambda: str(Path.home()),
            "h": lambda: self.hostname,
            "i": lambda: str(os.getuid()),
            "j": lambda: self.jumps,
            "k": lambda: self.alias or self.name,
            "L": lambda: socket.gethostname().partition(".")[0],
            "l": socket.gethostname,
            "n": lambda: self.name,
            "p": lambda: str(self.port),
            "r": lambda: self.user or getpass.getuser(),
            "u": getpass.getuser,
        }

    def _digest(self) -> str:
        text = f"{socket.gethostname()}{self.hostname}{self.port}{self.user or getpass.getuser()}"
        return hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


def _named(values: Mapping[str, list[str]], keyword: str) -> list[str]:
    return [each for each in values.get(keyword, []) if each.lower() != "none"]


def _agent(values: Mapping[str, list[str]], expand: Tokens) -> str:
    """Return the socket of the agent; empty for none."""
    default = os.environ.get("SSH_AUTH_SOCK", "")
    value = values.get("identityagent", ["SSH_AUTH_SOCK"])[0].strip('"')
    if value.lower() == "none":
        return ""
    if value == "SSH_AUTH_SOCK":
        return default
    if re.fullmatch(r"\$\w+", value):
        return os.environ.get(value[1:], "")
    return str(expand.path(value))


def _files(text: str, expand: Tokens) -> tuple[Path, ...]:
    """Return the files of a list; `none` is no file, which never means "do not check".

    ssh prints blanks within a name as they are; each name begins with `/` or `~`.
    """
    names = re.split(r"\s+(?=[/~$])", text.strip())
    return tuple(expand.path(name) for name in names if name and name.lower() != "none")


def _listed(value: object, default: Sequence[str] = _IDENTITIES) -> Sequence[str]:
    return [str(each) for each in value] if isinstance(value, list) and value else default


def _read_by_asyncssh(host: str, port: int, user: str, config_file: str) -> SshConfig:
    """Return what the configuration says where no ssh is installed to ask.

    Raises:
        SshConfigError: If asyncssh does not understand it.
    """
    import asyncssh  # 0.2 s, which most do without

    try:
        read = asyncssh.SSHClientConnectionOptions(
            host=host,
            port=port or (),
            username=user or (),
            config=[config_file] if config_file else (),
            known_hosts=b"",
            client_keys=None,
        )
    except (OSError, ValueError, asyncssh.Error) as error:
        raise SshConfigError(str(error)) from error
    said = read.config
    jumps = read.tunnel if isinstance(read.tunnel, str) and read.tunnel.lower() != "none" else ""
    command = read.proxy_command or ""
    expand = Tokens(host, read.host, read.port, read.username, jumps=jumps)
    return SshConfig(
        hostname=read.host,
        port=read.port,
        user=read.username,
        alias=read.host_key_alias or "",
        identities=tuple(expand.path(each) for each in _listed(said.get("IdentityFile"))),
        certificates=tuple(expand.path(each) for each in _listed(said.get("CertificateFile"), ())),
        identities_only=bool(said.get("IdentitiesOnly")),
        agent=os.environ.get("SSH_AUTH_SOCK", ""),
        user_files=_files(_USER_FILES, expand),
        global_files=_files(_GLOBAL_FILES, expand),
        jumps=jumps,
        command=command if isinstance(command, str) else " ".join(command),
    )
