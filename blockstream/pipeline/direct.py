"""Straight into the device: effects of a receiver executed on a target and its journal."""

from contextlib import suppress
from typing import Protocol

import blake3

from blockstream.errors import ReadBackError, RefusedError, TargetError
from blockstream.interfaces import Target
from blockstream.linux.traces import Verdict, compared
from blockstream.pipeline.failpoints import failpoint
from blockstream.pipeline.journal import Journal
from blockstream.pipeline.samples import BaseCheck, Evidence, base_check, evidence
from blockstream_protocol import (
    Clean,
    Dirty,
    Extent,
    Frame,
    Kind,
    Open,
    Plan,
    Table,
    TargetState,
    encode_table,
)

_READ_STEP = 1 << 20


class BeforeWriting(Protocol):
    """What hears of the first write to a target."""

    def begin(self, opening: Open, plan: Plan, *, resumed: bool) -> None:
        """Make ready for it; a refusal here leaves everything as it was."""

    def first_write(self) -> None:
        """Take the news that it comes now; any thread, several times."""

    def nothing_written(self) -> None:
        """Take the news that it never came."""


class DirectApplier:
    """Writes into the target; resumable, but half-written until it is finished."""

    def __init__(
        self,
        target: Target,
        journal: Journal,
        keeper: BeforeWriting | None = None,
    ) -> None:
        """Prepare; `keeper` hears of the first write, and may refuse it."""
        self._target = target
        self._journal = journal
        self._keeper = keeper
        self._dirty = isinstance(journal.state, Dirty)
        self._begun = False
        # What to record again of a target to which nothing was written after all, and its trace.
        # Any writer sets it to None; it is asked for when all of them have ended.
        self._before: tuple[Clean, str] | None = None
        self._trace = ""

    def prepare(
        self, opening: Open, plan: Plan, *, resumed: bool, first: int, moment: int | None
    ) -> None:
        """Save what undo needs; the journal itself was preallocated when it was opened.

        Raises:
            RefusedError: If it goes on with what was left, and somebody wrote to that.
        """
        if self._dirty and self._journal.trace and (first or opening.base):
            found = compared(self._journal.trace, self._target.trace())
            if found.verdict is Verdict.WRITTEN:
                raise RefusedError(
                    f"{self._target.name} was written since the transfer to it was interrupted: "
                    f"{found.reason}; nothing more was written; `blockstream abort "
                    f"{self._target.name}` gives that one up, and then a full copy helps"
                )
        if self._keeper is not None:
            self._keeper.begin(opening, plan, resumed=resumed)
            failpoint("recv.undo_saved")
        self._target.begin()
        self._begun = True
        state = self._journal.state  # an unfinished transfer may have been undone just now
        self._before = (state, self._journal.trace) if isinstance(state, Clean) else None

    def leave(self) -> None:
        """Note what the kernel knows of a target that is left half-written, or that it is not."""
        if self._dirty and self._begun:
            # Without it, going on is as it was.
            with suppress(TargetError, OSError):
                if self._before is None:
                    self._journal.record(self._journal.state, trace=self._target.trace())
                else:
                    state, trace = self._before
                    self._journal.record(state, trace=trace)
                    if self._keeper is not None:
                        self._keeper.nothing_written()

    def record(self, state: TargetState) -> None:
        """Record a state; before the first write a full disk is only a refusal."""
        try:
            self._journal.record(state, trace=self._trace if isinstance(state, Clean) else "")
        except OSError as error:
            if not self._dirty:
                raise RefusedError(
                    f"the journal cannot be written: {error.strerror}; nothing was written to "
                    f"{self._target.name}; make room, or choose another place with --state-dir"
                ) from error
            raise TargetError(
                f"the journal cannot be written: {error.strerror}; {self._target.name} is DIRTY "
                "and stays so; make room and run the same command again"
            ) from error
        self._dirty = not isinstance(state, Clean)

    def write(self, seq: int, frame: Frame, table: Table) -> None:  # the interface's
        """Write the extents of a frame."""
        if self._before is not None:
            self._before = None
            if self._keeper is not None:
                self._keeper.first_write()
        offsets, lengths, data = [], [], int(Kind.DATA)
        for offset, length, kind in table.extents:
            if kind == data:
                offsets.append(offset)
                lengths.append(length)
            else:
                self._target.zero(offset, length)
        half = len(offsets) // 2
        if half:
            split = sum(lengths[:half])
            self._target.write_from(offsets[:half], lengths[:half], table.data[:split])
            failpoint("recv.mid_write")
            self._target.write_from(offsets[half:], lengths[half:], table.data[split:])
        else:
            self._target.write_from(offsets, lengths, table.data)

    def flush(self) -> None:
        """Flush the target."""
        self._target.flush()

    def read_back(self, frame_digest: bytes, extents: list[Extent]) -> None:
        """Read a frame's extents from the medium and digest them again."""
        digest = blake3.blake3(encode_table(extents))
        for offset, length, kind in extents:
            for start in range(offset, offset + length, _READ_STEP):
                step = min(_READ_STEP, offset + length - start)
                data = self._target.read_medium(start, step)
                if kind == Kind.DATA:
                    digest.update(data)
                elif data.strip(b"\0"):
                    raise self._differs(start, step)
        if digest.digest() != frame_digest:
            last = extents[-1]
            raise self._differs(extents[0].offset, last.offset + last.length - extents[0].offset)

    def check_base(self, samples: str) -> BaseCheck:
        """Tell whether somebody wrote to the target since its commit."""
        return base_check(Evidence(samples, self._journal.trace), evidence(self._target))

    def samples(self) -> str:
        """Check that the target is whole; sample it, and note what the kernel knows of it."""
        self._target.check_whole()
        found = evidence(self._target)
        self._trace = found.trace
        return found.samples

    def _differs(self, offset: int, length: int) -> ReadBackError:
        return ReadBackError(
            f"{self._target.name} does not hold what was written to it: something in {length} "
            f"bytes from offset {offset} reads back differently; it is DIRTY; do not trust this "
            "device or the memory of this host"
        )
