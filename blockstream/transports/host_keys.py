"""Which host keys count, so that asyncssh is never left to decide that none has to be checked.

No known hosts would switch asyncssh's checking off, as `UserKnownHostsFile none` does; so they are
always made here, and none means that every host is unknown.
"""

import os
import re
import shlex
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

import asyncssh
from asyncssh.public_key import get_certificate_algs

from blockstream.transports.ssh_config import SshConfig, SshConfigError, Tokens

_SECONDS: Final = 20.0
_KEY_TOKENS: Final = ("%t", "%K", "%f")
_KRL: Final = b"SSHKRL"


class HostKeyPolicy(StrEnum):
    """What becomes of a host whose key is not known. A changed key is always refused."""

    STRICT = "strict"
    ACCEPT_NEW = "accept-new"


@dataclass(frozen=True, slots=True)
class KnownHosts:
    """The host keys that somebody vouched for.

    Attributes:
        keys: For asyncssh.
        files: Where they were read, for people.
        skipped: Files with lines that cannot be read, and how many; ssh skips them, too.
    """

    keys: asyncssh.SSHKnownHosts
    files: tuple[str, ...]
    skipped: tuple[str, ...]

    def of(self, name: str, port: int) -> Any:
        """Return what asyncssh asks for; what is known of an address is not known of its name."""
        return self.keys.match(name, "", port)

    def know(self, name: str, port: int) -> bool:
        """Tell whether there is a key, or an authority, for a host."""
        keys, authorities, *_ = self.of(name, port)
        return bool(keys or authorities)

    def algorithms(self, name: str, port: int) -> list[str]:
        """Return the algorithms by which a host can show one of its known keys."""
        keys, authorities, *_ = self.of(name, port)
        found = [each.decode() for key in keys for each in key.sig_algorithms]
        if authorities:
            certified = (each.decode() for each in get_certificate_algs())
            found += [each for each in certified if "x509" not in each]
        return list(dict.fromkeys(found))


def key_name(config: SshConfig) -> str:
    """Return the name under which a known_hosts file has a host's key."""
    name = config.alias or config.hostname
    return name if config.port == 22 or config.alias else f"[{name}]:{config.port}"


def needs_key(config: SshConfig) -> bool:
    """Tell whether `KnownHostsCommand` wants to be told of the key that the host shows."""
    return any(token in config.known_hosts_command for token in _KEY_TOKENS)


def known_hosts(config: SshConfig, name: str, shown: asyncssh.SSHKey | None) -> KnownHosts:
    """Read all that is known, line by line.

    Args:
        config: Of the host.
        name: The host as the user gave it.
        shown: The key that it shows, where `needs_key`.

    Raises:
        SshConfigError: If something that could forbid a key cannot be read.
    """
    good, files, skipped = list[str](), list[str](), list[str]()
    for path in (*config.user_files, *config.global_files):
        try:
            lines = path.read_bytes().splitlines()
        except OSError:
            continue
        files.append(str(path))
        found = _readable(lines)
        good += found
        wanted = sum(bool(line.strip()) and not line.lstrip().startswith(b"#") for line in lines)
        if len(found) < wanted:
            skipped.append(f"{path}: {wanted - len(found)} of its lines cannot be read")
    good += _readable(_printed(config, name, shown).splitlines())
    good += _revoked(config.revoked)
    text = "".join(f"{line}\n" for line in good)
    return KnownHosts(asyncssh.import_known_hosts(text), tuple(files), tuple(skipped))


def _readable(lines: Iterable[bytes]) -> list[str]:
    good = []
    for line in lines:
        text = _folded(line.decode(errors="replace").strip())
        if not text or text.startswith("#"):
            continue
        try:
            known = asyncssh.import_known_hosts(text)
        except ValueError:
            continue
        # What asyncssh leaves out without a word makes no entry.
        if vars(known) != vars(asyncssh.import_known_hosts("")):
            good.append(text)
    return good


def _folded(line: str) -> str:
    """Write the names of a line small, as ssh compares them; a hashed one holds a small name."""
    marker = re.match(r"@\S+\s+", line)
    begin = marker.end() if marker else 0
    names, *rest = re.split(r"(?=\s)", line[begin:], maxsplit=1)
    return line[:begin] + "".join([names if names.startswith("|") else names.lower(), *rest])


def _printed(config: SshConfig, name: str, shown: asyncssh.SSHKey | None) -> bytes:
    """Return what `KnownHostsCommand` prints; nothing where there is none, or it fails."""
    if not config.known_hosts_command:
        return b""
    expand = Tokens(name, config.hostname, config.port, config.user, config.alias, config.jumps)
    more = {"H": key_name(config), "I": "HOSTNAME", "t": "NONE", "K": "NONE", "f": "NONE"}
    if shown is not None:
        words = shown.export_public_key().decode().split()
        more |= {"t": words[0], "K": words[1], "f": shown.get_fingerprint()}
    command = [expand.text(word, more) for word in shlex.split(config.known_hosts_command)]
    try:
        return subprocess.run(  # noqa: S603  # what the user's configuration says, as ssh runs it
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            timeout=_SECONDS,
            check=True,
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise SshConfigError(f"KnownHostsCommand failed: {error}") from error


def _revoked(path: str) -> list[str]:
    """Return the keys of `RevokedHostKeys`, as lines of known hosts.

    Raises:
        SshConfigError: If it cannot be read: then ssh refuses every host.
    """
    if not path:
        return []
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise SshConfigError(f"RevokedHostKeys {path}: {error.strerror}") from error
    if data.startswith(_KRL):
        raise SshConfigError(
            f"RevokedHostKeys {path} is a revocation list in ssh's own form, which is not read "
            "here; --rsh ssh does"
        )
    lines = [line.split(b"#")[0].strip() for line in data.splitlines()]
    return _readable(b"@revoked * " + line for line in lines if line)


def remember(config: SshConfig, line: str) -> None:
    """Add a line to the user's known hosts.

    Raises:
        OSError: If it cannot be written.
        SshConfigError: If there is no file for it.
    """
    if not config.user_files:
        raise SshConfigError("ssh's configuration names no file for new host keys")
    path = config.user_files[0]
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "w") as file:
        file.write(line)
