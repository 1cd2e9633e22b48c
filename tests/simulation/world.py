"""The things of the simulated world that can fail: disk, journal storage, link, sender's store."""

import errno
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from blockstream_protocol import Committed

SECTOR = 512
BLOCK = 1024  # two sectors, so that a write of one block can tear
BLOCKS = 12
FAULTS_UNTIL = 600  # after this step everything works, so that every world can end
LAST_STEP = 3000


class Violation(AssertionError):  # noqa: N818  # it is a finding, not an error of the simulator
    """A promise was broken.

    Attributes:
        oracle: Number of the promise, as in `simulator.py`.
    """

    def __init__(self, oracle: str, text: str) -> None:
        super().__init__(f"{oracle}: {text}")
        self.oracle = oracle


class Crash(BaseException):  # no product code may catch it, as none can catch SIGKILL
    """One end dies here and now.

    Attributes:
        end: "sender" or "receiver".
        power: Whether its whole host dies, and with it everything volatile.
    """

    def __init__(self, end: str, *, power: bool) -> None:
        super().__init__(end)
        self.end = end
        self.power = power


def below(rng: Random, limit: int) -> int:
    """Return a number below `limit`; several times faster than `randrange`."""
    return int(rng.random() * limit)


class Faults:
    """Says when something goes wrong; what, is the caller's.

    A rate per opportunity and a budget, both drawn once. The distance to the next fault is drawn
    ahead, so that an opportunity costs one subtraction.
    """

    def __init__(self, rng: Random, tell: Callable[..., None]) -> None:
        self._rng = rng
        self._tell = tell
        self._rate = (0.0, 0.02, 0.04, 0.08)[below(rng, 4)]
        self._budget = 1 + below(rng, 8)
        self._fuse = self._draw()
        self.injected: Counter[str] = Counter()

    def _draw(self) -> int:
        if not self._rate or not self._budget:
            return 1 << 60
        return 1 + int(math.log(1.0 - self._rng.random()) / math.log(1.0 - self._rate))

    def due(self) -> bool:
        """Tell whether something goes wrong at this opportunity."""
        self._fuse -= 1
        if self._fuse > 0:
            return False
        self._budget -= 1
        self._fuse = self._draw()
        return True

    def stop(self) -> None:
        """Let everything work from now on."""
        self._budget = 0
        self._fuse = 1 << 60

    def count(self, kind: str, text: str, *values: object) -> None:
        """Note one fault."""
        self.injected[kind] += 1
        self._tell("FAULT %s: " + text, kind, *values)

    def point(self, end: str, name: str) -> None:
        """Pass a named point at which an end may die.

        Raises:
            Crash: If it does.
        """
        if self.due():
            power = self._rng.random() < 0.5
            prefix = "s" if end == "sender" else "r"
            self.count(prefix + ("power" if power else "kill"), "%s, %s", end, name)
            raise Crash(end, power=power)


