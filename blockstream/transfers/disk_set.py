"""Several disks sent as one set.

Nothing is written before all of their targets are ready to take it, and none is committed before
all are durable there.
"""

import functools
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace

from blockstream.captures.interface import Captured
from blockstream.errors import BlockstreamError, PartlyDoneError
from blockstream.locations.ssh import Remote
from blockstream.run import Run
from blockstream.transfers.peer_options import PeerOptions
from blockstream.transfers.push import Push
from blockstream.transfers.receive_options import ReceiveRequest
from blockstream.transfers.remote_command import target_options
from blockstream.transfers.send import SendResult, TransferOptions
from blockstream.transfers.session import Sending
from blockstream_protocol import Committed

_ANOTHER_FAILED = "another disk of the set failed"
_LOOK_SECONDS = 0.2


class _LineUp:
    """Where the disks of a set wait until all of them are there, once."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._there = 0
        self._passed = False
        self._changed = threading.Condition()

    def wait(self, check: Callable[[], None]) -> None:
        """Wait for the others; whose session fails meanwhile is not there any more.

        Args:
            check: Raises once it has failed.
        """
        with self._changed:
            self._there += 1
            self._passed |= self._there == self._count
            self._changed.notify_all()
            try:
                while not self._passed:
                    self._changed.wait(_LOOK_SECONDS)
                    check()
            except BaseException:
                self._there -= 1
                raise


async def push_set(
    disks: Sequence[Captured],
    how: TransferOptions,
    places: Sequence[Remote],
    what: ReceiveRequest,
    options: PeerOptions,
    run: Run,
    creating: Sequence[bool] = (),
) -> list[SendResult]:
    """Send several disks to another host.

    Args:
        disks: What to send.
        how: How they travel.
        places: Where each goes.
        what: How they may be written; its own target is not looked at.
        options: How the other host is reached.
        run: Counts the sum of them, and stops them.
        creating: Of each, whether it is made there; else all are as `what` says.

    Raises:
        BlockstreamError: The first error; nothing was committed then.
        PartlyDoneError: If some were committed and others not; the same command finishes them.
    """
    begin, end = _LineUp(len(disks)), _LineUp(len(disks))
    parts = run.parts(len(disks), _ANOTHER_FAILED)
    making = creating or [what.create] * len(disks)
    pushes, sendings = [], []
    for disk, place, part, create in zip(disks, places, parts, making, strict=True):
        to_place = replace(how, target=place.key)
        make = functools.partial(Sending, disk, to_place, part, begin.wait, end.wait)
        sending = await run.carry(make)
        sendings.append(sending)
        words = target_options(replace(what, create=create))
        pushes.append(Push(sending, place, words, options, part))
    began, done = run.now(), dict[int, Committed]()
    try:
        await run.side_by_side([_one(number, push, done) for number, push in enumerate(pushes)])
    except BlockstreamError as error:
        if not done:
            raise
        committed = ", ".join(disks[number].source.name for number in sorted(done))
        raise PartlyDoneError(
            f"{error}; {committed} had been committed by then, the others are durable there but "
            "not committed; the same command finishes them"
        ) from error
    # Only now, so that a set of which a part was committed is finished without that part
    # travelling again.
    for number, sending in enumerate(sendings):
        await run.settle(functools.partial(sending.confirm, done[number]))
    seconds = run.now() - began
    counts = [part.progress.snapshot() for part in parts]
    return [
        SendResult(done[number], counts[number], seconds, True, sending.what.moment)
        for number, sending in enumerate(sendings)
    ]


async def _one(number: int, push: Push, done: dict[int, Committed]) -> None:
    done[number] = await push.done()
