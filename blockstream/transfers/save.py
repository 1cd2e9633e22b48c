"""`send SOURCE STORE/DISK`: a disk, or what changed of it, becomes a restore point."""

import contextlib
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import blake3
import numpy as np

from blockstream import __version__
from blockstream.captures.interface import Captured
from blockstream.errors import (
    BaseMismatchError,
    BlockstreamError,
    BusyError,
    InterruptedTransferError,
    NotFoundError,
    PartlyDoneError,
    RefusedError,
    StoreDamagedError,
    StoreError,
)
from blockstream.extents import ExtentMap
from blockstream.formats.extent_lists import ExtentList, Meaning
from blockstream.formats.point import Kind as PointKind
from blockstream.formats.point import Parent, Point, rooted
from blockstream.formats.point_index import PointIndex, index_bytes
from blockstream.interfaces import PART_BYTES, Source
from blockstream.pipeline.failpoints import failpoint
from blockstream.pipeline.frame_sink import FrameSink
from blockstream.pipeline.packer import PackedFrame
from blockstream.pipeline.packs import PACK_BYTES, PackSink
from blockstream.pipeline.progress import Progress, Snapshot
from blockstream.pipeline.sender import SendEngine, SendOptions
from blockstream.repository.alive import alive
from blockstream.repository.audit import Audit, audit
from blockstream.repository.repository import StoredDisk, new_id, now_text
from blockstream.run import Run
from blockstream.transfers.send import SendPlan, TransferOptions, one_way, planned
from blockstream.words import time_text
from blockstream_protocol import (
    HEAD_BYTES,
    ROW_BYTES,
    Committed,
    Frame,
    Kind,
    Message,
    table_bytes,
)


@dataclass(frozen=True, slots=True)
class SaveEstimate:
    """What a new point would cost at most, before compression.

    Attributes:
        bytes: Bytes that would be stored.
        requests: Requests that write; those that read are a few.
    """

    bytes: int
    requests: int