class Disk:
    """A device with a volatile cache that forgets, tears, and lies after a failed flush.

    Attributes:
        durable: What is on the medium.
        view: What the page cache shows, ghosts of lost writes included.
        pending: Writes that a power cut may lose, in pieces of one block.
        writes: How many writes there were, to tell an untouched target.
        counted: How many the kernel counts, those of others as well.
        fail_flush: The next flush fails, once.
        fail_write: The next write fails, once.
        drop_write: The next write reaches the cache but never the medium, silently.
    """

    def __init__(self, image: bytes, rng: Random, faults: Faults) -> None:
        self._rng = rng
        self._faults = faults
        self.durable = bytearray(image)
        self.view = bytearray(image)
        self.pending: list[tuple[int, bytes]] = []
        self.writes = self.counted = 0
        self.fail_flush = False
        self.fail_write = False
        self.drop_write = False

    def write(self, offset: int, data: bytes) -> None:
        """Write, block by block.

        Raises:
            OSError: If the write failed; blocks before the bad one are in the cache.
        """
        for start in range(0, len(data), BLOCK):
            self._faults.point("receiver", "before a write")
            if self.fail_write:
                self.fail_write = False
                raise OSError(errno.EIO, "write failed")
            self.writes += 1
            self._put(offset + start, data[start : start + BLOCK])
        self._faults.point("receiver", "after a write")

    def _put(self, offset: int, piece: bytes) -> None:
        self.counted += 1
        self.view[offset : offset + len(piece)] = piece
        if self.drop_write:
            self.drop_write = False
            return
        self.pending.append((offset, piece))

    def flush(self, count: int) -> None:
        """Make the first `count` pending writes durable: those made before the flush began.

        Raises:
            OSError: Once, where armed. The writes are forgotten, reads go on showing them, and
                the next flush succeeds: that is how Linux behaves.
        """
        taken, self.pending = self.pending[:count], self.pending[count:]
        if self.fail_flush:
            self.fail_flush = False
            self._apply([piece for piece in taken if self._rng.random() < 0.5])
            raise OSError(errno.EIO, "flush failed")
        self._apply(taken)

    def _apply(self, pieces: list[tuple[int, bytes]]) -> None:
        for offset, piece in pieces:
            self.durable[offset : offset + len(piece)] = piece

    def medium(self) -> bytes:
        """Return what O_DIRECT reads: the medium, after it made the kernel write back."""
        image = bytearray(self.durable)
        for offset, piece in self.pending:
            image[offset : offset + len(piece)] = piece
        return bytes(image)

    def tear_write(self, offset: int, data: bytes) -> None:
        """Let a process die inside a write: any of its sectors may be in the cache."""
        for start in range(0, len(data), SECTOR):
            if self._rng.random() < 0.5:
                self.writes += 1
                self._put(offset + start, data[start : start + SECTOR])

    def overwrite(self, offset: int, data: bytes) -> None:
        """Let somebody else write, durably, behind our back."""
        self.counted += 1
        for image in (self.durable, self.view):
            image[offset : offset + len(data)] = data

    def cut_power(self) -> None:
        """Keep, tear or lose every write that was not flushed."""
        for offset, piece in self.pending:
            fate = self._rng.random()
            if fate < 0.35:
                self._apply([(offset, piece)])
            elif fate < 0.5:
                self._apply([(offset + SECTOR, piece[SECTOR:])])
            elif fate < 0.65:
                self._apply([(offset, piece[:SECTOR])])
        self.pending.clear()
        self.view[:] = self.durable
        self.fail_flush = self.fail_write = self.drop_write = False


