"""What a store holds: `bs1/store.json`, and below `bs1/disk/NAME/` packs, indexes and points.

A point's manifest is written last, under the next number, by whoever is the first to write that.
Everything that no manifest names is garbage of somebody who died, or is still at work.

In an encrypted store, all objects below `bs1/disk/` are encrypted.
"""

import contextlib
import itertools
import json
import re
import secrets
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Final

from blake3 import blake3

from blockstream.errors import (
    AuthenticationError,
    BlockstreamError,
    BusyError,
    NotAllowedError,
    NotFoundError,
    OutcomeUnknownError,
    RefusedError,
    StoreDamagedError,
    StoreError,
    UsageError,
)
from blockstream.formats.point import MANIFEST_BYTES, Pack, Point, rooted
from blockstream.formats.point_index import PointIndex, most_index_bytes
from blockstream.formats.store_names import (
    ALIVE,
    CLOCK,
    DISK,
    IDENTITY,
    INDEX,
    MARK,
    PACK,
    POINT,
    UNNAMED,
    owner_of,
)
from blockstream.interfaces import ObjectInfo, Objects
from blockstream.repository.keys import StoredIds, StoreHeader, StoreKeys, encrypted
from blockstream.words import time_text

_AT_ONCE: Final = 8  # small objects that are asked for side by side
PRUNED: Final = "pruned"
VERIFIED: Final = "verified"
DAMAGED: Final = "damaged"
_FINGERPRINT: Final = "blockstream: fingerprint of a store"
_DISKS: Final = "bs1/disk/"
ALIVE_SECONDS: Final = 600.0  # whoever gave no sign for so long is dead, or cut off
_LAST_SEQ: Final = 9_999_999_998  # of ten digits; one more may still be looked for
_MARK_BYTES: Final = 4096
# Folders of a disk: how many words the names in it have, and which names are ours.
FOLDERS: Final = {
    "point": (1, (POINT,)),
    "mark": (1, (MARK, UNNAMED, CLOCK)),
    "pack": (2, (PACK, ALIVE)),
    "index": (1, (INDEX,)),
}
_TIME: Final = re.compile(r"\d{4}-\d{2}-\d{2}([T ]\d{2}(:\d{2}(:\d{2})?)?)?")


class Repository:
    """A store of points.

    Attributes:
        objects: What it holds, as it can be read.
        id: The store's id; of an encrypted one, its fingerprint.
        encrypted: Whether that takes a key.
        fingerprint: What no other encrypted store has; `unencrypted` for one that is not.
    """

    def __init__(self, objects: Objects, identity: Path | None = None) -> None:
        """Open a store.

        Args:
            objects: Where it lies.
            identity: File with an identity that opens an encrypted one.

        Raises:
            NotFoundError: If there is none.
            RefusedError: If a later version made it; or if there is an identity, and it is not
                encrypted, because somebody may have put it in the place of one that was.
            AuthenticationError: If it is encrypted, and cannot be opened.
        """
        header = StoreHeader.read(objects)
        if identity is not None and not header.encrypted:
            raise RefusedError(
                f"{objects.name} is not encrypted, although an identity was given; nothing was "
                "done; if it is the right store, leave --identity and BLOCKSTREAM_IDENTITY out"
            )
        self.objects = objects
        self.encrypted = header.encrypted
        self.fingerprint = "unencrypted"
        self.id = header.id
        if header.encrypted:
            key = StoreKeys(objects, header.id).opened(identity)
            self.objects = encrypted(objects, key)
            named = blake3(key, derive_key_context=_FINGERPRINT).update(header.id.encode())
            self.id = self.fingerprint = named.hexdigest(16)

    @classmethod
    def create(cls, objects: Objects, recipients: Sequence[str] = ()) -> StoreHeader:
        """Make a store, where its promises hold; return what it says of itself.

        Where there are disks, and only what says that it is a store was lost, that is made anew.

        Args:
            objects: Where; empty.
            recipients: Who can open it, if it is to be encrypted: see `stores.keys.wrapped`.

        Raises:
            RefusedError: If there is one already, or two writers could both win.
            UsageError: If one of them is no recipient.
        """
        _check_conditional_writes(objects)
        before = StoredIds.of(objects)
        if before.disks:
            header = _lost_header(objects, before, recipients)
        else:
            header = StoreHeader(secrets.token_hex(16), encrypted=bool(recipients))
        if recipients:
            # Below the id, so that those of somebody who makes it at the same time are not ours.
            StoreKeys(objects, header.id).create(recipients, now_text())
        if not header.write(objects, now_text()):
            raise RefusedError(f"{objects.name} is a store already; nothing was done")
        return header

    def disks(self) -> list[str]:
        """Return the names of the disks that it holds anything of; there may be no point yet."""
        named = [name for name in self.objects.folders(_DISKS) if DISK.fullmatch(name)]
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            there = list(pool.map(lambda name: self.disk(name).is_there(), named))
        return sorted(itertools.compress(named, there))

    def strays(self) -> list[str]:
        """Return what lies among the disks that is none."""
        found = [info.key.removeprefix(_DISKS) for info in self.objects.listed(_DISKS)]
        is_disk = [each.endswith("/") and DISK.fullmatch(each[:-1]) for each in found]
        return [_DISKS + each for each, ours in zip(found, is_disk, strict=True) if not ours]

    def disk(self, name: str) -> "StoredDisk":
        """Return one of its disks, which need not have a point yet.

        Raises:
            RefusedError: If that is no name.
        """
        if not DISK.fullmatch(name):
            raise RefusedError(
                f"{name!r} is no name for a disk: letters, digits and _ . + - are; nothing was done"
            )
        return StoredDisk(self.objects, name, self.id, sealed=self.encrypted)


