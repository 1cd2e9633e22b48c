"""A real sshd on a port of its own, with keys and a configuration of its own."""

import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class SshServer:
    """Where it is, and how it is reached.

    Attributes:
        folder: Keys and configurations.
        port: Where it listens.
        address: On what.
    """

    folder: Path
    port: int
    address: str = "127.0.0.1"

    @property
    def host_key(self) -> str:
        """Its public key: type and base64."""
        return " ".join((self.folder / "host.pub").read_text().split()[:2])

    @property
    def config(self) -> Path:
        """A client's configuration in which it is called `lab`, and its key is known."""
        return self.folder / "client"

    def client(self, name: str, known_hosts: str, *more: str) -> Path:
        """Write another client's configuration."""
        path = self.folder / name
        user = pwd.getpwuid(os.geteuid()).pw_name
        lines = [
            "Host lab",
            f"  HostName {self.address}",
            f"  Port {self.port}",
            f"  User {user}",
            f"  IdentityFile {self.folder / 'user'}",
            "  IdentitiesOnly yes",
            "  GlobalKnownHostsFile none",
            f"  UserKnownHostsFile {known_hosts}",
            *(f"  {line}" for line in more),
        ]
        path.write_text("\n".join(lines) + "\n")
        return path

    def authorize(self, options: str = "") -> None:
        """Let the client's key in, under these options."""
        key = (self.folder / "user.pub").read_text()
        (self.folder / "authorized").write_text(f"{options} {key}".lstrip())


@contextlib.contextmanager
def ssh_server(
    folder: Path,
    *,
    namespace: str = "",
    address: str = "127.0.0.1",
    host_certificate_by: Path | None = None,
) -> Iterator[SshServer]:
    """Run one until the block ends, in a network namespace if one is named.

    With an authority's key it shows a certificate.
    """
    for name in ("host", "user"):
        _keygen("-t", "ed25519", "-N", "", "-f", folder / name)
    certificate = ""
    if host_certificate_by is not None:
        _keygen("-s", host_certificate_by, "-h", "-I", "lab", "-n", address, folder / "host.pub")
        certificate = f"HostCertificate {folder / 'host-cert.pub'}\n"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (folder / "server").write_text(
        f"Port {port}\nListenAddress {address}\nHostKey {folder / 'host'}\n"
        f"AuthorizedKeysFile {folder / 'authorized'}\nPidFile none\nStrictModes no\nUsePAM no\n"
        "UseDNS no\nMaxStartups 100\nPermitRootLogin yes\nPasswordAuthentication no\n"
        f"KbdInteractiveAuthentication no\n{certificate}"
    )
    server = SshServer(folder, port, address)
    server.authorize()
    (folder / "known").write_text(f"[{address}]:{port} {server.host_key}\n")
    server.client("client", str(folder / "known"))
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    inside = [_tool("ip"), "netns", "exec", namespace] if namespace else []
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(  # noqa: S603  # no shell
            [*inside, _tool("sshd"), "-D", "-e", "-f", folder / "server"], stderr=log
        )
    try:
        _wait_for(folder / "log")
        yield server
    finally:
        process.terminate()
        process.wait()


def _keygen(*words: object) -> None:
    subprocess.run([_tool("ssh-keygen"), "-q", *map(str, words)], check=True)  # noqa: S603


def _tool(name: str) -> str:
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")
    if found is None:
        raise FileNotFoundError(name)
    return found


def _wait_for(log: Path) -> None:
    """Wait until the server says that it listens."""
    deadline = time.monotonic() + 10
    while "listening on" not in log.read_text():
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.01)
