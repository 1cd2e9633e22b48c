"""What `send` reads of a logical volume: a snapshot that it makes, and what changed since another.

A snapshot of ours is named `blockstream_ID_NUMBER`, where ID stands for the volume and the target,
so that whoever goes on with an unfinished transfer finds it again.
"""

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from blockstream.errors import (
    BlockstreamError,
    BusyError,
    InterruptedTransferError,
    LeftoverError,
    NotFoundError,
    OutcomeUnknownError,
    RefusedError,
    SnapshotInvalidError,
    SourceError,
    UsageError,
)
from blockstream.extents import ExtentMap
from blockstream.formats import thin_delta
from blockstream.formats.exception_store import exceptions, read_with
from blockstream.formats.extent_lists import ExtentList, Meaning
from blockstream.interfaces import Source
from blockstream.jobs.vmdk import opened_vmdk
from blockstream.linux import lvm
from blockstream.linux.files import kept_file
from blockstream.linux.lvm import Volume
from blockstream.linux.state_directory import make_directory
from blockstream.locations import is_nbd, open_export, open_source, vmdk_path
from blockstream.run import Run
from blockstream.sources.volume import VolumeSource, changed_since, flush
from blockstream.transfers.send import SendRequest, listing_of
from blockstream.words import duration_text
from blockstream_protocol import DEVICE_BYTES, Kind

_PREFIX = "blockstream_"
_OURS = re.compile(r"blockstream_([0-9a-f]{8})_(\d+)")
# Of a classic snapshot's origin, this much may change before it overflows, if nobody says more.
_STORE_PART = 5
_LEAST_STORE = 8 << 20
_UUID_BYTES = 64
_ALL_UNIT = 1 << 20
_EXTENT = 4 << 20  # LVM rounds up to its own extents


@dataclass(frozen=True, slots=True)
class SnapshotWish:
    """How a volume is read.

    Attributes:
        since: A snapshot of it: only what changed since then; `last` for the one that was kept.
        quiesced: Whether nobody writes the volume, so that it can be read itself.
        store: Bytes for a classic snapshot; 0 to decide by the volume's size.
        rotate: Keep the new snapshot for the next time, in place of the old one.
        target: Where it goes, so that each target has a snapshot of its own.
        delta: Of a VMDK, only what it holds itself, without its parents.
        outside: Follow names in a VMDK that lead out of its folder.
        base_or_nothing: Where the snapshot that was kept has overflowed, send nothing rather than
            all.
    """

    since: str = ""
    quiesced: bool = False
    store: int = 0
    rotate: bool = False
    target: str = ""
    delta: bool = False
    outside: bool = False
    base_or_nothing: bool = False

    @property
    def is_plain(self) -> bool:
        """Whether nothing was asked for that only a logical volume has."""
        return not (self.since or self.quiesced or self.store or self.rotate)


@contextlib.asynccontextmanager
async def opened_in(
    run: Run, request: SendRequest, wish: SnapshotWish, *, rehearsal: bool = False
) -> AsyncIterator[tuple[Source, SendRequest]]:
    """Open what is read, by threads; where nothing is made, nobody waits for them after a stop."""
    # Beside what finds out by itself what changed, a list is refused before it is read.
    if request.extents and not (request.bitmap or wish.delta or wish.since):
        listing = await run.ask(lambda: listing_of(request.extents))
        request = replace(request, listing=listing)
    harmless = is_nbd(request.source) or vmdk_path(request.source) is not None
    opening = opened(request, wish, rehearsal=rehearsal)
    async with run.within(opening, harmless=harmless) as found:
        yield found


