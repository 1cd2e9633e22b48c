"""What `ssh -G` says is read as ssh means it; `none` is no file, never no checking."""

import os
import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from blockstream.transports.ssh_config import SshConfigError, parsed, ssh_config

HOME = Path.home()


def test_everything_that_counts_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHERE", "/keys")
    config = parsed(
        "lab",
        "user root\nhostname 10.0.0.1\nport 2222\nhostkeyalias other\n"
        "userknownhostsfile ~/.ssh/a /etc/b c /etc/%h\nglobalknownhostsfile /etc/c\n"
        "proxyjump gate\nstricthostkeychecking false\nidentityfile ~/.ssh/id_%n\n"
        "identityfile ${WHERE}/id\nidentitiesonly yes\nidentityagent /run/agent\n"
        "certificatefile /c-%r\nproxycommand nc %h %p %%\nknownhostscommand /bin/keys %t %H\n"
        "addressfamily inet6\nbindaddress ::1\nconnecttimeout 7\nciphers aes256-ctr,3des-cbc\n"
        "gssapiauthentication yes\nrevokedhostkeys /etc/revoked\n",
    )
    assert (config.user, config.hostname, config.port) == ("root", "10.0.0.1", 2222)
    assert config.alias == "other"
    assert config.user_files == (HOME / ".ssh/a", Path("/etc/b c"), Path("/etc/10.0.0.1"))
    assert config.global_files == (Path("/etc/c"),)
    assert not config.is_direct
    assert config.identities == (HOME / ".ssh/id_lab", Path("/keys/id"))
    assert (config.identities_only, config.agent) == (True, "/run/agent")
    assert config.certificates == (Path("/c-root"),)
    assert config.command == "nc 10.0.0.1 2222 %"
    assert config.known_hosts_command == "/bin/keys %t %H"
    assert (config.family, config.bind_address) == (socket.AF_INET6, "::1")
    assert (config.connect_seconds, config.gssapi) == (7.0, True)
    assert config.allowed("ciphers", ["aes128-ctr", "aes256-ctr"]) == ["aes256-ctr"]
    assert config.allowed("macs", ["x"]) == ["x"]
    assert config.revoked == "/etc/revoked"


@pytest.mark.parametrize("word", ["none", "NONE"])
def test_none_is_an_empty_list(word: str) -> None:
    config = parsed(
        "lab",
        f"userknownhostsfile {word}\nglobalknownhostsfile {word}\nproxyjump {word}\n"
        f"identityagent {word}\nproxycommand {word}\nidentityfile {word}\n",
    )
    assert (config.user_files, config.global_files) == ((), ())
    assert config.is_direct
    assert (config.agent, config.identities) == ("", ())


def test_what_is_not_said_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSH_AUTH_SOCK", "/run/agent")
    config = parsed("lab", "")
    assert HOME / ".ssh/known_hosts" in config.user_files
    assert (config.hostname, config.port, config.agent) == ("lab", 22, "/run/agent")


@pytest.mark.parametrize(
    ("said", "wanted"),
    [("SSH_AUTH_SOCK", "/run/a"), ("$OTHER", "/run/b"), ("$MISSING", ""), ("~/a", f"{HOME}/a")],
)
def test_the_agent_is_found_as_ssh_finds_it(
    monkeypatch: pytest.MonkeyPatch, said: str, wanted: str
) -> None:
    monkeypatch.setenv("SSH_AUTH_SOCK", "/run/a")
    monkeypatch.setenv("OTHER", "/run/b")
    assert parsed("lab", f"identityagent {said}\n").agent == wanted


def test_an_option_is_no_host_and_an_unknown_token_is_an_error() -> None:
    with pytest.raises(SshConfigError, match="is no host"):
        ssh_config("-oProxyCommand=touch /tmp/x")
    with pytest.raises(SshConfigError, match="%z means nothing"):
        parsed("lab", "proxycommand nc %z\n")


@pytest.mark.needs("ssh")
def test_names_of_any_bytes_and_remarks_are_read(tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_bytes(
        b'# Schl\xfcssel\nMatch host lab exec "true"\n  HostName 10.0.0.9 # the old one\n'
        b"  IdentityFile /k/\xe9\n"
    )
    found = ssh_config("lab", config_file=str(config))
    assert found.hostname == "10.0.0.9"
    assert os.fsencode(found.identities[0]) == b"/k/\xe9"


@pytest.mark.needs("ssh")
@pytest.mark.parametrize("template", ["%C", "%h/%i/%L/%l/%n/%p/%r/%u/%%"])
def test_tokens_are_what_they_are_for_ssh(tmp_path: Path, template: str) -> None:
    """Of a file of known hosts ssh prints what it has expanded itself."""
    config = tmp_path / "config"
    config.write_text(f"Host lab\n  HostName h\n  User u\n  UserKnownHostsFile /x%d/{template}\n")
    words = [shutil.which("ssh") or "ssh", "-G", "-F", str(config), "lab"]
    said = subprocess.run(words, capture_output=True, text=True, check=True).stdout  # noqa: S603
    theirs = next(line for line in said.splitlines() if line.startswith("userknownhostsfile"))
    ours = parsed("lab", f"hostname h\nuser u\nport 22\nidentityfile /x%d/{template}\n")
    assert theirs.split(" ", 1)[1] == str(ours.identities[0])
