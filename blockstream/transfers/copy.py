"""`send SOURCE TARGET` on one host: both sessions in one process, the bytes digested once."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import blake3

from blockstream import __version__
from blockstream.captures.interface import Captured
from blockstream.errors import BlockstreamError, InterruptedTransferError, RefusedError, SourceError
from blockstream.interfaces import Target
from blockstream.locations.local import open_target
from blockstream.pipeline.compression import CompressionChoice
from blockstream.pipeline.packer import PackedFrame
from blockstream.pipeline.receiver import Applier, Applying
from blockstream.pipeline.sender import SendEngine, SendOptions
from blockstream.pipeline.staged import StagedApplier
from blockstream.run import Run
from blockstream.targets.disk import DiskTarget
from blockstream.transfers.apply_modes import applier_for, unfinished, why_undo_lost
from blockstream.transfers.opened_target import (
    OpenedTarget,
    absolute_path,
    made_before,
    opened_or_removed,
)
from blockstream.transfers.receive import ReceiveResult, add_advice
from blockstream.transfers.receive_options import ReceiveRequest
from blockstream.transfers.send import SendPlan, TransferOptions, planned
from blockstream.transfers.sender_journal import Intent, SentTransfers
from blockstream.transfers.stored_stream import finish_staged
from blockstream_protocol import (
    Abort,
    Committed,
    Dirty,
    Extent,
    Extents,
    Finish,
    Frame,
    Message,
    Receiver,
    ReceiverPolicy,
    Sender,
    Table,
    Verify,
    Write,
)

# Looks at a target that is held, in a thread.
Check = Callable[[SendPlan, Target], None]


class LocalSink:
    """Gives a sender's messages to a receiver in the same process."""

    def __init__(self, applying: Applying) -> None:
        self._applying = applying

    def send(self, message: Message) -> None:
        """Let the receiver take a message, and do what follows from it."""
        if isinstance(message, Abort):
            return  # the same process knows already
        session = self._applying.session
        effects = self._applying.event(lambda: session.receive(message, time.monotonic()))
        self._applying.perform(effects)

    def stop(self) -> None:
        """Nothing waits here for longer than the target's own writes."""

    def send_frame(self, frame: Frame, packed: PackedFrame) -> Callable[[], None] | None:
        """Let the receiver take a frame; the write is left to be done out of order.

        The bytes are those that were digested a moment ago, in the same memory, so they are not
        digested again.
        """
        session, applying = self._applying.session, self._applying
        extents = list(
            map(
                Extent,
                packed.offsets.tolist(),
                packed.lengths.tolist(),
                packed.kinds.tolist(),
            )
        )
        table = Table(extents, packed.data)
        writes: list[Write] = []
        for effect in applying.event(lambda: session.receive(Extents(frame))):
            if isinstance(effect, Verify):
                seq = effect.seq
                for following in applying.event(lambda: session.verified(seq, extents)):  # noqa: B023
                    if isinstance(following, Write):
                        writes.append(following)
                    else:
                        applying.perform([following])
        return lambda: self._write(writes, frame, table)

    def _write(self, writes: list[Write], frame: Frame, table: Table) -> None:
        for effect in writes:
            self._applying.write(effect, frame, table)
        self._applying.count(table, 0)


async def copy(
    disk: Captured,
    options: TransferOptions,
    where: ReceiveRequest,
    run: Run,
    check: Check | None = None,
) -> ReceiveResult:
    """Copy a disk, or its changes, on this host.

    Args:
        disk: What to send.
        options: Where that is remembered, and under what.
        where: Where it goes.
        run: Counts, and stops it.
        check: Looks whether the target is the base, in place of the journal, once it is held.

    Raises:
        BlockstreamError: As for `send` and `recv`, or as `check` raises.
    """
    return await run.carry(lambda: _copied(disk, options, where, run, check))


def _copied(
    disk: Captured,
    options: TransferOptions,
    where: ReceiveRequest,
    run: Run,
    check: Check | None,
) -> ReceiveResult:
    target = _target(disk, where)
    with opened_or_removed(target, where.state_dir) as everything:
        path = absolute_path(where.target)
        facts = {"path": path, "apply": str(where.apply)}
        everything.journal.facts = facts
        if everything.spool_complete:
            finish_staged(everything, run)
        try:
            return _Copying(disk, options, where, everything, facts, run, check).done()
        except RefusedError as error:
            add_advice(error, where.target)
            raise
        except InterruptedTransferError as error:
            if not isinstance(unfinished(where.apply, everything), Dirty):
                raise
            state = "half-written" if isinstance(everything.journal.state, Dirty) else "as it was"
            error.add(f"{where.target} is {state}", "the same command again goes on")
            raise


def _target(disk: Captured, where: ReceiveRequest) -> DiskTarget:
    """Open the target, or make it if that is wished and no earlier run did."""
    create = None
    if where.create and not made_before(
        where.target, where.state_dir, lambda clean: clean.id == disk.state
    ):
        create = disk.source.size
    return open_target(
        where.target, create=create, force_in_use=where.force_in_use, sources=disk.source.nodes
    )


