"""Our own ssh connects only to a host whose key is known, whatever the configuration says."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ssh_server import SshServer, ssh_server

pytestmark = [pytest.mark.needs("sshd"), pytest.mark.slow]

CONNECTED, UNTRUSTED = 7, 16
WRONG_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBw3Jm0a0hYqGJ8vUo8m8vQH1yqkS1e6cJxXo3sQ4m1k"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshServer]:
    with ssh_server(tmp_path_factory.mktemp("sshd")) as running:
        yield running


def connect(config: Path, *words: str, command: str = "exit 7") -> tuple[int, str]:
    """Run a command there; return the exit status and what was said."""
    program = [sys.executable, "-m", "blockstream.transports.ssh", "--config", str(config)]
    done = subprocess.run(  # noqa: S603  # ourselves
        [*program, *words, "--", "lab", command],
        input="",
        capture_output=True,
        text=True,
        timeout=25,
        check=False,
    )
    return done.returncode, done.stderr


def known(path: Path, server: SshServer, key: str = "", name: str = "") -> str:
    name = name or f"[127.0.0.1]:{server.port}"
    path.write_text(f"{name} {key or server.host_key}\n")
    return str(path)


@pytest.mark.parametrize("policy", ["strict", "accept-new"])
@pytest.mark.parametrize(
    ("files", "more"),
    [
        ("none", []),
        ("none", ["StrictHostKeyChecking yes"]),
        ("none", ["StrictHostKeyChecking no"]),
    ],
)
def test_no_file_of_known_hosts_never_means_do_not_check(
    server: SshServer, files: str, more: list[str], policy: str
) -> None:
    status, said = connect(server.client("c", files, *more), "--host-keys", policy)
    assert status == UNTRUSTED
    assert "Traceback" not in said


@pytest.mark.parametrize("more", [[], ["StrictHostKeyChecking no"], ["StrictHostKeyChecking off"]])
@pytest.mark.parametrize("name", ["missing", "empty"])
def test_an_unknown_host_is_refused_with_what_to_do(
    server: SshServer, tmp_path: Path, name: str, more: list[str]
) -> None:
    (tmp_path / "empty").touch()
    status, said = connect(server.client("c", str(tmp_path / name), *more))
    assert status == UNTRUSTED
    assert "lab is not trusted" in said
    assert f"`ssh -p {server.port} lab true`" in said
    assert not (tmp_path / "missing").exists()


def test_dev_null_knows_nobody(server: SshServer) -> None:
    assert connect(server.client("c", "/dev/null"))[0] == UNTRUSTED


def test_a_known_host_is_connected_to(server: SshServer, tmp_path: Path) -> None:
    assert connect(server.client("c", known(tmp_path / "k", server)))[0] == CONNECTED


def test_a_key_of_the_system_counts(server: SshServer, tmp_path: Path) -> None:
    config = server.client("c", "none")
    text = config.read_text().replace(
        "GlobalKnownHostsFile none", f"GlobalKnownHostsFile {known(tmp_path / 'k', server)}"
    )
    config.write_text(text)
    assert connect(config)[0] == CONNECTED


def test_a_key_for_the_plain_name_counts_on_another_port(server: SshServer, tmp_path: Path) -> None:
    path = known(tmp_path / "k", server, name="127.0.0.1")
    assert connect(server.client("c", path))[0] == CONNECTED


@pytest.mark.parametrize("policy", ["strict", "accept-new"])
def test_a_changed_key_is_refused(server: SshServer, tmp_path: Path, policy: str) -> None:
    path = known(tmp_path / "k", server, key=WRONG_KEY)
    before = Path(path).read_text()
    status, said = connect(server.client("c", path), "--host-keys", policy)
    assert status == UNTRUSTED
    assert "is not trusted" in said
    assert Path(path).read_text() == before


def test_accept_new_notes_the_key_shows_it_and_holds_to_it(
    server: SshServer, tmp_path: Path
) -> None:
    path = tmp_path / "new" / "known"
    config = server.client("c", str(path))
    status, said = connect(config, "--host-keys", "accept-new")
    assert status == CONNECTED
    assert "is new and was noted: SHA256:" in said
    assert server.host_key in path.read_text()
    assert connect(config)[0] == CONNECTED


def test_the_key_is_looked_up_under_its_alias(server: SshServer, tmp_path: Path) -> None:
    path = known(tmp_path / "k", server, name="elsewhere")
    assert connect(server.client("c", path))[0] == UNTRUSTED
    assert connect(server.client("c", path, "HostKeyAlias elsewhere"))[0] == CONNECTED


def test_a_forced_command_runs_in_place_of_ours(server: SshServer) -> None:
    server.authorize('restrict,command="exit 9"')
    try:
        assert connect(server.config)[0] == 9
    finally:
        server.authorize()


def test_a_key_that_is_not_let_in_is_told_without_its_name(server: SshServer) -> None:
    (server.folder / "authorized").write_text("")
    try:
        status, said = connect(server.config)
    finally:
        server.authorize()
    assert status == UNTRUSTED
    assert "accepts none of our keys" in said
    assert "Traceback" not in said


def test_no_server_is_no_connection(server: SshServer, tmp_path: Path) -> None:
    config = server.client("c", known(tmp_path / "k", server, name="[127.0.0.1]:1"))
    status, said = connect(config, "--port", "1")
    assert status == 255
    assert "no connection to lab: " in said


def test_a_name_that_nobody_knows_is_no_question_of_trust(server: SshServer) -> None:
    config = server.client("c", "none")
    config.write_text(config.read_text().replace("HostName 127.0.0.1", "HostName nobody.invalid"))
    status, said = connect(config)
    assert status == 255
    assert "no connection to lab: its name cannot be resolved" in said


def test_a_command_that_was_killed_is_a_failure(server: SshServer) -> None:
    status, said = connect(server.config, command="kill -9 $$")
    assert status == 255
    assert "did not end by itself" in said
