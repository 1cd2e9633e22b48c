"""Not a test: two S3 servers of this machine, brought up for a test run, or by `scripts/s3-up`.

radosgw checks signatures and stands for old servers; LocalStack checks everything else.
"""

import contextlib
import hashlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

ACCESS, SECRET = "AKTEST", "SKTEST"
# It pins an old botocore, so it has a venv of its own; later ones need a later Python.
LOCALSTACK = (
    "localstack-core[base-runtime]==4.7.0",
    "cryptography<44",
    "pyOpenSSL==24.2.1",
    "service_identity<24.2",
    "cbor2<5.7",
)
_SECONDS = 120.0
_CEPH = """
[global]
fsid = {fsid}
mon host = [v2:127.0.0.1:{mon2},v1:127.0.0.1:{mon1}]
public network = 127.0.0.0/8
cluster network = 127.0.0.0/8
osd pool default size = 1
osd pool default min size = 1
mon allow pool size one = true
mon warn on pool no redundancy = false
osd pool default pg num = 8
osd pool default pgp num = 8
osd crush chooseleaf type = 0
mon max pg per osd = 1000
run dir = {folder}
admin socket = {folder}/$name.asok
log file = {folder}/$name.log
pid file = {folder}/$name.pid
keyring = {folder}/keyring
[mon]
mon data = {folder}/mon.$id
[mgr]
mgr data = {folder}/mgr.$id
mgr initial modules =
[osd]
osd data = {folder}/osd.$id
osd objectstore = memstore
memstore device bytes = 12884901888
osd memory target = 1073741824
osd class load list = *
osd class default list = *
[client.rgw]
rgw frontends = beast endpoint=127.0.0.1:{port}
rgw dns name = localhost
rgw gc obj min wait = 60
"""