@dataclass(frozen=True, slots=True)
class _Copying:
    """One copy onto a target that is held. See `copy`."""

    disk: Captured
    options: TransferOptions
    where: ReceiveRequest
    everything: OpenedTarget
    facts: dict[str, str]
    run: Run
    check: Check | None

    def done(self) -> ReceiveResult:
        """Continue an unfinished copy of the same source if there is one; else begin."""
        began = time.monotonic()
        goal = self._begun()
        try:
            finish, plan, sampled = self._session(goal)
        except SourceError:
            if not goal:
                raise
            # The source is not what it was: the unfinished copy is of no use.
            finish, plan, sampled = self._session("")
        committed = finish.committed
        if not isinstance(committed, Committed):
            raise InterruptedTransferError("the copy ended before it was committed")
        self._remember(committed, confirmed=True)
        return ReceiveResult(
            opening=plan.opening,
            committed=committed,
            written=finish.written,
            counts=self.run.progress.snapshot(),
            seconds=time.monotonic() - began,
            untouched_tail=self.everything.target.size - self.disk.source.size,
            sampled=sampled,
            moment=plan.moment,
            undo_lost=why_undo_lost(self.where.apply, self.everything) if finish.written else "",
        )

    def _begun(self) -> str:
        """Return the goal of an unfinished copy by the same command; its name was invented."""
        disk, target = self.disk, self.options.target
        state = unfinished(self.where.apply, self.everything)
        if disk.state or not isinstance(state, Dirty) or not target or state.base != disk.base:
            return ""
        begun = SentTransfers(self.options.state_dir).begun(disk.location, target, disk.base)
        return begun if begun == state.goal else ""

    def _remember(self, held: Committed, *, confirmed: bool) -> None:
        """Note what the target will hold, or holds, where it may be asked for as the last base."""
        disk, target = self.disk, self.options.target
        if target:
            intent = Intent(held, disk.location, disk.base, confirmed, target)
            SentTransfers(self.options.state_dir).record(intent)

    def _session(self, goal: str) -> tuple[Finish, SendPlan, str]:
        """Run both ends.

        Args:
            goal: What to call it, if it has no name; empty to invent one.

        Returns:
            How it ended, what was sent, and why only samples told that the target was the base.
        """
        everything, disk, options = self.everything, self.disk, self.options
        plan, policy = planned(disk, options, goal), self.where.policy
        if self.check is not None:
            self.check(plan, everything.target)
            policy = replace(policy, force_base=True)
        if options.target and not disk.state:
            sent, opening = SentTransfers(options.state_dir), plan.opening
            sent.begin(disk.location, options.target, opening.base, opening.goal)
        progress = self.run.count_anew()
        progress.size, progress.total = disk.source.size, plan.opening.total
        failed, engines = list[BlockstreamError](), list[SendEngine]()

        def answer(message: Message) -> None:
            if not failed:
                engines[0].receive(message)

        applier, applying = self._receiving(plan, policy, answer)
        engine = self._sending(plan, applying)
        engines.append(engine)
        try:
            with self.run.heeding(engine.stop):
                finish = engine.run()
        except BlockstreamError as error:
            failed.append(error)  # the sender has ended, and hears nothing any more
            if applying.finish is not None:
                raise
            # What has arrived is made durable, so that the next run continues from there.
            raise applying.given_up(engine.errors) from error
        finally:
            if isinstance(applier, StagedApplier):
                applier.close()
        return finish, plan, applying.sampled

    def _receiving(
        self, plan: SendPlan, policy: ReceiverPolicy, answer: Callable[[Message], None]
    ) -> tuple[Applier, Applying]:
        """Return the target's end."""
        identity = plan.opening.identity(blake3.blake3).hex()
        state, applier = applier_for(
            self.where.apply,
            self.everything,
            policy,
            self.facts,
            lambda transfer: transfer == identity,
            self.run,
        )
        receiver = Receiver(
            size=self.everything.target.size,
            state=state,
            new_digest=blake3.blake3,
            policy=policy,
            software=f"blockstream {__version__}",
        )
        keeps = self.where.verify
        applying = Applying(receiver, applier, self.run.progress, answer, keep_frames=keeps)
        return applier, applying

    def _sending(self, plan: SendPlan, applying: Applying) -> SendEngine:
        """Return the source's end."""

        def record_intent(expected: Committed) -> None:
            self._remember(expected, confirmed=False)

        sender = Sender(
            plan.opening,
            plan.plan,
            new_digest=blake3.blake3,
            duplex=True,
            software=f"blockstream {__version__}",
            moment=plan.moment,
            now=time.monotonic(),
        )
        options = SendOptions(compression=CompressionChoice(0), record_intent=record_intent)
        sink, progress = LocalSink(applying), self.run.progress
        return SendEngine(sender, self.disk.source, plan.extents, sink, progress, options)
