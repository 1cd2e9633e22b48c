"""Streams that lie on this host, a spool or an undo log, applied to a target that is open."""

import contextlib
import os
import time
from collections.abc import Mapping
from pathlib import Path

import blake3

from blockstream import __version__
from blockstream.errors import InterruptedTransferError, RefusedError
from blockstream.linux.streams import WakeableReader
from blockstream.pipeline.direct import DirectApplier
from blockstream.pipeline.error_map import translated
from blockstream.pipeline.progress import Progress
from blockstream.pipeline.receiver import Applying, FrameReader, ReceiveEngine
from blockstream.run import Run
from blockstream.transfers.opened_target import OpenedTarget
from blockstream.transfers.undo_keeper import UndoKeeper
from blockstream_protocol import (
    Committed,
    Receiver,
    ReceiverPolicy,
    RemoteProtocolError,
    TargetState,
)

# What a spool's journal keeps of how its stream was taken.
_FORCE_BASE = "force_base"
_VERIFY = "verify"
_YES = "yes"


def new_receiver(
    everything: OpenedTarget,
    state: TargetState,
    policy: ReceiverPolicy,
    facts: Mapping[str, object] | None = None,
) -> Receiver:
    """Return the session of a stream onto an open target; `facts` are for a sender that hears."""
    return Receiver(
        size=everything.target.size,
        state=state,
        new_digest=blake3.blake3,
        policy=policy,
        facts=facts,
        software=f"blockstream {__version__}",
        now=time.monotonic(),
    )


def apply_stored(
    everything: OpenedTarget,
    path: Path,
    *,
    policy: ReceiverPolicy | None = None,
    progress: Progress | None = None,
    keeper: UndoKeeper | None = None,
    run: Run | None = None,
) -> Committed:
    """Apply a stream that lies on this host to an open target: a spool, or an undo log.

    Raises:
        BlockstreamError: As for any stream; it can be applied again.
    """
    counts = progress or Progress()
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise RefusedError(
            f"{path} cannot be opened: {error.strerror}; nothing was written to "
            f"{everything.target.name}; somebody has taken it away, and what was in it is lost"
        ) from error
    try:
        with contextlib.closing(WakeableReader(fd)) as reader:
            session = new_receiver(everything, everything.journal.state, policy or ReceiverPolicy())
            applier = DirectApplier(everything.target, everything.journal, keeper)
            read_back = policy is not None and policy.read_back
            applying = Applying(session, applier, counts, keep_frames=read_back)
            engine = ReceiveEngine(applying, FrameReader(reader), counts)

            def stop(reason: str) -> None:
                engine.stop(reason)
                reader.stop()  # it lies here: no CHECKPOINT need be waited for

            with run.heeding(stop) if run is not None else contextlib.nullcontext():
                finish = engine.run()
    except RemoteProtocolError as error:
        raise translated(error) from error
    finally:
        os.close(fd)
    if finish.committed is None:
        raise InterruptedTransferError(f"{path} ended before its stream did")
    return finish.committed


def finish_staged(everything: OpenedTarget, run: Run | None = None) -> None:
    """Bring a complete spool onto the target; needs nobody else.

    Raises:
        RefusedError: If the target is not what it was when the stream came.
        BlockstreamError: As for any stream; it can be tried again.
    """
    policy, name = _spool_policy(everything.spool.entry.facts), everything.target.name
    path, keeper = everything.spool_path, UndoKeeper(everything)
    try:
        done = apply_stored(everything, path, policy=policy, keeper=keeper, run=run)
    except RefusedError as error:
        raise RefusedError(
            f"a whole staged stream waits for {name}, but does not fit it any more: {error}; "
            "nothing was written; `blockstream abort` drops that stream"
        ) from error
    except InterruptedTransferError as error:
        raise InterruptedTransferError(
            f"{error}; {name} is half-written, but all has arrived: the same command, or "
            f"`blockstream apply {name}`, finishes it"
        ) from error
    everything.drop_spool()
    if run is not None:
        run.check(f"{name} holds {done.goal}, which had arrived before")


def spool_facts(policy: ReceiverPolicy) -> dict[str, str]:
    """Return what a spool's journal keeps of how its stream was taken."""
    given = {_FORCE_BASE: policy.force_base, _VERIFY: policy.read_back}
    return {name: _YES for name, flag in given.items() if flag}


def _spool_policy(facts: Mapping[str, str]) -> ReceiverPolicy:
    return ReceiverPolicy(
        force_base=facts.get(_FORCE_BASE) == _YES,
        allow_larger=True,  # decided when the stream came
        read_back=facts.get(_VERIFY) == _YES,
    )
