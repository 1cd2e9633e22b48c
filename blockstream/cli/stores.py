"""What commands with stores have in common."""

import contextlib
import functools
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from blockstream.cli.console import say
from blockstream.cli.store_access import StoreAccess
from blockstream.errors import NotFoundError, StaleViewError, StoreDamagedError, UsageError
from blockstream.formats.store_names import began
from blockstream.interfaces import Objects
from blockstream.locations.store import StorePlace, open_objects, store_place
from blockstream.repository.keys import StoreHeader
from blockstream.repository.memory import Memory
from blockstream.repository.pins import Pins
from blockstream.repository.repository import Repository, StoredDisk
from blockstream.run import Run
from blockstream.words import counted, time_text

if TYPE_CHECKING:
    from blockstream.captures.point import PointCapture  # numpy: 60 ms


@contextlib.contextmanager
def opened_store(store: str, access: StoreAccess, disk: str = "") -> Iterator[Repository]:
    """Open a store, and close it.

    Args:
        store: Where it is.
        access: What it takes.
        disk: Name of the disk that is meant, if it is one.

    Raises:
        NotFoundError: If there is none; with what was meant, where that can be told.
        BlockstreamError: If it cannot be opened.
    """
    with opened_objects(store, access) as objects:
        try:
            repository = Repository(objects, access.identity)
        except NotFoundError:
            _explain(store, disk, access)
            if Memory(access.state_dir).has_used(objects.name):
                raise NotFoundError(
                    f"{objects.name} holds no store now, and this host has used one there; nothing "
                    "was done; is what it lies on mounted? If it is gone for good, `blockstream "
                    f"store init --anew {objects.name}` makes another"
                ) from None
            if disk:
                raise NotFoundError(
                    f"neither {objects.name} nor {objects.name}/{disk} is a store; nothing was "
                    "done; is what it lies on mounted, and the name right, which is STORE/DISK for "
                    f"a disk? `blockstream store init {objects.name}` makes a store"
                ) from None
            raise
        Pins(access.state_dir).check(repository)
        yield repository


def open_store(access: StoreAccess, store: str, disk: str) -> AbstractContextManager[Repository]:
    """See `opened_store`."""
    return opened_store(store, access, disk)


@contextlib.asynccontextmanager
async def captured_point(
    place: StorePlace, target: str, access: StoreAccess, run: Run, *, increments: bool = False
) -> "AsyncIterator[tuple[PointCapture, list[str]]]":
    """Open a restore point as what is sent.

    Args:
        place: The point.
        target: Where it goes, for people; empty for another store.
        access: How its store is reached.
        run: Stops it.
        increments: See `PointCapture`.

    Yields:
        The point, and why newer ones may be missing.

    Raises:
        StoreDamagedError: If the store is, at any time; with what to do.
    """
    from blockstream.captures.point import PointCapture  # numpy

    def found(store: Repository) -> tuple[PointCapture, list[str]]:
        disk = store.disk(place.disk)
        point = disk.find(place.point)
        newest = not place.point.isdecimal() and point.seq == disk.numbers()[-1]
        doubts = doubts_of(disk, access, newest=newest)
        return PointCapture(disk, point, increments=increments), doubts

    opening = opened_store(place.store, access, place.disk)
    async with run.within(opening, harmless=True) as store:
        with _what_next(place, target):
            capture, doubts = await run.ask(functools.partial(found, store))
            for each in doubts:
                run.tell(f"newer points may be missing: {each}")
            yield capture, doubts


@contextlib.contextmanager
def _what_next(place: StorePlace, target: str) -> Iterator[None]:
    """Say what becomes of the target, and what to do, where the store is damaged."""
    try:
        yield
    except StoreDamagedError as error:
        if not target:
            raise
        raise StoreDamagedError(
            f"{error}; {target} does not hold the point, at most a part of it; "
            f"`blockstream store verify {place.store}/{place.disk}` says which points are "
            "whole, and `store repair` takes what is damaged from a copy of the store"
        ) from error