@dataclass(frozen=True, slots=True)
class S3Server:
    """A server, and how it is reached.

    Attributes:
        name: Which one it is.
        url: Its endpoint.
        ceph: The words that Ceph's own commands need; empty for another server.
    """

    name: str
    url: str
    ceph: tuple[str, ...] = ()

    @property
    def environment(self) -> dict[str, str]:
        """What a client needs."""
        return {
            "AWS_ACCESS_KEY_ID": ACCESS,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": self.url,
            "AWS_CONFIG_FILE": "/dev/null",
            "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def make_bucket(self, name: str, *, lock: bool = False) -> None:
        """Make a bucket, with Object Lock if that is wanted."""
        self._client("s3").create_bucket(Bucket=name, ObjectLockEnabledForBucket=lock)

    def hold(self, bucket: str, key: str, *, held: bool) -> None:
        """Let the last version of an object be kept until it is said otherwise, or say so."""
        hold = {"Status": "ON" if held else "OFF"}
        self._client("s3").put_object_legal_hold(Bucket=bucket, Key=key, LegalHold=hold)

    def retain(self, bucket: str, key: str, seconds: float) -> None:
        """Let the last version of an object be kept for so long."""
        until = datetime.now(UTC) + timedelta(seconds=seconds)
        kept = {"Mode": "GOVERNANCE", "RetainUntilDate": until}
        self._client("s3").put_object_retention(Bucket=bucket, Key=key, Retention=kept)

    def collect_garbage(self) -> None:
        """Let Ceph give back the memory of deleted objects now."""
        words = ["timeout", "120", "radosgw-admin", *self.ceph, "-n", "client.rgw"]
        subprocess.run([*words, "gc", "process", "--include-all"], check=True, capture_output=True)

    def make_key(self) -> str:
        """Make a key of KMS; return its ARN."""
        return str(self._client("kms").create_key()["KeyMetadata"]["Arn"])

    def _client(self, service: str) -> Any:
        from botocore.session import get_session  # half a second

        return get_session().create_client(
            service,
            endpoint_url=self.url,
            region_name="us-east-1",
            aws_access_key_id=ACCESS,
            aws_secret_access_key=SECRET,
        )


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def _wait_for(url: str, process: subprocess.Popen[bytes] | None, log: Path) -> None:
    deadline = time.monotonic() + _SECONDS
    while True:
        try:
            with contextlib.suppress(urllib.error.HTTPError):  # that is an answer
                urllib.request.urlopen(url, timeout=2).close()
        except OSError:
            gone = process is not None and process.poll() is not None
            if gone or time.monotonic() > deadline:
                said = log.read_text(errors="replace")[-2000:] if log.exists() else ""
                raise AssertionError(f"{url} does not answer: {said}") from None
        else:
            return
        time.sleep(0.1)


@contextlib.contextmanager
def radosgw() -> Iterator[S3Server]:
    """Run a whole small Ceph in memory, with its gateway."""
    folder = Path(tempfile.mkdtemp(prefix="rgw-"))
    try:
        mon1, mon2, port = _free_ports(3)
        conf = folder / "ceph.conf"
        fsid = str(uuid.uuid4())
        conf.write_text(_CEPH.format(fsid=fsid, folder=folder, mon1=mon1, mon2=mon2, port=port))

        def run(*words: str) -> None:
            done = subprocess.run(
                ["timeout", "60", *words],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                check=False,
            )
            assert done.returncode == 0, (words, done.stdout[-2000:])

        keyring = str(folder / "keyring")
        made = "-C"
        for name, caps in (
            ("mon.", ("mon",)),
            ("client.admin", ("mon", "osd", "mgr")),
            ("client.rgw", ("mon", "osd", "mgr")),
            ("osd.0", ("mon", "osd", "mgr")),
            ("mgr.x", ("mon", "osd", "mds")),
        ):
            words = [word for cap in caps for word in ("--cap", cap, "allow *")]
            first = [made] if made else []
            run("ceph-authtool", *first, keyring, "--gen-key", "-n", name, *words)
            made = ""
        for name in ("mon.a", "osd.0", "mgr.x"):
            (folder / name).mkdir()
        monmap, ceph = str(folder / "monmap"), ["-c", str(conf)]
        address = f"[v2:127.0.0.1:{mon2},v1:127.0.0.1:{mon1}]"
        run("monmaptool", "--create", "--fsid", fsid, "--addv", "a", address, monmap)
        run("ceph-mon", *ceph, "--mkfs", "-i", "a", "--monmap", monmap, "--keyring", keyring)
        run("ceph-mon", *ceph, "-i", "a")
        run("ceph-mgr", *ceph, "-i", "x")
        run("ceph", *ceph, "osd", "create")
        run("ceph-osd", *ceph, "-i", "0", "--mkfs")
        run("ceph-osd", *ceph, "-i", "0")
        user = ["user", "create", "--uid=test", "--display-name=test"]
        keys = [f"--access-key={ACCESS}", f"--secret-key={SECRET}"]
        time.sleep(2)  # until the OSD is up, the next one would hang
        run("radosgw-admin", *ceph, "-n", "client.rgw", *user, *keys)
        run("radosgw", *ceph, "-n", "client.rgw")
        url = f"http://127.0.0.1:{port}"
        _wait_for(url, None, folder / "client.rgw.log")
        yield S3Server("radosgw", url, tuple(ceph))
    finally:
        for pid in folder.glob("*.pid"):
            with contextlib.suppress(OSError, ValueError):
                os.kill(int(pid.read_text()), 9)
        shutil.rmtree(folder, ignore_errors=True)


def localstack_python() -> Path:
    """Return the Python of LocalStack's venv, which is made if it is not there."""
    key = hashlib.sha256(repr((LOCALSTACK, sys.version_info[:2])).encode()).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    folder = cache / "blockstream-localstack" / key
    python = folder / "bin" / "python"
    if (folder / "whole").exists():
        return python
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    subprocess.run([python, "-m", "pip", "-q", "install", *LOCALSTACK], check=True)
    (folder / "whole").touch()
    return python


@contextlib.contextmanager
def localstack() -> Iterator[S3Server]:
    """Run LocalStack, its S3 and KMS only."""
    python = localstack_python()
    folder = Path(tempfile.mkdtemp(prefix="localstack-"))
    process = None
    try:
        (port,) = _free_ports(1)
        log = folder / "log"
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "SERVICES": "s3,kms",
            "EAGER_SERVICE_LOADING": "1",
            "GATEWAY_LISTEN": f"127.0.0.1:{port}",
            "DISABLE_EVENTS": "1",
            "SKIP_SSL_CERT_DOWNLOAD": "1",
            "SKIP_INFRA_DOWNLOADS": "1",
            "DNS_ADDRESS": "0",
            "FILESYSTEM_ROOT": str(folder),
            "LOCALSTACK_VOLUME_DIR": str(folder),
        }
        with log.open("wb") as said:
            process = subprocess.Popen(
                [python, "-m", "localstack.runtime.main"],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
            )
        url = f"http://127.0.0.1:{port}"
        _wait_for(url, process, log)
        yield S3Server("localstack", url)
    finally:
        if process is not None:
            process.kill()
            process.wait()
        shutil.rmtree(folder, ignore_errors=True)
