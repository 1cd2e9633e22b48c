"""Our own ssh connects only to a host whose key is known, whatever the configuration says."""

import os
import pwd
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.ssh_server import SshServer, ssh_server

pytestmark = [pytest.mark.needs("sshd"), pytest.mark.slow]

CONNECTED, UNTRUSTED = 7, 16
WRONG_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBw3Jm0a0hYqGJ8vUo8m8vQH1yqkS1e6cJxXo3sQ4m1k"


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
    config = server.client("c", str(tmp_path / name), *more)
    status, said = connect(config)
    assert status == UNTRUSTED
    assert "lab is not trusted" in said
    assert f"`ssh -F {config} lab true`" in said
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
    assert "another host key than" in said
    assert "nothing was sent" in said
    assert "accept-new" not in said, "that would not help"
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
    assert "accepts none of our keys; nothing was sent; try" in said
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


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("Port many", "Bad port"),
        ("ProxyCommand nc %z", "%z means nothing"),
        ("Ciphers 3des-cbc,aes128-cbc\nMACs umac-64@openssh.com\nKexAlgorithms none", "Bad SSH2"),
    ],
)
def test_a_configuration_that_cannot_be_used_is_told(
    server: SshServer, tmp_path: Path, line: str, words: str
) -> None:
    config = server.client("c", known(tmp_path / "k", server))
    config.write_text(f"{line}\n" + config.read_text())
    status, said = connect(config)
    assert status == 255
    assert words in said
    assert "Traceback" not in said


def test_a_key_that_cannot_be_used_is_told_where_it_is_missed(
    server: SshServer, tmp_path: Path
) -> None:
    (tmp_path / "garbage").write_text("-----BEGIN OPENSSH PRIVATE KEY-----\nno\n")
    config = server.client("c", known(tmp_path / "k", server))
    config.write_text(f"IdentityFile {tmp_path / 'garbage'}\n" + config.read_text())
    assert connect(config) == (CONNECTED, "")
    config.write_text(config.read_text().replace(str(server.folder / "user"), "/nowhere"))
    status, said = connect(config)
    assert status == UNTRUSTED
    assert f"accepts none of our keys ({tmp_path / 'garbage'} needs mending)" in said


def test_a_file_of_known_hosts_that_makes_no_sense_trusts_nobody(
    server: SshServer, tmp_path: Path
) -> None:
    (tmp_path / "k").write_text(f"@nonsense * {server.host_key}\n[ \n|1|x|y {WRONG_KEY}\n")
    status, said = connect(server.client("c", str(tmp_path / "k")))
    assert status == UNTRUSTED
    assert "Traceback" not in said


def test_a_command_that_was_killed_is_a_failure(server: SshServer) -> None:
    status, said = connect(server.config, command="kill -9 $$")
    assert status == 255
    assert "did not end by itself" in said


@pytest.fixture(scope="module")
def jump(tmp_path_factory: pytest.TempPathFactory, server: SshServer) -> Iterator[SshServer]:
    """Another host, which lets the same key in."""
    with ssh_server(tmp_path_factory.mktemp("jump")) as running:
        shutil.copy(server.folder / "authorized", running.folder / "authorized")
        yield running


def over(
    server: SshServer,
    jump: SshServer,
    files: str,
    *,
    lab: Sequence[str] = ("ProxyJump stop",),
    stop: Sequence[str] = (),
    stop_files: str = "",
) -> Path:
    """Write a configuration in which `lab` is reached over `stop`, whose files may be others."""
    config = server.client("c", files, *lab)
    lines = [
        "Host stop gate",
        "  HostName 127.0.0.1",
        f"  Port {jump.port}",
        f"  IdentityFile {server.folder / 'user'}",
        "  IdentitiesOnly yes",
        "  GlobalKnownHostsFile none",
        f"  UserKnownHostsFile {stop_files or files}",
        *(f"  {line}" for line in stop),
    ]
    config.write_text(config.read_text() + "\n".join(lines) + "\n")
    return config


