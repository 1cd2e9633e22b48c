"""`blockstream migrate`."""

import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import click

from blockstream.cli.bwlimit import limiter_for
from blockstream.cli.console import event, say
from blockstream.cli.options import (
    ProgressWish,
    parse_size,
    reporters,
    with_progress,
    with_state_dir,
)
from blockstream.cli.remote_options import PEER_OPTIONS, peer_options, with_peer_options
from blockstream.cli.send_output import Voice
from blockstream.errors import NotFoundError, UsageError
from blockstream.jobs.migration.convergence import Round
from blockstream.jobs.migration.domain import DomainGuest, Leaving
from blockstream.jobs.migration.guests import CommandGuest, FarHost, Guest
from blockstream.jobs.migration.live import LiveGuest
from blockstream.jobs.migration.marks import places_of
from blockstream.jobs.migration.migrate import (
    Migration,
    MigrationReport,
    MigrationRequest,
    report_values,
)
from blockstream.jobs.migration.state import MigrationNote
from blockstream.jobs.migration.target_volume import LandingWish
from blockstream.jobs.migration.volume import Means, Move, moved_to
from blockstream.linux import lvm
from blockstream.locations.ssh import USER, Remote
from blockstream.pipeline.compression import CompressionChoice
from blockstream.run import Run
from blockstream.words import duration_text, size_text

_PLACE = re.compile(
    rf"(?:(?P<user>{USER})@)?(?P<host>\[[0-9A-Za-z:.%_-]+\]|[A-Za-z0-9._][A-Za-z0-9._-]*):"
    r"(?:/dev/)?(?:(?P<group>[A-Za-z0-9+_.][A-Za-z0-9+_.-]*)"
    r"(?:/(?P<name>[A-Za-z0-9+_.][A-Za-z0-9+_.-]*))?)?"
)
_PLOT_COLUMNS = 30


