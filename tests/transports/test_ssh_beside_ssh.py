"""Who gets through with the system's ssh gets through with ours, and nobody else does.

Each case is a configuration. The real ssh runs beside ours, in its batch mode, with host keys
checked strictly, which ours always does.
"""

import os
import pwd
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.ssh_server import SshServer, ssh_server
from tests.transports.test_ssh import WRONG_KEY, connect, keygen, wait_for

pytestmark = [pytest.mark.needs("sshd", "ssh"), pytest.mark.slow]

ME = pwd.getpwuid(os.geteuid()).pw_name
CONNECTED = 7
RELAY = """#!{python}
import socket, sys, threading
line = socket.create_connection((sys.argv[1], int(sys.argv[2])))
def back():
    while data := line.recv(65536):
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
threading.Thread(target=back, daemon=True).start()
while data := sys.stdin.buffer.raw.read(65536):
    line.sendall(data)
"""


@dataclass
class Lab:
    """What a case can be made of.

    Attributes:
        server: Where it leads.
        jump: A host on the way.
        folder: For files of the case.
        environment: Variables for both.
    """

    server: SshServer
    jump: SshServer
    folder: Path
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def key(self) -> Path:
        """The key that the server lets in."""
        return self.server.folder / "user"

    @property
    def name(self) -> str:
        """How a file of known hosts names the server."""
        return f"[127.0.0.1]:{self.server.port}"

    def file(self, name: str, content: str | bytes, mode: int = 0o600) -> Path:
        path = self.folder / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        path.chmod(mode)
        return path

    def known(self, line: str = "") -> Path:
        """Write a file in which the server's key is known, or another line is."""
        return self.file("known", (line or f"{self.name} {self.server.host_key}") + "\n")

    def config(self, *lines: str, known: Path | str = "", key: str = "") -> str:
        """Write the configuration; a line of the case goes before the usual ones."""
        usual = [
            *("HostName 127.0.0.1", f"Port {self.server.port}", f"User {ME}"),
            *("IdentitiesOnly yes", "GlobalKnownHostsFile none"),
            f"UserKnownHostsFile {known or self.known()}",
            *([f"IdentityFile {key or self.key}"] if key != "none" else []),
        ]
        return "\n".join(["Host lab", *(f"  {line}" for line in (*lines, *usual))]) + "\n"

    def other_key(self, name: str = "other", passphrase: str = "") -> Path:
        keygen("-t", "ed25519", "-N", passphrase, "-f", self.folder / name)
        return self.folder / name

    def copied_key(self, name: str, passphrase: str = "") -> Path:
        """Copy the key that is let in, perhaps with a passphrase."""
        path = self.file(name, self.key.read_bytes())
        if passphrase:
            keygen("-p", "-P", "", "-N", passphrase, "-f", path)
        return path

    def relay(self) -> Path:
        return self.file("relay", RELAY.format(python=sys.executable), 0o755)