class SlotStorage:
    """`journal.Storage` in memory, with the same volatile cache as the disk.

    Attributes:
        durable: What is on the medium, a slot each.
        view: What reads give.
        fail_flush: The next flush fails, once.
    """

    def __init__(self, rng: Random, faults: Faults) -> None:
        self._rng = rng
        self._faults = faults
        self.durable = [b"", b""]
        self.view = [b"", b""]
        self.plans: dict[str, bytes] = {}
        self.fail_flush = False
        self._pending: list[tuple[int, bytes]] = []

    def read_slot(self, index: int) -> bytes:
        """Return what the cache shows."""
        return self.view[index]

    def write_slot(self, index: int, data: bytes) -> None:
        """Write to the cache."""
        self._faults.point("receiver", "before a journal write")
        self.view[index] = data
        self._pending.append((index, data))
        self._faults.point("receiver", "before the journal flush")

    def read_plan(self, name: str) -> bytes:
        """Return a plan."""
        if name not in self.plans:
            raise FileNotFoundError(name)
        return self.plans[name]

    def write_plan(self, name: str, rows: bytes) -> None:
        """Store a plan; a crash inside leaves half of it."""
        self.plans.setdefault(name, rows[: len(rows) // 2])
        self._faults.point("receiver", "inside a plan file")
        self.plans[name] = rows

    def drop_plans(self, keep: str) -> None:
        """Remove all plans but one."""
        self._faults.point("receiver", "before old plans are dropped")
        self.plans = {name: rows for name, rows in self.plans.items() if name == keep}

    def flush(self) -> None:
        """Make the slots durable.

        Raises:
            OSError: Once, where armed; as with the disk, reads go on showing what was lost.
        """
        if self.fail_flush:
            self.fail_flush = False
            for index, data in self._pending:
                self._settle(index, data)
            self._pending.clear()
            raise OSError(errno.EIO, "journal flush failed")
        for index, data in self._pending:
            self.durable[index] = data
        self._pending.clear()
        self._faults.point("receiver", "after the journal flush")

    def cut_power(self) -> None:
        """Keep, tear or lose every slot that was not flushed."""
        for index, data in self._pending:
            self._settle(index, data)
        self._pending.clear()
        self.view = list(self.durable)
        self.fail_flush = False

    def _settle(self, index: int, data: bytes) -> None:
        fate = self._rng.random()
        if fate < 0.4:
            self.durable[index] = data
        elif fate < 0.6:
            old = self.durable[index].ljust(len(data), b"\0")
            # All that differs lies in the first sectors; the rest is padding.
            head = [
                (data if self._rng.random() < 0.5 else old)[start : start + SECTOR]
                for start in range(0, 3 * SECTOR, SECTOR)
            ]
            self.durable[index] = b"".join(head) + data[3 * SECTOR :]


@dataclass(frozen=True, slots=True)
class SenderRecord:
    """What the sender remembers between runs.

    Attributes:
        base: The state that it believes the target to hold; empty before the first copy.
        intent: What COMMITTED must say of the transfer whose END may have left.
    """

    base: str
    intent: Committed | None = None


class SenderStore:
    """The sender's own journal: one record, lost by a power cut until it is flushed."""

    def __init__(self, record: SenderRecord, rng: Random, faults: Faults) -> None:
        self._rng = rng
        self._faults = faults
        self.view = record
        self._durable = record

    def record(self, record: SenderRecord) -> None:
        """Write and flush."""
        self._faults.point("sender", "before it records")
        self.view = record
        self._faults.point("sender", "before it flushes its record")
        self._durable = record
        self._faults.point("sender", "after it recorded")

    @property
    def settled(self) -> bool:
        """Whether a power cut would take nothing back."""
        return self.view == self._durable

    def settle(self) -> None:
        """Make durable what is read at the start, as the receiver does with its journal."""
        self._faults.point("sender", "before it settles its record")
        self._durable = self.view

    def cut_power(self) -> None:
        """Keep or lose what was not flushed."""
        if self._rng.random() < 0.5:
            self._durable = self.view
        self.view = self._durable


class Pipe:
    """One direction of a connection: whole frames in flight, as the bytes they are.

    Attributes:
        flight: The frames, oldest first.
        closed: Whether the writer is gone: after `flight` comes the end.
    """

    __slots__ = ("closed", "flight")

    def __init__(self) -> None:
        self.flight: list[bytes] = []
        self.closed = False

    def cut(self, rng: Random) -> None:
        """Let a prefix arrive, perhaps with a part of the next frame, and then the end."""
        if self.flight and not self.closed:
            keep = below(rng, len(self.flight) + 1)
            part = self.flight[keep : keep + 1]
            del self.flight[keep:]
            if part and rng.random() < 0.5:
                self.flight.append(part[0][: 1 + below(rng, len(part[0]) - 1)])
        self.closed = True

    def flip(self, rng: Random) -> None:
        """Alter one bit of one frame in flight."""
        index = below(rng, len(self.flight))
        frame = bytearray(self.flight[index])
        frame[below(rng, len(frame))] ^= 1 << below(rng, 8)
        self.flight[index] = bytes(frame)

    def lose(self, rng: Random) -> str:
        """Lose a frame, deliver one twice, or deliver all in another order; tell which."""
        fate = rng.random()
        index = below(rng, len(self.flight))
        if fate < 0.5:
            del self.flight[index]
            return "lost"
        if fate < 0.7:
            self.flight.insert(below(rng, len(self.flight) + 1), self.flight[index])
            return "doubled"
        rng.shuffle(self.flight)
        return "shuffled"
