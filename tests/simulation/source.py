"""The simulated disk that is sent: snapshots of it, their plans, and the frames cut from them."""

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from random import Random

from blake3 import blake3

from blockstream_protocol import (
    Codec,
    Extent,
    Frame,
    FrameType,
    Kind,
    Plan,
    PlanBuilder,
    encode_table,
)
from tests.simulation.drivers import pieces_of
from tests.simulation.world import BLOCK, BLOCKS, below

ZERO_BLOCK = bytes(BLOCK)


@dataclass(frozen=True, slots=True)
class SourceFrame:
    """One frame of the source, made once.

    Attributes:
        frame: As the packer would make it.
        covered: Bytes of the device that it covers.
        pieces: The same bytes with their places, for the oracles.
    """

    frame: Frame
    covered: int
    pieces: list[tuple[int, bytes]]


def plan_of(blocks: Iterable[int], size: int) -> Plan:
    """Return the plan of some blocks, ascending."""
    ranges: list[list[int]] = []
    for block in blocks:
        start, end = block * BLOCK, min((block + 1) * BLOCK, size)
        if ranges and ranges[-1][1] == start:
            ranges[-1][1] = end
        else:
            ranges.append([start, end])
    builder = PlanBuilder(size)
    if ranges:
        builder.add(b"".join(struct.pack("<QQ", start, end - start) for start, end in ranges))
    return builder.plan()


class Source:
    """A disk that goes on changing, and its newest snapshot.

    Attributes:
        image: What the snapshot holds now.
        goal: The snapshot's id.
        blocks: Blocks of the plan, ascending.
        plan: The same as a plan.
        frames: What a transfer sends.
        generation: Grows with each change of the image, so that a reader can tell.
        mutated: Whether the image changed under the same id.
        narrow: Whether the plan leaves out a block that an earlier plan held, because it holds
            again what the base holds.
    """

    def __init__(self, base: bytes, rng: Random, *, full: bool) -> None:
        self._rng = rng
        self._full = full
        self._count = 0
        self._base = self.image = base
        self.generation = 0
        self.narrow = False
        self.goal = ""
        self._touched: set[int] = set()
        self._new(below(rng, 12))

    @property
    def moment(self) -> int:
        """When the snapshot was taken, so to speak: another one for each."""
        return self._count

    def advance(self, sent: bytes) -> None:
        """Take the first snapshot after a commit; only what changed since `sent` is in its plan."""
        self._full = False
        self._base = sent
        self._touched = {block for block in range(BLOCKS) if self._changed(block)}
        self._new(below(self._rng, 12))

    def renew(self) -> None:
        """Take another snapshot of the same base: a new id, and more changed blocks than before."""
        self.narrow = not self._full and self._rng.random() < 0.25
        if self.narrow and self._touched:
            block = sorted(self._touched)[below(self._rng, len(self._touched))]
            self._put(block, self._base[block * BLOCK : (block + 1) * BLOCK])
        self._new(below(self._rng, 4))

    def rename(self, goal: str) -> None:
        """Go on under the goal that a command invented for it, or found at the target."""
        if goal != self.goal:
            self.goal = goal
            self.mutated = False

    def widen(self) -> None:
        """Plan all that was ever planned since the base, as the receiver demands."""
        self.narrow = False
        self._cut()

    def mutate(self) -> None:
        """Change a block under the same id, as happens to files and raw devices."""
        self.mutated = True
        self._change(self.blocks[below(self._rng, len(self.blocks))])
        self._cut_frames()

    def _new(self, changes: int) -> None:
        self._count += 1
        self.goal = f"goal-{self._count}"
        self.mutated = False
        for _ in range(changes):
            block = below(self._rng, BLOCKS)
            self._touched.add(block)
            self._change(block)
        self._widths = [1 + below(self._rng, 3) for _ in range(4)]
        self._cut()

    def _changed(self, block: int) -> bool:
        start, end = block * BLOCK, (block + 1) * BLOCK
        return self._base[start:end] != self.image[start:end]

    def _change(self, block: int) -> None:
        self._put(block, ZERO_BLOCK if self._rng.random() < 0.2 else self._rng.randbytes(BLOCK))

    def _put(self, block: int, new: bytes) -> None:
        start = block * BLOCK
        new = new[: len(self.image) - start]
        self.image = self.image[:start] + new + self.image[start + len(new) :]
        self.generation += 1

    def _cut(self) -> None:
        """Plan, and cut the plan into frames."""
        size = len(self.image)
        if self._full:
            self.blocks, self.plan = list(range(BLOCKS)), Plan.whole(size)
        else:
            touched = sorted(self._touched)
            self.blocks = [b for b in touched if self._changed(b)] if self.narrow else touched
            self.plan = plan_of(self.blocks, size)
        self._cut_frames()

    def _cut_frames(self) -> None:
        """Cut in the same places for the same snapshot, whatever it holds by now."""
        self.frames: list[SourceFrame] = []
        start = 0
        while start < len(self.blocks):
            width = self._widths[len(self.frames) % 4]
            self.frames.append(self._frame(self.blocks[start : start + width]))
            start += width

    def _frame(self, blocks: list[int]) -> SourceFrame:
        extents, data = [], b""
        for block in blocks:
            piece = self.image[block * BLOCK : (block + 1) * BLOCK]
            zero = piece == ZERO_BLOCK[: len(piece)]
            extents.append(Extent(block * BLOCK, len(piece), Kind.ZERO if zero else Kind.DATA))
            data += b"" if zero else piece
        raw = encode_table(extents) + data
        frame = Frame(FrameType.EXTENTS, Codec.NONE, len(raw), blake3(raw).digest(), raw)
        covered = sum(extent.length for extent in extents)
        return SourceFrame(frame, covered, list(pieces_of(extents, data)))
