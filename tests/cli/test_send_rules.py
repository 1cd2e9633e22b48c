"""What does not go together in a `send`."""

import pytest

from blockstream.cli.option_groups import groups_in
from blockstream.cli.send_arguments import SendArguments
from blockstream.cli.send_cmd import command
from blockstream.cli.send_options import SendGroups
from blockstream.cli.send_rules import _IS_MET, check
from blockstream.declared import Needs
from blockstream.errors import UsageError

PLACES = {
    "pipe": ["/d"],
    "here": ["/d", "/t"],
    "host": ["/d", "h:/t"],
    "named": ["/d", "h::vm"],
    "fetch": ["h:/d", "/t"],
    "store": ["/d", "dir:/s/vm"],
    "point": ["dir:/s/vm", "/t"],
    "nbd": ["nbd://h/x", "/t"],
    "set": ["/d", "/e", "h:"],
    "machine": ["vsphere://u@h/DC/vm/x", "/folder"],
    "machine in store": ["vsphere://u@h/DC/vm/x", "dir:/s/x"],
}
ALL = set(PLACES)
MACHINES = {"machine", "machine in store"}
HOSTS = {"host", "named", "fetch", "set"}
WITHIN = {"here", "point", "nbd", "machine"}
STORES = {"store", "machine in store"}
# Each option, with where it has a meaning.
MEANINGS = {
    ("--goal", "x"): ALL - MACHINES - {"point"},
    ("--base", "x"): ALL - {"point", "set"},
    ("--extents", "f"): ALL - MACHINES - {"point", "set"},
    ("-n",): ALL - MACHINES - {"fetch"},
    ("--compare",): ALL - MACHINES - {"fetch", "pipe", "set"},
    ("--audit", "4"): STORES,
    ("--since", "s"): ALL - MACHINES - {"point"},
    ("--quiesced",): ALL - MACHINES - {"point"},
    ("--snapshot-size", "1G"): ALL - MACHINES - {"point"},
    ("--delta",): ALL - MACHINES - {"point", "fetch"},
    ("--allow-outside",): ALL - MACHINES - {"point", "fetch"},
    ("--bitmap", "b"): {"nbd"},
    ("--quiesce-guest", "no"): MACHINES,
    ("--enable-cbt",): MACHINES,
    ("--on-cbt-loss", "fail"): MACHINES,
    ("--allocated-from-cbt",): MACHINES,
    ("--verify-cbt",): {"machine"},
    ("--create",): ALL - STORES - {"pipe"},
    ("--apply", "undo"): ALL - STORES - {"pipe"},
    ("--force-larger",): ALL - STORES - {"pipe"},
    ("--compress", "none"): ALL - WITHIN,
    ("--bwlimit", "1M"): ALL - WITHIN,
    ("--require-receipt",): {"pipe"},
    ("--rsh", "ssh"): HOSTS,
    ("--streams", "2"): HOSTS,
    ("--endpoint-url", "u"): STORES | {"point"},
    ("--format", "rbd"): {"pipe"},
    ("--session",): {"pipe"},
}


def checked(places: list[str], *words: str) -> None:
    """Check a command line."""
    with command.make_context("send", [*words, *places]) as context:
        options = groups_in(context, SendGroups)
    check(SendArguments.of(tuple(places)), options)


@pytest.mark.parametrize("words", MEANINGS, ids=lambda words: words[0])
def test_an_option_is_taken_where_it_has_a_meaning(words: tuple[str, ...]) -> None:
    for name, places in PLACES.items():
        if name in MEANINGS[words]:
            checked(places, *words)
        else:
            with pytest.raises(
                UsageError, match=f"{'--dry-run' if words == ('-n',) else words[0]} "
            ):
                checked(places, *words)


def test_every_need_is_looked_at() -> None:
    assert set(_IS_MET) == set(Needs)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--compare", "--base", "x"], "--compare finds out what changed .*: leave --base out"),
        (["--compare", "-n"], "leave --dry-run out"),
        (["--check-base"], "--check-base is for an increment"),
        (["--check-base", "--base", "x", "--create"], "leave --create out"),
        (["--delta", "--compare"], "--delta reads no parent: leave --compare out"),
        (["--on-lost-base", "fail"], "--on-lost-base is for --since last"),
        (["--on-lost-base", "fail", "--since", "s"], "--on-lost-base is for --since last"),
    ],
)
def test_what_has_no_effect_beside_another_is_refused(words: list[str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        checked(["/d", "h:/t"], *words)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--receipt-wait", "3"], "--receipt-wait says how long --require-receipt waits"),
        (["--pool-chunk", "64k"], "--pool-chunk is for --format thin-send"),
        (["--format", "rbd", "--bwlimit", "1M"], "--format .* knows nothing of ours"),
        (["--rotate"], "nobody tells over a plain pipe"),
    ],
)
def test_what_a_pipe_cannot_is_refused(words: list[str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        checked(["/d"], *words)