def _check_conditional_writes(objects: Objects) -> None:
    """Let several write the same new object at once, of whom one must win.

    Raises:
        RefusedError: If more do.
    """
    probe = f"bs1/probe-{secrets.token_hex(8)}"
    try:
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            wins = sum(pool.map(lambda n: objects.put_new(probe, b"%d" % n), range(_AT_ONCE)))
        wins += objects.put_new(probe, b"later")
    except BlockstreamError:
        with contextlib.suppress(BlockstreamError):
            objects.delete(probe)
        raise
    objects.delete(probe)
    if wins != 1:
        raise RefusedError(
            f"{objects.name} does no conditional writes: it lets a second writer overwrite the "
            "first, so two could lose each other's points; nothing was made"
        )


def _lost_header(objects: Objects, before: StoredIds, recipients: Sequence[str]) -> StoreHeader:
    """Return what a store said of itself that has disks yet.

    Raises:
        RefusedError: If that is not certain, or there is a store.
    """
    if len(before.keys) > 1 or recipients:
        raise RefusedError(
            f"{objects.name} holds disks of a store already; nothing was done; choose an empty "
            "place, or put its bs1/store.json back from a copy"
        )
    named = next(iter(before.keys), secrets.token_hex(16))
    return StoreHeader(named, encrypted=bool(before.keys))


