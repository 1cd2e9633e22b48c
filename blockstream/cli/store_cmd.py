"""`blockstream store`."""

import contextlib
import functools
import json
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import asdict, fields
from itertools import groupby
from pathlib import Path

import click

from blockstream.cli.command_group import CommandGroup
from blockstream.cli.console import emit, emit_result, say, show
from blockstream.cli.foreground import done
from blockstream.cli.location_types import PLACE
from blockstream.cli.options import ProgressWish, cleared, reporters, with_json, with_progress
from blockstream.cli.store_access import StoreAccess, with_store_access
from blockstream.cli.stores import (
    check_doubts,
    is_store,
    missing_disks,
    opened_objects,
    opened_store,
    place_of,
    show_strays,
    whole_store,
)
from blockstream.errors import (
    NotAllowedError,
    NotFoundError,
    PartlyDoneError,
    RefusedError,
    StoreDamagedError,
    StoreError,
    UsageError,
)
from blockstream.interfaces import Objects
from blockstream.locations.interface import opened_source
from blockstream.locations.registry import disk_of
from blockstream.locations.store import store_place
from blockstream.repository.compaction import Compacted, compact
from blockstream.repository.healing import heal
from blockstream.repository.keys import StoreHeader, StoreKeys
from blockstream.repository.memory import Memory
from blockstream.repository.pins import Pins
from blockstream.repository.policy import Role, policy
from blockstream.repository.prune import Pruned, prune
from blockstream.repository.repair import Repaired, repair
from blockstream.repository.repository import Repository, StoredDisk, now_text
from blockstream.repository.retention import parse_rules
from blockstream.repository.verify import Verified, verify_disk
from blockstream.run import Run
from blockstream.words import counted, size_text

_MOST_EXTENTS = 5


@click.group("store", cls=CommandGroup, short_help="Make and look after a store of restore points.")
def command() -> None:
    """Make and look after a STORE: a place for restore points of any number of disks.

    STORE is dir:PATH, a folder on a disk of this host, a USB disk or NFS; or s3://BUCKET/PREFIX, on
    AWS or another server that speaks S3. Credentials come as for the aws command: from the
    environment, ~/.aws, or the instance.

    \b
    Examples:
      blockstream store init dir:/var/backups/blockstream
      blockstream send /dev/vg/vm dir:/var/backups/blockstream/vm
      blockstream points dir:/var/backups/blockstream/vm
      blockstream restore dir:/var/backups/blockstream/vm@last /dev/vg/vm
      blockstream store verify dir:/var/backups/blockstream --percent 5
      blockstream store prune dir:/var/backups/blockstream --keep hourly=24,daily=30
      blockstream store init s3://bucket/backups --endpoint-url https://s3.example.com
    """  # noqa: D301


@command.command("init", short_help="Make a store, once.")
@click.argument("store", type=PLACE)
@click.option(
    "--encrypt-to",
    "recipients",
    multiple=True,
    metavar="RECIPIENT",
    help="Encrypt all that is saved, for who can open it: age1..., an ssh public key, or kms:ARN. "
    "May be given several times.",
)
@click.option(
    "--anew", is_flag=True, help="Make it although this host has used another store in that place."
)
@with_store_access
def init(store: str, recipients: tuple[str, ...], anew: bool, access: StoreAccess) -> None:
    """Make a STORE, once; its bucket must be there.

    With --encrypt-to, whoever reads the bucket or the folder sees names and sizes only. Every
    command needs an --identity then, or a key of KMS that it may use.
    """
    place = whole_store(store)
    outer = place.rpartition("/")[0]
    if outer.startswith("dir:") and is_store(outer, access):
        raise RefusedError(
            f"{place} is the name of a disk of the store {outer}; nothing was made; choose a "
            "folder that is in no store"
        )
    with opened_objects(place, access) as objects:
        if not anew and Memory(access.state_dir).has_used(objects.name) and _is_empty(objects):
            raise RefusedError(
                f"this host has used a store in {objects.name} that is not there now; nothing was "
                "made; is what it lies on mounted? --anew makes another one all the same"
            )
        header = Repository.create(objects, recipients)
        name = objects.name
        if not header.encrypted:  # else its key is remembered, when it is used
            with contextlib.suppress(RefusedError):  # without a state directory, nothing is
                Memory(access.state_dir).trust(Repository(objects))
    say(f"{name} is a store now; `blockstream send DISK {name}/NAME` saves a disk")
    if recipients:
        say("Whoever loses every identity that opens it has lost what it holds: keep one elsewhere")


