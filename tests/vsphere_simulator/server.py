"""Not a test: a vCenter, or an ESXi, of this machine: govmomi's simulator with what it lacks.

Built once into a cache folder, under a name that is the digest of what it is built from. It has
change tracking, delta disks that freeze what is below them, sessions that expire, and faults on
demand; `main.go` and `disks.go` say how.
"""

import contextlib
import datetime
import fcntl
import hashlib
import http.client
import ipaddress
import json
import os
import shutil
import signal
import ssl
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

HERE = Path(__file__).parent
GOPATH = Path("/usr/share/gocode")
GOVMOMI = GOPATH / "src/github.com/vmware/govmomi/simulator"
USER, PASSWORD = "administrator@vsphere.local", "secret-canary-7f3a"
VM, ESX_VM = "DC0_H0_VM0", "ha-host_VM0"


@dataclass(slots=True)
class Simulator:
    """A running one.

    Attributes:
        port: Where it listens, on localhost.
        ca: The certificate that clients must trust.
        kept: Folder with what each disk held when its last snapshot was made.
        datastores: Folder in which its datastores are.
        esx: Whether it is a single host.
        certificate: The SHA-256 of its certificate.
    """

    port: int
    ca: Path
    kept: Path
    datastores: Path
    esx: bool
    certificate: str

    @property
    def machine(self) -> str:
        """The name of its first machine."""
        return ESX_VM if self.esx else VM

    def location(self, **query: str | int | Path) -> str:
        """Return where its first machine is."""
        folder = "ha-datacenter/vm" if self.esx else "DC0/vm"
        words = urlencode({**query, "ca": str(self.ca)})
        return f"vsphere://{USER}@localhost:{self.port}/{folder}/{self.machine}?{words}"

    @property
    def datastore(self) -> Path:
        """The folder that holds the files of its first machine's datastore."""
        return next(self.datastores.glob(f"*/{self.machine}")).parent

    @property
    def environment(self) -> dict[str, str]:
        """What a client needs."""
        return {"BLOCKSTREAM_VSPHERE_PASSWORD": PASSWORD}

    def control(self, call: str, body: bytes = b"", **query: str | int) -> bytes:
        """Make a control call; `vm` is its first machine if it is not said otherwise."""
        words = urlencode({"vm": self.machine, "key": 2000, **query})
        context = ssl.create_default_context(cafile=str(self.ca))
        with contextlib.closing(
            http.client.HTTPSConnection("localhost", self.port, timeout=60, context=context)
        ) as connection:
            connection.request("POST", f"/control/{call}?{words}", body)
            answer = connection.getresponse()
            data = answer.read()
        assert answer.status == 200, (call, data)
        return data

    def make_disk(self, size: int, key: int = 2000, block: int = 65536, **more: str | int) -> None:
        """Give the machine a disk; the first one replaces what it had.

        `more` tells the kind of its `backing`, its `mode`, `compatibility` or `sharing`.
        """
        self.control("disk", b"", key=key, bytes=size, block=block, **more)

    def write(self, offset: int, data: bytes, key: int = 2000) -> None:
        """Let the guest write."""
        self.control("write", data, offset=offset, key=key)

    def content(self, key: int = 2000) -> bytes:
        """Return what the guest sees now."""
        return self.control("content", key=key)

    def frozen(self, key: int = 2000) -> bytes:
        """Return what the disk held when its last snapshot was made."""
        return (self.kept / f"{self.machine}-{key}.raw").read_bytes()

    def arm(self, name: str, value: str = "", times: int = 1, after: int = 0) -> None:
        """Let a fault happen, so many times, after so many times without it."""
        self.control("fault", name=name, value=value, n=times, after=after)

    def snapshots(self) -> list[str]:
        """Return the names of the machine's snapshots."""
        return list(json.loads(self.control("snapshots")))

    def stats(self) -> dict[str, Any]:
        """Return counters: `reads`, `bytes`, and `calls` by method."""
        return dict(json.loads(self.control("stats")))


def binary() -> Path:
    """Return the program, built if it is not in the cache: a minute on two cores."""
    sources = sorted(HERE.glob("*.go"))
    version = subprocess.run(["go", "version"], capture_output=True, check=True).stdout
    digest = hashlib.sha256(version + b"".join(each.read_bytes() for each in sources))
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    folder = cache / "blockstream-vsphere"
    program = folder / digest.hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not program.exists():
            _build(program, folder, sources)
    return program


def _build(program: Path, folder: Path, sources: list[Path]) -> None:
    fresh = program.with_suffix(".new")
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "GO111MODULE": "off",
        "GOPATH": str(GOPATH),
        "GOCACHE": str(folder / "go"),
        "CGO_ENABLED": "0",  # or it would need a C compiler
    }
    words = ["go", "build", "-trimpath", "-ldflags=-s -w", "-o", str(fresh), *map(str, sources)]
    done = subprocess.run(
        words, env=environment, cwd=HERE, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    fresh.rename(program)


def make_certificate(folder: Path) -> tuple[Path, Path, str]:
    """Make a certificate that vouches for itself; return it, its key, and its SHA-256."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    names: list[x509.GeneralName] = [
        x509.DNSName("localhost"),
        x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
    ]
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=2))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    certificate, private = folder / "server.crt", folder / "server.key"
    certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return certificate, private, made.fingerprint(hashes.SHA256()).hex()


@contextlib.contextmanager
def simulator(
    *, esx: bool = False, max_areas: int = 2000, keeps: bool = True
) -> Iterator[Simulator]:
    """Run one, for as long as the block; `keeps` tells whether what snapshots freeze is copied."""
    program = binary()
    folder = Path(tempfile.mkdtemp(prefix="vsphere-"))
    certificate, private, fingerprint = make_certificate(folder)
    (folder / "kept").mkdir()
    words = ["-cert", str(certificate), "-key", str(private), "-max-areas", str(max_areas)]
    words += ["-user", USER, *(["-keep", str(folder / "kept")] if keeps else [])]
    words += ["-esx"] if esx else []
    # vcsim keeps its datastores in folders of its own making.
    environment = {"TMPDIR": str(folder), "SIMULATOR_PASSWORD": PASSWORD}
    process = subprocess.Popen(
        [program, *words], env=environment, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline().decode()
        assert line.startswith("listening "), line
        port = int(line.rpartition(":")[2])
        yield Simulator(port, certificate, folder / "kept", folder, esx, fingerprint)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()
        assert process.stdout is not None
        process.stdout.close()
        shutil.rmtree(folder, ignore_errors=True)
