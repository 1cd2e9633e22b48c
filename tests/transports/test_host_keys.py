"""Known hosts are read line by line, as ssh does, and what forbids a key is never left out."""

from dataclasses import replace
from pathlib import Path

import asyncssh
import pytest

from blockstream.transports.host_keys import known_hosts, needs_key
from blockstream.transports.ssh_config import SshConfig, SshConfigError

KEY = asyncssh.generate_private_key("ssh-ed25519")
LINE = KEY.export_public_key().decode().strip()


def config(tmp_path: Path, text: bytes) -> SshConfig:
    (tmp_path / "known").write_bytes(text)
    return SshConfig("h", user_files=(tmp_path / "known", tmp_path / "missing"))


@pytest.mark.parametrize(
    "bad",
    [
        b"nonsense\n",
        b"@nonsense * ssh-ed25519 AAAA\n",
        b"* ssh-ed25519 AAAA\n",
        b"* ssh-newer-than-we AAAAC3NzaC1lZDI1NTE5AAAAI\n",
        b"|1|x|y ssh-ed25519 AAAA\n",
        b"\xff\xfe\x00\n",
        b"[\n",
    ],
)
def test_a_line_that_cannot_be_read_is_left_out_and_counted(tmp_path: Path, bad: bytes) -> None:
    """One line in a file of thousands kept everybody out."""
    found = known_hosts(config(tmp_path, bad + f"# a remark\n\nh {LINE}\n".encode()), "h", None)
    assert found.know("h", 22)
    assert not found.know("other", 22)
    assert [text.rpartition(": ")[2] for text in found.skipped] == ["1 of its lines cannot be read"]


@pytest.mark.parametrize("names", ["H", "Other,H", "*,!OTHER", "@cert-authority H"])
def test_names_are_the_same_whatever_their_case(tmp_path: Path, names: str) -> None:
    """A host whose key had changed was taken for a new one."""
    found = known_hosts(config(tmp_path, f"{names} {LINE}\n".encode()), "h", None)
    assert found.know("h", 22)


def test_files_that_are_not_there_know_nobody(tmp_path: Path) -> None:
    found = known_hosts(SshConfig("h", user_files=(tmp_path / "missing",)), "h", None)
    assert (found.files, found.skipped, found.know("h", 22)) == ((), (), False)


def test_a_command_tells_more(tmp_path: Path) -> None:
    program = tmp_path / "keys"
    program.write_text(f'#!/bin/sh\necho "$1 {LINE}"\n')
    program.chmod(0o755)
    asked = replace(config(tmp_path, b""), known_hosts_command=f"{program} %H", port=2222)
    assert known_hosts(asked, "lab", None).know("h", 2222)
    assert not needs_key(asked)


def test_a_command_is_told_of_the_key_that_is_shown(tmp_path: Path) -> None:
    asked = replace(config(tmp_path, b""), known_hosts_command="/bin/echo h %t %K")
    assert needs_key(asked)
    assert known_hosts(asked, "lab", KEY).know("h", 22)


@pytest.mark.parametrize("command", ["/bin/false", "/nowhere", "/bin/echo %z"])
def test_a_command_that_fails_trusts_nobody(tmp_path: Path, command: str) -> None:
    asked = replace(config(tmp_path, f"h {LINE}\n".encode()), known_hosts_command=command)
    with pytest.raises(SshConfigError):
        known_hosts(asked, "lab", None)


def test_keys_that_are_revoked_are_trusted_by_nobody(tmp_path: Path) -> None:
    (tmp_path / "revoked").write_text(f"# old\n{LINE} was stolen\n")
    asked = replace(config(tmp_path, f"h {LINE}\n".encode()), revoked=str(tmp_path / "revoked"))
    keys = known_hosts(asked, "h", None).keys.match("h", "", 22)
    assert [key.public_data for key in keys[2]] == [KEY.public_data]


@pytest.mark.parametrize("content", [b"SSHKRL\n\0", None])
def test_what_could_forbid_a_key_must_be_read(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "revoked").write_bytes(content)
    asked = replace(config(tmp_path, f"h {LINE}\n".encode()), revoked=str(tmp_path / "revoked"))
    with pytest.raises(SshConfigError):
        known_hosts(asked, "h", None)
