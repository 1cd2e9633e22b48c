"""VMDKs that lie in memory, read by the parsers alone."""

from collections.abc import Sequence
from typing import TypeVar

from blockstream.errors import VmdkError
from blockstream.extents import ExtentMap
from blockstream.formats.steps import Ranges, read_with
from blockstream.formats.vmdk.chain import NOWHERE, Asking, Chain, Link, Part, Places
from blockstream.formats.vmdk.cowd import read_cowd
from blockstream.formats.vmdk.grains import GrainMap
from blockstream.formats.vmdk.hosted import read_grain, read_hosted
from blockstream.formats.vmdk.sesparse import read_sesparse

T = TypeVar("T")


def bytes_of(data: bytes | bytearray, ranges: Ranges) -> bytes:
    """Return ranges of a file; a parser must not ask for what is not there."""
    for start, length in ranges:
        if start < 0 or length < 0 or start + length > len(data):
            raise AssertionError((start, length, len(data)))
    return b"".join(data[start : start + length] for start, length in ranges)


def map_of(data: bytes | bytearray) -> GrainMap:
    """Return the map of a sparse file of any kind."""
    if data[:4] == b"COWD":
        return read_with(read_cowd(len(data)), lambda ranges: bytes_of(data, ranges))[0]
    if data[:4] == b"KDMV":
        found = read_with(read_hosted(len(data)), lambda ranges: bytes_of(data, ranges))
        if found.map is None:
            raise VmdkError("it only has a descriptor")
        return found.map
    return read_with(read_sesparse(len(data)), lambda ranges: bytes_of(data, ranges))


class MemoryChain:
    """Files in memory as a chain, newest first; one that is no VMDK is flat."""

    def __init__(self, files: Sequence[bytes | bytearray]) -> None:
        self.files = files
        links = []
        for number, data in enumerate(files):
            sparse = bytes(data[:4]) in {b"COWD", b"KDMV", b"\xbe\xba\xfe\xca"}
            grains = map_of(data) if sparse else None
            size = grains.size if grains is not None else len(data)
            links.append(Link((Part(number, number, 0, size, 0, grains),)))
        self.chain = Chain(links)

    def extents(self) -> ExtentMap:
        """Return what the chain has."""
        return self._run(self.chain.extents())

    def read(self, *ranges: tuple[int, int]) -> bytes:
        """Return ranges of the disk, one after the other."""
        places = self._run(
            self.chain.places([start for start, _ in ranges], [length for _, length in ranges])
        )
        return b"".join(self._piece(places, row) for row in range(len(places.starts)))

    def _piece(self, places: Places, row: int) -> bytes:
        length, number = int(places.lengths[row]), int(places.parts[row])
        if number == NOWHERE:
            return bytes(length)
        part = self.chain.parts[number]
        data, position = self.files[part.file], int(places.positions[row])
        if part.map is None or not part.map.compressed:
            return bytes_of(data, [(position, length)])
        grain, begin = divmod(int(places.starts[row]), part.map.grain)
        steps = read_grain(part.map, position, grain)
        return read_with(steps, lambda ranges: bytes_of(data, ranges))[begin : begin + length]

    def _run(self, asking: Asking[T]) -> T:
        try:
            ask = next(asking)
            while True:
                ask = asking.send(bytes_of(self.files[ask.file], ask.ranges))
        except StopIteration as stop:
            result: T = stop.value
            return result
