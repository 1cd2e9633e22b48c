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

from tests import s3_servers
from tests.s3_servers import S3Server
from tests.ssh_server import SshServer, ssh_server
from tests.vsphere_simulator.server import GOVMOMI, Simulator, simulator

HERE = Path(__file__).parent
TOGETHER = {
    "moves of guests": {"lab/test_live.py", "lab/test_libvirt.py"},
    "one host": {"lab/test_lvm_sources.py", "lab/test_faults.py"},
    "S3": {
        *("contracts/test_objects.py", "contracts/test_s3_faults.py"),
        *("end_to_end/test_stores.py", "end_to_end/test_store_keys.py"),
    },
}
LONGEST_FIRST = ("lab", "end_to_end/test_store", "contracts", "end_to_end", "simulation", "jobs")


def pytest_configure(config: pytest.Config) -> None:
    # A shell lets what it runs beside it ignore Ctrl-C; then guests and servers would stay.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    config.addinivalue_line("markers", "needs(*tools): needs these commands")


@pytest.hookimpl(tryfirst=True)  # before xdist looks for groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # A file stays on one worker, and so do files that share what starts slowly. The longest come
    # first, so that no worker is left alone with one of them.
    for item in items:
        file = str(item.path.relative_to(HERE))
        group = next((name for name, files in TOGETHER.items() if file in files), file)
        item.add_marker(pytest.mark.xdist_group(group))
        if group == "S3" and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(200))  # whoever comes first waits for the servers
    items.sort(key=_rank)


def _rank(item: pytest.Item) -> int:
    file = str(item.path.relative_to(HERE))
    ranks = (rank for rank, start in enumerate(LONGEST_FIRST) if file.startswith(start))
    return next(ranks, len(LONGEST_FIRST))


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
