"""`blockstream send`."""

import platform
from pathlib import Path

import click

from blockstream.cli.bwlimit import limiter_for
from blockstream.cli.grouped_help import GroupedCommand
from blockstream.cli.location_types import PLACE
from blockstream.cli.option_groups import with_groups
from blockstream.cli.options import (
    ProgressWish,
    cleared,
    refuse_terminal,
    reporters,
    with_progress,
    with_state_dir,
)
from blockstream.cli.received_output import show_received
from blockstream.cli.send_arguments import SendArguments
from blockstream.cli.send_options import SendGroups
from blockstream.cli.send_output import SendOutput
from blockstream.cli.send_rules import check
from blockstream.cli.sending import Sending
from blockstream.cli.voice import Voice
from blockstream.locations.local import LocalDisk
from blockstream.locations.ssh import Remote

_STDIN = 0
_STDOUT = 1
# What the `send` on the other host has to know of a fetch.
_TOLD_THERE = (
    *("--base", "--goal", "--extents", "--compress", "--bwlimit", "--since", "--snapshot-size"),
    *("--on-lost-base", "--quiesced", "--rotate"),
)


@click.command("send", cls=GroupedCommand, short_help="Send a disk, or what changed in it.")
@click.argument("places", nargs=-1, required=True, metavar="SOURCE... [TARGET]", type=PLACE)
@with_groups(SendGroups)
@with_progress
@with_state_dir
def command(
    places: tuple[str, ...],
    options: SendGroups,
    state_dir: Path,
    as_json: bool,
    quiet: bool,
    progress: ProgressWish,
) -> None:
    """Send SOURCE, or what changed in it, to TARGET; without one, as a stream to stdout.

    SOURCE and TARGET are disks or files of this host, or:

    \b
      [USER@]HOST:/PATH          of another host; ssh://[USER@]HOST:PORT/PATH
      STORE/DISK[@POINT]         a restore point: dir:/FOLDER/DISK, s3://BUCKET/PREFIX/DISK
      nbd://HOST[:PORT]/EXPORT   only SOURCE; nbd+unix:///EXPORT?socket=PATH; nbds://... for TLS
      vmdk:FILE                  only SOURCE: a VMware disk with its chain
      vsphere://USER@VCENTER/DATACENTER/vm/NAME   only SOURCE: a machine, to a folder or STORE/NAME

    Several SOURCEs go to HOST:, HOST:/FOLDER/ or STORE as one set: none is committed before all
    are durable there.

    \b
    Examples:
      blockstream send /dev/vg/vm root@HOST:/dev/vg/vm
      blockstream send root@HOST:/dev/vg/vm copy.img --create
      blockstream send /dev/vg/vm | ssh HOST blockstream recv /dev/vg/vm
      blockstream send /dev/vg/vm root@HOST:/dev/vg/vm --since last --rotate
      blockstream send /dev/vg/root /dev/vg/data dir:/var/backups/blockstream
      blockstream send dir:/var/backups/blockstream/vm@last s3://bucket/backups/vm
      blockstream send --delta vmdk:vm-000003.vmdk /dev/vg/vm
    """  # noqa: D301
    given = SendArguments.of(places, options.nbd.tls_certificates)
    check(given, options)
    is_session = options.plumbing.session
    shown = [] if is_session else reporters("send", as_json=as_json, quiet=quiet, progress=progress)
    voice = Voice(shown, as_json, quiet or is_session)
    if given.from_host is not None:
        voice.done(_fetched(given.from_host, given, options, state_dir, voice))
        return
    limiter, followers = limiter_for(options.travel.bwlimit, as_json=as_json)
    voice.shown += followers
    sending = Sending(given, options, state_dir, limiter, voice)
    if options.checks.dry_run:
        voice.done(sending.rehearsed())
        return
    if given.target is None:
        refuse_terminal(_STDOUT, "standard output")
        if is_session:
            refuse_terminal(_STDIN, "standard input")
    output = SendOutput(voice, sending.machine)
    output.done(sending.done(output))


async def _fetched(
    host: Remote, given: SendArguments, options: SendGroups, state_dir: Path, voice: Voice
) -> None:
    """Let the other host send it here."""
    from blockstream.transfers.pull import pull

    here = given.target.path if isinstance(given.target, LocalDisk) else ""
    where = options.write.onto(here, state_dir)
    words = [*options.words(*_TOLD_THERE), "--on-behalf-of", f"{platform.node()}:{given.keys[0]}"]
    try:
        result = await pull(
            host, words, where, options.remote.peer(as_json=voice.as_json), voice.run
        )
    finally:
        cleared(voice.shown)
    show_received(result, where.target, as_json=voice.as_json, quiet=voice.quiet, source=str(host))
    result.check()
