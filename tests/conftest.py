"""What a test needs of this machine: where it is missing, the test says so instead of failing.

`@pytest.mark.root` needs root, loop devices and FUSE; `@pytest.mark.needs("mkfs.ext4", ...)` needs
commands, `nbdkit:python` means that plugin of nbdkit, `govmomi` the library of that name. With
CI=true a missing thing is a failure: there, a test that was skipped is a promise that nobody kept.
"""

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from xdist.scheduler import LoadScopeScheduling

from tests import s3_servers
from tests.s3_servers import S3Server
from tests.ssh_server import SshServer, ssh_server
from tests.vsphere_simulator.server import GOVMOMI, Simulator, simulator

# Which file shares a worker with which other one, because both need what starts slowly.
TOGETHER = {
    "tests/lab/test_libvirt.py": "tests/lab/test_live.py",
    "tests/lab/test_lvm_sources.py": "tests/lab/test_faults.py",
    "tests/contracts/test_s3_faults.py": "tests/contracts/test_objects.py",
    "tests/end_to_end/test_stores.py": "tests/contracts/test_objects.py",
    "tests/end_to_end/test_store_keys.py": "tests/contracts/test_objects.py",
}
LONGEST_FIRST = ("lab", "contracts", "end_to_end", "simulation", "jobs")


class ByFile(LoadScopeScheduling):  # type: ignore[misc]  # xdist has no types
    """Keeps the tests of a file on one worker of xdist, and so those of files that go together."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return TOGETHER.get(file, file)


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> ByFile:
    """Let xdist use it."""
    return ByFile(config, log)


def pytest_configure(config: pytest.Config) -> None:
    # A shell lets what it runs beside it ignore Ctrl-C; then guests and servers would stay.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    config.addinivalue_line("markers", "needs(*tools): needs these commands")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # So that no worker is left alone with something long.
    items.sort(key=_rank)


def _rank(item: pytest.Item) -> int:
    folder = item.nodeid.split("/")[1]
    return LONGEST_FIRST.index(folder) if folder in LONGEST_FIRST else len(LONGEST_FIRST)


def pytest_runtest_setup(item: pytest.Item) -> None:
    wanted = [str(tool) for mark in item.iter_markers("needs") for tool in mark.args]
    if item.get_closest_marker("root") is not None:
        wanted += ["root", "loop devices", "FUSE"]
    missing = [tool for tool in dict.fromkeys(wanted) if not _is_there(tool)]
    if missing:
        say = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        say(f"this machine has no {', no '.join(missing)}")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshServer]:
    """An sshd of this host."""
    with ssh_server(tmp_path_factory.mktemp("sshd")) as running:
        yield running


@pytest.fixture(scope="session")
def radosgw() -> Iterator[S3Server]:
    """An S3 server that checks signatures, with the bucket `contracts`."""
    with s3_servers.radosgw() as server:
        server.make_bucket("contracts")
        yield server


@pytest.fixture(scope="session")
def localstack() -> Iterator[S3Server]:
    """An S3 server that checks all else, with the bucket `contracts`."""
    with s3_servers.localstack() as server:
        server.make_bucket("contracts")
        yield server


@pytest.fixture
def vcenter() -> Iterator[Simulator]:
    """A vCenter of its own for each test, with few areas in a page; the first one is built."""
    with simulator(max_areas=7) as running:
        yield running


@cache
def _is_there(tool: str) -> bool:
    match tool.partition(":"):
        case "root", _, _:
            return os.geteuid() == 0
        case "loop devices", _, _:
            return Path("/dev/loop-control").exists()
        case "govmomi", _, _:
            return GOVMOMI.exists()
        case "FUSE", _, _:
            return Path("/dev/fuse").exists()
        case command, ":", plugin:
            found = shutil.which(command)
            return found is not None and _runs(found, plugin, "--dump-plugin")
    return shutil.which(tool) is not None or shutil.which(tool, path="/usr/sbin:/sbin") is not None


def _runs(*command: str) -> bool:
    return subprocess.run(command, capture_output=True, check=False).returncode == 0  # noqa: S603
