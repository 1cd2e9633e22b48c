"""What makes no sense for `migrate` is said before a host is asked."""

import pytest

from tests.end_to_end.hosts import Host

HOOKS = ["--pause", "true", "--roll-back", "true"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["vg/vm"], "give VOLUME... and then HOST:VG/LV"),
        (["vg/vm", "/dev/vg/copy", *HOOKS], "give VOLUME... and then HOST:VG/LV"),
        (["vg/vm", "-oProxyCommand=x:vg/vm", *HOOKS], "No such option"),
        (["vg/vm", "host:vg/vm/more", *HOOKS], "give VOLUME... and then HOST:VG/LV"),
        (["vg/a", "vg/b", "host:vg/c", *HOOKS], "several volumes go to HOST:VG"),
        (["vg/vm", "host:vg/vm"], "who makes the guest stand still?"),
        (["vg/vm", "host:vg/vm", "--pause", "true"], "--pause needs --roll-back"),
        (["vg/vm", "host:vg/vm", "--live", "--qmp", "s"], "--live needs --incoming"),
        (["vg/vm", "host:vg/vm", "--domain", "vm", "--quiesced"], "exclude each other"),
        (["vg/vm", "host:vg/vm", "--domain", "vm", "--start", "x"], "--start does not go with"),
        (["vg/vm", "host:vg/vm", "--revert", "--create", *HOOKS], "--revert goes to volumes"),
        (["vg/vm", "host:vg/vm", "--pool", "p", *HOOKS], "--pool is where --create makes"),
        (["vg/vm", "host:vg/vm", "--snapshot-size", "much", *HOOKS], "a size is bytes"),
    ],
)
def test_what_makes_no_sense_is_said(host: Host, words: list[str], said: str) -> None:
    ended = host.run("migrate", *words)
    assert ended.status == 2, ended.err
    assert said in ended.err


@pytest.mark.parametrize(
    "words",
    [
        ["--resume", "--abort", "vg/vm"],
        ["--resume", "vg/vm", "host:vg/vm"],
        ["--abort", "vg/vm", "--max-downtime", "9"],
    ],
)
def test_what_was_begun_is_not_changed(host: Host, words: list[str]) -> None:
    ended = host.run("migrate", *words)
    assert ended.status == 2, ended.err
    assert "take one VOLUME" in ended.err


def test_nothing_that_was_begun_cannot_be_resumed(host: Host) -> None:
    for option in ("--resume", "--abort"):
        ended = host.run("migrate", option, "vg/none")
        assert ended.status == 17, ended.err
        assert "no migration of vg/none was begun" in ended.err or "not installed" in ended.err