@contextlib.contextmanager
def opened(
    request: SendRequest, wish: SnapshotWish, *, rehearsal: bool = False
) -> Iterator[tuple[Source, SendRequest]]:
    """Open what is read, and complete the request by what is sent of it.

    Args:
        request: What to send.
        wish: How a volume is read.
        rehearsal: Make no snapshot: nothing will be sent.

    Raises:
        UsageError: If something was asked for that only a logical volume, or a VMDK, has.
        BlockstreamError: As LVM, or whoever uses what was opened, fails.
    """
    if request.bitmap:
        with _tracked(request, wish) as found:
            yield found
        return
    image = vmdk_path(request.source)
    if image is None and (wish.delta or wish.outside):
        raise UsageError("--delta and --allow-outside are for vmdk:FILE")
    volume = _volume_at(request.source) if image is None else None
    if volume is None:
        if not wish.is_plain:
            raise UsageError(
                f"{request.source} {_why_no_volume(request.source)}: --since, --quiesced, "
                "--rotate and --snapshot-size are for logical volumes; nothing was sent"
            )
        if image is not None:
            with opened_vmdk(image, request, delta=wish.delta, outside=wish.outside) as found:
                yield found
            return
        began = time.time_ns()
        with contextlib.closing(open_source(request.source)) as source:
            yield source, replace(request, moment=began if source.is_still else None)
        return
    _check(volume, request, wish)
    with volume_held(volume, request.state_dir, alone=False):
        own_list = bool(request.extents or request.base)
        itself = rehearsal or wish.quiesced or own_list or not volume.is_written
        if request.resume is not None:
            reading = _resumed(volume, request)
        else:
            reading = _itself(volume, request, wish) if itself else _fresh(volume, request, wish)
        with reading as found:
            yield found


@contextlib.contextmanager
def _tracked(request: SendRequest, wish: SnapshotWish) -> Iterator[tuple[Source, SendRequest]]:
    """Read what the dirty bitmap of an export says has changed."""
    if not is_nbd(request.source):
        raise UsageError(f"--bitmap is for exports of NBD servers, which {request.source} is not")
    if request.extents or not wish.is_plain:
        raise UsageError("--bitmap tells what changed; leave --extents and --since out")
    if not request.base and request.resume is None:
        raise UsageError(
            "--bitmap tells what changed since it was begun: --base must name the state that the "
            "target holds since then; nothing was sent"
        )
    began = time.time_ns()
    with contextlib.closing(open_export(request.source, bitmap=request.bitmap)) as source:
        moment = began if source.is_still else None
        yield source, replace(request, changes=source.changes(), moment=moment)


def _volume_at(path: str) -> Volume | None:
    """Return the volume that is meant, where LVM is there and we may ask it."""
    if is_nbd(path) or os.geteuid() != 0 or shutil.which("lvs") is None:
        return None
    return lvm.volume_at(path)


def _why_no_volume(path: str) -> str:
    if is_nbd(path):
        return "is an export of an NBD server"
    if os.geteuid() != 0:
        return "is not asked of LVM, which needs root"
    if shutil.which("lvs") is None:
        return "is not asked of LVM, which is not installed"
    return "is no logical volume"


def _check(volume: Volume, request: SendRequest, wish: SnapshotWish) -> None:
    """Refuse what cannot be read, or makes no sense.

    Raises:
        RefusedError: If the volume cannot be read now.
        UsageError: If options contradict each other.
    """
    if wish.since and (request.base or request.extents or request.resume):
        raise UsageError("--since finds out base and changes; leave --base, --extents, --resume")
    if wish.rotate and (wish.quiesced or request.goal):
        raise UsageError("--rotate keeps a snapshot, whose uuid is the goal")
    if volume.suspended:
        raise RefusedError(
            f"{volume} is suspended, so reading it would hang; nothing was sent; "
            f"`dmsetup resume {volume.dm_path}` wakes it"
        )
    if volume.attributes[:1] in {"t", "T", "e"}:
        raise RefusedError(f"{volume} is a part of a thin pool, not a disk; nothing was sent")
    if volume.attributes[:1] == "O" or (volume.is_active and lvm.origin_merges(volume)):
        raise RefusedError(f"a snapshot is being merged into {volume}; nothing was sent")
    own_list = request.base or request.extents or request.resume
    if volume.is_snapshot and volume.is_written and not (wish.quiesced or own_list):
        raise RefusedError(
            f"{volume} is a snapshot that can be written, of which LVM makes no snapshot; nothing "
            f"was sent; give --quiesced if nobody writes it, or make it read-only: `lvchange -pr "
            f"{volume}`"
        )