Case = Callable[[Lab], str | bytes]
CASES: dict[str, Case] = {
    "known": lambda lab: lab.config(),
    "not known": lambda lab: lab.config(known=lab.file("empty", "")),
    "another key is known": lambda lab: lab.config(known=lab.known(f"{lab.name} {WRONG_KEY}")),
    "no file": lambda lab: lab.config(known="/nowhere"),
    "none": lambda lab: lab.config(known="none"),
    "an alias": lambda lab: lab.config(
        "HostKeyAlias x", known=lab.known(f"x {lab.server.host_key}")
    ),
    "an alias, known in capitals": lambda lab: lab.config(
        "HostKeyAlias x", known=lab.known(f"X {lab.server.host_key}")
    ),
    "an alias in capitals": lambda lab: lab.config(
        "HostKeyAlias X", known=lab.known(f"X {lab.server.host_key}")
    ),
    "another key is known in capitals": lambda lab: lab.config(
        "HostKeyAlias x", known=lab.known(f"X {WRONG_KEY}")
    ),
    "known by its address alone": lambda lab: lab.config("HostName localhost"),
    "another key is known, and its own for its address": lambda lab: lab.config(
        "HostName localhost",
        known=lab.known(
            f"[localhost]:{lab.server.port} {WRONG_KEY}\n{lab.name} {lab.server.host_key}"
        ),
    ),
    "a pattern": lambda lab: lab.config(known=lab.known(f"[127.0.0.*]:* {lab.server.host_key}")),
    "a pattern but not this": lambda lab: lab.config(
        known=lab.known(f"!{lab.name},!127.0.0.1,* {lab.server.host_key}")
    ),
    "hashed": lambda lab: lab.config(known=_hashed(lab)),
    "a line that is none": lambda lab: lab.config(
        known=lab.known(f"nonsense\n* ssh-new AAAA\n{lab.name} {lab.server.host_key}")
    ),
    "lines that are no text": lambda lab: lab.config(
        known=lab.file("k", b"\xff\xfe x y\n" + f"{lab.name} {lab.server.host_key}\n".encode())
    ),
    "revoked by a line": lambda lab: lab.config(
        known=lab.known(f"{lab.name} {lab.server.host_key}\n@revoked * {lab.server.host_key}")
    ),
    "revoked by a file": lambda lab: lab.config(
        f"RevokedHostKeys {lab.file('revoked', lab.server.host_key)}"
    ),
    "another is revoked": lambda lab: lab.config(
        f"RevokedHostKeys {lab.file('revoked', WRONG_KEY)}"
    ),
    "a file of revoked keys that is not there": lambda lab: lab.config("RevokedHostKeys /no/file"),
    "known to the system": lambda lab: lab.config(
        f"GlobalKnownHostsFile {lab.known()}", known="none"
    ),
    "two files": lambda lab: lab.config(known=f"/nowhere {lab.known()}"),
    "a command knows": lambda lab: lab.config(
        f"KnownHostsCommand /bin/echo %H {lab.server.host_key}", known="none"
    ),
    "a command with a key": lambda lab: lab.config(
        "KnownHostsCommand /bin/echo %H %t %K", known="none"
    ),
    "a command that fails": lambda lab: lab.config("KnownHostsCommand /bin/false", known="none"),
    "a certificate of another authority": lambda lab: lab.config(
        known=lab.known(f"@cert-authority * {WRONG_KEY}")
    ),
    "a key that is not there": lambda lab: lab.config("IdentityFile /nowhere/key"),
    "only a key that is not there": lambda lab: lab.config(key="/nowhere/key"),
    "no key": lambda lab: lab.config("IdentityFile none", key="none"),
    "the wrong key": lambda lab: lab.config(key=str(lab.other_key())),
    "the wrong key first": lambda lab: lab.config(f"IdentityFile {lab.other_key()}"),
    "a key that is garbage first": lambda lab: lab.config(
        f"IdentityFile {lab.file('garbage', 'PRIVATE KEY?')}"
    ),
    "a key with a passphrase": lambda lab: lab.config(key=str(lab.copied_key("locked", "secret"))),
    "a key with a passphrase first": lambda lab: lab.config(
        f"IdentityFile {lab.other_key('locked', 'secret')}"
    ),
    "tokens in the key's name": lambda lab: lab.config(
        key=str(lab.copied_key(f"id-lab-{ME}").with_name("id-%n-%r"))
    ),
    "a variable in the key's name": lambda lab: lab.config(key=_by_variable(lab)),
    "quotes and remarks": lambda lab: lab.config(
        f'IdentityFile "{lab.copied_key("a key")}" # of the lab', key="none"
    ),
    "only in the agent": lambda lab: lab.config("IdentitiesOnly no", key="none"),
    "in the agent, but only files count": lambda lab: lab.config(key=str(lab.other_key())),
    "in the agent, and a public file says so": lambda lab: lab.config(key=_public(lab)),
    "the agent is not to be asked": lambda lab: lab.config(
        "IdentitiesOnly no", "IdentityAgent none", key="none"
    ),
    "another agent is to be asked": lambda lab: lab.config(
        "IdentitiesOnly no", "IdentityAgent /nowhere/agent", key="none"
    ),
    "the agent of a variable": lambda lab: lab.config(
        "IdentitiesOnly no", "IdentityAgent $LAB_AGENT", key="none"
    ),
    "no keys wanted": lambda lab: lab.config("PubkeyAuthentication no"),
    "other methods wanted": lambda lab: lab.config("PreferredAuthentications password"),
    "no such kind of key wanted": lambda lab: lab.config("PubkeyAcceptedAlgorithms rsa-sha2-256"),
    "a command on the way": lambda lab: lab.config(f"ProxyCommand {lab.relay()} %h %p"),
    "a command with a shell's words": lambda lab: lab.config(
        f"ProxyCommand {lab.relay()} '%h' $((%p)) 2>/dev/null"
    ),
    "a command on the way that fails": lambda lab: lab.config("ProxyCommand false"),
    "no command": lambda lab: lab.config("ProxyCommand none"),
    "a jump": lambda lab: lab.config("ProxyJump stop") + _stop(lab),
    "a jump where nobody listens": lambda lab: (
        lab.config("ProxyJump stop") + _stop(lab).replace(f"Port {lab.jump.port}", "Port 1")
    ),
    "a jump that is not known": lambda lab: (
        lab.config("ProxyJump stop") + _stop(lab).replace("stops", "nowhere")
    ),
    "a match that runs something": lambda lab: (
        f'Match originalhost lab exec "test 1 = 1"\n  Port {lab.server.port}\n'
        + lab.config().replace(f"Port {lab.server.port}", "Port 1")
    ),
    "a match that fails": lambda lab: (
        'Match originalhost lab exec "test 1 = 2"\n  Port 1\n' + lab.config()
    ),
    "an included file": lambda lab: f"Include {lab.file('more', lab.config())}\n",
    "bytes of another encoding": lambda lab: b"# Schl\xfcssel\n" + lab.config().encode(),
    "another user": lambda lab: lab.config("User nobody-of-this-name"),
    "a port where nobody listens": lambda lab: lab.config("Port 1"),
    "a name that nobody knows": lambda lab: lab.config("HostName nobody.invalid"),
    "only IPv6": lambda lab: lab.config("AddressFamily inet6"),
    "from an address": lambda lab: lab.config("BindAddress 127.0.0.1"),
    "from an address that is not ours": lambda lab: lab.config("BindAddress 192.0.2.1"),
    "an old exchange": lambda lab: lab.config("KexAlgorithms diffie-hellman-group14-sha256"),
    "one cipher": lambda lab: lab.config("Ciphers aes256-ctr", "MACs hmac-sha2-512"),
    "a cipher that the server lacks": lambda lab: lab.config("Ciphers aes128-cbc"),
    "a kind of host key that is not known": lambda lab: lab.config("HostKeyAlgorithms ssh-rsa"),
    "a kind of host key that is": lambda lab: lab.config("HostKeyAlgorithms ssh-ed25519"),
    "a certificate in a file of its own": lambda lab: lab.config(
        f"CertificateFile {_certificate(lab)}", key=str(lab.folder / "certified")
    ),
    "the key of a certificate alone": lambda lab: lab.config(
        key=str(_certificate(lab).with_name("certified"))
    ),
}


