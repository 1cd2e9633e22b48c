"""A key for `serve` writes the disks that its policy names, whatever it asks for."""

import fcntl
import json
import os
import shlex
import sys
from pathlib import Path

import pytest

from blockstream.errors import BlockstreamError, UsageError
from blockstream.jobs.serve import key_line, load_policy
from blockstream.transfers.remote_command import PEER_COMMAND
from tests.end_to_end.hosts import COMMAND, ROOT, Ended, Host
from tests.ssh_server import SshServer

# What a stolen key would be tried with.
HOSTILE = [
    "",
    " ",
    "blockstream-peer",
    "blockstream-peer 2",
    "blockstream-peer  1",
    " blockstream-peer 1",
    "blockstream-peer 1 ",
    "blockstream-peer 1\n",
    "blockstream-peer 1;id",
    "blockstream-peer 1 && id",
    "blockstream-peer 1 | sh",
    "blockstream-peer 1 $(id)",
    "blockstream-peer 1 `id`",
    "blockstream-peer 1\0",
    "BLOCKSTREAM-PEER 1",
    "blockstream-peer 1 --policy /tmp/mine.toml",
    "--policy /tmp/mine.toml",
    "sh",
    "bash -i",
    "id",
    "/bin/sh -c id",
    "scp -t /etc/passwd",
    "sftp-server",
    "rsync --server -e.LsfxC . /",
    "blockstream recv /dev/sda",
    "blockstream recv --session /dev/sda",
    "blockstream recv --session --force-in-use -- /",
    "blockstream send --session /etc/shadow",
    "blockstream digests /etc/shadow",
    "blockstream join 0",
    "blockstream serve --policy /dev/stdin",
    "blockstream adopt /dev/vg/vm --id x",
    "../../../../bin/sh",
    "$SHELL",
    "${IFS}id",
    "\x1b]0;owned\x07",
    "blockstream-peer\t1",
    "'blockstream-peer 1'",
    '"blockstream-peer" 1',
    "blockstream-peer 1 #",
    "blockstream\u2010peer 1",
    "A" * 100_000,
]


def identity_of(host: Host, disk: Path) -> str:
    ended = host.run("serve", "--identity", disk)
    assert ended.status == 0, ended.err
    return ended.out.decode().strip()


def write_policy(host: Host, disk: Path, **more: object) -> Path:
    """Write a policy for one disk called `vm`."""
    table = {"path": str(disk), "identity": identity_of(host, disk), **more}
    lines = [f"{key} = {json.dumps(value)}" for key, value in table.items()]
    path = host.folder / "policy.toml"
    path.write_text("[targets.vm]\n" + "\n".join(lines) + "\n")
    path.chmod(0o600)
    return path


def local(host: Host, policy: Path, asked: str = PEER_COMMAND) -> list[str]:
    """Return options that lead to `serve` on this host, as sshd would run it."""
    variables = [f"SSH_ORIGINAL_COMMAND={asked}", f"PYTHONPATH={ROOT}:{ROOT / 'protocol'}"]
    variables.append(f"BLOCKSTREAM_STATE_DIR={host.folder / 'far-state'}")
    forced = shlex.join(["env", *variables, *COMMAND, "serve", "--policy", str(policy)])
    return ["--rsh", shlex.join(["sh", "-c", forced, "{command}"])]


def asked(host: Host, policy: Path, command: str | None, data: bytes = b"") -> Ended:
    environment = {} if command is None else {"SSH_ORIGINAL_COMMAND": command}
    return host.run("serve", "--policy", policy, data=data, environment=environment)


# What it refuses.


@pytest.mark.parametrize(
    "command", [c for c in HOSTILE if "\0" not in c], ids=range(len(HOSTILE) - 1)
)
def test_anything_but_the_one_command_is_refused(host: Host, command: str) -> None:
    disk = host.blank("vm", 4096)
    policy = write_policy(host, disk)
    ended = asked(host, policy, command, data=b"anything")
    assert ended.status == 10
    assert ended.out == b""
    assert command.strip() not in ended.err or len(command.strip()) < 3
    assert "that is not it; nothing was done" in ended.err


def test_without_ssh_there_is_no_command(host: Host) -> None:
    policy = write_policy(host, host.blank("vm", 4096))
    assert asked(host, policy, None).status == 10


@pytest.mark.slow
@pytest.mark.parametrize("name", ["other", "VM", "vm.", "..", "targets"])
def test_a_target_that_was_not_granted_is_not_there(host: Host, name: str) -> None:
    disk, vm = host.disk("disk", 300_000), host.blank("vm", 300_000)
    ended = host.run("send", disk, f"lab::{name}", *local(host, write_policy(host, vm)))
    assert ended.status == 10
    assert "there is no such target for this key" in ended.err
    assert vm.read_bytes() == bytes(300_000)


