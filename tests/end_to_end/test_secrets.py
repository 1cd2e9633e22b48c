"""No key and no password comes out anywhere: not in words, not in files, not in a process list."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.end_to_end.far_host import far_command
from tests.end_to_end.hosts import Host
from tests.ssh_server import SshServer

CANARY = "canary-4b1d"


@contextmanager
def watched() -> Iterator[set[bytes]]:
    """Collect the command lines and environments of all processes of ours, while the block runs."""
    seen: set[bytes] = set()
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.01):
            for folder in Path("/proc").glob("[0-9]*"):
                with suppress(OSError):
                    seen.add((folder / "cmdline").read_bytes())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield seen
    finally:
        over.set()
        watcher.join()


@pytest.mark.slow
@pytest.mark.needs("sshd")
@pytest.mark.timeout(90)
@pytest.mark.parametrize("ours", [True, False])
def test_a_key_stays_where_it_is(host: Host, server: SshServer, ours: bool) -> None:
    key = (server.folder / "user").read_text().splitlines()[2].encode()
    disk, copy = host.disk("disk"), host.folder / "copy"
    way = ["--ssh-config", str(server.config)] if ours else ["--rsh", f"ssh -F {server.config}"]
    way += ["--remote-command", far_command(host)]
    unknown = server.client("unknown", "none")
    commands: list[tuple[list[str | Path], int]] = [
        (["send", disk, f"lab:{copy}", "--create", "--json", *way], 0),
        (["send", disk, f"lab:{copy}/none", "--create", *way], 10),
        (["send", f"lab:{copy}", host.folder / "back", "--create", *way], 0),
        (["verify", disk, f"lab:{copy}", *way], 0),
        (["send", disk, f"lab:{copy}", "--ssh-config", unknown], 16),
    ]
    said = []
    with watched() as lines:
        for words, status in commands:
            ended = host.run(*words, environment={"AWS_SECRET_ACCESS_KEY": CANARY})
            assert ended.status == status, ended.err
            said += [ended.out, ended.err.encode()]
    assert any(b"blockstream" in line for line in lines)
    written = [
        path.read_bytes()
        for folder in (host.state_dir, host.folder / "far-state")
        for path in folder.rglob("*")
        if path.is_file()
    ]
    assert len(written) > 2
    for text in (*said, *lines, *written):
        assert key not in text
        assert CANARY.encode() not in text


@pytest.mark.parametrize(
    "words",
    [
        ["send", "disk", f"ssh://root:{CANARY}@lab/copy"],
        ["send", f"ssh://root:{CANARY}@lab/disk", "copy"],
        ["verify", "disk", f"ssh://root:{CANARY}@lab/copy"],
        ["send", "-n", "disk", f"ssh://root:{CANARY}@lab/copy"],
    ],
)
def test_a_password_in_a_location_is_refused_without_being_repeated(
    host: Host, words: list[str]
) -> None:
    ended = host.run(*words)
    assert ended.status == 2
    assert CANARY not in ended.err
    assert "ssh://root:***@lab/" in ended.err
    assert os.listdir(host.folder) == []  # noqa: PTH208  # names only