def _hashed(lab: Lab) -> Path:
    path = lab.known()
    keygen("-H", "-f", path)
    return path


def _by_variable(lab: Lab) -> str:
    lab.environment["LAB_KEYS"] = str(lab.key.parent)
    return "${LAB_KEYS}/user"


def _public(lab: Lab) -> str:
    return str(lab.file("user.pub", lab.key.with_suffix(".pub").read_bytes()))


def _certificate(lab: Lab) -> Path:
    """Certify a key by an authority that the server trusts."""
    lab.other_key("authority")
    lab.other_key("certified")
    keygen(
        *("-s", lab.folder / "authority", "-I", "someone", "-n", ME),
        lab.folder / "certified.pub",
    )
    authority = (lab.folder / "authority.pub").read_text()
    with (lab.server.folder / "authorized").open("a") as file:
        file.write(f"cert-authority {authority}")
    return (lab.folder / "certified-cert.pub").rename(lab.folder / "apart.pub")


def _stop(lab: Lab) -> str:
    known = lab.file("stops", f"[127.0.0.1]:{lab.jump.port} {lab.jump.host_key}\n")
    return (
        f"Host stop\n  HostName 127.0.0.1\n  Port {lab.jump.port}\n  User {ME}\n"
        f"  IdentityFile {lab.key}\n  IdentitiesOnly yes\n  GlobalKnownHostsFile none\n"
        f"  UserKnownHostsFile {known}\n"
    )