def _is_empty(objects: Objects) -> bool:
    """Tell whether there is nothing of a store, not even a damaged one."""
    try:
        return not StoreHeader.is_there(objects)
    except StoreDamagedError:
        return False


@command.command("verify", short_help="Read what points are made of.")
@click.argument("place", metavar="STORE[/DISK]", type=PLACE)
@click.option("--newest", is_flag=True, help="Only what the newest point is made of.")
@click.option(
    "--percent",
    type=click.FloatRange(0, 100, min_open=True),
    default=100.0,
    show_default=True,
    help="How much of the frames is read, chosen by chance.",
)
@with_store_access
@with_progress
def verify(
    place: str,
    newest: bool,
    percent: float,
    access: StoreAccess,
    as_json: bool,
    quiet: bool,
    progress: ProgressWish,
) -> None:
    """Read what the points of a disk, or of all disks, are made of.

    What is damaged is named, with the ranges of the disk that it holds, and so are the points that
    are whole all the same. Exit 12 if anything is, or if there is data of a newer point without a
    manifest; 19 if this host has seen a newer point before.
    """
    shown = reporters("verify", as_json=as_json, quiet=quiet, progress=progress)
    found: list[Verified] = []
    doubts = list[str]()
    run = Run()

    async def verified(disk: StoredDisk) -> None:
        found.append(await verify_disk(disk, run, newest=newest, part=percent / 100))
        whole = not found[-1].damages
        doubt = await run.ask(lambda: Memory(access.state_dir).doubt(disk)) if whole else ""
        doubts.extend([doubt] if doubt else [])
        cleared(shown)
        _show_verified(found[-1], as_json=as_json, quiet=quiet)

    failed = done(_with_each(place, access, verified, run), run, shown)
    broken = [each for each in found if each.damages or each.broken or each.unnamed]
    if broken:
        names = ", ".join(each.disk for each in broken)
        raise StoreDamagedError(
            f"{place}: what is kept of {names} is damaged, or incomplete; see the lines above"
        )
    _check_all_done(place, failed)
    check_doubts([*doubts, *_gone(place, access)])


def _gone(place: str, access: StoreAccess) -> list[str]:
    """Name what lies among the disks of a store; return what is to be said of missing ones."""
    whole = whole_store(place)
    if not is_store(whole, access):
        return []
    with opened_store(whole, access) as repository:
        show_strays(repository.strays())
        return missing_disks(repository, access)


@command.command("prune", short_help="Hide, then delete, the points that no rule keeps.")
@click.argument("place", metavar="STORE[/DISK]", type=PLACE)
@click.option(
    "--keep",
    required=True,
    metavar="RULES",
    help="The newest point of so many periods: last, hourly, daily, weekly, monthly, yearly=N.",
)
@click.option(
    "--grace",
    type=click.FloatRange(0),
    default=24.0,
    show_default=True,
    metavar="HOURS",
    help="For how long a pruned point is only hidden, because somebody may be restoring it.",
)
@click.option("-n", "--dry-run", is_flag=True, help="Say what would be pruned; write nothing.")
@with_store_access
@with_json
def prune_points(
    place: str, keep: str, grace: float, dry_run: bool, access: StoreAccess, as_json: bool
) -> None:
    """Hide the points of a disk, or of all disks, that no rule keeps, and delete them later.

    What a kept point is made of is never deleted. The newest point is always kept. Of points that
    are damaged, as far as is known, as many sound ones are kept besides (exit status 12).
    """
    rules = parse_rules(keep)

    memory, run = Memory(access.state_dir), Run()
    go_on = functools.partial(run.check, "the same command goes on")

    def prune_disk(disk: StoredDisk) -> Pruned:
        memory.check(disk)
        return prune(disk, rules, grace=grace * 3600, dry_run=dry_run, check=go_on)

    async def pruned(disk: StoredDisk) -> None:
        result = await run.carry(lambda: prune_disk(disk))
        if as_json:
            from blockstream.events import Pruned as Event

            emit(Event(**asdict(result)))
        else:
            _say_pruned(result, dry_run=dry_run)
        if result.damaged:
            seq, lack = next(iter(result.damaged.items()))
            raise StoreDamagedError(
                f"{lack}; point {seq} of {disk.name} cannot be restored as a whole, so as many "
                "sound ones are kept besides; `store repair` replaces what is damaged, from a copy "
                "of the store or from a disk, and a full copy, sent without --base, needs none of "
                "it"
            )

    _check_all_done(place, done(_with_each(place, access, pruned, run), run))
    check_doubts(_gone(place, access))