@dataclass(frozen=True, slots=True)
class StoredDisk:
    """The points of one disk.

    Attributes:
        objects: Where they lie.
        name: The disk's name.
        store_id: The store's id.
        sealed: Whether only who has the store's key can have written what lies there: then a mark
            that cannot be read is none.
        strays: Keys of what the listings so far found among its objects that is none of ours. Of a
            folder, only itself.
    """

    objects: Objects
    name: str
    store_id: str
    sealed: bool = False
    strays: set[str] = field(default_factory=set, compare=False)

    @property
    def folder(self) -> str:
        """What all its keys begin with."""
        return f"bs1/disk/{self.name}/"

    def is_there(self) -> bool:
        """Tell whether there is a point of it, or what a run left that made none."""
        whats = ("point", "pack", "index")
        return any(next(iter(self.listed(what)), None) is not None for what in whats)

    def check_free(self, seq: int) -> None:
        """Look, before all of it travels, whether a point of that number could be committed.

        Raises:
            RefusedError: If something that is none of ours has its name, or there is none.
        """
        if seq > _LAST_SEQ:
            raise RefusedError(
                f"{self.objects.name}: {self.name} has a point {seq - 1}, which no run of "
                "blockstream made, and after which no other has a name; nothing was sent"
            )
        key = self.point_key(seq)
        if self.strays & {key, f"{key}/"}:
            raise RefusedError(
                f"{self.objects.name}: {key} is nothing of blockstream's, and has the name of the "
                "next point; nothing was sent; find out who put it there, and take it away"
            )

    def points(self) -> Iterator[Point]:
        """Give its points, oldest first, without those that were pruned.

        Raises:
            StoreDamagedError: If a manifest is damaged.
        """
        numbers = self.numbers()
        hidden = self.hidden(numbers)
        yield from self._read([seq for seq in numbers if seq not in hidden])

    def everything(self) -> list[Point]:
        """Return its points, pruned ones as well, as long as they are there.

        Raises:
            StoreDamagedError: If a manifest is damaged.
        """
        return list(self._read(self.numbers()))

    def _read(self, numbers: Sequence[int]) -> Iterator[Point]:
        """Give points, asked for side by side."""
        with contextlib.ExitStack() as stack:
            pool = ThreadPoolExecutor(_AT_ONCE)
            stack.callback(pool.shutdown, cancel_futures=True)
            yield from pool.map(self.point, numbers)

    def numbers(self) -> list[int]:
        """Return the numbers of all manifests that are there, in order."""
        return sorted(int(name.partition(".")[0]) for name, _ in self.listed("point"))

    def hidden(self, numbers: Sequence[int]) -> dict[int, float]:
        """Return which of these points were pruned, and when each was, in seconds since 1970.

        Never the newest, whatever a mark says: it is what the next one goes onto.
        """
        marks = self.marks()
        return {seq: marks[seq] for seq in sorted(numbers)[:-1] if seq in marks}

    def marks(self, kind: str = PRUNED) -> dict[int, float]:
        """Return the points with a mark, and when each got it, in seconds since 1970."""
        found = {}
        for name, info in self.listed("mark"):
            named = MARK.fullmatch(name)
            if named is not None and named[2] == kind:
                found[int(named[1])] = info
        if self.sealed:
            with ThreadPoolExecutor(_AT_ONCE) as pool:
                sound = list(pool.map(self._is_sound, found.values()))
            found = dict(itertools.compress(found.items(), sound))
        return {seq: info.modified for seq, info in found.items()}

    def listed(self, what: str) -> Iterator[tuple[str, ObjectInfo]]:
        """Give names and objects in one of its `FOLDERS`, in order; note what is none of ours.

        Others may leave things there: rsync, a NAS, a browser of buckets.
        """
        depth, ours = FOLDERS[what]
        folder = f"{self.folder}{what}/"
        for info in self.objects.listed(folder, depth):
            name = info.key.removeprefix(folder)
            if not info.stray and any(each.fullmatch(name) for each in ours):
                yield name, info
                continue
            outer, slash, _ = name.partition("/")
            is_ours = IDENTITY.fullmatch(outer) is not None
            self.strays.add(info.key if is_ours else folder + outer + slash)

    def _is_sound(self, info: ObjectInfo) -> bool:
        try:
            self.objects.read_whole(info.key, _MARK_BYTES)
        except StoreDamagedError:
            return False
        return True

    def mark(self, seq: int, kind: str = PRUNED, more: Mapping[str, object] | None = None) -> None:
        """Give a point a mark: PRUNED hides it, VERIFIED or DAMAGED is what was found of it."""
        values = {"at": int(time.time()), **(more or {})}
        self.objects.put(self.mark_key(seq, kind), json.dumps(values).encode())

    def mark_found(self, seq: int, newest: int, *, whole: bool) -> None:
        """Note what a look at a point has found, in place of what was found before.

        Args:
            seq: Its number.
            newest: The newest point that was there then: what is wrong with later ones that go
                onto it, nobody has looked at.
            whole: Whether nothing was damaged.
        """
        kind, other = (VERIFIED, DAMAGED) if whole else (DAMAGED, VERIFIED)
        self.mark(seq, kind, {"id": self._id_of(seq), "newest": newest} if not whole else {})
        with contextlib.suppress(NotAllowedError):  # then the later one counts
            self.objects.delete(self.mark_key(seq, other))

    def _id_of(self, seq: int) -> str:
        with contextlib.suppress(StoreDamagedError):
            return self.point(seq).id
        return ""

    def found_damaged(self) -> dict[int, float]:
        """Return which points were found damaged and not whole since.

        Among them are points that go onto such a one, and were made after it was looked at.

        Returns:
            For each, when the damage was found, in seconds since 1970.
        """
        marks = self.marks(DAMAGED)
        if not marks:
            return {}
        points, whole = self.readable(), self.marks(VERIFIED)
        ids = {point.seq: point.id for point in points}
        found, looked = dict[int, float](), dict[int, int]()
        for seq, when in marks.items():
            said = self._said_by(self.mark_key(seq, DAMAGED))
            named = str(said.get("id") or ids.get(seq, ""))
            # Another one may have its number since; and one that is gone may have left its packs.
            if when >= whole.get(seq, 0.0) and named == ids.get(seq, named):
                newest = said.get("newest")
                found[seq], looked[seq] = when, newest if type(newest) is int else seq
                ids.setdefault(seq, named)
        owners = {named: seq for seq, named in ids.items()}
        for point in points:
            below = {owners.get(pack.owner, 0) for pack in point.packs}
            below |= {point.parent.seq} if point.parent is not None else set()
            for seq in below & found.keys() - {point.seq}:
                if point.seq > looked[seq] and point.seq not in whole:
                    found.setdefault(point.seq, found[seq])
                    looked.setdefault(point.seq, looked[seq])
        return found

    def _said_by(self, key: str) -> dict[str, object]:
        """Return what a mark says; nothing for one that cannot be read."""
        try:
            values = json.loads(self.objects.read_whole(key, _MARK_BYTES))
        except (StoreDamagedError, ValueError, RecursionError):
            return {}
        return values if isinstance(values, dict) else {}

    def now(self) -> float:
        """Return the time as the store's own clock has it, in seconds since 1970.

        What lies there has its times from that clock; ours may be days before or behind it.
        """
        key = f"{self.folder}mark/clock"
        self.objects.put(key, b"")
        found = self.objects.info(key)
        with contextlib.suppress(AuthenticationError):  # then the next one takes its place
            self.objects.delete(key)
        # Somebody else who asks at the same time may have deleted it: then nothing is old.
        return found.modified if found is not None else 0.0

    def _now_or_ours(self) -> float:
        """Return the time by the store's clock, or by ours where nothing may be written there."""
        try:
            return self.now()
        except (AuthenticationError, StoreError):
            return time.time()

    def mark_key(self, seq: int, kind: str = PRUNED) -> str:
        """Return the key of a mark."""
        return f"{self.folder}mark/{seq:010d}.{kind}.json"

    def alive_key(self, identity: str) -> str:
        """Return the key of the sign of life of whoever writes a point."""
        return f"{self.folder}pack/{identity}/alive"

    def unnamed_key(self, identity: str) -> str:
        """Return the key of the mark of what lies there of a point without a manifest."""
        return f"{self.folder}mark/{identity}.unnamed.json"

    def point_key(self, seq: int) -> str:
        """Return the key of a point's manifest."""
        return f"{self.folder}point/{seq:010d}.json"

    def last(self) -> Point | None:
        """Return its newest point; None if it has none."""
        numbers = self.numbers()
        return self.point(numbers[-1]) if numbers else None

    def find(self, word: str) -> Point:
        """Return the point that is meant: `last`, a number, a state's id, or a time.

        A time means the newest point that is not younger, in UTC.

        Raises:
            NotFoundError: If there is none.
        """
        if word in {"", "last"}:
            found = self.last()
        elif word.isdecimal():
            seq, numbers = int(word), self.numbers()
            there = seq in numbers and seq not in self.hidden(numbers)
            found = self.point(seq) if there else None
        else:
            found = self._among(word)
        if found is None:
            store = self.objects.name
            if not self.numbers():
                raise NotFoundError(
                    f"{store} has no point of {self.name}; nothing was done; `blockstream points "
                    f"{store}` lists its disks"
                )
            raise NotFoundError(
                f"{store} has no point {word or 'last'} of {self.name}; nothing was done; "
                f"`blockstream points {store}/{self.name}` lists them"
            )
        return found

    def _among(self, word: str) -> Point | None:
        numbers = self.numbers()
        hidden = self.hidden(numbers)
        # A state is what its own manifest says; a time may mean any point.
        good = self.readable([seq for seq in numbers if seq not in hidden])
        named = [point for point in good if point.state == word]
        if named:
            return named[-1]
        points = list(self.points())
        if not _TIME.fullmatch(word):
            return None
        until = word.replace(" ", "T")
        _check_time(until)
        # As text, as far as the word goes: 2026-11-20 means the whole of that day.
        return next((each for each in reversed(points) if each.time[: len(until)] <= until), None)

    def point(self, seq: int) -> Point:
        """Return the point of that number.

        Raises:
            StoreDamagedError: If it is missing or damaged.
        """
        key = self.point_key(seq)
        try:
            point = Point.decode(self.objects.read_whole(key, MANIFEST_BYTES))
        except StoreDamagedError as error:
            raise StoreDamagedError(f"{self.objects.name}: {key}: {error}") from error
        if point.disk != self.name or point.seq != seq:
            raise StoreDamagedError(f"{self.objects.name}: {key} belongs to another point")
        return point

    def chain(self, point: Point) -> list[Point]:
        """Return the points that a point is made of, the full copy first.

        Raises:
            StoreDamagedError: If one of them is missing, or not the one that was meant.
        """
        found, ahead = [point], dict[int, Future[Point]]()
        with contextlib.ExitStack() as stack:
            pool = ThreadPoolExecutor(_AT_ONCE)
            stack.callback(pool.shutdown, cancel_futures=True)
            while (parent := found[0].parent) is not None:
                # A parent is nearly always the number before: so the next ones are asked for, too.
                for seq in range(parent.seq, max(parent.seq - _AT_ONCE, 0), -1):
                    if seq not in ahead:
                        ahead[seq] = pool.submit(self.point, seq)
                found.insert(0, self._parent(found[0], ahead[parent.seq].result()))
        parents = [None, *found[:-1]]
        for each, onto in zip(found, parents, strict=True):
            if each.root != rooted(onto, each.chain):
                raise StoreDamagedError(
                    f"{self.objects.name}: point {each.seq} of {self.name} has another history "
                    "than its own"
                )
        return found

    def _parent(self, point: Point, before: Point) -> Point:
        """Return what a point goes onto, now that it is known to be that."""
        if point.parent is None or before.digest != point.parent.digest:
            raise StoreDamagedError(
                f"{self.objects.name}: point {before.seq} of {self.name} is not the one that "
                f"point {point.seq} goes onto"
            )
        return before

    def indexes(self, points: Sequence[Point]) -> list[PointIndex]:
        """Return the indexes of several points, asked for side by side.

        Raises:
            StoreDamagedError: If one is missing or damaged.
        """
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            return list(pool.map(self.index, points))

    def index(self, point: Point) -> PointIndex:
        """Return the index of a point's own frames.

        Raises:
            StoreDamagedError: If it is missing or damaged.
        """
        if not point.index:
            return PointIndex.empty(point.size)
        key = self.folder + point.index
        try:
            data = self.objects.read_whole(key, most_index_bytes(point.size, point.frames))
        except MemoryError as error:  # also where a hole of a file is that large
            raise StoreDamagedError(
                f"{self.objects.name}: {key} is larger than the memory of this host"
            ) from error
        if blake3(data).hexdigest() != point.index_digest:
            raise StoreDamagedError(f"{self.objects.name}: {key} is not what was stored")
        try:
            found = PointIndex.decode(data, size=point.size, frames=point.frames)
        except StoreDamagedError as error:
            raise StoreDamagedError(f"{self.objects.name}: {key}: {error}") from error
        if found.size != point.size or int(found.frames.pack.max(initial=-1)) >= len(point.packs):
            raise StoreDamagedError(f"{self.objects.name}: {key} is of another point")
        return found

    def commit(self, point: Point) -> None:
        """Make a point visible, now that all that it names is there.

        Raises:
            StoreError: If something that it names is not there any more; then nothing is visible.
            BusyError: If somebody else has committed a point of that number.
            OutcomeUnknownError: If the store failed, so that nobody knows.
        """
        self._check_there(point)
        try:
            ours = self.objects.put_new(self.point_key(point.seq), point.checked().encode())
        except StoreError as error:
            raise OutcomeUnknownError(
                f"{error}; whether point {point.seq} of {self.name} was committed is not known; "
                "`blockstream points` tells; the same command again is right in either case"
            ) from error
        if not ours:
            raise BusyError(
                f"another blockstream has committed point {point.seq} of {self.name} meanwhile; "
                "nothing of ours is visible; send again"
            )

    def _check_there(self, point: Point) -> None:
        """Look for what a point names: whoever stood still for days may have been taken for dead.

        Raises:
            StoreError: If something is missing.
        """
        gone = self._packs_gone([point])
        if point.index and self.objects.info(self.folder + point.index) is None:
            gone.append(self.folder + point.index)
        if gone:
            raise StoreError(
                f"{self.objects.name}: {gone[0]} is gone before point {point.seq} of {self.name} "
                "named it: lost, or deleted by `store prune` as of a run that died; nothing of the "
                "point is visible; the same command again makes it anew, unless `blockstream store "
                "verify` finds that older points lack it as well"
            )

    def _packs_gone(self, points: Iterable[Point]) -> list[str]:
        """Return the keys of packs that are not there, or not of their size."""
        packs, sizes = [pack for point in points for pack in point.packs], dict[str, int]()
        for owner in sorted({pack.owner for pack in packs}):
            listed = self.objects.listed(f"{self.folder}pack/{owner}/")
            sizes |= {info.key: info.size for info in listed}
        wanted = {f"{self.folder}pack/{pack.key}": pack.size for pack in packs}
        return [key for key, size in wanted.items() if sizes.get(key) != size]

    def lack_of(self, point: Point) -> str:
        """Return why a point cannot be restored; empty if all that it is made of is there.

        No frame is read: `store verify` does that.
        """
        try:
            chain = self.chain(point)
            self.indexes(chain)
        except StoreDamagedError as error:
            return str(error)
        gone = self._packs_gone(chain)
        return f"{self.objects.name}: {gone[0]} is not there, or cut" if gone else ""

    def unnamed(self) -> list[str]:
        """Return the ids of points that are newer than the newest, and have no manifest.

        Either whoever wrote them died before, or the manifest is lost. Not of those at work yet.
        """
        newest = self.last()
        after = newest.id if newest is not None else ""
        left = {
            owner: owned
            for owner, owned in self.owned().items()
            if owner > after and owned.has_data
        }
        now = self._now_or_ours() if any(owned.sign for owned in left.values()) else 0.0
        found = {owner for owner, owned in left.items() if not owned.is_alive(now)}
        if found:  # a writer whose clock was ahead has a later id than the points after it
            for point in self.readable():
                found -= {point.id, *(pack.owner for pack in point.packs)}
        return sorted(found)

    def owned(self) -> dict[str, "Owned"]:
        """Return what lies there of each point, with a manifest or without, by its id."""
        found = dict[str, Owned]()
        for what in ("pack", "index"):
            for name, info in self.listed(what):
                found.setdefault(owner_of(name), Owned()).objects.append(info)
        return found

    def readable(self, numbers: Sequence[int] | None = None) -> list[Point]:
        """Return the points whose manifests are good: of all, pruned ones as well, or of some."""

        def point(seq: int) -> Point | None:
            with contextlib.suppress(StoreDamagedError):
                return self.point(seq)
            return None

        wanted = self.numbers() if numbers is None else numbers
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            return [found for found in pool.map(point, wanted) if found is not None]

    def discard(self, identity: str, packs: Iterable[Pack]) -> None:
        """Delete what no manifest will name, if the key may; else pruning finds it.

        Args:
            identity: The id of the point that will not be.
            packs: Its own packs, as far as they were begun.
        """
        with contextlib.suppress(BlockstreamError):
            for pack in packs:
                self.objects.delete(f"{self.folder}pack/{pack.key}")
            self.objects.delete(f"{self.folder}index/{identity}.index")

    def pack_key(self, point: Point, number: int) -> str:
        """Return the key of one of a point's packs."""
        return f"{self.folder}pack/{point.packs[number].key}"