@contextlib.contextmanager
def _itself(
    volume: Volume, request: SendRequest, wish: SnapshotWish
) -> Iterator[tuple[Source, SendRequest]]:
    """Read the volume itself, which nobody writes."""
    began = time.time_ns()
    with lvm.activated(volume) as active:
        last = remembered(request.state_dir, ident_of(volume, wish.target))
        notes = list[str]()
        older = _since(active, wish, last, notes) if wish.since else None
        if older is not None:
            flush(active)
        changes = changes_between(older, active, request.state_dir) if older else None
        watched = [older] if older is not None else []
        with contextlib.closing(VolumeSource(active, depends_on=watched)) as source:
            source.warnings += notes
            goal = request.goal or (active.uuid if source.immutable else "")
            base = older.uuid if older is not None else request.base
            moment = began if wish.quiesced or source.is_still else None
            moment = moment_of(active) if source.immutable else moment
            yield source, replace(request, base=base, goal=goal, changes=changes, moment=moment)


@contextlib.contextmanager
def _resumed(volume: Volume, request: SendRequest) -> Iterator[tuple[Source, SendRequest]]:
    """Read the snapshot that a token tells of, if it was kept; else the volume itself."""
    token = request.resume
    mine = [v for v in lvm.volumes(volume.group) if v.origin == volume.name]
    by_uuid = {each.uuid: each for each in mine}
    kept = by_uuid.get(token.goal) if token is not None else None
    older = by_uuid.get(token.base) if token is not None else None
    with lvm.activated(kept or volume) as active:
        changes = None
        if older is not None and not request.extents:
            changes = changes_between(older, active, request.state_dir)
        watched = [older] if older is not None else []
        with contextlib.closing(VolumeSource(active, depends_on=watched)) as source:
            moment = moment_of(kept) if kept is not None else None
            yield source, replace(request, changes=changes, moment=moment)
    if kept is not None and _OURS.fullmatch(kept.name):
        _remove_used([kept])


@contextlib.contextmanager
def _fresh(
    volume: Volume, request: SendRequest, wish: SnapshotWish
) -> Iterator[tuple[Source, SendRequest]]:
    """Read a snapshot that is made for it, or was, when the transfer was begun."""
    ident = ident_of(volume, wish.target)
    with _locked(request.state_dir, ident) as memory:
        notes = list[str]()
        older = _since(volume, wish, memory.last, notes) if wish.since else None
        ours, stale = _unfinished(volume, ident, older, memory.last, notes)
        made = False
        if ours is None:
            ours, made = make_ours(volume, ident, wish.store), True
        else:
            notes.append(
                f"this goes on with {ours}, which an earlier run made "
                f"{duration_text(max(0.0, time.time() - ours.created))} ago: what was written to "
                f"{volume} since is not sent"
            )
        try:
            with lvm.activated(ours) as snapshot:
                changes = changes_between(older, snapshot, request.state_dir) if older else None
                watched = [older] if older is not None else []
                with contextlib.closing(VolumeSource(snapshot, depends_on=watched)) as source:
                    source.warnings += notes
                    yield (
                        source,
                        replace(
                            request,
                            base=older.uuid if older is not None else "",
                            goal=request.goal or ours.uuid,
                            changes=changes,
                            moment=moment_of(ours),
                        ),
                    )
        except (InterruptedTransferError, OutcomeUnknownError) as error:
            text = f"the snapshot {ours} is kept, so that the same command goes on with it"
            raise type(error)(f"{error}; {text}") from error
        except BaseException:
            if made:
                with contextlib.suppress(BlockstreamError):
                    lvm.remove(ours)
            raise
        memory.note(ours.uuid)
        if not wish.rotate:
            stale.append(ours)
        elif older is not None and is_ours(older, ident):
            stale.append(older)
        _remove_used(stale)


