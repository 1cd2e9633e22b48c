"""The sending side of a two-way session, over any pair of descriptors."""

import contextlib
import time
from collections.abc import Sequence
from dataclasses import replace

import blake3

from blockstream import __version__
from blockstream.captures.interface import Captured
from blockstream.errors import BlockstreamError, ConnectionLostError, OutcomeUnknownError
from blockstream.linux.identity import described
from blockstream.linux.streams import WakeableReader, widen_pipe
from blockstream.pipeline.error_map import translated
from blockstream.pipeline.frame_sink import PipeSink
from blockstream.pipeline.reply_reader import ReplyReader
from blockstream.pipeline.sender import SendEngine, SendOptions, Wait
from blockstream.run import Run
from blockstream.transfers.send import (
    SendPlan,
    SendResult,
    TransferOptions,
    new_goal,
    planned,
)
from blockstream.transfers.sender_journal import Intent, SentTransfers
from blockstream_protocol import Committed, End, Hello, Open, Sender, goal_to_continue

# A receiver that hung up may have said why; what it said is on its way.
_LAST_WORDS_SECONDS = 10.0


class Sending:
    """One disk that is sent, over as many connections as it takes."""

    def __init__(
        self,
        disk: Captured,
        options: TransferOptions,
        run: Run,
        before_data: Wait | None = None,
        before_end: Wait | None = None,
    ) -> None:
        """Plan it; nothing is sent.

        Args:
            disk: What to send.
            options: How it travels.
            run: Counts, and stops it.
            before_data: Called when the receiver is ready to take data; see `SendOptions`.
            before_end: Called when only END is left to say; see `SendOptions`.

        Raises:
            BlockstreamError: As `planned` does.
        """
        self._disk = disk
        self._options = options
        self._run = run
        self._progress = progress = run.count_anew()
        self._sent = SentTransfers(options.state_dir)
        self._sent.prepare()
        self._before_data = before_data
        self._before_end = before_end
        self._fresh = self._continued = False
        self.greeted = False
        # Whether the connection can carry another session: nothing of this one is on its way.
        self.ended_with_end = False
        self.what: SendPlan = planned(disk, options)
        progress.size, progress.total = disk.source.size, self.what.opening.total

    def over(self, from_peer: int, to_peer: int, *more: int, name: str = "") -> Committed:
        """Send over these descriptors, from where the receiver holds it durably.

        Args:
            from_peer: Where answers come from.
            to_peer: The first lane.
            more: Further lanes.
            name: What people call the receiver's host.

        Raises:
            ConnectionLostError: If the connection ended first; another one continues.
            OutcomeUnknownError: If that was after END.
            BlockstreamError: Whatever else; it would be the same once more.
        """
        self.greeted = False
        for fd in (from_peer, to_peer, *more):
            widen_pipe(fd)
        with (
            contextlib.closing(WakeableReader(from_peer)) as reader,
            contextlib.closing(
                PipeSink(to_peer, self._options.limiter, self._progress, *more)
            ) as outlet,
        ):
            engine = self._engine(outlet)
            answers = ReplyReader(reader, engine, name)

            def stop(reason: str) -> None:
                engine.stop(reason)
                outlet.stop()

            answers.start()
            try:
                with self._run.heeding(stop, engine.tick):
                    finish = engine.run()
            except BlockstreamError as error:
                outlet.stop()
                if isinstance(error, ConnectionLostError):
                    answers.last_words(_LAST_WORDS_SECONDS)
                raise _decisive(error, engine.errors) from error
            finally:
                answers.stop()
        if finish.committed is None:
            raise OutcomeUnknownError("the session ended without saying what was committed")
        self.ended_with_end = engine.is_silent and outlet.said is End
        return finish.committed

    def confirm(self, committed: Committed) -> None:
        """Note that the target holds it; until then the same command asks for it again."""
        target = self._options.target
        if self._sent.find(committed.transfer, target) is None:
            # Sent from elsewhere, and compared with this source now: the same base for a next one.
            self._record_intent(committed)
        self._sent.confirm(committed, target)

    def start_anew(self) -> bool:
        """Send under a new goal what did not continue what is on the target; False if it may not.

        What lies there, unfinished, was made from a source that is no more.
        """
        if not self._continued or self._fresh:
            return False
        self._fresh, self._continued = True, False
        opening = replace(self.what.opening, goal=new_goal(self.what.moment))
        self.what = replace(self.what, opening=opening)
        return True

    def _engine(self, outlet: PipeSink) -> SendEngine:
        what, progress = self.what, self._progress
        progress.begin()
        session = Sender(
            what.opening,
            what.plan,
            new_digest=blake3.blake3,
            duplex=True,
            software=f"blockstream {__version__}",
            facts=described(self._disk.source.nodes) | self._told(),
            moment=what.moment,
            now=time.monotonic(),
        )
        options = SendOptions(
            compression=self._options.compression,
            record_intent=self._record_intent,
            choose=self._choose,
            # The target says whose goal it is on the way to, and it may be another disk's.
            may_trust=lambda: not self._continued,
            answers=True,
            before_data=self._before_data,
            before_end=self._before_end,
        )
        return SendEngine(session, self._disk.source, what.extents, outlet, progress, options)

    def _told(self) -> dict[str, object]:
        """Return what HELLO tells a receiver that has to make its target (SPEC 4.1)."""
        goals = list(filter(None, (self.what.opening.goal, self._begun())))
        told: dict[str, object] = {"size": self._disk.source.size, "goals": goals}
        return told | ({"name": self._options.name} if self._options.name else {})

    def _choose(self, hello: Hello) -> Open:
        """Continue what is unfinished on the target; a goal that was asked for stays."""
        self.greeted = True
        opening = self.what.opening
        if not self._invents:
            return opening
        begun = () if self._fresh else (opening.goal, self._begun())
        goal = goal_to_continue(hello.target, opening.base, begun)
        if goal is not None:
            self._continued |= goal != opening.goal
            self.what = replace(self.what, opening=replace(opening, goal=goal))
        opening, target = self.what.opening, self._options.target
        self._sent.begin(self._disk.location, target, opening.base, opening.goal)
        return opening

    @property
    def _invents(self) -> bool:
        """Whether nobody named the goal."""
        return not self._disk.state

    def _begun(self) -> str:
        """Return the goal that an earlier run of the same command invented."""
        if not self._invents:
            return ""
        return self._sent.begun(self._disk.location, self._options.target, self._disk.base)

    def _record_intent(self, expected: Committed) -> None:
        disk, target = self._disk, self._options.target
        self._sent.record(Intent(expected, disk.location, disk.base, target=target))


async def send_session(
    disk: Captured, options: TransferOptions, from_peer: int, lanes: Sequence[int], run: Run
) -> SendResult:
    """Send to a receiver that has called us: once, because it calls again.

    Raises:
        BlockstreamError: As `Sending.over` does.
    """

    def sent() -> SendResult:
        sending = Sending(disk, options, run)
        began = run.now()
        committed = sending.over(from_peer, *lanes)
        sending.confirm(committed)
        counts = run.progress.snapshot()
        seconds, moment = run.now() - began, sending.what.moment
        return SendResult(committed, counts, seconds, confirmed=True, moment=moment)

    return await run.carry(sent)


def _decisive(error: BlockstreamError, errors: list[BaseException]) -> BaseException:
    """Return why it ended: what the receiver said, before that the connection broke."""
    causes = [translated(each) for each in (*errors, error)]
    for cause in causes:
        if not isinstance(cause, ConnectionLostError):
            return cause
    return causes[0]
