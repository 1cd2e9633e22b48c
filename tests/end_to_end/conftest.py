"""One zygote for all tests, one host for each, and the ways to another host."""

import json
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.end_to_end.far_host import far_command
from tests.end_to_end.hosts import OFTEN, Host, Zygote

CUTTER = Path(__file__).with_name("cutter.py")


@pytest.fixture(scope="session")
def zygote() -> Iterator[Zygote]:
    started = Zygote()
    yield started
    started.close()


@pytest.fixture
def host(tmp_path: Path, zygote: Zygote) -> Iterator[Host]:
    """A host whose senders ask for a barrier each 2 s, as they do."""
    with closing(Host(tmp_path, zygote)) as made:
        yield made


@pytest.fixture
def quick(zygote: Zygote) -> Iterator[Host]:
    """A host whose disks lie in memory, for thousands of runs."""
    with (
        tempfile.TemporaryDirectory(dir="/dev/shm") as folder,
        closing(Host(Path(folder), zygote, limits=OFTEN)) as made,
    ):
        yield made


@pytest.fixture
def eager(tmp_path: Path, zygote: Zygote) -> Iterator[Host]:
    """A host whose senders ask for a barrier after each frame."""
    with closing(Host(tmp_path, zygote, limits=OFTEN)) as made:
        yield made


@pytest.fixture(
    params=[
        "pipe",
        pytest.param("system ssh", marks=pytest.mark.needs("sshd")),
        pytest.param("our ssh", marks=pytest.mark.needs("sshd")),
    ]
)
def way(request: pytest.FixtureRequest, host: Host) -> list[str]:
    """The options that lead to the other host."""
    options = ["--remote-command", far_command(host)]
    if request.param == "pipe":
        return [*options, "--rsh", "sh -c {command}"]
    lab = request.getfixturevalue("server")
    if request.param == "our ssh":
        return [*options, "--ssh-config", str(lab.config)]
    return [*options, "--rsh", f"ssh -F {lab.config}"]


@pytest.fixture
def breaking(host: Host) -> Callable[..., list[str]]:
    """Return options of a way that breaks as planned, a dict a connection."""

    def plan(*connections: dict[str, int], far: str = "") -> list[str]:
        path = host.folder / "plan"
        path.write_text("\n".join(map(json.dumps, connections)))
        rsh = shlex.join([sys.executable, str(CUTTER), str(path), "{command}"])
        return ["--remote-command", far or far_command(host), "--rsh", rsh]

    return plan