def _remove_used(snapshots: list[Volume]) -> None:
    """Remove snapshots that are not needed any more.

    Raises:
        LeftoverError: If one cannot be removed; then the others are, all the same.
    """
    for snapshot, error in _not_removed(snapshots).items():
        raise LeftoverError(
            f"all was sent, but its snapshot {snapshot} stays, and grows: {error}; remove it with "
            "lvremove, or leave that to the next run of the same command"
        ) from error


def _not_removed(snapshots: list[Volume]) -> dict[Volume, BlockstreamError]:
    """Remove snapshots; return those that stay, and why."""
    left = {}
    for each in snapshots:
        try:
            lvm.remove(each)
        except BlockstreamError as error:
            left[each] = error
    return left


def tracked_changes(source: str, since: str, state_dir: Path) -> ExtentList | None:
    """Return what a snapshot says has changed in its volume since; None where none can say.

    Raises:
        BlockstreamError: As LVM fails, or the snapshot is not valid.
    """
    volume = _volume_at(source)
    if volume is None:
        return None
    try:
        older = lvm.of_origin(volume, since)
    except (NotFoundError, RefusedError):
        if Path(since).exists():
            return None  # two disks to be compared
        raise
    with lvm.activated(volume) as active:
        flush(active)
        return changes_between(older, active, state_dir)


