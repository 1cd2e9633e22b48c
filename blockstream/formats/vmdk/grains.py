"""What all sparse kinds share: a directory of tables, and in them where each grain lies."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from blockstream.errors import VmdkError
from blockstream.extents import Column, Kinds
from blockstream.formats.steps import Steps
from blockstream.formats.vmdk.descriptor import SECTOR
from blockstream_protocol import DEVICE_BYTES, Kind

Entries = npt.NDArray[np.uint32] | npt.NDArray[np.uint64]

# In place of where a grain lies in its file.
ABSENT: Final = 0
ZEROS: Final = -1
# Of all tables at 2 MiB each: what vmfsSparse needs for its 2 TiB, four times.
MOST_TABLES: Final = 1 << 22
# Tables are read so many bytes at a time.
BATCH_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True, eq=False)
class GrainMap:
    """Where the grains of one sparse file lie; its tables are read when they are needed.

    Attributes:
        kind: What people call such a file.
        file: Bytes of the file.
        size: Bytes of the disk, or part of one, that it holds.
        grain: Bytes of a grain; the last one may be cut.
        entries: How many grains a table tells of.
        tables: Where each table begins in the file; ABSENT for none.
        least: Where data may begin in the file.
        wanted: Bytes that must follow where a grain begins; the last grain may be shorter.
        raw: Type of an entry as it lies in the file.
        decode: Turns entries into bytes from the file's begin, ABSENT or ZEROS.
        compressed: Whether a grain lies behind a marker, deflated.
    """

    kind: str
    file: int
    size: int
    grain: int
    entries: int
    tables: Column
    least: int
    wanted: int
    raw: str
    decode: Callable[[Entries], Column]
    compressed: bool = False

    @property
    def table_bytes(self) -> int:
        """Bytes of a table in the file."""
        return self.entries * np.dtype(self.raw).itemsize

    @property
    def batch(self) -> int:
        """How many tables are read at a time."""
        return max(1, BATCH_BYTES // self.table_bytes)

    def read_tables(self, numbers: Column) -> Steps[npt.NDArray[np.int64]]:
        """Read tables that are there; at most `batch` of them.

        Returns:
            A row a table: where each grain lies, ABSENT or ZEROS.

        Raises:
            VmdkError: If an entry points where no grain can be.
        """
        ranges = [(start, self.table_bytes) for start in self.tables[numbers].tolist()]
        data = exactly((yield ranges), self.table_bytes * len(ranges))
        found = self.decode(np.frombuffer(data, self.raw)).reshape(len(ranges), self.entries)
        self._check(found, numbers)
        return found

    def _check(self, found: npt.NDArray[np.int64], numbers: Column) -> None:
        if not found.size:
            return
        there = found > 0
        if bool((there & (found < self.least)).any()):
            raise VmdkError(f"a table of this {self.kind} file points into its header")
        late = np.argwhere(there & (found > self.file - self.wanted))
        for row, column in late[:2].tolist():
            number = int(numbers[row]) * self.entries + column
            rest = self.size - number * self.grain
            # The end of the last grain lies past the end of the disk, and need not be there.
            if not 0 < rest < self.grain or int(found[row, column]) + rest > self.file:
                raise VmdkError(f"a table of this {self.kind} file points past the file's end")

    def extents(self) -> Steps[tuple[Column, Column, Kinds]]:
        """Read all tables; return offsets, lengths and kinds of what is not absent.

        The last may reach past the end of the disk.
        """
        columns: list[tuple[Column, Column, Kinds]] = []
        present = np.flatnonzero(self.tables)
        for first in range(0, len(present), self.batch):
            numbers = present[first : first + self.batch]
            found = yield from self.read_tables(numbers)
            grains = (numbers[:, None] * self.entries + np.arange(self.entries)).ravel()
            columns.append(_runs(grains, found.ravel()))
        if not columns:
            return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.uint8)
        starts, lengths, kinds = (np.concatenate(each) for each in zip(*columns, strict=True))
        return starts * self.grain, lengths * self.grain, kinds


def _runs(grains: Column, found: Column) -> tuple[Column, Column, Kinds]:
    """Join neighbouring grains of one kind; numbers and counts of grains."""
    there = found != ABSENT
    grains = grains[there]
    kinds = np.where(found[there] == ZEROS, Kind.ZERO, Kind.DATA).astype(np.uint8)
    edges = np.ones(len(grains) + 1, np.bool_)
    np.logical_or(np.diff(grains) != 1, kinds[1:] != kinds[:-1], out=edges[1:-1])
    starts = grains[edges[:-1]]
    return starts, grains[edges[1:]] - starts + 1, kinds[edges[:-1]]


def exactly(data: bytes, length: int) -> bytes:
    """Return `data`.

    Raises:
        VmdkError: If there is less of it.
    """
    if len(data) != length:
        raise VmdkError("it ends within its tables")
    return data


def check_inside(what: str, offset: int, length: int, file: int) -> None:
    """Check that a structure lies in the file behind the header.

    Raises:
        VmdkError: If it does not.
    """
    if not SECTOR <= offset <= file - length:
        raise VmdkError(f"its {what} would lie at {offset}, in a file of {file} bytes")


def geometry(capacity: int, grain: int, entries: int, most_grain: int) -> tuple[int, int, int]:
    """Return bytes of the disk and of a grain, and how many tables it takes.

    Args:
        capacity: Sectors of the disk.
        grain: Sectors of a grain.
        entries: Grains of a table.
        most_grain: The most sectors that a grain may have.

    Raises:
        VmdkError: If these are no disk that we could hold the directory of.
    """
    if not 0 < capacity <= DEVICE_BYTES // SECTOR:
        raise VmdkError(f"its capacity is {capacity} sectors, which is no disk")
    if not 0 < grain <= most_grain:
        raise VmdkError(f"its grains have {grain} sectors, not 1 to {most_grain}")
    tables = -(-capacity // (grain * entries))
    if tables > MOST_TABLES:
        raise VmdkError(f"it would take {tables} tables, more than {MOST_TABLES}")
    return capacity * SECTOR, grain * SECTOR, tables


def check_tables(tables: Column, table_bytes: int, least: int, file: int) -> Column:
    """Check where tables lie.

    Raises:
        VmdkError: If one lies outside the file, or two share bytes.
    """
    used = np.sort(tables[tables != ABSENT])
    if len(used) and (int(used[0]) < least or int(used[-1]) > file - table_bytes):
        raise VmdkError("its directory points into the header, or past the file's end")
    if bool((np.diff(used) < table_bytes).any()):
        raise VmdkError("two entries of its directory share a table")
    return tables
