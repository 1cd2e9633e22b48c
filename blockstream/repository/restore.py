"""A restore point as something to send: to a disk of this host, or of another."""

from collections.abc import Callable

from blockstream.formats.point import Point
from blockstream.linux.identity import Identity
from blockstream.pipeline.compression import Decompressor
from blockstream.repository.repository import StoredDisk
from blockstream.sources.point import Layer, PointSource


def identity_of(point: Point) -> str:
    """Return what a point is known by, wherever it lies: of two there are no equal ones."""
    return f"point:{point.digest}"


def opened_point(disk: StoredDisk, point: Point) -> PointSource:
    """Return a point as a source, its chain and its indexes checked.

    Raises:
        StoreDamagedError: If something that it needs is missing or damaged.
    """
    chain = disk.chain(point)
    layers = [
        Layer(index, _reader(disk, each), f"{disk.objects.name}/{disk.name}@{each.seq}")
        for each, index in zip(chain, disk.indexes(chain), strict=True)
    ]
    name = f"{disk.objects.name}/{disk.name}@{point.seq}"
    return PointSource(name, Identity(identity_of(point), lasting=True), layers, Decompressor)


def _reader(disk: StoredDisk, point: Point) -> Callable[[int, int, int], bytes]:
    def read(pack: int, offset: int, length: int) -> bytes:
        return disk.objects.read(disk.pack_key(point, pack), offset, length)

    return read