@pytest.fixture(scope="module")
def jump(tmp_path_factory: pytest.TempPathFactory, server: SshServer) -> Iterator[SshServer]:
    """Another host, which lets the same key in."""
    with ssh_server(tmp_path_factory.mktemp("jump")) as running:
        shutil.copy(server.folder / "authorized", running.folder / "authorized")
        yield running


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory, server: SshServer) -> Iterator[Path]:
    """An agent that has the key."""
    path = tmp_path_factory.mktemp("agent") / "socket"
    process = subprocess.Popen(  # noqa: S603  # no shell
        [shutil.which("ssh-agent") or "ssh-agent", "-D", "-a", str(path)],
        stdout=subprocess.DEVNULL,
    )
    try:
        wait_for(path)
        subprocess.run(  # noqa: S603  # no shell
            [shutil.which("ssh-add") or "ssh-add", "-q", server.folder / "user"],
            check=True,
            env=os.environ | {"SSH_AUTH_SOCK": str(path)},
        )
        yield path
    finally:
        process.terminate()
        process.wait()


# The others get through: a lab that lets nobody in would prove nothing.
KEPT_OUT = {
    "a certificate of another authority",
    "a cipher that the server lacks",
    "a command on the way that fails",
    "a command that fails",
    "a file of revoked keys that is not there",
    "a jump that is not known",
    "a jump where nobody listens",
    "a kind of host key that is not known",
    "a name that nobody knows",
    "a pattern but not this",
    "a port where nobody listens",
    "another agent is to be asked",
    "another key is known",
    "another key is known in capitals",
    "another key is known, and its own for its address",
    "another user",
    "from an address that is not ours",
    "in the agent, but only files count",
    "known by its address alone",
    "no file",
    "no key",
    "no keys wanted",
    "no such kind of key wanted",
    "none",
    "not known",
    "only IPv6",
    "only a key that is not there",
    "other methods wanted",
    "revoked by a file",
    "revoked by a line",
    "the agent is not to be asked",
    "the key of a certificate alone",
    "the wrong key",
}


@pytest.mark.parametrize("name", CASES)
def test_who_gets_through_is_the_same(
    server: SshServer,
    jump: SshServer,
    agent: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    lab = Lab(server, jump, tmp_path)
    try:
        content = CASES[name](lab)
        config = lab.file("config", content)
        variables = {"SSH_AUTH_SOCK": str(agent), "LAB_AGENT": str(agent), **lab.environment}
        for variable, value in variables.items():
            monkeypatch.setenv(variable, value)
        theirs = subprocess.run(  # noqa: S603  # no shell
            [
                *(shutil.which("ssh") or "ssh", "-F", str(config), "-o", "BatchMode=yes"),
                *("-o", "StrictHostKeyChecking=yes", "-o", "ConnectTimeout=10", "lab", "exit 7"),
            ],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        status, said = connect(config)
    finally:
        server.authorize()
    assert (theirs.returncode == CONNECTED) is (name not in KEPT_OUT), theirs.stderr
    assert (status == CONNECTED) == (theirs.returncode == CONNECTED), (theirs.stderr, said)
    assert "Traceback" not in said
    # Ours says why; it never speaks of keys where nobody listens.
    assert status == CONNECTED or said
    if "refused" in theirs.stderr:
        assert "Connection refused" in said