def estimated(disk: Captured, how: TransferOptions, where: StoredDisk) -> SaveEstimate:
    """Say what `save` would do, and check that it could.

    Zeros that are found by looking count as data.

    Raises:
        BaseMismatchError: As for `save`.
        BlockstreamError: As the source or the store fails.
    """
    what = planned(disk, how)
    if what.opening.base:
        _check_base(what, where.last(), where)
    frames = rows = 0
    for piece in what.extents.pieces():
        frames, rows = frames + 1, rows + len(piece.offsets)
    if not frames:
        return SaveEstimate(0, 2)
    stream = what.data_bytes + len(what.extents) * ROW_BYTES
    stream += frames * (HEAD_BYTES + table_bytes(0)) + rows * (table_bytes(1) - table_bytes(0))
    index = index_bytes(frames, rows)
    packs = -(-stream // PACK_BYTES)
    sizes = [PACK_BYTES] * (packs - 1) + [stream - (packs - 1) * PACK_BYTES]
    # Each pack ends with its part of the index. Then the whole index, and the manifest; and a sign
    # of life, once a minute.
    requests = sum(_requests(size + index // packs) for size in sizes) + _requests(0) * 3
    return SaveEstimate(stream + 2 * index, requests)


def _requests(size: int) -> int:
    """Return how many requests write an object: it is begun, sent in parts and completed."""
    return 1 if size < PART_BYTES else 2 + -(-size // PART_BYTES)


@dataclass(frozen=True, slots=True)
class SaveResult:
    """What was saved.

    Attributes:
        point: The new point.
        counts: Final counters.
        audit: What the audit found, if there was one.
        existed: Whether an earlier run had saved it, which was not heard of.
    """

    point: Point
    counts: Snapshot
    audit: Audit | None = None
    existed: bool = False

    @property
    def state(self) -> str:
        """The state that was saved."""
        return self.point.state

    @property
    def moment(self) -> int | None:
        """When the source held it, in nanoseconds since 1970, UTC; None where nobody knows."""
        return self.point.moment


async def save(
    disks: Sequence[Captured],
    how: TransferOptions,
    places: Sequence[StoredDisk],
    run: Run,
    audit_cycle: int = 0,
    saved: list[SaveResult] | None = None,
) -> list[SaveResult]:
    """Send disks into a store; when this returns, their points can be restored.

    Several are one set: all have been stored before the first point is visible.

    Args:
        disks: What to send.
        how: How they travel.
        places: Where each goes.
        run: Counts, and stops it.
        audit_cycle: In how many increments all that is called unchanged is compared with the
            newest point, a part each time; 0 for never. What differs is sent as well.
        saved: Takes what is returned, also where that fails in between.

    Raises:
        BaseMismatchError: If an increment does not go onto the newest point.
        PartlyDoneError: If some points are visible and others are not.
        BlockstreamError: As a source or the store fails; then nothing is visible.
    """
    parts = run.parts(len(disks), "another disk of the set failed") if len(disks) > 1 else [run]

    visible = saved if saved is not None else []

    def work() -> list[SaveResult]:
        with contextlib.ExitStack() as stack:
            stored = [
                stack.enter_context(_stored(disk, how, where, part, audit_cycle))
                for disk, where, part in zip(disks, places, parts, strict=True)
            ]
            _commit(stored, visible)
        return visible

    return await run.carry(work)


@dataclass(slots=True)
class _Stored:
    """A point of which all is stored but the manifest.

    Attributes:
        where: The disk that it is of.
        result: What became of it, once it is visible.
        is_settled: Whether it is visible, or may be; what is not is taken back.
    """

    where: StoredDisk
    result: SaveResult
    is_settled: bool = False

    def commit(self) -> None:
        """Make it visible.

        Raises:
            BusyError: If somebody else saved this disk meanwhile.
            StoreError: If it cannot be.
        """
        if self.result.existed:
            return
        failpoint("store.before_commit")
        try:
            self.is_settled = True
            self.where.commit(self.result.point)
        except (BusyError, StoreError):
            self.is_settled = False
            raise
        failpoint("store.after_commit")


def _commit(stored: Sequence[_Stored], visible: list[SaveResult]) -> None:
    """Make points visible, one right after the other.

    Raises:
        PartlyDoneError: If that fails behind the first.
    """
    for number, each in enumerate(stored):
        try:
            each.commit()
            visible.append(each.result)
        except BlockstreamError as error:
            if not number:
                raise
            names = ", ".join(f"{done.where.name}" for done in stored[:number])
            raise PartlyDoneError(
                f"{error}; {names} had been saved by then, the others were not; the same "
                "command saves all of them once more"
            ) from error


@contextlib.contextmanager
def _stored(
    disk: Captured, how: TransferOptions, where: StoredDisk, run: Run, audit_cycle: int
) -> Iterator[_Stored]:
    """Store all of a point but its manifest; take it back unless it is made visible."""
    last, source = where.last(), disk.source
    what = planned(disk, how)
    _check_name(what.opening.goal)
    if last is not None and last.state == what.opening.goal:
        _check_same(what, how, source, where, last, run)
        yield _Stored(where, SaveResult(last, run.progress.snapshot(), existed=True))
        return
    where.check_free(last.seq + 1 if last is not None else 1)
    began, found = time.monotonic(), None
    parent = _check_base(what, last, where) if what.opening.base else None
    if parent is not None:
        _warn_of_damage(where, parent, run)
    if parent is not None and audit_cycle:
        found = audit(source, where, parent, what.extents, audit_cycle, run)
        what = _with_missed(what, disk, how, found.missed)
    identity, progress = new_id(), run.count_anew()
    with alive(where, identity):
        packs = PackSink(
            where.objects, f"{where.folder}pack/{identity}/", source.size, how.limiter, progress
        )
        stored = None
        try:
            committed = _streamed(what, how, source, packs, run)
            key, digest = _put_index(packs.finish(), where, identity)
            counts = progress.snapshot()
            point = Point(
                disk=where.name,
                seq=last.seq + 1 if last is not None else 1,
                kind=PointKind.INCREMENT if parent is not None else PointKind.FULL,
                id=identity,
                created=now_text(),
                state=committed.goal,
                base=what.opening.base,
                parent=Parent(parent.seq, parent.digest) if parent is not None else None,
                size=source.size,
                source={"name": source.name, "identity": source.identity.key, **_origin(disk)},
                transfer=committed.transfer,
                frames=committed.frames,
                chain=committed.chain,
                total=committed.total,
                data=counts.data,
                index=key,
                index_digest=digest,
                packs=tuple(packs.packs),
                root=rooted(parent, committed.chain),
                milliseconds=round((time.monotonic() - began) * 1000),
                software=f"blockstream {__version__}",
                missed=found.missed.total() if found is not None else 0,
                audits=(last.audits if last is not None else 0) + (found is not None),
                moment=what.moment,
            )
            stored = _Stored(where, SaveResult(point, counts, found))
            yield stored
        finally:
            if stored is None or not stored.is_settled:
                _discard(packs, where, identity)


def _check_name(goal: str) -> None:
    """Refuse a state that nobody could name as a point: `@last` and `@7` are others.

    Raises:
        RefusedError: If it is one.
    """
    if goal.isdecimal() or goal == "last":
        raise RefusedError(
            f"a state in a store cannot be called {goal!r}, because `last` and numbers name points "
            "by their order; nothing was sent; give it another name with --goal"
        )


def _warn_of_damage(where: StoredDisk, parent: Point, run: Run) -> None:
    """Say that an increment goes onto a point that cannot be restored as a whole."""
    found = where.found_damaged().get(parent.seq)
    if found is not None:
        run.tell(
            f"point {parent.seq} of {where.name}, onto which this goes, was found damaged on "
            f"{time_text(found)}: until `blockstream store repair` has replaced what is damaged, "
            "or all is sent, without --base, this one cannot be restored as a whole either"
        )


def _put_index(index: PointIndex, disk: StoredDisk, identity: str) -> tuple[str, str]:
    """Store an index, if there is anything in it; return its key and digest."""
    failpoint("store.before_index")
    if not len(index.frames):
        return "", ""
    key, encoded = f"index/{identity}.index", index.encode()
    disk.objects.put(disk.folder + key, encoded)
    return key, blake3.blake3(encoded).hexdigest()


def _with_missed(
    what: SendPlan, disk: Captured, how: TransferOptions, missed: ExtentMap
) -> SendPlan:
    """Return a plan that sends what was missed as well."""
    if not len(missed):
        return what
    opening, extents = what.opening, what.extents.overlaid(missed.without(what.extents))
    changes = ExtentList(extents, Meaning.CHANGED, "audit", disk.source.size)
    return planned(replace(disk, changes=changes), how, opening.goal)


def _discard(outlet: PackSink, disk: StoredDisk, identity: str) -> None:
    with contextlib.suppress(BlockstreamError):
        outlet.abort()
    disk.discard(identity, outlet.packs)


def _check_same(
    what: SendPlan,
    how: TransferOptions,
    source: Source,
    disk: StoredDisk,
    last: Point,
    run: Run,
) -> None:
    """Check that the newest point is what would be sent: an earlier run was not heard of.

    What the source holds is read and digested, unless it is what was saved and cannot have changed.
    A point that was made of others, as by `compact`, is of no transfer: its disk is compared.

    Raises:
        RefusedError: If it is not.
    """
    same = what.opening.identity(blake3.blake3).hex() == last.transfer
    if last.kind is PointKind.SYNTHETIC:
        nothing = ExtentMap.empty(source.size)
        compared = audit(source, disk, last, nothing, 1, run)
        same = source.size == last.size and not len(compared.missed)
    elif same and not (source.immutable and last.source.get("identity") == source.identity.key):
        nowhere = _Nowhere(run.count_anew())
        same = _streamed(what, how, source, nowhere, run).chain == last.chain
    if not same:
        raise RefusedError(
            f"point {last.seq} of {last.disk} is state {last.state!r} already, with another "
            "content; nothing was sent; leave --goal out or name it otherwise"
        )


class _Nowhere:
    """Takes a stream of which only the chain is wanted."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def send(self, message: Message) -> None:
        """Take a message."""

    def send_frame(self, frame: Frame, packed: PackedFrame) -> None:
        """Take a data frame."""
        self._progress.frame(data=len(packed.data), covered=packed.covered, wire=0)

    def stop(self) -> None:
        """Nothing waits."""


def last_state(disk: StoredDisk, location: str) -> str:
    """Return the state of the newest point.

    Args:
        disk: The disk of the store.
        location: What is sent, as `Captured.location` has it.

    Raises:
        NotFoundError: If there is none.
        BaseMismatchError: If that was saved from somewhere else.
    """
    last = disk.last()
    if last is None:
        raise NotFoundError(
            f"{disk.objects.name} has no point of {disk.name}, so there is no last base; nothing "
            "was sent; send all, without --base"
        )
    ours = _here(location)
    theirs = {name: last.source.get(name, ours[name]) for name in ours}
    if theirs != ours:
        raise BaseMismatchError(
            f"point {last.seq} of {disk.name} in {disk.objects.name} was saved from "
            f"{_place(theirs)}, and not from {_place(ours)}; nothing was sent; if that is the same "
            f"disk all the same, say --base {last.state}; else send all, without --base, to "
            "another name"
        )
    return last.state


def _origin(disk: Captured) -> Mapping[str, str]:
    """Return where a disk was saved from."""
    return _here(disk.location) if disk.origin is None else disk.origin


def _here(location: str) -> dict[str, str]:
    """Return where a disk is; a path, on which host as well, because each has one of that name."""
    is_path = location.startswith(("/", "vmdk:"))
    return {"location": location} | ({"host": os.uname().nodename} if is_path else {})


def _place(origin: Mapping[str, str]) -> str:
    host = f" of {origin['host']}" if "host" in origin else ""
    return origin["location"] + host


def _check_base(what: SendPlan, last: Point | None, disk: StoredDisk) -> Point:
    """Refuse an increment that does not go onto the newest point; return that.

    Raises:
        BaseMismatchError: If it starts from another state.
        StoreDamagedError: If what that point goes onto is missing.
        RefusedError: If the disk has grown, and the changes do not say by what.
    """
    base, size = what.opening.base, what.opening.size
    if last is None or last.state != base:
        holds = f"state {last.state!r}" if last is not None else "no point"
        raise BaseMismatchError(
            f"{disk.objects.name} holds {holds} of {disk.name} last, and not the base {base!r}; "
            "nothing was sent; send the changes since that one, or all, without --base"
        )
    try:
        disk.chain(last)
    except StoreDamagedError as error:
        raise StoreDamagedError(
            f"{error}; an increment onto point {last.seq} could not be restored; nothing was sent; "
            "send a full copy, or put back what is missing with `blockstream store repair "
            f"{disk.objects.name} --from COPY`"
        ) from error
    if size > last.size:
        tail = ExtentMap.from_columns(
            np.array([last.size]), np.array([size - last.size]), Kind.DATA, size
        )
        if tail.without(what.extents).total():
            raise RefusedError(
                f"the disk has grown from {last.size} to {size} bytes, and the list of changes "
                "does not have what it grew by; nothing was sent; send a full copy"
            )
    return last


def _streamed(
    what: SendPlan,
    how: TransferOptions,
    source: Source,
    outlet: FrameSink,
    run: Run,
) -> Committed:
    """Let the stream go where it is to go; return what it holds."""
    progress = run.progress
    progress.size, progress.total = source.size, what.opening.total
    session = one_way(what, source)
    # What is stored is kept, and often paid for, so it is packed however fast the way there is.
    compression = replace(how.compression, least=1)
    options = SendOptions(compression=compression, check_packing=True)
    engine = SendEngine(session, source, what.extents, outlet, progress, options)

    def stop(reason: str) -> None:
        engine.stop(f"{reason}; no point was made, and the same command begins anew")
        outlet.stop()

    with run.heeding(stop):
        finish = engine.run()
    if finish.committed is None:
        raise InterruptedTransferError("the session ended without saying what was sent")
    return finish.committed