def _explain(store: str, disk: str, access: StoreAccess) -> None:
    """Say what was meant, where what was given as STORE/DISK is a store, or deep in one.

    Raises:
        NotFoundError: If it was that.
    """
    whole = f"{store}/{disk}" if disk else store
    if disk and is_store(whole, access):
        with opened_store(whole, access) as repository:
            names = ", ".join(repository.disks()) or "none yet"
        raise NotFoundError(
            f"{whole} is a store, and no disk in one: name one, as {whole}/NAME; its disks: {names}"
        )
    outer = store.rpartition("/")[0]
    while outer.rstrip(":/") not in {"", "dir", "s3"}:
        if is_store(outer, access):
            raise NotFoundError(f"{whole} lies in the store {outer}: a disk there is {outer}/NAME")
        outer = outer.rpartition("/")[0]


@contextlib.contextmanager
def opened_objects(store: str, access: StoreAccess) -> Iterator[Objects]:
    """Open what a store lies in, and close it."""
    opened = open_objects(store, access.endpoint, allow_http=access.allow_http)
    with contextlib.closing(opened) as objects:
        yield objects


def doubts_of(disk: StoredDisk, access: StoreAccess, *, newest: bool = True) -> list[str]:
    """Return why newer points may be missing than those that are there; note the newest.

    A newest manifest that is damaged is a doubt as well: older points can be read all the same.

    Args:
        disk: The disk.
        access: Has the state directory.
        newest: Whether the newest point is meant; else only an older store is a doubt.
    """
    memory = Memory(access.state_dir)
    try:
        doubt = memory.doubt(disk)
        if not doubt:
            memory.remember(disk, disk.last())
        unnamed = disk.unnamed() if newest else []
    except StoreDamagedError as error:
        return [f"the newest manifest cannot be read: {error}"]
    found = [doubt] if doubt else []
    if unnamed:
        begun = time_text(began(unnamed[-1]))
        found.append(
            f"{disk.objects.name}/{disk.name} has data newer than its newest point, of "
            f"{counted(len(unnamed), 'run')}, the last begun at {begun}, and no manifest of it: "
            "the run died, which the next `send` makes good, or the manifest of a newer point is "
            "lost, which `store repair --from COPY` puts back"
        )
    return found


def missing_disks(repository: Repository, access: StoreAccess) -> list[str]:
    """Return what is to be said of disks that a store had, and has no more."""
    gone = Memory(access.state_dir).missing(repository)
    return [f"{repository.objects.name}/{name} is gone, which this host has seen" for name in gone]


def doubts_text(doubts: Sequence[str]) -> str:
    """Say what may be missing; empty for nothing."""
    return f"newer points may be missing: {'; and '.join(doubts)}" if doubts else ""


def check_doubts(doubts: Sequence[str]) -> None:
    """End with what may be missing.

    Raises:
        StaleViewError: If there is anything.
    """
    if doubts:
        raise StaleViewError(doubts_text(doubts))


def show_strays(keys: Iterable[str]) -> None:
    """Name what lies in a store and is none of ours."""
    for key in sorted(keys):
        name = key.replace("\n", r"\n")  # or it would be a line of its own
        say(f"{name} is nothing of blockstream's: it is left alone")


def place_of(word: str) -> StorePlace:
    """Return the disk of a store that is meant.

    Raises:
        UsageError: If it is none.
    """
    place = store_place(word)
    if place is None:
        raise UsageError(f"{word} is no STORE/DISK, as dir:/var/backups/blockstream/vm is")
    return place


def is_store(place: str, access: StoreAccess) -> bool:
    """Tell whether there is a store, and not the disk of one."""
    with opened_objects(place, access) as objects:
        return StoreHeader.is_there(objects)


def whole_store(word: str) -> str:
    """Return the store that is meant.

    Raises:
        UsageError: If it is none.
    """
    place = store_place(word, disk=False)
    if place is None:
        raise UsageError(f"{word} is no store: dir:PATH is one, and s3://BUCKET/PREFIX")
    return place.store
