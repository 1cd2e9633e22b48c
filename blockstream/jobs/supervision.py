"""Runs the threads of a transfer under asyncio: signals, ticks, and reports on the side."""

import asyncio
import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol, TypeVar

from blockstream.errors import ExitStatus, InterruptedTransferError
from blockstream.pipeline.progress import Progress

T = TypeVar("T")

_TICK_SECONDS = 0.5
# SIGHUP, too: a terminal that goes away must not leave a snapshot behind.
_STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Reporter(Protocol):
    """Shows progress to somebody."""

    @property
    def interval(self) -> float:
        """Seconds until the next `report`."""

    def report(self, progress: Progress) -> None:
        """Show how far it is; called after each `interval`."""

    def asked(self, progress: Progress) -> None:
        """Show one line now: somebody sent SIGUSR1."""


@dataclass(frozen=True, slots=True)
class Work:
    """One transfer as threads see it.

    Attributes:
        stop: Makes the running function end soon, with the reason given.
        tick: Lets time pass in the session; may block for a flush. None where nothing waits.
    """

    stop: Callable[[str], None]
    tick: Callable[[], None] | None = None


def supervised(
    run: Callable[[], T], work: Work, progress: Progress, reporters: list[Reporter]
) -> T:
    """Run `run` in a thread and return its result; the caller's thread minds everything else.

    The first SIGINT, SIGTERM or SIGHUP asks it to stop, the second leaves at once: the state on
    disk is the same, only the last barrier is missing. A second SIGHUP says nothing new.

    Raises:
        BlockstreamError: Whatever `run` raised.
    """
    before = {number: signal.getsignal(number) for number in (*_STOPS, signal.SIGUSR1)}
    waiting = _Waiting()
    waiting.begin()
    succeeded = False
    try:
        result = asyncio.run(_supervised(run, work, progress, reporters, waiting))
    except BaseExceptionGroup as group:
        if len(group.exceptions) > 1:
            raise
        raise group.exceptions[0] from group.exceptions[0].__cause__
    else:
        succeeded = True
        return result
    finally:
        # The loop leaves the system's own, by which a signal would end us without a word.
        for number, handler in before.items():
            signal.signal(number, handler)
        # Why it failed is more than that it was to stop as well.
        for late in waiting.came if succeeded else ():
            os.kill(os.getpid(), late)


class _Waiting:
    """Signals that wait while the loop is made and closed: its code expects none then.

    Attributes:
        came: Those that did.
    """

    def __init__(self) -> None:
        self.came: list[int] = []
        self._heeded = _heeded()

    def begin(self) -> None:
        """Let signals wait; nobody is there to be asked how far it is."""
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        for number in self._heeded:
            signal.signal(number, self._note)

    def _note(self, number: int, _frame: object) -> None:
        self.came.append(number)


def _heeded() -> list[signal.Signals]:
    """Return the signals that stop us: under nohup, no SIGHUP."""
    return [each for each in _STOPS if signal.getsignal(each) is not signal.SIG_IGN]


@contextlib.contextmanager
def undisturbed(tell: Callable[[str], None]) -> Iterator[None]:
    """Let no signal stop what must not be left half done."""

    def wait(number: int, _frame: object) -> None:
        tell(f"{signal.Signals(number).name} comes too late: this must not be left half done")

    before = {number: signal.signal(number, wait) for number in _heeded()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def postponed(tell: Callable[[str], None]) -> Iterator[None]:
    """Let a signal stop what follows, and not what must be known to its end.

    Raises:
        InterruptedTransferError: After the block, if a signal came in it.
    """
    came: list[str] = []

    def note(number: int, _frame: object) -> None:
        came.append(signal.Signals(number).name)
        tell(f"{came[-1]}: this ends first")

    before = {number: signal.signal(number, note) for number in _heeded()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if came:
        raise InterruptedTransferError(f"stopped by {came[0]}")


async def _supervised(
    run: Callable[[], T],
    work: Work,
    progress: Progress,
    reporters: list[Reporter],
    waiting: _Waiting,
) -> T:
    loop = asyncio.get_running_loop()
    _install_signals(loop, work, progress, reporters, waiting)
    try:
        async with asyncio.TaskGroup() as group:
            ticking = [group.create_task(_report(reporter, progress)) for reporter in reporters]
            if work.tick is not None:
                ticking.append(group.create_task(_tick(work.tick), name="tick"))
            try:
                return await in_thread(run, "transfer")
            finally:
                for task in ticking:
                    task.cancel()
    finally:
        for number in (*_STOPS, signal.SIGUSR1):
            loop.remove_signal_handler(number)
        waiting.begin()


async def in_thread(run: Callable[[], T], name: str) -> T:
    """Run a blocking function in a thread of its own and wait for it.

    Not the default executor: its threads would hold up the exit when one hangs in the kernel.
    A cancellation is obeyed at once and leaves the thread behind.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if done.cancelled():
            return
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(result)  # type: ignore[arg-type]  # no error, so it is a T

    def body() -> None:
        result, caught = None, None
        try:
            result = run()
        except BaseException as error:  # noqa: BLE001  # handed over to the loop
            caught = error
        loop.call_soon_threadsafe(settle, result, caught)

    threading.Thread(target=body, name=name, daemon=True).start()
    return await done


async def _tick(tick: Callable[[], None]) -> None:
    while True:
        await asyncio.sleep(_TICK_SECONDS)
        await asyncio.shield(in_thread(tick, "tick"))


async def _report(reporter: Reporter, progress: Progress) -> None:
    while True:
        await asyncio.sleep(reporter.interval)
        reporter.report(progress)


def _install_signals(
    loop: asyncio.AbstractEventLoop,
    work: Work,
    progress: Progress,
    reporters: list[Reporter],
    waiting: _Waiting,
) -> None:
    stopping = False

    def stop(name: str) -> None:
        nonlocal stopping
        if stopping and name == signal.SIGHUP.name:
            return  # the kernel has told us of the terminal, and its shell tells us again
        if stopping:
            os._exit(ExitStatus.INTERRUPTED)
        stopping = True
        work.stop(f"stopped by {name}")

    for number in _heeded():
        loop.add_signal_handler(number, stop, number.name)
    while waiting.came:
        stop(signal.Signals(waiting.came.pop(0)).name)

    def show() -> None:
        for reporter in reporters:
            reporter.asked(progress)

    loop.add_signal_handler(signal.SIGUSR1, show)
