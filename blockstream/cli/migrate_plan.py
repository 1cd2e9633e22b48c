"""From the words of a `migrate` to the migration."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from blockstream.cli.bwlimit import limiter_for
from blockstream.cli.migrate_options import MigrateGroups, ThereOptions
from blockstream.cli.voice import Voice
from blockstream.errors import UsageError
from blockstream.jobs.migration.domain import DomainGuest
from blockstream.jobs.migration.guests import CommandGuest, FarHost, Guest
from blockstream.jobs.migration.live import LiveGuest
from blockstream.jobs.migration.migrate import Migration, MigrationRequest
from blockstream.jobs.migration.target_volume import LandingWish
from blockstream.jobs.migration.volume import Means, Move
from blockstream.linux import lvm
from blockstream.locations.ssh import USER, Remote
from blockstream.pipeline.compression import CompressionChoice
from blockstream.run import Run

_PLACE = re.compile(
    rf"(?:(?P<user>{USER})@)?(?P<host>\[[0-9A-Za-z:.%_-]+\]|[A-Za-z0-9._][A-Za-z0-9._-]*):"
    r"(?:/dev/)?(?:(?P<group>[A-Za-z0-9+_.][A-Za-z0-9+_.-]*)"
    r"(?:/(?P<name>[A-Za-z0-9+_.][A-Za-z0-9+_.-]*))?)?"
)


def prepared(
    places: Sequence[str],
    words: Sequence[str],
    options: MigrateGroups,
    state_dir: Path,
    voice: Voice,
) -> Migration:
    """Look at the volumes of this host.

    Args:
        places: The volumes, and where they go.
        words: All of the command line that is needed to go on after a crash.
        options: How.
        state_dir: Where is noted what was begun.
        voice: Who speaks.

    Raises:
        UsageError: If the options do not fit each other.
        RefusedError: If they are not there.
    """
    moves = _moves(places, options.there)
    kind = _kind_of_guest(options)
    means = means_of(options, state_dir, voice)
    request = MigrationRequest(
        moves=tuple(moves),
        means=means,
        words=tuple(words),
        max_downtime=options.rounds.max_downtime,
        go_anyway=options.rounds.on_no_converge == "go",
        compare=options.there.revert,
        verify=options.rounds.verify,
        store=options.rounds.snapshot_size,
    )
    guest = _guest(kind, moves, options, means, voice.run)
    return Migration(request, guest, voice.run)


def means_of(options: MigrateGroups, state_dir: Path, voice: Voice) -> Means:
    """Return how the volumes travel."""
    limiter, followers = limiter_for(options.rounds.bwlimit, as_json=voice.as_json)
    voice.shown += followers
    return Means(
        state_dir=state_dir,
        options=options.remote.peer(as_json=voice.as_json),
        compression=CompressionChoice.parse(options.rounds.compress),
        limiter=limiter,
    )


# Each way to know the guest, with what belongs to it alone and what it cannot do without.
_GUESTS: Final = {
    "--live": (("--qmp", "--incoming", "--uri"), ("--qmp", "--incoming", "--uri")),
    "--domain": ((), ()),
    "--pause": (("--start", "--roll-back"), ("--roll-back",)),
    "--quiesced": (("--start",), ()),
}


def _kind_of_guest(options: MigrateGroups) -> str:
    """Return the option by which the guest is known.

    Raises:
        UsageError: If that is not clear, or something is missing.
    """
    kinds = [kind for kind in _GUESTS if options.given(kind)]
    if not kinds:
        raise UsageError(
            "who makes the guest stand still? give --domain NAME, or --live, or --pause and "
            "--roll-back; without a guest, say --quiesced"
        )
    if len(kinds) > 1:
        raise UsageError(f"{kinds[0]} and {kinds[1]} exclude each other")
    (kind,) = kinds
    allowed, needed = _GUESTS[kind]
    others = {flag for flags, _ in _GUESTS.values() for flag in flags} - set(allowed)
    wrong = options.given(*sorted(others))
    if wrong:
        raise UsageError(f"{wrong} does not go with {kind}")
    for flag in needed:
        if not options.given(flag):
            raise UsageError(f"{kind} needs {flag}")
    return kind


def _guest(
    kind: str, moves: Sequence[Move], options: MigrateGroups, means: Means, run: Run
) -> Guest:
    far, given = FarHost(moves[0].where, means.options, run), options.guest
    if kind == "--live":
        most = options.rounds.max_downtime / 2
        return LiveGuest(given.qmp, given.incoming, given.uri, most, far, run)
    if kind == "--domain":
        disks = {f"/dev/{'/'.join(_names_of(move.source))}": move.where.path for move in moves}
        folder = means.state_dir / "lvm"
        return DomainGuest(given.domain, given.leave_by, disks, folder, far, run)
    return CommandGuest(given.pause, given.start, given.roll_back, far, run)


def _moves(places: Sequence[str], there: ThereOptions) -> list[Move]:
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
    if there.revert and there.create:
        raise UsageError("--revert goes to volumes that are there; leave --create")
    if there.pool and not there.create:
        raise UsageError("--pool is where --create makes the volumes")
    moves = []
    for source in sources:
        group, name = _names_of(source)
        wish = LandingWish(
            found["group"] or group,
            found["name"] or name,
            create=there.create,
            pool=there.pool,
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