def _say_pruned(result: Pruned, *, dry_run: bool) -> None:
    text = f"{result.disk}: kept {_numbers(result.kept)}; "
    if dry_run:
        say(text + f"would be hidden {_numbers(result.hidden)}; nothing was done")
        return
    text += f"hidden {_numbers(result.hidden)}; deleted {_numbers(result.deleted)}, "
    say(text + f"{size_text(result.freed)}")
    if result.doubtful:
        say(
            f"  {counted(result.doubtful, 'object')} that no point names: deleted by a later "
            "prune, if whoever wrote them gives no sign of life until then"
        )
    if result.uploads:
        say(f"  uploads of runs that died were not looked for: {result.uploads}")
    if result.unfinished:
        say(f"  {result.unfinished} uploads of runs that died were given up")
    if result.locked:
        say(f"  {result.locked} objects are locked by the store until later")
    show_strays(result.strays)


@command.command("compact", short_help="Let the newest point need no older one.")
@click.argument("place", metavar="STORE[/DISK]", type=PLACE)
@with_store_access
def compact_points(place: str, access: StoreAccess) -> None:
    """Let the newest point need no other point, so that older ones can be pruned.

    Packs of which it needs less than half are given up: what it needs is copied into new ones, by
    the server of a bucket or the file system where these can, and by this host where the store is
    encrypted. Until the older points are pruned, that takes room in addition.
    """
    memory, run = Memory(access.state_dir), Run()

    def compact_disk(disk: StoredDisk) -> Compacted | None:
        memory.check(disk)
        made = compact(disk, check=run.check)
        if made is not None:
            memory.remember(disk, made.point)
        return made

    async def compacted(disk: StoredDisk) -> None:
        made = await run.carry(lambda: compact_disk(disk))
        if made is None:
            say(f"{disk.name}: its newest point needs no other")
            return
        text = f"{disk.name}: point {made.point.seq} is {made.point.state}, and needs no other"
        packs = f"{made.rewritten} pack{'s' if made.rewritten > 1 else ''}"
        copied = f"; {size_text(made.copied)} of {packs} copied within the store"
        say(text + (copied if made.rewritten else ""))

    _check_all_done(place, done(_with_each(place, access, compacted, run), run))


@command.command("repair", short_help="Replace what is damaged, from a copy or a disk.")
@click.argument("place", metavar="STORE[/DISK]", type=PLACE)
@click.option(
    "--from",
    "other",
    required=True,
    metavar="STORE|DISK",
    help="A copy of the store; or a disk that holds what was saved yet, as the source may.",
)
@with_store_access
@with_progress
def repair_points(
    place: str, other: str, access: StoreAccess, as_json: bool, quiet: bool, progress: ProgressWish
) -> None:
    """Replace what is damaged in a STORE by what a copy of it or a DISK holds.

    A copy is what rsync or replication made. A DISK is one of this host; of it, those ranges are
    taken that have not changed since: their digests tell. That heals one STORE/DISK at a time.

    Everything is read first, and again afterwards. Exit 12 if something stays damaged.

    \b
    Examples:
      blockstream store repair dir:/var/backups/blockstream --from dir:/mnt/copy
      blockstream store repair dir:/var/backups/blockstream/vm --from /dev/vg/vm
    """  # noqa: D301
    shown = reporters("repair", as_json=as_json, quiet=quiet, progress=progress)
    damaged, run = list[str](), Run()

    async def repaired(disk: StoredDisk) -> None:
        if store_place(other, disk=False) is not None:
            opening = opened_store(whole_store(other), access)
            async with run.within(opening, harmless=True) as theirs:
                result = await repair(disk, theirs.disk(disk.name), run)
        elif whole_store(place) == disk.objects.name:
            raise UsageError(
                f"a disk heals one STORE/DISK, as {place}/{disk.name}; nothing was done"
            )
        else:
            async with run.within(opened_source(disk_of(other)), harmless=True) as source:
                result = await heal(disk, source, run)
        cleared(shown)
        _show_repaired(result, other, as_json=as_json)
        if result.after is not None:
            _show_verified(result.after, as_json=as_json, quiet=quiet)
            damaged.extend([disk.name] if result.after.damages or result.after.unnamed else [])

    failed = done(_with_each(place, access, repaired, run), run, shown)
    if damaged:
        stays = "stays" if len(damaged) == 1 else "stay"
        raise StoreDamagedError(
            f"{place}: {', '.join(damaged)} {stays} damaged; see the lines above"
        )
    _check_all_done(place, failed)