def both(path: Path, *servers: SshServer) -> str:
    path.write_text("".join(f"[127.0.0.1]:{one.port} {one.host_key}\n" for one in servers))
    return str(path)


def visits(server: SshServer) -> int:
    return (server.folder / "log").read_text().count("Accepted publickey")


@pytest.mark.parametrize(
    "lab",
    [
        ["ProxyJump stop"],
        ["ProxyJump stop,gate"],
        ["ProxyJump ssh://stop"],
        ["ProxyJump root@127.0.0.1:{port}"],
        ["ProxyCommand ssh -F {config} -W %h:%p stop"],
    ],
)
def test_a_host_behind_others_is_reached_through_them(
    server: SshServer, jump: SshServer, tmp_path: Path, lab: list[str]
) -> None:
    before = visits(jump)
    words = {"port": jump.port, "config": server.folder / "c"}
    if "root@" in lab[0] and os.geteuid() != 0:
        pytest.skip("names root")
    config = over(
        server,
        jump,
        both(tmp_path / "k", server, jump),
        lab=[line.format(**words) for line in lab],
    )
    if "root@" in lab[0]:  # its own name is in no section of the configuration
        config.write_text(config.read_text().replace("Host stop gate", "Host 127.0.0.1"))
    assert connect(config) == (CONNECTED, "")
    assert visits(jump) == before + (2 if "gate" in lab[0] else 1)


@pytest.mark.parametrize("policy", ["strict", "accept-new"])
@pytest.mark.parametrize("stop", [[], ["StrictHostKeyChecking no"], ["UserKnownHostsFile none"]])
@pytest.mark.parametrize("ssh", [True, False])
def test_a_host_on_the_way_is_checked_whatever_the_configuration_says(
    server: SshServer,
    jump: SshServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stop: list[str],
    policy: str,
    ssh: bool,
) -> None:
    if not ssh:
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.setenv("HOME", str(tmp_path))
    before = visits(jump)
    config = over(server, jump, both(tmp_path / "k", server), stop=stop, stop_files="none")
    status, said = connect(config, "--host-keys", policy)
    if not ssh and policy == "accept-new":  # then the files of the home directory count
        assert "the key of stop is new and was noted" in said
        return
    assert (status, visits(jump)) == (UNTRUSTED, before)
    assert "stop is not trusted" in said or "no file for new host keys" in said


def test_a_changed_key_on_the_way_is_refused(
    server: SshServer, jump: SshServer, tmp_path: Path
) -> None:
    path = known(tmp_path / "other", jump, key=WRONG_KEY)
    config = over(server, jump, both(tmp_path / "k", server), stop_files=path)
    status, said = connect(config, "--host-keys", "accept-new")
    assert status == UNTRUSTED
    assert "stop is not trusted" in said


def test_the_host_behind_a_trusted_one_is_checked_too(
    server: SshServer, jump: SshServer, tmp_path: Path
) -> None:
    config = over(server, jump, both(tmp_path / "k", jump))
    status, said = connect(config)
    assert status == UNTRUSTED
    assert "lab is not trusted: its host key is not known" in said


def test_accept_new_notes_every_host_on_the_way(
    server: SshServer, jump: SshServer, tmp_path: Path
) -> None:
    config = over(server, jump, str(tmp_path / "new"))
    status, said = connect(config, "--host-keys", "accept-new")
    assert status == CONNECTED
    assert said.count("is new and was noted: SHA256:") == 2
    assert connect(config) == (CONNECTED, "")


def test_a_jump_for_every_host_is_itself_reached_directly(
    server: SshServer, jump: SshServer, tmp_path: Path
) -> None:
    config = over(server, jump, both(tmp_path / "k", server, jump), lab=[])
    config.write_text(config.read_text() + "Host *\n  ProxyJump stop\n")
    assert connect(config) == (CONNECTED, "")