@pytest.mark.slow
def test_another_disk_under_the_same_path_is_not_the_granted_one(host: Host) -> None:
    disk, vm = host.disk("disk", 300_000), host.blank("vm", 300_000)
    policy = write_policy(host, vm)
    vm.rename(host.folder / "moved")
    host.blank("vm", 300_000)
    for words in (["send"], ["verify"]):
        policy.write_text(policy.read_text().replace('"recv"', '"recv", "verify"'))
        ended = host.run(*words, disk, "lab::vm", *local(host, policy))
        assert ended.status == 10
    assert vm.read_bytes() == bytes(300_000)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("grant", "words", "said"),
    [
        ({"max_size": "100K"}, [], "the source has 300000 bytes, 102400 are allowed"),
        ({"bases": ["monday"]}, [], "a full copy is not allowed"),
        ({"operations": ["verify"]}, [], "there is no such target for this key"),
    ],
)
def test_more_than_was_granted_is_refused(
    host: Host, grant: dict[str, object], words: list[str], said: str
) -> None:
    disk, vm = host.disk("disk", 300_000), host.blank("vm", 300_000)
    ended = host.run("send", disk, "lab::vm", *words, *local(host, write_policy(host, vm, **grant)))
    assert ended.status == 10
    assert said in ended.err
    assert vm.read_bytes() == bytes(300_000)


# What it allows.


@pytest.mark.slow
@pytest.mark.parametrize("apply", ["direct", "undo", "stage"])
def test_a_granted_disk_is_written(host: Host, apply: str) -> None:
    disk, vm = host.disk("disk", 300_000), host.blank("vm", 300_000)
    options = local(host, write_policy(host, vm, apply=apply))
    ended = host.run("send", disk, "lab::vm", *options)
    assert ended.status == 0, ended.err
    assert vm.read_bytes() == disk.read_bytes()


@pytest.mark.slow
def test_no_operations_allow_nothing(host: Host) -> None:
    disk, vm = host.disk("disk"), host.blank("vm", 300_000)
    options = local(host, write_policy(host, vm, operations=[]))
    for words in (("send", disk, "lab::vm"), ("verify", disk, "lab::vm")):
        ended = host.run(*words, *options)
        assert ended.status == 10, ended.err
        assert "there is no such target for this key" in ended.err


@pytest.mark.slow
def test_a_peer_hears_nothing_of_paths_and_processes(host: Host) -> None:
    disk, vm = host.disk("disk"), host.blank("vm", 300_000)
    options = local(host, write_policy(host, vm))
    with vm.open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        busy = host.run("send", disk, "lab::vm", *options, "--retry", "0")
    assert busy.status == 10, busy.err
    assert "somebody else uses the target" in busy.err
    vm.unlink()
    gone = host.run("send", disk, "lab::vm", *options, "--retry", "0")
    assert gone.status == 10, gone.err
    assert "whoever looks after that host finds the reason in its log" in gone.err
    for ended in (busy, gone):
        assert str(vm) not in ended.err
        assert str(os.getpid()) not in ended.err


@pytest.mark.slow
def test_a_granted_disk_is_verified(host: Host) -> None:
    disk = host.disk("disk", 300_000)
    options = local(host, write_policy(host, disk, operations=["verify"]))
    ended = host.run("verify", disk, "lab::vm", *options)
    assert ended.status == 0, ended.err
    assert "equal" in ended.err


@pytest.mark.slow
def test_the_rate_is_the_policys(host: Host) -> None:
    disk, vm = host.folder / "disk", host.blank("vm", 300_000)
    disk.write_bytes(os.urandom(300_000))
    options = local(host, write_policy(host, vm, rate="200K"))
    ended = host.run("send", disk, "lab::vm", "--json", "--compress", "none", *options)
    assert ended.status == 0, ended.err
    seconds = next(e for e in ended.events if e["event"] == "sent")["seconds"]
    assert isinstance(seconds, float)
    assert seconds > 1.2  # 300,000 bytes at 204,800 a second


@pytest.mark.parametrize("option", [["--create"], ["--force-base"], ["--apply", "undo"]])
def test_options_that_the_policy_decides_are_refused_here(host: Host, option: list[str]) -> None:
    ended = host.run("send", host.disk("disk"), "lab::vm", *option)
    assert ended.status == 2
    assert "decided by the policy there" in ended.err


# Over ssh.


