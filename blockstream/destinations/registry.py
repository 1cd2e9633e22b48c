"""From what people type to the destination that it names: one line a kind."""

import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from blockstream.destinations.interface import Destination
from blockstream.destinations.places import Naming, Places
from blockstream.errors import UsageError
from blockstream.locations.interface import Location
from blockstream.locations.local import LocalDisk
from blockstream.locations.ssh import HostFolder, Remote
from blockstream.locations.store import StorePlace
from blockstream.run import Run
from blockstream.transfers.peer_options import PeerOptions
from blockstream.transfers.receive_options import ReceiveRequest
from blockstream.transfers.send import TransferOptions

if TYPE_CHECKING:
    from blockstream.repository.repository import Repository


@dataclass(frozen=True, slots=True)
class DestinationOptions:
    """How what is sent is taken, wherever it goes.

    Attributes:
        where: How a disk may be written; its own target is not looked at.
        how: How it travels.
        peer: How another host is reached.
        open_store: Opens a store; the second word is the disk there that is meant, if it is one.
            None where only disks will do.
        audit_cycle: Of a store; see `StoreDestination`.
        check_base: Of disks; see `DiskDestination`.
    """

    where: ReceiveRequest
    how: TransferOptions
    peer: PeerOptions
    open_store: "Callable[[str, str], AbstractContextManager[Repository]] | None" = None
    audit_cycle: int = 0
    check_base: bool = False


@contextlib.asynccontextmanager
async def opened_destination(
    target: Location, naming: Naming, options: DestinationOptions, run: Run
) -> AsyncIterator[Destination]:
    """Open what takes disks: disks of this host, of another one, or of a store.

    Args:
        target: Where they go.
        naming: What each is called there.
        options: How they are taken.
        run: Stops it.

    Raises:
        BlockstreamError: If a store cannot be opened.
    """
    if isinstance(target, StorePlace) and options.open_store is not None:
        meant = target.disk if not naming.by_rounds else ""
        opening = options.open_store(target.store, meant)
        async with run.within(opening, harmless=True) as store:
            yield _in_store(store, target, naming.stored(target), options)
    elif isinstance(target, Remote | HostFolder):
        yield _on_host(naming, target, options)
    elif isinstance(target, LocalDisk):
        yield _here(naming, target.path, options)
    else:
        raise UsageError(f"{target} {target.what}")


def _here(naming: Naming, target: str, options: DestinationOptions) -> Destination:
    from blockstream.destinations.disk import DiskDestination  # numpy

    return DiskDestination(
        naming.here(target),
        options.where,
        options.how,
        check_base=options.check_base,
        is_remembered=not naming.by_rounds,
        makes_absent=naming.by_rounds,
    )


def _on_host(naming: Naming, host: Remote | HostFolder, options: DestinationOptions) -> Destination:
    from blockstream.destinations.host import HostDestination  # numpy

    return HostDestination(
        naming.there(host),
        options.where,
        options.how,
        options.peer,
        check_base=options.check_base,
        makes_absent=naming.by_rounds,
    )


def _in_store(
    store: "Repository", place: StorePlace, names: Places[str], options: DestinationOptions
) -> Destination:
    from blockstream.destinations.store import StoreDestination  # numpy
    from blockstream.repository.memory import Memory

    memory = Memory(options.how.state_dir)
    return StoreDestination(store, place.store, names, memory, options.how, options.audit_cycle)
