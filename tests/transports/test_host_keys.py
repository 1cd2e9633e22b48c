"""What `ssh -G` says is read as ssh means it; `none` is no file, never no checking."""

from pathlib import Path

import pytest

from blockstream.transports.host_keys import parsed, ssh_config

HOME = Path.home()


def test_everything_that_counts_is_taken() -> None:
    config = parsed(
        "user root\nhostname 10.0.0.1\nport 2222\nhostkeyalias lab\n"
        "userknownhostsfile ~/.ssh/a /etc/b\nglobalknownhostsfile /etc/c\n"
        "proxyjump gate\nstricthostkeychecking false\n"
    )
    assert (config.user, config.hostname, config.port) == ("root", "10.0.0.1", 2222)
    assert config.alias == "lab"
    assert config.user_files == (HOME / ".ssh/a", Path("/etc/b"))
    assert config.global_files == (Path("/etc/c"),)
    assert config.proxied


@pytest.mark.parametrize("word", ["none", "NONE"])
def test_none_is_an_empty_list(word: str) -> None:
    config = parsed(f"userknownhostsfile {word}\nglobalknownhostsfile {word}\nproxyjump {word}")
    assert (config.user_files, config.global_files, config.files) == ((), (), [])
    assert not config.proxied


def test_what_is_not_said_is_the_default() -> None:
    assert HOME / ".ssh/known_hosts" in parsed("").user_files
    assert parsed("") == ssh_config("-oProxyCommand=touch /tmp/x")


def test_files_that_are_not_there_are_left_out(tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.touch()
    config = parsed(
        f"userknownhostsfile {there} {tmp_path}/gone\nglobalknownhostsfile {tmp_path}/x"
    )
    assert config.files == [str(there)]
