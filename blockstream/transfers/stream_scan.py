"""A stream of ours, looked through to its end by the receiver's own rules; nothing is written."""

import contextlib
from collections.abc import Callable

import blake3

from blockstream.errors import RefusedError
from blockstream.linux.streams import WakeableReader
from blockstream.pipeline.error_map import translated
from blockstream.pipeline.progress import Progress
from blockstream.pipeline.receiver import Applying, FrameReader, ReceiveEngine
from blockstream.pipeline.samples import BaseCheck
from blockstream.run import Run
from blockstream_protocol import (
    Extent,
    Finish,
    Frame,
    Open,
    Plan,
    Receiver,
    ReceiverPolicy,
    RemoteProtocolError,
    Table,
    TargetState,
    Unknown,
)

# Told of each frame, once it was checked; from any thread.
Look = Callable[[int, Frame, Table], None]


class _Onlooker:
    """An applier that only looks."""

    def __init__(self, look: Look) -> None:
        self._look = look

    def prepare(
        self, opening: Open, plan: Plan, *, resumed: bool, first: int, moment: int | None
    ) -> None:
        """Need nothing."""

    def record(self, state: TargetState) -> None:
        """Keep nothing."""

    def write(self, seq: int, frame: Frame, table: Table) -> None:
        """Look at it."""
        self._look(seq, frame, table)

    def flush(self) -> None:
        """Keep nothing."""

    def read_back(self, frame_digest: bytes, extents: list[Extent]) -> None:
        """Compare nothing."""

    def leave(self) -> None:
        """Do nothing."""

    def check_base(self, samples: str) -> BaseCheck:
        """Know of nothing."""
        return BaseCheck()

    def samples(self) -> str:
        """Return nothing."""
        return ""


class StreamScan:
    """One stream that is looked through.

    Attributes:
        opening: What it announces.
        close: Gives back what it took.
    """

    def __init__(
        self,
        fd: int,
        ahead: bytes,
        run: Run,
        read: Callable[[WakeableReader], FrameReader] = FrameReader,
    ) -> None:
        """Read how it begins.

        Args:
            fd: Where it comes from; stays the caller's.
            ahead: What was read from it already.
            run: Told how much was seen, and stops it.
            read: Makes what reads its frames.

        Raises:
            IntegrityError: If it is no stream of ours at all.
            InterruptedTransferError: If it ends before it says anything.
            RefusedError: If it is of another version, or a continuation.
        """
        with contextlib.ExitStack() as stack:
            reader = stack.enter_context(contextlib.closing(WakeableReader(fd, ahead)))
            self._frames, self._run = read(reader), run
            self._session: Receiver | None = None
            self._frames.wait = run.progress.look
            try:
                with run.heeding(lambda _reason: reader.stop()):
                    self.opening = self._frames.opening()
                run.check("the stream was not read to its end")
            except RemoteProtocolError as error:
                raise translated(error) from error
            if self.opening.frames:
                raise RefusedError(
                    f"this stream continues after {self.opening.frames} frames of the transfer to "
                    f"{self.opening.goal!r}, so it can only be checked by the target that has them"
                )
            self.close = stack.pop_all().close

    @property
    def moment(self) -> int | None:
        """When the source held what it leads to; None if it does not say, or was not looked at."""
        return self._session.moment if self._session is not None else None

    @property
    def wire_bytes(self) -> int:
        """How many bytes of it came."""
        return self._frames.wire_bytes

    def run(self, look: Look) -> Finish:
        """Look at all of it.

        Raises:
            BlockstreamError: If it is cut or not sound.
        """
        counts = Progress()
        session = Receiver(
            size=self.opening.size,
            state=Unknown(),
            new_digest=blake3.blake3,
            policy=ReceiverPolicy(force_base=True),
        )
        self._session = session
        applying = Applying(session, _Onlooker(look), counts)
        engine = ReceiveEngine(applying, self._frames, counts)
        with self._run.heeding(engine.stop):
            return engine.run()