def test_jumps_in_a_circle_end(server: SshServer, jump: SshServer, tmp_path: Path) -> None:
    config = over(server, jump, both(tmp_path / "k", server, jump), stop=["ProxyJump other"])
    config.write_text(config.read_text() + "Host other\n  ProxyJump stop\n")
    status, said = connect(config)
    assert status == 255
    assert "goes in a circle" in said


def test_without_the_systems_ssh_the_configuration_is_still_read(
    server: SshServer, jump: SshServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".ssh").mkdir()
    both(tmp_path / ".ssh" / "known_hosts", server, jump)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    before = visits(jump)
    status, said = connect(over(server, jump, "none"))
    assert (status, said.count("\n")) == (CONNECTED, 1)
    assert "ssh is not installed here: its configuration is read as asyncssh understands it" in said
    assert visits(jump) == before + 1


def keygen(*words: object) -> None:
    subprocess.run(  # noqa: S603  # no shell
        [shutil.which("ssh-keygen") or "ssh-keygen", "-q", *map(str, words)], check=True
    )


def test_a_host_with_a_certificate_of_a_known_authority_is_trusted(
    server: SshServer, tmp_path: Path
) -> None:
    keygen("-t", "ed25519", "-N", "", "-f", tmp_path / "authority")
    authority = " ".join((tmp_path / "authority.pub").read_text().split()[:2])
    folder = tmp_path / "sshd"
    folder.mkdir()
    with ssh_server(folder, host_certificate_by=tmp_path / "authority") as certified:
        shutil.copy(server.folder / "authorized", folder / "authorized")
        for key in ("user", "user.pub"):
            shutil.copy(server.folder / key, folder / key)
        name = f"[127.0.0.1]:{certified.port}"
        (tmp_path / "k").write_text(f"@cert-authority {name} {authority}\n")
        assert connect(certified.client("c", str(tmp_path / "k"))) == (CONNECTED, "")
        (tmp_path / "k").write_text(f"@cert-authority {name} {WRONG_KEY}\n")
        assert connect(certified.client("c", str(tmp_path / "k")))[0] == UNTRUSTED


def test_a_certificate_lets_its_user_in(server: SshServer, tmp_path: Path) -> None:
    keygen("-t", "ed25519", "-N", "", "-f", tmp_path / "authority")
    keygen("-t", "ed25519", "-N", "", "-f", tmp_path / "user")
    me = pwd.getpwuid(os.geteuid()).pw_name
    keygen("-s", tmp_path / "authority", "-I", "someone", "-n", me, tmp_path / "user.pub")
    authority = (tmp_path / "authority.pub").read_text()
    config = server.client("c", known(tmp_path / "k", server))
    config.write_text(
        config.read_text().replace(str(server.folder / "user"), str(tmp_path / "user"))
    )
    try:
        assert connect(config)[0] == UNTRUSTED
        (server.folder / "authorized").write_text(f"cert-authority {authority}")
        assert connect(config) == (CONNECTED, "")
    finally:
        server.authorize()


def test_a_key_that_only_the_agent_has_lets_in(
    server: SshServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = server.client("c", known(tmp_path / "k", server))
    lines = config.read_text().splitlines()
    config.write_text("\n".join(line for line in lines if "Identit" not in line) + "\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SSH_AUTH_SOCK", str(tmp_path / "agent"))
    assert connect(config)[0] == UNTRUSTED
    agent = subprocess.Popen(  # noqa: S603  # no shell
        [shutil.which("ssh-agent") or "ssh-agent", "-D", "-a", str(tmp_path / "agent")],
        stdout=subprocess.DEVNULL,
    )
    try:
        wait_for(tmp_path / "agent")
        subprocess.run(  # noqa: S603  # no shell
            [shutil.which("ssh-add") or "ssh-add", "-q", server.folder / "user"], check=True
        )
        assert connect(config) == (CONNECTED, "")
    finally:
        agent.terminate()
        agent.wait()


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 10
    while not path.exists():
        assert time.monotonic() < deadline, path
        time.sleep(0.01)