def stored_changes(path: str, size: int) -> ExtentList:
    """Return what a file says that holds an exception store, or what thin_delta wrote.

    Args:
        path: The file.
        size: Bytes of the disk; 0 to take the end of the last chunk for it.

    Raises:
        NotFoundError: If it cannot be read.
        SourceError: If it is neither.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise NotFoundError(f"{path} cannot be read: {error.strerror}") from error
    size_or_all = size or DEVICE_BYTES // _ALL_UNIT * _ALL_UNIT
    if data.lstrip()[:1] == b"<":
        found = thin_delta.read(data, size_or_all)
    else:
        try:
            table = read_with(
                exceptions(len(data), size_or_all),
                lambda ranges: b"".join(data[start : start + length] for start, length in ranges),
            )
        except SourceError as error:
            raise SourceError(f"{path}: {error}; nothing is known of what changed") from error
        found = ExtentList(table.extents, Meaning.CHANGED, "exception store", None)
    if size:
        return found
    end = int((found.extents.offsets + found.extents.lengths).max(initial=0))
    extents = ExtentMap(found.extents.offsets, found.extents.lengths, found.extents.kinds, end)
    return replace(found, extents=extents)


def changes_between(older: Volume, newer: Volume, state_dir: Path) -> ExtentList:
    """Return what changed between a snapshot and a later one of the same volume, or the volume.

    Raises:
        SnapshotInvalidError: If a classic one is not valid.
        SourceError: If it cannot be told.
        NotFoundError: If somebody removed the older one.
        RefusedError: If somebody renamed or merges it, or holds the metadata of the pool.
    """
    try:
        return _changes_between(older, newer, state_dir)
    except SnapshotInvalidError:
        raise
    except SourceError:
        lvm.again(older)  # names what somebody else did to it
        raise


def _changes_between(older: Volume, newer: Volume, state_dir: Path) -> ExtentList:
    if not older.is_thin:
        found = changed_since(older)
        return ExtentList(found.extents, Meaning.CHANGED, "exception store", newer.size)
    pool = lvm.find(older.group, older.pool)
    with lvm.metadata_reserved(pool, state_dir / "lvm"):
        text = lvm.thin_delta(pool, older, newer)
    unmapped = Kind.DATA if lvm.shows_external_origin(newer) else Kind.ZERO
    return thin_delta.read(text, newer.size, unmapped=unmapped)


def remembered(state_dir: Path, ident: str) -> str:
    """Return the uuid of the snapshot that a target held last; empty for none."""
    try:
        return (state_dir / "lvm" / f"volume-{ident}").read_text()
    except FileNotFoundError:
        return ""


def _since(volume: Volume, wish: SnapshotWish, last: str, notes: list[str]) -> Volume | None:
    """Return the snapshot that the changes are counted from; None for a whole copy.

    Args:
        volume: What is sent.
        wish: What was asked for.
        last: Uuid of the snapshot that the target held last.
        notes: What people should know is added.

    Raises:
        NotFoundError: If there is none of that name.
        RefusedError: If it is none of this volume.
        SnapshotInvalidError: If it is not valid, and nothing is to be sent then.
    """
    if wish.since != "last":
        return lvm.of_origin(volume, wish.since)
    ident = ident_of(volume, wish.target)
    for each in lvm.volumes(volume.group):
        if each.origin == volume.name and is_ours(each, ident) and each.uuid == last:
            return None if each.is_invalid and _lost(each, wish, notes) else each
    if not wish.rotate:
        raise NotFoundError(
            f"no snapshot of {volume} was kept for this target; nothing was sent; --rotate keeps "
            "one, and begins with a whole copy"
        )
    return None


def _lost(kept: Volume, wish: SnapshotWish, notes: list[str]) -> bool:
    """Give up a snapshot that overflowed since the last time: all is sent again.

    Raises:
        SnapshotInvalidError: If nothing is to be sent then.
    """
    text = f"{kept}, which was kept for the next time, has overflowed"
    if wish.base_or_nothing:
        raise SnapshotInvalidError(
            f"{text}, so nothing is known of what changed; nothing was sent; without "
            "--on-lost-base fail all is sent again; --snapshot-size gives the next one more room"
        )
    stays = _not_removed([kept])
    gone = f"cannot be removed ({stays[kept]})" if stays else "was removed"
    notes.append(
        f"{text}, and {gone}: all is sent again; --snapshot-size gives the next one more room"
    )
    return True


def _unfinished(
    volume: Volume, ident: str, older: Volume | None, last: str, notes: list[str]
) -> tuple[Volume | None, list[Volume]]:
    """Return the snapshot that an unfinished transfer was made from, and what goes after this one.

    Others of it are removed, which is noted; those for which that fails are returned, too. What the
    target holds stays until it holds something newer.
    """
    found = [
        each
        for each in lvm.volumes(volume.group)
        if each.origin == volume.name and is_ours(each, ident)
    ]
    found = [each for each in found if older is None or each.uuid != older.uuid]
    useful, stale, kept = None, list[Volume](), list[Volume]()
    for each in sorted(found, key=number_of):
        # One from before the base would lead back in time.
        early = older is not None and not _lies_after(each, older, ident)
        if each.uuid == last and not each.is_invalid:
            kept.append(each)
        elif each.is_invalid or early:
            stale.append(each)
        else:
            useful = each
        if early and each.uuid != last:
            notes.append(f"{each}, which an earlier run left, is older than {older}: not used")
    return useful, [*kept, *_not_removed(stale)]


def _lies_after(kept: Volume, older: Volume, ident: str) -> bool:
    """Tell whether a snapshot of ours was made after the base, by LVM's own order.

    Of two in the same second our numbers tell, if both are ours; else it is not certain.
    """
    if not older.is_thin and kept.created == older.created:
        return is_ours(older, ident) and number_of(kept) > number_of(older)
    return kept.lies_after(older)


def make_ours(volume: Volume, ident: str, store: int = 0) -> Volume:
    """Make a snapshot of ours.

    Args:
        volume: What it is of.
        ident: What is in its name.
        store: Bytes for what a classic one keeps; 0 to decide by the volume's size.

    Raises:
        SourceError: If LVM cannot, for lack of room most of all.
    """
    taken = [number_of(each) for each in lvm.volumes(volume.group) if is_ours(each, ident)]
    name = name_of(ident, max(taken, default=0) + 1)
    room = 0 if volume.is_thin else room_for(volume, store)
    if isinstance(room, str):
        raise SourceError(
            f"{room}; nothing was sent; give it some, or stop who writes the volume and use "
            "--quiesced"
        )
    return lvm.make_snapshot(volume, name, room)


def room_for(volume: Volume, store: int) -> int | str:
    """Return the bytes that a classic snapshot gets, or why it cannot have them."""
    free = lvm.free_bytes(volume.group)
    room = store or min(max(volume.size // _STORE_PART, _LEAST_STORE), free)
    if not store:
        room -= room % _EXTENT
    if _EXTENT <= room <= free:
        return room
    return (
        f"a snapshot of {volume} needs room in {volume.group}, which has {free} bytes free of "
        f"{store or _LEAST_STORE}"
    )


def moment_of(snapshot: Volume) -> int:
    """Return when a snapshot was made, in nanoseconds since 1970: LVM counts seconds."""
    return snapshot.created * 1_000_000_000


def ident_of(volume: Volume, target: str) -> str:
    """Return what our snapshots of a volume for a target have in their names."""
    return hashlib.blake2s(f"{volume.uuid} {target}".encode(), digest_size=4).hexdigest()


def name_of(ident: str, number: int) -> str:
    """Return the name of a snapshot of ours."""
    return f"{_PREFIX}{ident}_{number}"


def is_ours(volume: Volume, ident: str) -> bool:
    """Tell whether a snapshot is one of ours with that id."""
    found = _OURS.fullmatch(volume.name)
    return found is not None and found[1] == ident


def number_of(volume: Volume) -> int:
    """Return the number in the name of a snapshot of ours."""
    found = _OURS.fullmatch(volume.name)
    return int(found[2]) if found else 0


@contextlib.contextmanager
def volume_held(volume: Volume, state_dir: Path, *, alone: bool) -> Iterator[None]:
    """Send a volume, perhaps to several targets, or move it, but not both at once.

    Args:
        volume: The volume.
        state_dir: Where journals lie.
        alone: Whether it is moved.

    Raises:
        BusyError: If somebody is at work who cannot share it.
    """
    folder = state_dir / "lvm"
    make_directory(folder)
    fd = kept_file(folder / f"held-{volume.uuid}")
    try:
        try:
            fcntl.flock(fd, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except BlockingIOError:
            what = "sends or moves" if alone else "moves"
            raise BusyError(f"another blockstream {what} {volume} now; nothing was done") from None
        yield
    finally:
        os.close(fd)


class _Memory:
    """Which snapshot the target held last; a file that nobody else may use meanwhile."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.last = os.pread(fd, _UUID_BYTES, 0).decode(errors="replace")

    def note(self, uuid: str) -> None:
        """Make it durable."""
        os.pwrite(self._fd, uuid.encode(), 0)
        os.ftruncate(self._fd, len(uuid))
        os.fsync(self._fd)
        self.last = uuid


@contextlib.contextmanager
def _locked(state_dir: Path, ident: str) -> Iterator[_Memory]:
    """Let nobody else make or remove snapshots of this volume for this target meanwhile.

    Raises:
        BusyError: If somebody does.
    """
    folder = state_dir / "lvm"
    make_directory(folder)
    # Not for appending, which would ignore where something is written.
    fd = kept_file(folder / f"volume-{ident}")
    with os.fdopen(fd, "r+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BusyError(
                "another blockstream sends this volume to this target; nothing was sent"
            ) from None
        yield _Memory(file.fileno())
