"""`blockstream serve`."""

import contextlib
import os
import sys
import syslog
from pathlib import Path

import click

from blockstream.cli.closing import CLOSING
from blockstream.cli.console import say, show
from blockstream.cli.foreground import done
from blockstream.cli.options import refuse_terminal, warn, with_state_dir
from blockstream.errors import BlockstreamError, UsageError
from blockstream.jobs.serve import Grant, key_line, load_policy, serve
from blockstream.linux.identity import Identity
from blockstream.locations.local import LocalDisk
from blockstream.pipeline.error_map import discreet
from blockstream.run import Run
from blockstream.words import printable

_STDIN, _STDOUT = 0, 1


@click.command("serve", short_help="What a key that may only write certain disks runs.")
@click.option("--policy", type=click.Path(path_type=Path), help="What it may, a TOML file.")
@click.option(
    "--show-key-line",
    type=click.Path(path_type=Path),
    metavar="POLICY",
    help="Check a policy, and print what goes before the key in authorized_keys.",
)
@click.option("--identity", metavar="DISK", help="Print what DISK is known by, for a policy.")
@with_state_dir
def command(
    policy: Path | None, show_key_line: Path | None, identity: str | None, state_dir: Path
) -> None:
    """Let a peer write the disks that a policy names, and do nothing else.

    ssh runs it in place of whatever the peer asks for. The peer sends to HOST::NAME. It hears
    nothing of paths and processes here: the reasons go to this host's log (syslog).

    \b
    Example, on the receiving host:
      blockstream serve --identity /dev/vg/vm
      mkdir -p /etc/blockstream
      cat > /etc/blockstream/alice.toml <<END
      [targets.vm]
      path = "/dev/vg/vm"
      identity = "dm:LVM-..."           # as printed above
      operations = ["recv", "verify"]
      max_size = "100G"
      rate = "50M"
      END
      blockstream serve --show-key-line /etc/blockstream/alice.toml
    And on the sending host:
      blockstream send /dev/vg/vm HOST::vm
    """  # noqa: D301
    given = [each for each in (policy, show_key_line, identity) if each is not None]
    if len(given) != 1:
        raise UsageError("give one of --policy, --show-key-line and --identity")
    if identity is not None:
        show(f"{_identity(identity).key}\n")
    elif show_key_line is not None:
        for name, grant in load_policy(show_key_line).items():
            _look_at(name, grant)
        program = Path(sys.argv[0]).resolve()
        show(f"{key_line(str(program), show_key_line.resolve())}\n")
    elif policy is not None:
        refuse_terminal(_STDIN, "standard input")
        refuse_terminal(_STDOUT, "standard output")
        asked = os.environ.get("SSH_ORIGINAL_COMMAND")
        say(_served(policy, asked, state_dir))


def _served(policy: Path, asked: str | None, state_dir: Path) -> str:
    """Serve; ssh passes on to the peer what is said here, so the reasons go to the host's log.

    Raises:
        BlockstreamError: With what the peer may hear of it.
    """
    CLOSING.is_asked = True
    syslog.openlog("blockstream-serve", syslog.LOG_PID, syslog.LOG_DAEMON)
    try:
        run = Run()
        text = done(serve(policy, asked, state_dir, _STDIN, _STDOUT, run), run)
    except BlockstreamError as error:
        syslog.syslog(syslog.LOG_WARNING, printable(str(error)))
        raise error.worded(discreet(error)) from error
    syslog.syslog(syslog.LOG_INFO, text)
    return text


def _identity(disk: str) -> Identity:
    with contextlib.closing(LocalDisk(disk).open_source()) as source:
        return source.identity


def _look_at(name: str, grant: Grant) -> None:
    """Say where a policy names a disk that is not what lies there: it would be refused."""
    try:
        found = _identity(grant.path)
    except BlockstreamError:
        warn(f"{name}: {grant.path} cannot be looked at here and now", as_json=False)
        return
    if not found.is_known_as(grant.identity):
        warn(
            f"{name}: {grant.path} is {found.key}, not {grant.identity}: nothing can be sent to it "
            "as long as that is so",
            as_json=False,
        )
