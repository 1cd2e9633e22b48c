"""Several disks sent as one set: none is committed before all of them are durable there."""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from blockstream.errors import BlockstreamError, InterruptedTransferError, PartlyDoneError
from blockstream.interfaces import Source
from blockstream.jobs.peer import PeerOptions, Push, target_options
from blockstream.jobs.receive import ReceiveRequest
from blockstream.jobs.send import SendRequest, SendResult
from blockstream.jobs.session import Sending
from blockstream.jobs.supervision import Reporter, Work, supervised
from blockstream.locations import Remote
from blockstream.pipeline.progress import Progress, Snapshot

if TYPE_CHECKING:
    from blockstream_protocol import Committed

_ANOTHER_FAILED = "another disk of the set failed"


class _Together(Progress):
    """The sum of several transfers."""

    def __init__(self, parts: list[Progress]) -> None:
        super().__init__()
        self._parts = parts

    def snapshot(self) -> Snapshot:
        """Return the sums."""
        counts = [asdict(part.snapshot()) for part in self._parts]
        return Snapshot(**{name: sum(each[name] for each in counts) for name in counts[0]})


class _Set:
    """Pushes that wait for each other before they say END."""

    def __init__(self, requests: list[SendRequest]) -> None:
        self._requests = requests
        self._barrier = threading.Barrier(len(requests))
        self.parts = [Progress() for _ in requests]
        self.sendings: list[Sending] = []
        self.pushes: list[Push] = []
        self.done: dict[int, Committed] = {}
        self.errors: list[BlockstreamError] = []

    def waiting(self) -> Callable[[], None]:
        """Return what one of them waits with; behind it, after a cut, nobody waits any more."""
        passed = False

        def before_end() -> None:
            nonlocal passed
            try:
                if not passed:
                    self._barrier.wait()
            except threading.BrokenBarrierError:
                raise InterruptedTransferError(_ANOTHER_FAILED) from None
            passed = True

        return before_end

    def run(self) -> None:
        """Run all of them; errors are kept."""
        threads = [
            threading.Thread(target=self._one, args=(number,), name=f"disk-{number}", daemon=True)
            for number in range(len(self.pushes))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def stop(self, reason: str) -> None:
        """Make all of them end soon."""
        self._barrier.abort()
        for push in self.pushes:
            push.stop(reason)

    def tick(self) -> None:
        """Let time pass."""
        for push in self.pushes:
            push.tick()

    def raise_failure(self) -> None:
        """Raise the first error, if there is one."""
        if not self.errors:
            return
        if not self.done:
            raise self.errors[0]
        committed = ", ".join(self._requests[number].source for number in sorted(self.done))
        raise PartlyDoneError(
            f"{self.errors[0]}; {committed} had been committed by then, the others are durable "
            "there but not committed; the same command finishes them"
        ) from self.errors[0]

    def _one(self, number: int) -> None:
        try:
            self.done[number] = self.pushes[number].run(self.parts[number])
        except BlockstreamError as error:
            self.errors.append(error)
            self.stop(_ANOTHER_FAILED)


def push_set(
    requests: list[SendRequest],
    sources: list[Source],
    places: list[Remote],
    what: ReceiveRequest,
    options: PeerOptions,
    reporters: list[Reporter],
    creating: Sequence[bool] = (),
) -> list[SendResult]:
    """Send several disks to another host.

    Args:
        requests: What to send.
        sources: The disks.
        places: Where each goes.
        what: How they may be written; its own target is not looked at.
        options: How the other host is reached.
        reporters: Who shows the sum of them.
        creating: Of each, whether it is made there; else all are as `what` says.

    Raises:
        BlockstreamError: The first error; nothing was committed then.
        PartlyDoneError: If some were committed and others not; the same command finishes them.
    """
    together = _Set(requests)
    making = creating or [what.create] * len(requests)
    for request, source, place, part, create in zip(
        requests, sources, places, together.parts, making, strict=True
    ):
        request = replace(request, target=place.key)
        sending = Sending(request, source, part, together.waiting())
        together.sendings.append(sending)
        words = target_options(replace(what, create=create))
        together.pushes.append(Push(sending, place, words, options))
    began = time.monotonic()
    work = Work(together.stop, together.tick)
    supervised(together.run, work, _Together(together.parts), reporters)
    together.raise_failure()
    # Only now, so that a set of which a part was committed is finished without that part
    # travelling again.
    for number, sending in enumerate(together.sendings):
        sending.confirm(together.done[number])
    seconds = time.monotonic() - began
    return [
        SendResult(together.done[number], part.snapshot(), seconds, confirmed=True)
        for number, part in enumerate(together.parts)
    ]