def _show_repaired(result: Repaired, other: str, *, as_json: bool) -> None:
    if as_json:
        from blockstream.events import Repaired as Event

        values = {each.name: getattr(result, each.name) for each in fields(Event)}
        emit(Event(**values))
        return
    for key in result.replaced:
        say(f"{result.disk}: {key} was replaced")
    for text in dict.fromkeys(result.refusals):
        say(text)
    if result.healed or result.lost:
        text = f"{result.disk}: made anew from {other}: {counted(result.healed, 'frame')}"
        say(text + (f"; of {result.lost} more it holds something else" if result.lost else ""))
    for key in result.filled:
        say(f"{result.disk}: {key} is no stream for `recv` any more; to restore takes only frames")


@command.command("policy", short_help="Print what AWS must allow a key.")
@click.argument("store", type=PLACE)
@click.option(
    "--role",
    type=click.Choice([str(role) for role in Role]),
    default=str(Role.WRITER),
    show_default=True,
    help="writer: send; reader: points, restore, verify; pruner: prune, compact.",
)
def show_policy(store: str, role: str) -> None:
    """Print the least that AWS must allow a key for a STORE in S3.

    A writer's key can neither delete nor hide points. But S3 lets whoever may write overwrite: only
    a bucket with versioning, or Object Lock, outlives a writer's key that was stolen. `store init`
    needs a key that may write all of it.
    """
    place = whole_store(store)
    if not place.startswith("s3://"):
        raise UsageError(f"{store} is no store in S3: s3://BUCKET/PREFIX is one")
    bucket, _, prefix = place.removeprefix("s3://").partition("/")
    show(json.dumps(policy(bucket, prefix.strip("/"), Role(role)), indent=2) + "\n")


@command.command("trust", short_help="Take the store that lies there now for the right one.")
@click.argument("store", type=PLACE)
@with_store_access
def trust(store: str, access: StoreAccess) -> None:
    """Take the STORE that lies there now for the right one, on this host.

    The first encrypted store that is used in a place is remembered. Another one there is refused,
    because whoever may write the place could have put it there: with a key of his own. How far each
    disk was is remembered, too; `send` and `prune` refuse a store that is older than that.
    """
    with opened_objects(whole_store(store), access) as objects:
        repository = Repository(objects, access.identity)
        Pins(access.state_dir).trust(repository)
        Memory(access.state_dir).trust(repository)
    if repository.encrypted:
        say(f"{objects.name} is trusted here; its fingerprint is {repository.fingerprint}")
    else:
        say(f"{objects.name} is trusted here, and is not encrypted: anybody can make another")


@command.group("key")
def key() -> None:
    """Say who can open an encrypted STORE.

    \b
    Examples:
      blockstream store key new /root/backup.key
      blockstream store init s3://bucket/backups --encrypt-to age1...
      blockstream store key add s3://bucket/backups "$(cat admin.pub)" --identity /root/backup.key
    """  # noqa: D301


@key.command("new", short_help="Make an age identity, and print its recipient.")
@click.argument("file", type=click.Path(path_type=Path))
def new_key(file: Path) -> None:
    """Make an age identity in FILE, and print its recipient."""
    show(StoreKeys.new_identity(file, now_text()) + "\n")
    say(f"{file} opens what is encrypted for it: keep a copy on another host")


@key.command("list", short_help="List who can open a store.")
@click.argument("store", type=PLACE)
@with_store_access
@with_json
def list_keys(store: str, access: StoreAccess, as_json: bool) -> None:
    """List who can open a STORE."""
    with opened_objects(whole_store(store), access) as objects:
        for each in StoreKeys.of(objects).listed():
            if as_json:
                from blockstream.events import Key

                emit_result(Key(each.id, each.recipient, each.created))
            else:
                show(f"{each.created}   {each.recipient}\n")


@key.command("add", short_help="Let somebody open a store, too.")
@click.argument("store", type=PLACE)
@click.argument("recipient")
@with_store_access
def add_key(store: str, recipient: str, access: StoreAccess) -> None:
    """Let RECIPIENT open a STORE, too; who does so must be able to."""
    with opened_objects(whole_store(store), access) as objects:
        made = StoreKeys.of(objects).add(recipient, access.identity, now_text())
    say(f"{made.recipient} can open it now")