@dataclass(frozen=True, slots=True)
class Owned:
    """What lies there of one point: packs, an index, a sign of life of whoever writes it.

    Attributes:
        objects: All of it.
    """

    objects: list[ObjectInfo] = field(default_factory=list)

    @property
    def newest(self) -> float:
        """When anything of it was written last, in seconds since 1970."""
        return max(info.modified for info in self.objects)

    @property
    def digest(self) -> str:
        """What is another one after any sign of life."""
        text = repr(sorted((info.key, info.size, info.modified) for info in self.objects))
        return blake3(text.encode()).hexdigest()

    @property
    def has_data(self) -> bool:
        """Whether there is more than a sign of life."""
        return any(not info.key.endswith("/alive") for info in self.objects)

    @property
    def sign(self) -> ObjectInfo | None:
        """The sign of life, if there is one."""
        return next((info for info in self.objects if info.key.endswith("/alive")), None)

    def is_alive(self, now: float) -> bool:
        """Tell whether there was a sign of life lately, by the store's clock."""
        return self.sign is not None and now - self.sign.modified < ALIVE_SECONDS


def new_id() -> str:
    """Return an id for a new point; later ones sort later."""
    return f"{time.time_ns() // 1_000_000:012x}-{secrets.token_hex(8)}"


def now_text() -> str:
    """Return the time, UTC."""
    return time_text(time.time())


def _check_time(text: str) -> None:
    """Refuse a time that is in no calendar: as text it would come before or after others.

    Raises:
        UsageError: If it is none.
    """
    try:
        datetime.fromisoformat(text)
    except ValueError as error:
        raise UsageError(
            f"{text} is no time ({error}); nothing was done; write it as 2026-11-20T03:15, in UTC"
        ) from None
