"""The table of a classic LVM snapshot: which chunks of its origin have changed since.

The store begins with a header chunk; from chunk 1 on, an area of (old, new) pairs is followed by as
many data chunks as it has pairs, then comes the next area (drivers/md/dm-snap-persistent.c).
"""

import struct
from dataclasses import dataclass
from typing import Final

import numpy as np

from blockstream.errors import ExceptionStoreError, SnapshotInvalidError
from blockstream.extents import ExtentMap
from blockstream.formats.steps import Ranges, Steps, read_with

__all__ = ["HEADER_BYTES", "SECTOR", "Exceptions", "Ranges", "chunk_of", "exceptions", "read_with"]

SECTOR: Final = 512
HEADER_BYTES: Final = 4096  # as much as a direct read needs
_HEADER: Final = struct.Struct("<4I")  # magic, valid, version, sectors of a chunk
_MAGIC: Final = 0x70416E53
_VERSION: Final = 1
_LEAST_SECTORS, _MOST_SECTORS = 8, 1024
_PAIR_BYTES: Final = 16
_BATCH_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Exceptions:
    """What a store says.

    Attributes:
        chunk: Size of a chunk in bytes.
        areas: How many areas have been begun.
        extents: The chunks of the origin that were changed.
    """

    chunk: int
    areas: int
    extents: ExtentMap

    def __len__(self) -> int:
        """Return how many exceptions there are, where the origin's last chunk is whole."""
        return -(-self.extents.total() // self.chunk)


def chunk_of(header: bytes) -> int:
    """Return the size of a chunk that the header of a store tells.

    Raises:
        SnapshotInvalidError: If the snapshot has overflowed, or been invalidated otherwise.
        ExceptionStoreError: If it is no store that we know.
    """
    if len(header) < _HEADER.size:
        raise ExceptionStoreError("it is shorter than a header")
    magic, valid, version, sectors = _HEADER.unpack_from(header)
    if magic != _MAGIC:
        raise ExceptionStoreError(f"it begins with {header[:4]!r}, not with b'SnAp'")
    if version != _VERSION:
        raise ExceptionStoreError(f"it is of version {version}; known is {_VERSION}")
    if not _LEAST_SECTORS <= sectors <= _MOST_SECTORS or sectors & (sectors - 1):
        raise ExceptionStoreError(f"its chunks have {sectors} sectors, which LVM never makes")
    if not valid:
        raise SnapshotInvalidError(
            "the snapshot is invalid: it was filled by changes of its origin, so what it lists is "
            "incomplete"
        )
    return int(sectors * SECTOR)


def exceptions(store: int, origin: int) -> Steps[Exceptions]:
    """Read a store's table.

    Yields the ranges to read, and takes their bytes, one after the other. They must be read in
    the order given: the kernel clears an area before it fills the one before, so only then does
    an area that was read as full have a successor with an end. One reading serves once: what was
    changed later is found only by the next.

    Args:
        store: Bytes of the store.
        origin: Bytes of the origin; the last chunk is clipped to it.

    Raises:
        SnapshotInvalidError: If the snapshot is not valid.
        ExceptionStoreError: If the table contradicts itself or its device.
    """
    header = yield [(0, min(store, HEADER_BYTES))]
    chunk = chunk_of(header)
    found: list[np.ndarray[tuple[int], np.dtype[np.int64]]] = []
    stride = chunk // _PAIR_BYTES + 1  # an area and its data, in chunks
    last = store // chunk  # where an area would end after the store
    batch = max(1, _BATCH_BYTES // chunk)
    areas, ended = 0, False
    while not ended:
        first = [1 + (areas + number) * stride for number in range(batch)]
        first = [each for each in first if each < last]
        if not first:
            # The kernel clears the next area before it fills one, or gives the snapshot up.
            raise ExceptionStoreError("its table has no end: it is a copy that was cut")
        data = yield [(each * chunk, chunk) for each in first]
        if len(data) != chunk * len(first):
            raise ExceptionStoreError("it ends within its table")
        for number in range(len(first)):
            pairs = np.frombuffer(data, "<u8", chunk // 8, number * chunk).reshape(-1, 2)
            least = int(pairs[:, 1].argmin())  # the first mark of the end, where there is one
            ended = int(pairs[least, 1]) == 0
            areas += 1
            used = pairs[:least] if ended else pairs
            _check(used, store // chunk, stride, -(-origin // chunk))
            found.append(used[:, 0].astype(np.int64))
            if ended:
                break
    chunks = np.concatenate(found) if found else np.empty(0, np.int64)
    del found
    chunks.sort()
    if not np.diff(chunks).all():
        raise ExceptionStoreError("it lists a chunk twice")
    return Exceptions(chunk, areas, ExtentMap.from_chunks(chunks, chunk, origin))


def _check(
    pairs: np.ndarray[tuple[int, int], np.dtype[np.uint64]], store: int, stride: int, origin: int
) -> None:
    """Refuse what the kernel never writes; sizes are in chunks."""
    if not pairs.size:
        return
    old, new = pairs[:, 0], pairs[:, 1]
    if old.max() >= origin:
        raise ExceptionStoreError("it lists a chunk past the end of the origin")
    if new.max() >= store:
        raise ExceptionStoreError("it keeps a chunk past its own end")
    if 1 in new % stride:
        raise ExceptionStoreError("it keeps a chunk where a part of its table is")
