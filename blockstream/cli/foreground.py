"""A command in the foreground of a terminal or a service: its signals, its loop, its progress.

One handler minds each signal from the first instruction to the last, because in between, however
short, the system's own would end us without a word. What it does depends on what runs.
"""

import contextlib
import gc
import os
import signal
import sys
import threading
from collections.abc import Coroutine, Iterator, Sequence
from types import FrameType
from typing import TYPE_CHECKING, Final, NoReturn, TypeVar

from blockstream.cli.reporter import Reporter
from blockstream.errors import ExitStatus, InterruptedTransferError

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop, Task

    from blockstream.run import Run  # asyncio: 40 ms, for which `status` need not wait

T = TypeVar("T")

# SIGHUP, too: a terminal that goes away must not leave a snapshot behind.
_STOPS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_IMPORTING_SECONDS: Final = 0.05
_MANY: Final = 4096
_STDERR = 2
_LEFT = (
    "\nblockstream: left at once by {}; what is durable stays, and the same command goes on from "
    "there\n"
)


class _Signals:
    """What the signals of this process do.

    While a job runs on a loop, the first one stops it, and the second leaves at once, but where
    something would be left half done: the state on disk is the same, only the last barrier is
    missing. SIGHUP after another one says nothing new. Outside, a signal is an
    InterruptedTransferError wherever we are. In the end it comes too late.

    Attributes:
        left_behind: Whether a thread was left behind, for which nobody need wait.
    """

    def __init__(self) -> None:
        self._heeded: list[signal.Signals] = []
        self._job: _Job | None = None
        self._is_over = False
        self.left_behind = False

    def install(self) -> None:
        """Mind them from now on; under nohup, no SIGHUP."""
        self._is_over = self.left_behind = False
        self._heeded = [each for each in _STOPS if signal.getsignal(each) is not signal.SIG_IGN]
        for number in self._heeded:
            signal.signal(number, self._stopped)
        signal.signal(signal.SIGUSR1, self._asked)

    def finish(self) -> None:
        """All is done, or has failed: a signal comes too late."""
        self._is_over = True
        for number in self._heeded:
            signal.signal(number, signal.SIG_IGN)

    def of_job(self, job: "_Job | None") -> None:
        """Let signals be for a job; for none any more."""
        self._job = job

    def _stopped(self, number: int, frame: FrameType | None) -> None:
        if self._is_over:
            return
        if self._job is not None:
            self._job.stop(signal.Signals(number))
        elif _imports(frame):
            # What is raised within an import leaves modules behind that are there in part.
            again = threading.Timer(_IMPORTING_SECONDS, os.kill, (os.getpid(), number))
            again.daemon = True
            again.start()
        else:
            if number == signal.SIGHUP:
                # The kernel tells of a terminal that has gone, and then its shell does.
                signal.signal(number, signal.SIG_IGN)
            raise InterruptedTransferError(f"stopped by {signal.Signals(number).name}")

    def _asked(self, _number: int, _frame: FrameType | None) -> None:
        if self._job is not None:
            self._job.ask()


_signals = _Signals()


def mind_signals() -> None:
    """Begin a command."""
    _signals.install()


def finish() -> None:
    """End a command: from here on, a signal changes nothing."""
    _signals.finish()


def leave(status: int) -> NoReturn:
    """End the process."""
    if _signals.left_behind:
        # Python would wait for what such threads wait for.
        os._exit(status)
    sys.exit(status)


def _imports(frame: FrameType | None) -> bool:
    """Tell whether a module is being imported."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def done(job: Coroutine[object, object, T], run: "Run", reporters: Sequence[Reporter] = ()) -> T:
    """Do a job of several steps, and return its result.

    Args:
        job: The coroutine.
        run: What it was handed.
        reporters: Who shows how far it is.

    Raises:
        InterruptedTransferError: If a signal stopped it; with the next step, where there is one.
        BlockstreamError: As the job does.
    """
    try:
        import asyncio

        gc.enable()
        mine = _Job(run, reporters)
        _signals.of_job(mine)
        return asyncio.run(mine.main(job))
    except BaseExceptionGroup as group:
        if len(group.exceptions) > 1:
            raise
        raise group.exceptions[0] from group.exceptions[0].__cause__
    finally:
        job.close()  # a signal may have come before it began
        _signals.of_job(None)
        _signals.left_behind |= run.left_behind
        for reporter in reporters:
            reporter.clear()


@contextlib.contextmanager
def _waking(loop: "AbstractEventLoop") -> Iterator[None]:
    """Let each signal wake the loop: one that came just before it began to wait does not."""
    reading, writing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    loop.add_reader(reading, os.read, reading, _MANY)
    before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        loop.remove_reader(reading)
        os.close(reading)
        os.close(writing)


class _Job:
    """One job, and who looks at it."""

    def __init__(self, run: "Run", reporters: Sequence[Reporter]) -> None:
        self._run = run
        self._reporters = reporters
        self._loop: AbstractEventLoop | None = None
        self._task: Task[object] | None = None
        self._came: list[str] = []

    async def main(self, job: Coroutine[object, object, T]) -> T:
        """Do it."""
        import asyncio

        self._task, self._loop = asyncio.current_task(), asyncio.get_running_loop()
        if self._came:
            self._stop(self._came[0])
        try:
            with _waking(self._loop):
                async with asyncio.TaskGroup() as group:
                    shown = [group.create_task(self._show(each)) for each in self._reporters]
                    try:
                        return await job
                    finally:
                        for task in shown:
                            task.cancel()
        except asyncio.CancelledError:
            raise InterruptedTransferError(self._run.stopped or "cancelled") from None
        finally:
            self._task = self._loop = None

    def stop(self, number: signal.Signals) -> None:
        """Take a signal, wherever the loop is."""
        if self._came and number == signal.SIGHUP:
            return
        if self._came and not self._run.must_end:
            # Nothing is waited for, a lock of standard error least of all.
            os.write(_STDERR, _LEFT.format(number.name).encode())
            os._exit(ExitStatus.INTERRUPTED)
        self._came.append(number.name)
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._stop, number.name)

    def ask(self) -> None:
        """Show how far it is, soon."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._answer)

    def _stop(self, name: str) -> None:
        if self._run.stop(f"stopped by {name}"):
            if self._task is not None:
                self._task.cancel()
        else:
            self._came.clear()  # it came too late; another one may come later

    def _answer(self) -> None:
        for reporter in self._reporters:
            reporter.asked(self._run.progress)

    async def _show(self, reporter: Reporter) -> None:
        import asyncio

        while True:
            await asyncio.sleep(reporter.interval)
            counts = self._run.progress.snapshot()
            if counts.total or counts.seen:  # before, there is nothing to tell
                reporter.report(self._run.progress)
