"""Which disks of a store a command means, and doing something with each of them."""

from collections.abc import Awaitable, Callable, Sequence

from blockstream.cli.console import say
from blockstream.cli.store_access import StoreAccess
from blockstream.cli.stores import (
    is_store,
    missing_disks,
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
)
from blockstream.repository.repository import StoredDisk
from blockstream.run import Run


def gone(place: str, access: StoreAccess) -> list[str]:
    """Name what lies among the disks of a store; return what is to be said of missing ones."""
    whole = whole_store(place)
    if not is_store(whole, access):
        return []
    with opened_store(whole, access) as repository:
        show_strays(repository.strays())
        return missing_disks(repository, access)


async def with_each(
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


def check_all_done(place: str, failed: Sequence[str]) -> None:
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
