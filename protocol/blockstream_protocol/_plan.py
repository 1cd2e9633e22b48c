"""The plan: which ranges of the target a transfer writes, exactly (SPEC 4.3)."""

import struct
import sys
from array import array
from collections.abc import Iterator

from blockstream_protocol._digests import Buffer, NewDigest
from blockstream_protocol._errors import RemoteProtocolError
from blockstream_protocol._limits import ALIGNMENT, PLAN_EXTENTS, PLAN_FRAME_BYTES

ROW_BYTES = 16  # u64 offset, u64 length


def is_aligned(offset: int, end: int, size: int) -> bool:
    """Tell whether both ends lie on sectors; the device's own end always counts as one."""
    return offset % ALIGNMENT == 0 and (end % ALIGNMENT == 0 or end == size)


class Plan:
    """Ascending ranges that neither overlap nor touch, in 16 bytes each.

    Immutable by convention: built by `PlanBuilder`, `Plan.whole` or `Plan.from_rows`.
    """

    __slots__ = ("_columns",)

    def __init__(self, columns: "array[int]") -> None:
        self._columns = columns

    @classmethod
    def whole(cls, size: int) -> "Plan":
        """Return the plan of a full copy: the device from end to end."""
        return cls(array("Q", [0, size] if size else []))

    @classmethod
    def from_rows(cls, rows: Buffer, size: int) -> "Plan":
        """Parse stored rows of (u64 offset, u64 length), checking every rule.

        Raises:
            RemoteProtocolError: If the rows break a rule of SPEC 4.3.
        """
        builder = PlanBuilder(size)
        for start in range(0, len(rows), PLAN_FRAME_BYTES):
            builder.add(rows[start : start + PLAN_FRAME_BYTES])
        return builder.plan()

    def __len__(self) -> int:
        return len(self._columns) // 2

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Plan) and self._columns == other._columns

    def __hash__(self) -> int:
        raise TypeError("a plan is compared, never used as a key")

    def __getitem__(self, index: int) -> tuple[int, int]:
        """Return the first byte of range `index` and the first byte after it."""
        offset = self._columns[2 * index]
        return offset, offset + self._columns[2 * index + 1]

    def __iter__(self) -> Iterator[tuple[int, int]]:
        for index in range(len(self)):
            yield self[index]

    @property
    def total(self) -> int:
        """How many bytes the plan covers."""
        return sum(self._columns[1::2])

    def rows(self) -> bytes:
        """Return the rows as they travel: little endian, 16 bytes each."""
        columns = self._columns
        if sys.byteorder == "big":
            columns = array("Q", columns)
            columns.byteswap()
        return columns.tobytes()

    def pieces(self) -> Iterator[bytes]:
        """Cut the rows into the payloads of PLAN frames."""
        rows = self.rows()
        for start in range(0, len(rows), PLAN_FRAME_BYTES):
            yield rows[start : start + PLAN_FRAME_BYTES]

    def digest(self, new_digest: NewDigest) -> bytes:
        """Return the digest of the rows, which the opening carries."""
        return new_digest(self.rows()).digest()

    def covers(self, other: "Plan") -> bool:
        """Tell whether every byte of `other` is also in this plan."""
        mine = iter(self)
        start, end = next(mine, (0, 0))
        for offset, stop in other:
            while end < stop:
                following = next(mine, None)
                if following is None:
                    return False
                start, end = following
            if start > offset:
                return False
        return True


class PlanBuilder:
    """Takes the plan in pieces and refuses it at the first broken rule."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._columns = array("Q")
        self._end = -1

    def add(self, rows: Buffer) -> None:
        """Take the rows of one PLAN frame.

        Raises:
            RemoteProtocolError: If a row is empty, unaligned, past the end, descending,
                touches the one before, or there are too many.
        """
        if len(rows) % ROW_BYTES or not rows:
            raise RemoteProtocolError("a plan frame does not hold whole rows")
        if (len(self._columns) * 8 + len(rows)) // ROW_BYTES > PLAN_EXTENTS:
            raise RemoteProtocolError(f"the plan has more than {PLAN_EXTENTS} extents")
        size, end = self._size, self._end
        for offset, length in struct.iter_unpack("<QQ", rows):
            if offset <= end:
                raise RemoteProtocolError(f"the plan does not ascend at offset {offset}")
            end = offset + length
            if not length or end > size or not is_aligned(offset, end, size):
                raise RemoteProtocolError(
                    f"the plan holds {length} bytes at offset {offset}, which does not fit a "
                    f"device of {size} bytes"
                )
        self._end = end
        piece = array("Q", bytes(rows))
        if sys.byteorder == "big":
            piece.byteswap()
        self._columns.extend(piece)

    def __len__(self) -> int:
        return len(self._columns) // 2

    def plan(self) -> Plan:
        """Return what was taken."""
        return Plan(self._columns)
