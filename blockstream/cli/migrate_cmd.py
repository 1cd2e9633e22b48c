"""`blockstream migrate`."""

from pathlib import Path

import click

from blockstream.cli.console import say
from blockstream.cli.grouped_help import GroupedCommand
from blockstream.cli.migrate_options import MigrateGroups
from blockstream.cli.migrate_output import Steps, show_migrated
from blockstream.cli.migrate_plan import means_of, prepared
from blockstream.cli.option_groups import groups_in, with_groups
from blockstream.cli.options import ProgressWish, reporters, with_progress, with_state_dir
from blockstream.cli.remote_options import RemoteOptions
from blockstream.cli.voice import Voice
from blockstream.errors import NotFoundError, UsageError
from blockstream.jobs.migration.guests import CommandGuest, FarHost
from blockstream.jobs.migration.marks import places_of
from blockstream.jobs.migration.migrate import Migration, MigrationRequest
from blockstream.jobs.migration.state import MigrationNote
from blockstream.jobs.migration.volume import moved_to
from blockstream.linux import lvm


@click.command(
    "migrate", cls=GroupedCommand, short_help="Move the volumes of a running guest to another host."
)
@click.argument("places", nargs=-1, required=True, metavar="VOLUME... HOST:VG[/LV]")
@with_groups(MigrateGroups)
@with_progress
@with_state_dir
@click.pass_context
def command(
    context: click.Context,
    /,
    places: tuple[str, ...],
    options: MigrateGroups,
    state_dir: Path,
    as_json: bool,
    quiet: bool,
    progress: ProgressWish,
) -> None:
    """Move logical VOLUMEs that are in use to HOST, where the guest is then started.

    The whole copy and then rounds of what changed go over while the guest runs. It stands still
    for the last round only. Whatever fails before it runs on HOST brings it back here. The same
    command, or --resume VOLUME, goes on after a crash; --abort VOLUME cleans up.

    The guest is known by --domain to libvirt, by --qmp to QEMU, or by commands of yours: --pause
    is done when it stands still, --start when it runs there, --roll-back lets it run here again.
    A command that runs here ends with this one, however this one ends.

    \b
    Examples:
      blockstream migrate vg/vm root@HOST:vg/vm --create --domain vm
      blockstream migrate vg/vm root@HOST:vg/vm --create --pause ./stop-and-wait \\
          --start ./start --roll-back ./start
      blockstream migrate vg/vm root@HOST:vg/vm --create --live --qmp /run/vm.qmp \\
          --incoming './start -incoming tcp:0:4444 -daemonize' --uri tcp:HOST:4444
      blockstream migrate vg/root vg/data root@HOST:vg --quiesced
      blockstream migrate --resume vg/vm
      blockstream migrate --abort vg/vm
    """  # noqa: D301
    shown = reporters("migrate", as_json=as_json, quiet=quiet, progress=progress)
    voice = Steps(shown, as_json=as_json, quiet=quiet)
    if options.step.resume or options.step.abort:
        _check_alone(places, options)
        migration = _earlier(context, places[0], options, state_dir, voice)
    else:
        words = [*options.kept(), *places]
        migration = prepared(places, words, options, state_dir, voice)
    if options.step.abort:
        voice.done(migration.abort())
        say("cleaned up: no snapshot of ours is left here, nor what we made there")
    elif options.step.dry_run:
        voice.done(migration.check())
        say("both hosts are ready; nothing was done")
    else:
        report = voice.done(migration.done())
        show_migrated(report, as_json=as_json, quiet=quiet)


def _check_alone(places: tuple[str, ...], options: MigrateGroups) -> None:
    """How a migration goes on, its note knows.

    Raises:
        UsageError: If anything else is said.
    """
    step = options.step
    others = [
        each
        for each in options.typed
        if each.flag not in {"--resume", "--abort"}
        and not (step.abort and each.group is RemoteOptions)
    ]
    if len(places) != 1 or step.resume == step.abort or others:
        raise UsageError(
            "--resume and --abort take one VOLUME; all else is as the migration was begun, but "
            "--abort may be told how a host is reached that no note tells of"
        )


def _earlier(
    context: click.Context, place: str, options: MigrateGroups, state_dir: Path, voice: Voice
) -> Migration:
    """Take up what was begun: by the note of its run, or what it left by its tags alone.

    Raises:
        UsageError: If something is given that the note knows.
        NotFoundError: If nothing was begun.
    """
    volume = lvm.volume_at(place)
    if volume is None:
        raise NotFoundError(
            f"{place} is no logical volume of this host, so no migration of {place} was begun here"
        )
    words = MigrationNote(state_dir, volume).words
    if words:
        if options.kept():
            raise UsageError(f"how {place} was being migrated is known: give nothing else")
        with command.make_context("migrate", list(words), parent=context.parent) as earlier:
            begun = groups_in(earlier, MigrateGroups)
            places = earlier.params["places"]
        return prepared(places, words, begun, state_dir, voice)
    moves = [moved_to(volume, where) for where in places_of(volume).values()]
    if not moves or not options.step.abort:
        raise NotFoundError(f"no migration of {place} was begun and not finished here")
    means = means_of(options, state_dir, voice)
    far = FarHost(moves[0].where, means.options, voice.run)
    nobody = CommandGuest("", "", "", far, voice.run)
    return Migration(MigrationRequest((moves[0],), means), nobody, voice.run)
