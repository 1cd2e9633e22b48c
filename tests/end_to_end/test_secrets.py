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


@pytest.mark.parametrize(
    "words",
    [
        ["points", "s3://AKIA:{canary}@bucket/x"],
        ["points", "s3://AKIA:{canary}@bucket/x/vm"],
        ["send", "disk", "s3://AKIA:{canary}@bucket/x/vm"],
        ["points", "s3://bucket/x", "--endpoint-url", "https://user:{canary}@s3.example.com"],
        ["points", "dir:/tmp/x", "--endpoint-url", "ftp://user:{canary}@s3.example.com"],
        ["send", "nbd://user:{canary}@host/export", "copy"],
        ["send", "nbds://user:{canary}@host/export", "copy", "--json"],
        ["extents", "nbd://user:{canary}@host/export", "--bitmap", "x"],
        ["send", "vsphere://user:{canary}@vcenter/dc/vm/x", "copy"],
        ["send", "disk", "ssh://user:{canary}@host/disk"],
        ["send", "foo://user:{canary}@host/disk", "copy"],
    ],
)
def test_a_password_in_a_location_is_never_shown(host: Host, words: list[str]) -> None:
    host.disk("disk")
    ended = host.run(*(word.format(canary=CANARY) for word in words))
    assert ended.status != 0
    assert ended.status != 1, ended.err
    assert CANARY not in ended.err + ended.out.decode()
    assert not any(
        CANARY.encode() in path.read_bytes() for path in host.folder.rglob("*") if path.is_file()
    )
