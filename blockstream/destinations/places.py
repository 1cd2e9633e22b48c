"""Where each of several disks goes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from blockstream.errors import UsageError
from blockstream.locations.ssh import HostFolder, Remote
from blockstream.locations.store import StorePlace

P = TypeVar("P")


@dataclass(slots=True)
class Places(Generic[P]):
    """The place of each disk, by its name; or one place, which gets one disk.

    Attributes:
        shown: What people call it.
        of: Returns the place of a name.
        many: Whether each name has a place of its own.
    """

    shown: str
    of: Callable[[str], P]
    many: bool = False
    _first: str = ""

    def check(self, name: str) -> None:
        """Refuse a second disk where there is one place; asked before anything is made.

        Raises:
            UsageError: If it is one.
        """
        self._first = self._first or name
        if not self.many and name != self._first:
            raise UsageError(
                f"{self.shown} takes one disk, and this machine has several; nothing was sent; "
                f"give a folder, or pick one with ?disk={self._first.rpartition('-')[2]}"
            )


class Naming(Protocol):
    """What disks are called at a destination."""

    @property
    def by_rounds(self) -> bool:
        """Whether the destination itself is asked what it holds, round after round.

        Each place that is not there yet is made then, if that is wished at all.
        """

    def here(self, target: str) -> Places[str]:
        """Return the places on this host."""

    def there(self, host: Remote | HostFolder) -> Places[Remote]:
        """Return the places on another host."""

    def stored(self, place: StorePlace) -> Places[str]:
        """Return the names in a store."""


@dataclass(frozen=True, slots=True)
class OneDisk:
    """The target is the place of the one disk that is sent."""

    by_rounds: bool = False

    def here(self, target: str) -> Places[str]:
        """See `Naming`."""
        return Places(target, lambda _name: target)

    def there(self, host: Remote | HostFolder) -> Places[Remote]:
        """See `Naming`."""
        if isinstance(host, HostFolder):
            raise UsageError(f"{host} takes several disks; name the place of one: HOST:/PATH")
        return Places(str(host), lambda _name: host)

    def stored(self, place: StorePlace) -> Places[str]:
        """See `Naming`."""
        return Places(str(place), lambda _name: place.disk)


@dataclass(frozen=True, slots=True)
class DiskSet:
    """Several disks with names of their own, committed together.

    Attributes:
        hosts: Where each goes on another host.
    """

    hosts: Mapping[str, Remote] = field(default_factory=dict)
    by_rounds: bool = False

    def here(self, target: str) -> Places[str]:
        """See `Naming`."""
        raise UsageError(f"{target} takes one disk: several go to HOST:, HOST:/FOLDER/ or a store")

    def there(self, host: Remote | HostFolder) -> Places[Remote]:
        """See `Naming`."""
        return Places(str(host), self.hosts.__getitem__, many=True)

    def stored(self, place: StorePlace) -> Places[str]:
        """See `Naming`."""
        return Places(str(place), str, many=True)


@dataclass(frozen=True, slots=True)
class MachineDisks:
    """The disks of a machine, which are called MACHINE-KEY.

    They go to a folder, as MACHINE-KEY.raw; or to STORE/NAME, as NAME-KEY; or one to one place.

    Attributes:
        single: Whether one disk of the machine is meant.
    """

    single: bool
    by_rounds: bool = True

    def here(self, target: str) -> Places[str]:
        """See `Naming`."""
        folder = target.endswith("/") or Path(target).is_dir()
        return Places(
            target, lambda name: str(Path(target) / f"{name}.raw") if folder else target, folder
        )

    def there(self, host: Remote | HostFolder) -> Places[Remote]:
        """See `Naming`."""
        if isinstance(host, HostFolder):
            host = host.host
        folder = host.path.endswith("/")
        return Places(
            str(host),
            lambda name: replace(host, path=f"{host.path}{name}.raw") if folder else host,
            folder,
        )

    def stored(self, place: StorePlace) -> Places[str]:
        """See `Naming`."""
        if self.single:
            return Places(str(place), lambda _name: place.disk)
        return Places(str(place), lambda name: f"{place.disk}-{name.rpartition('-')[2]}", many=True)
