"""Staged apply: nothing touches the target until the whole stream has arrived and was verified.

The spool is an ordinary stored stream with a journal of its own. Once it is complete it is
applied by the ordinary receiver, from this host alone.
"""

import os
from collections.abc import Callable
from pathlib import Path

import blake3

from blockstream.errors import RefusedError
from blockstream.linux.files import kept_file, sync_directory
from blockstream.pipeline.direct import DirectApplier
from blockstream.pipeline.failpoints import failpoint
from blockstream.pipeline.journal import Journal
from blockstream.pipeline.samples import BaseCheck
from blockstream.pipeline.workers import Turnstile
from blockstream_protocol import (
    MAGIC,
    Clean,
    Dirty,
    End,
    Extent,
    Frame,
    FrameType,
    Hello,
    Moment,
    Open,
    Plan,
    Table,
    TargetState,
    Unknown,
    control_frame,
    encode,
    encode_head,
    plain_frame,
)

SPOOL_POSITION = "spool_bytes"


class StagedApplier:
    """Takes a stream into the spool; CLEAN of the spool means that it is complete."""

    def __init__(
        self,
        path: Path,
        journal: Journal,
        target: DirectApplier,
        apply: Callable[[], None],
    ) -> None:
        """Prepare.

        Args:
            path: The spool.
            journal: The spool's own journal, not the target's.
            target: The target, whose base is checked before anything is spooled.
            apply: Brings a complete spool onto the target; returns once that is committed.
        """
        self._target = target
        self._path = path
        self._journal = journal
        self._apply = apply
        self._fd = -1
        self._position = 0
        self._order = Turnstile()
        # Where in the spool each frame since the last record ends.
        self._ends: dict[int, int] = {}

    def prepare(
        self, opening: Open, plan: Plan, *, resumed: bool, first: int, moment: int | None
    ) -> None:
        """Begin the spool, or cut it back to what was durable."""
        state = self._journal.state
        try:
            self._fd = kept_file(self._path)
            if resumed and first and isinstance(state, Dirty):
                self._position = int(self._journal.entry.facts[SPOOL_POSITION])
                os.ftruncate(self._fd, self._position)
            else:
                # Nobody may take the new spool for what the old record promises.
                if not isinstance(state, Unknown):
                    self._journal.record(Unknown())
                os.ftruncate(self._fd, 0)
                self._append(_beginning(opening, plan, moment))
                sync_directory(self._path.parent)
        except OSError as error:
            raise RefusedError(
                f"the spool {self._path} cannot be written: {error.strerror}; the target was not "
                "touched; make room, or choose another place with --state-dir"
            ) from error
        self._ends = {first: self._position}
        self._order = Turnstile(first)

    def record(self, state: TargetState) -> None:
        """Record how far the spool is durable; complete it and apply it at the end."""
        try:
            if isinstance(state, Clean):
                end = End(state.frames, state.chain, state.plan.total)
                self._append(encode(control_frame(end, blake3.blake3)))
                os.fdatasync(self._fd)
            facts = {}
            if isinstance(state, Dirty):
                position = self._ends[state.frames]
                for earlier in [n for n in list(self._ends) if n < state.frames]:
                    del self._ends[earlier]
                facts[SPOOL_POSITION] = str(position)
            self._journal.record(state, facts)
        except OSError as error:
            raise self._failure(error) from error
        if isinstance(state, Clean):
            failpoint("recv.spool_complete")
            self._apply()

    def write(self, seq: int, frame: Frame, table: Table) -> None:
        """Append the frame as it came; the spool keeps the order of the stream."""
        head = encode_head(frame.kind, frame.codec, frame.raw_len, len(frame.payload), frame.digest)
        self._order.wait_for(seq)
        try:
            self._append(head, frame.payload)
        except OSError as error:
            self._order.break_open()
            raise self._failure(error) from error
        self._ends[seq + 1] = self._position
        self._order.advance()

    def flush(self) -> None:
        """Flush the spool."""
        try:
            os.fdatasync(self._fd)
        except OSError as error:
            raise self._failure(error) from error

    def read_back(self, frame_digest: bytes, extents: list[Extent]) -> None:
        """Do nothing: the spool is verified when it is applied, and the target read back then."""

    def check_base(self, samples: str) -> BaseCheck:
        """Tell whether somebody wrote to the target since its commit."""
        return self._target.check_base(samples)

    def samples(self) -> str:
        """Return nothing: the target is sampled once the spool is applied."""
        return ""

    def leave(self) -> None:
        """Do nothing: the target was not touched."""

    def close(self) -> None:
        """Close the spool."""
        if self._fd >= 0:
            os.close(self._fd)

    def _append(self, *parts: bytes | bytearray | memoryview) -> None:
        for part in parts:
            view = memoryview(part)
            while view:
                written = os.pwrite(self._fd, view, self._position)
                view = view[written:]
                self._position += written

    def _failure(self, error: OSError) -> RefusedError:
        return RefusedError(
            f"the spool {self._path} cannot be written: {error.strerror}; the target was not "
            "touched; make room and run the same command again, or drop what has arrived with "
            "`blockstream abort`"
        )


def _beginning(opening: Open, plan: Plan, moment: int | None) -> bytes:
    """Return the stream up to its first data frame, with no resume point of its own."""
    whole = Open(
        size=opening.size,
        base=opening.base,
        goal=opening.goal,
        plan=opening.plan,
        ranges=opening.ranges,
        total=opening.total,
        name=opening.name,
    )
    frames = [control_frame(Hello(), blake3.blake3)]
    frames += [control_frame(Moment(moment), blake3.blake3)] if moment is not None else []
    frames.append(control_frame(whole, blake3.blake3))
    if not opening.full:
        frames += [plain_frame(FrameType.PLAN, rows, blake3.blake3) for rows in plan.pieces()]
    return MAGIC + b"".join(map(encode, frames))