@pytest.mark.slow
@pytest.mark.needs("sshd")
def test_a_real_key_gets_what_its_line_says(host: Host, server: SshServer) -> None:
    disk, vm = host.disk("disk", 300_000), host.blank("vm", 300_000)
    policy = write_policy(host, vm)
    program = host.folder / "blockstream"
    program.write_text(
        f"#!/bin/sh\nexport PYTHONPATH={ROOT}:{ROOT / 'protocol'}\n"
        f"export BLOCKSTREAM_STATE_DIR={host.folder}/far-state\n"
        f'exec {sys.executable} -m blockstream "$@"\n'
    )
    program.chmod(0o755)
    server.authorize(key_line(str(program), policy))
    try:
        ended = host.run("send", disk, "lab::vm", "--ssh-config", server.config)
        assert ended.status == 0, ended.err
        refused = host.run("send", disk, f"lab:{vm}", "--ssh-config", server.config)
        assert refused.status == 10
        assert "this key runs one command only" in refused.err
        server.authorize()
        unbound = host.run("send", disk, "lab::vm", "--ssh-config", server.config)
        assert unbound.status == 17
        assert "runs no `blockstream serve` for this key" in unbound.err
    finally:
        server.authorize()
    assert vm.read_bytes() == disk.read_bytes()


# Policies.


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "needs one table"),
        ("nonsense", "is no policy"),
        ("[other]\n", "needs one table"),
        ("[targets.vm]\n", "path is missing"),
        ('[targets.vm]\npath="/x"\n', "identity is missing"),
        ('[targets."a/b"]\npath="/x"\nidentity="i"\n', "a name has 1 to 64"),
        ('[targets.vm]\npath="/x"\nidentity="i"\nforce=true\n', "'force' means nothing"),
        ('[targets.vm]\npath="/x"\nidentity="i"\noperations=["send"]\n', "recv and verify"),
        ('[targets.vm]\npath="/x"\nidentity="i"\nmax_size="big"\n', "max_size is bytes"),
        ('[targets.vm]\npath="/x"\nidentity="i"\nrate=0\n', "rate is bytes"),
        ('[targets.vm]\npath="/x"\nidentity="i"\napply="yes"\n', "apply is direct"),
        ('[targets.vm]\npath="/x"\nidentity="i"\nbases="a"\n', "bases is a list"),
        ('[targets.vm]\npath="/x"\nidentity="i"\nallow_larger=1\n', "true or false"),
    ],
)
def test_a_policy_that_is_not_clear_allows_nothing(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "p.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=said):
        load_policy(path)


@pytest.mark.parametrize("mode", [0o622, 0o660, 0o602])
def test_a_policy_that_others_may_write_allows_nothing(host: Host, mode: int) -> None:
    policy = write_policy(host, host.blank("vm", 4096))
    policy.chmod(mode)
    with pytest.raises(UsageError, match="can be written by others; nothing is allowed"):
        load_policy(policy)


def test_a_policy_with_a_path_of_some_folder_allows_nothing(host: Host) -> None:
    policy = write_policy(host, host.blank("vm", 4096), path="vm")
    with pytest.raises(UsageError, match="path begins with /"):
        load_policy(policy)


def test_a_policy_that_is_not_there_allows_nothing(tmp_path: Path) -> None:
    with pytest.raises(BlockstreamError, match="nothing is allowed"):
        load_policy(tmp_path / "none")


def test_the_key_line_is_printed_for_a_good_policy_only(host: Host) -> None:
    policy = write_policy(host, host.blank("vm", 4096))
    ended = host.run("serve", "--show-key-line", policy)
    assert ended.status == 0, ended.err
    assert ended.out.startswith(b'restrict,command="/')
    assert ended.out.endswith(f' serve --policy {policy}"\n'.encode())
    assert not ended.err
    text = policy.read_text()
    identity = text.partition('identity = "')[2].partition('"')[0]
    policy.write_text(text.replace(identity, "dm:LVM-..."))
    noted = host.run("serve", "--show-key-line", policy)
    assert (noted.status, noted.out) == (0, ended.out)
    assert f"is {identity}, not dm:LVM-...: nothing can be sent to it" in noted.err
    policy.write_text("[targets.vm]\n")
    assert host.run("serve", "--show-key-line", policy).status == 2


@pytest.mark.parametrize("name", ['a"b', "a b;c", "a\nb", "a'b", "$x"])
def test_a_key_line_never_holds_what_a_shell_would_read(name: str) -> None:
    with pytest.raises(UsageError, match="plainer names"):
        key_line(f"/usr/bin/{name}", Path("/etc/policy.toml"))