@key.command("remove", short_help="Take somebody's key away.")
@click.argument("store", type=PLACE)
@click.argument("recipient")
@with_store_access
def remove_key(store: str, recipient: str, access: StoreAccess) -> None:
    """Take the key of RECIPIENT away.

    The store's own key stays the same: who has opened the store once may have kept it. Against
    that, only a new store helps.
    """
    with opened_objects(whole_store(store), access) as objects:
        StoreKeys.of(objects).remove(recipient)
    say(f"{recipient} is given the key no more")


async def _with_each(
    place: str, access: StoreAccess, work: Callable[[StoredDisk], Awaitable[None]], run: Run
) -> list[str]:
    """Do something with each disk that is meant; return those of several where it failed.

    What is wrong with one is not in others' way.
    """
    disks, failed = await run.ask(lambda: _disks_of(place, access)), []
    if not disks:
        say(f"{place} has no disk yet")
    for store, name in disks:
        try:
            async with run.within(opened_store(store, access), harmless=True) as repository:
                await work(repository.disk(name))
        except (StoreError, StoreDamagedError, RefusedError, NotAllowedError) as error:
            if len(disks) == 1:
                raise
            say(f"{name}: {error}")
            failed.append(name)
    return failed


def _check_all_done(place: str, failed: Sequence[str]) -> None:
    """End with the disks that failed.

    Raises:
        PartlyDoneError: If there are any.
    """
    if failed:
        names = ", ".join(failed)
        raise PartlyDoneError(f"{place}: {names} failed, see the lines above; the rest is done")


def _disks_of(place: str, access: StoreAccess) -> list[tuple[str, str]]:
    """Return store and name of each disk that is meant.

    Raises:
        NotFoundError: If there is none of that name: whoever checks it each night mistyped it.
    """
    whole = whole_store(place)
    if is_store(whole, access):
        with opened_store(whole, access) as repository:
            return [(whole, name) for name in repository.disks()]
    one = place_of(place)
    with opened_store(one.store, access, one.disk) as repository:
        if one.disk not in repository.disks():
            raise NotFoundError(
                f"{one.store} has no point of {one.disk}; nothing was done; `blockstream points "
                f"{one.store}` lists its disks"
            )
    return [(one.store, one.disk)]


def _show_verified(found: Verified, *, as_json: bool, quiet: bool) -> None:
    if as_json:
        from blockstream.events import Checked

        emit(Checked(**asdict(found)))
        return
    # A pack that is gone is so for each of its frames.
    for (seq, text), same in groupby(found.damages, lambda damage: (damage.seq, damage.text)):
        say(f"point {seq} of {found.disk}: {text}")
        extents = _joined(extent for damage in same for extent in damage.extents)
        for offset, length in extents[:_MOST_EXTENTS]:
            say(f"  {size_text(length)} of the disk at offset {offset}")
        if len(extents) > _MOST_EXTENTS:
            say(f"  and {len(extents) - _MOST_EXTENTS} more")
    for owner in found.unnamed:
        say(
            f"{found.disk}: {owner} is newer than the newest point, and has no manifest: a run "
            "died, and the next `send` makes it good, or the manifest is lost"
        )
    show_strays(found.strays)
    if found.damages and not found.noted:
        say(
            f"{found.disk}: this key may not note what is damaged, so `points` and `store prune` "
            "do not know of it; a key that may write marks notes it"
        )
    if quiet and not (found.damages or found.unnamed):
        return
    whole, broken = _numbers(found.whole), _numbers(found.broken)
    text = f"{found.disk}: {size_text(found.checked)} read"
    if found.part < 1:
        text += (
            f", a sample of {found.part * 100:.3g} %; points in which it found no damage: {whole}"
        )
    else:
        text += f"; points that can be restored: {whole}"
    say(text + (f"; that cannot: {broken}" if found.broken else ""))


def _joined(extents: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return ranges of a disk, those that touch as one."""
    joined: list[tuple[int, int]] = []
    for offset, length in sorted(extents):
        if joined and sum(joined[-1]) == offset:
            joined[-1] = (joined[-1][0], joined[-1][1] + length)
        else:
            joined.append((offset, length))
    return joined


def _numbers(seqs: list[int]) -> str:
    """Return numbers of points as ranges."""
    parts: list[list[int]] = []
    for seq in sorted(seqs):
        if parts and seq == parts[-1][-1] + 1:
            parts[-1].append(seq)
        else:
            parts.append([seq])
    words = (f"#{p[0]}" if len(p) == 1 else f"#{p[0]} to #{p[-1]}" for p in parts)
    return ", ".join(words) or "none"
