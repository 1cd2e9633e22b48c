"""What streams make that were written one over the other: a disk, or its changes, as a source."""

import os
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np

from blockstream.errors import (
    RefusedError,
    SourceError,
)
from blockstream.extents import ExtentMap
from blockstream.formats.foreign.layers import ZEROS, Placed
from blockstream.linux.buffers import read_all
from blockstream.linux.identity import Identity, Node, identity_of, node_of
from blockstream_protocol import ALIGNMENT, PLAN_EXTENTS, Kind

# Gaps up to this are read and thrown away: cheaper than another call.
_GAP_BYTES = 4096
_MOST_PARTS = 1000  # IOV_MAX is 1024
_NOTHING: Mapping[int, os.stat_result] = MappingProxyType({})


class LayeredSource:
    """The disk, or its changes, that streams make which were written one over the other."""

    read_ahead = 0

    def __init__(
        self,
        name: str,
        placed: Placed,
        fds: Sequence[int],
        size: int,
        before: Mapping[int, os.stat_result] = _NOTHING,
    ) -> None:
        """Take ranges whose bytes lie in `fds`, which stay the caller's.

        Args:
            name: What messages call them.
            placed: Where they lie; files by their place in `fds`.
            fds: The files.
            size: Bytes of the disk.
            before: What files that were read in place were when that began; others are as now.
        """
        self.name = name
        self.size = size
        self.alignment = ALIGNMENT
        # Another stream may have the same ranges, so what was copied before is proved, not trusted.
        self.immutable = False
        self.is_still = True
        self.warnings: list[str] = []
        self.identity: Identity = identity_of(fds[0])
        self.nodes: frozenset[Node] = frozenset(node_of(fd) for fd in fds)
        self._placed = placed
        self._ends = placed.offsets + placed.lengths
        self._fds = list(fds)
        self._before = self._states()
        for file, info in before.items():
            self._before[file] = _state(info)
        self._listed = placed.extents(size)

    def changes(self) -> ExtentMap:
        """Return what is listed.

        Raises:
            RefusedError: If a range does not begin or end on a sector, or there are too many.
        """
        found = self._listed
        ends = found.offsets + found.lengths
        odd = (found.offsets % ALIGNMENT != 0) | ((ends % ALIGNMENT != 0) & (ends != self.size))
        if odd.any():
            where = int(found.offsets[int(odd.argmax())])
            raise RefusedError(
                f"{self.name} changes a part of a sector, at {where}, which needs the rest of it; "
                "nothing was written; make it of whole sectors of 512 bytes"
            )
        if len(found) > PLAN_EXTENTS and len(found.coverage()) > PLAN_EXTENTS:
            raise RefusedError(
                f"{self.name} has more than {PLAN_EXTENTS} separate ranges; nothing was written; "
                "make it in parts, or send a full copy"
            )
        return found

    def extents(self) -> ExtentMap:
        """Return the map of the whole disk; what is not listed is zeros, also within sectors."""
        return self._listed.filled(Kind.ZERO).rounded(ALIGNMENT)

    def read_into(self, offsets: Sequence[int], lengths: Sequence[int], buffer: memoryview) -> None:
        """Fill `buffer`; see `interfaces.Source`."""
        position = 0
        for offset, length in zip(offsets, lengths, strict=True):
            self._read(offset, buffer[position : position + length])
            position += length

    def validate(self) -> None:
        """Check that no file was written since it was indexed."""
        if self._states() != self._before:
            raise SourceError(
                f"{self.name} was written while it was read; END was not sent; begin again when "
                "nobody writes it"
            )

    def _states(self) -> list[tuple[int, int]]:
        return [_state(os.fstat(fd)) for fd in self._fds]

    def close(self) -> None:
        """Do nothing: the descriptors are the caller's."""

    def _read(self, offset: int, buffer: memoryview) -> None:
        placed, end = self._placed, offset + len(buffer)
        first = int(np.searchsorted(self._ends, offset, side="right"))
        last = int(np.searchsorted(placed.offsets, end, side="left"))
        rows = slice(first, last)
        starts = np.maximum(placed.offsets[rows], offset)
        shift = starts - placed.offsets[rows]
        sizes = np.minimum(self._ends[rows], end) - starts
        if int(sizes.sum()) != len(buffer) or bool((placed.places[rows] == ZEROS).any()):
            buffer[:] = bytes(len(buffer))  # no bytes: zeros
        gather = _Gather(self._fds, self.name)
        for file, place, inside, size, skip in zip(
            placed.files[rows].tolist(),
            placed.places[rows].tolist(),
            (starts - offset).tolist(),
            sizes.tolist(),
            shift.tolist(),
            strict=True,
        ):
            if place != ZEROS:
                gather.add(file, place + skip, buffer[inside : inside + size])
        gather.finish()


def _state(info: os.stat_result) -> tuple[int, int]:
    return info.st_size, info.st_mtime_ns


class _Gather:
    """Reads parts of files with as few calls as it takes."""

    def __init__(self, fds: Sequence[int], name: str) -> None:
        self._fds = fds
        self._name = name
        self._file = -1
        self._begin = self._next = 0
        self._parts: list[memoryview] = []
        self._gap = memoryview(bytearray(_GAP_BYTES))

    def add(self, file: int, place: int, buffer: memoryview) -> None:
        """Read a part, now or with what comes next."""
        gap = place - self._next
        far = file != self._file or not 0 <= gap <= _GAP_BYTES
        if far or len(self._parts) >= _MOST_PARTS:
            self.finish()
            self._file, self._begin = file, place
        elif gap:
            self._parts.append(self._gap[:gap])
        self._parts.append(buffer)
        self._next = place + len(buffer)

    def finish(self) -> None:
        """Read what was added."""
        parts, self._parts = self._parts, []
        if not parts:
            return
        try:
            count = os.preadv(self._fds[self._file], parts, self._begin)
            place = self._begin
            for part in parts:
                if count < len(part):
                    read_all(self._fds[self._file], part[count:], place + count)
                place += len(part)
                count = max(0, count - len(part))
        except (OSError, EOFError) as error:
            raise SourceError(
                f"{self._name} cannot be read at {self._begin}: {error}; END was not sent"
            ) from error