@click.command("migrate", short_help="Move the volumes of a running guest to another host.")
@click.argument("places", nargs=-1, required=True, metavar="VOLUME... HOST:VG[/LV]")
@click.option("--create", is_flag=True, help="Make the volumes there, of the same size.")
@click.option("--pool", default="", metavar="POOL", help="With --create: in this thin pool.")
@click.option(
    "--max-downtime",
    type=click.FloatRange(min=0, min_open=True),
    default=5.0,
    show_default=True,
    metavar="SECONDS",
    help="How long the last pass may take; rounds go on until it fits. The guest stands still "
    "meanwhile, and is woken here when it takes longer.",
)
@click.option(
    "--on-no-converge",
    type=click.Choice(["stop", "go"]),
    default="stop",
    show_default=True,
    help="What to do if the guest writes faster than can be sent.",
)
@click.option("--pause", default="", metavar="CMD", help="Makes the guest stand still, here.")
@click.option("--start", default="", metavar="CMD", help="Makes it run, on the other host.")
@click.option(
    "--roll-back", default="", metavar="CMD", help="Makes it run here again if anything fails."
)
@click.option("--domain", default="", metavar="NAME", help="The guest is this domain of libvirt.")
@click.option(
    "--leave-by",
    type=click.Choice([str(each) for each in Leaving]),
    default=str(Leaving.SHUTDOWN),
    show_default=True,
    help="With --domain: shut it down, or save its memory, which goes over too.",
)
@click.option("--live", is_flag=True, help="The guest's memory moves too, by QEMU: no boot.")
@click.option(
    "--qmp", default="", metavar="SOCKET", help="With --live: QEMU's monitor, or HOST:PORT."
)
@click.option(
    "--incoming", default="", metavar="CMD", help="With --live: starts the QEMU that waits there."
)
@click.option("--uri", default="", metavar="URI", help="With --live: where that one listens.")
@click.option("--quiesced", is_flag=True, help="Nobody uses the volumes: there is no guest.")
@click.option(
    "--revert",
    is_flag=True,
    help="HOST has an older state, as after a migration: send what differs.",
)
@click.option("--verify", is_flag=True, help="Compare both sides before it is started there.")
@click.option("--snapshot-size", default="", metavar="SIZE", help="Room for each thick snapshot.")
@click.option(
    "--compress", default="auto", show_default=True, help="auto, none, zstd or zstd:LEVEL."
)
@click.option("--bwlimit", metavar="RATE", help="Most bytes a second, but for the last pass.")
@click.option("-n", "--dry-run", is_flag=True, help="Check both hosts; do nothing.")
@click.option("--resume", is_flag=True, help="Go on with what died, as it was begun.")
@click.option("--abort", is_flag=True, help="Wake the guest if need be, and clean up both hosts.")
@with_peer_options
@with_progress
@with_state_dir
@click.pass_context
def command(
    context: click.Context,
    /,
    places: tuple[str, ...],
    resume: bool,
    abort: bool,
    dry_run: bool,
    state_dir: Path,
    as_json: bool,
    quiet: bool,
    progress: ProgressWish,
    **options: Any,
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
    voice = _Steps(shown, as_json=as_json, quiet=quiet)
    if resume or abort:
        reaching = PEER_OPTIONS if abort else frozenset()
        if len(places) != 1 or resume == abort or dry_run or _typed(context, reaching):
            raise UsageError(
                "--resume and --abort take one VOLUME; all else is as the migration was begun, but "
                "--abort may be told how a host is reached that no note tells of"
            )
        migration = _earlier(context, places[0], state_dir, voice, abort=abort)
    else:
        words = [*_typed(context), *places]
        migration = _prepared(places, words, options, state_dir, voice)
    if abort:
        voice.done(migration.abort())
        say("cleaned up: no snapshot of ours is left here, nor what we made there")
    elif dry_run:
        voice.done(migration.check())
        say("both hosts are ready; nothing was done")
    else:
        report = voice.done(migration.done())
        _show(report, as_json=as_json, quiet=quiet)


class _Steps(Voice):
    """Speaks of the steps of a migration, unless it is to be quiet."""

    def tell(self, text: str) -> None:
        """Say a line, in the place of a bar."""
        if not self.quiet:
            Voice.tell(self, text)


def _earlier(
    context: click.Context, place: str, state_dir: Path, voice: Voice, *, abort: bool
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
        if _typed(context):
            raise UsageError(f"how {place} was being migrated is known: give nothing else")
        with command.make_context("migrate", list(words), parent=context.parent) as earlier:
            options = earlier.params
        return _prepared(options["places"], words, options, state_dir, voice)
    moves = [moved_to(volume, where) for where in places_of(volume).values()]
    if not moves or not abort:
        raise NotFoundError(f"no migration of {place} was begun and not finished here")
    means = _means(context.params, state_dir, voice)
    far = FarHost(moves[0].where, means.options, voice.run)
    nobody = CommandGuest("", "", "", far, voice.run)
    return Migration(MigrationRequest((moves[0],), means), nobody, voice.run)


def _prepared(
    places: Sequence[str],
    words: Sequence[str],
    options: Mapping[str, Any],
    state_dir: Path,
    voice: Voice,
) -> Migration:
    """Look at the volumes of this host.

    Raises:
        UsageError: If the options do not fit each other.
        RefusedError: If they are not there.
    """
    moves = _moves(places, options)
    kind = _kind_of_guest(options)
    means = _means(options, state_dir, voice)
    request = MigrationRequest(
        moves=tuple(moves),
        means=means,
        words=tuple(words),
        max_downtime=options["max_downtime"],
        go_anyway=options["on_no_converge"] == "go",
        compare=options["revert"],
        verify=options["verify"],
        store=parse_size(options["snapshot_size"]) if options["snapshot_size"] else 0,
    )
    guest = _guest(kind, moves, options, means, voice.run)
    return Migration(request, guest, voice.run)


def _means(options: Mapping[str, Any], state_dir: Path, voice: Voice) -> Means:
    limiter, followers = limiter_for(options["bwlimit"], as_json=voice.as_json)
    voice.shown += followers
    return Means(
        state_dir=state_dir,
        options=peer_options(options, as_json=voice.as_json),
        compression=CompressionChoice.parse(options["compress"]),
        limiter=limiter,
    )


# Each way to know the guest, with what belongs to it alone and what it cannot do without.
_GUESTS: Final = {
    "live": (("qmp", "incoming", "uri"), ("qmp", "incoming", "uri")),
    "domain": ((), ()),
    "pause": (("start", "roll_back"), ("roll_back",)),
    "quiesced": (("start",), ()),
}


def _kind_of_guest(options: Mapping[str, Any]) -> str:
    """Return how the guest is known.

    Raises:
        UsageError: If that is not clear, or something is missing.
    """
    kinds = [kind for kind in _GUESTS if options[kind]]
    if not kinds:
        raise UsageError(
            "who makes the guest stand still? give --domain NAME, or --live, or --pause and "
            "--roll-back; without a guest, say --quiesced"
        )
    if len(kinds) > 1:
        raise UsageError(f"--{kinds[0]} and --{kinds[1]} exclude each other")
    (kind,) = kinds
    allowed, needed = _GUESTS[kind]
    others = {name for names, _ in _GUESTS.values() for name in names} - set(allowed)
    for name in sorted(others):
        if options[name]:
            raise UsageError(f"--{_typed_as(name)} does not go with --{kind}")
    for name in needed:
        if not options[name]:
            raise UsageError(f"--{kind} needs --{_typed_as(name)}")
    return kind


def _typed_as(name: str) -> str:
    return name.replace("_", "-")


def _guest(
    kind: str, moves: Sequence[Move], options: Mapping[str, Any], means: Means, run: Run
) -> Guest:
    far = FarHost(moves[0].where, means.options, run)
    if kind == "live":
        return LiveGuest(
            options["qmp"],
            options["incoming"],
            options["uri"],
            options["max_downtime"] / 2,
            far,
            run,
        )
    if kind == "domain":
        disks = {f"/dev/{'/'.join(_names_of(move.source))}": move.where.path for move in moves}
        leaving = Leaving(options["leave_by"])
        return DomainGuest(options["domain"], leaving, disks, means.state_dir / "lvm", far, run)
    return CommandGuest(options["pause"], options["start"], options["roll_back"], far, run)


def _moves(places: Sequence[str], options: Mapping[str, Any]) -> list[Move]:
    """Tell the volumes from the host.

    Raises:
        UsageError: If they do not fit each other.
    """
    *sources, target = places
    found = _PLACE.fullmatch(target)
    if not sources or found is None:
        raise UsageError("give VOLUME... and then HOST:VG/LV, or HOST:VG for several")
    if len(sources) > 1 and found["name"]:
        raise UsageError("several volumes go to HOST:VG, each under its own name")
    if options["revert"] and options["create"]:
        raise UsageError("--revert goes to volumes that are there; leave --create")
    if options["pool"] and not options["create"]:
        raise UsageError("--pool is where --create makes the volumes")
    moves = []
    for source in sources:
        group, name = _names_of(source)
        wish = LandingWish(
            found["group"] or group,
            found["name"] or name,
            create=options["create"],
            pool=options["pool"],
        )
        host = found["host"].strip("[]")
        where = Remote(host, f"/dev/{wish.group}/{wish.name}", found["user"] or "")
        moves.append(Move(source, where, wish))
    return moves


def _names_of(source: str) -> tuple[str, str]:
    words = source.removeprefix("/dev/").split("/")
    if len(words) == 2 and words[0] != "mapper":
        return words[0], words[1]
    volume = lvm.volume_at(source)
    if volume is None:
        raise UsageError(f"{source} is no VG/LV")
    return volume.group, volume.name


def _typed(context: click.Context, without: Collection[str] = ()) -> list[str]:
    """Return the options that were typed, so that they can be typed again."""
    words: list[str] = []
    for parameter in context.command.params:
        name = parameter.name or ""
        typed = context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
        if not isinstance(parameter, click.Option) or not typed or name in {*_NOT_KEPT, *without}:
            continue
        value = context.params[name]
        words += [parameter.opts[-1]] if parameter.is_flag else [parameter.opts[-1], str(value)]
    return words


_NOT_KEPT = {
    "resume",
    "abort",
    "dry_run",
    "as_json",
    "quiet",
    "progress_fd",
    "progress_interval",
    "state_dir",
}


def _show(report: MigrationReport, *, as_json: bool, quiet: bool) -> None:
    if as_json:
        event("migrated", **report_values(report))
        return
    if quiet:
        return
    say("round   changed     on the wire        took   snapshot full")
    for each in report.rounds:
        last = each.number == len(report.rounds) - 1
        full = "" if last else f"{each.filled:.0f} %"
        say(
            f"{'last' if last else each.number:>5}{size_text(each.covered):>11}"
            f"{size_text(each.wire):>14}{duration_text(each.seconds):>12}{full:>12}   "
            f"{_bar(each, report.rounds)}"
        )
    parts = [
        f"{seconds:.1f} s {what}"
        for what, seconds in asdict(report.downtime).items()
        if round(seconds, 1)
    ]
    say(
        f"migrated in {duration_text(report.seconds)}; the guest stood still for "
        f"{report.downtime.total:.1f} s" + (f": {', '.join(parts)}" if len(parts) > 1 else "")
    )


def _bar(one: Round, rounds: Sequence[Round]) -> str:
    """Return a bar for the bytes of a round, in powers, or all but the first would be dots."""
    most = max(math.log2(each.covered + 1) for each in rounds) or 1.0
    return "#" * round(_PLOT_COLUMNS * math.log2(one.covered + 1) / most)
