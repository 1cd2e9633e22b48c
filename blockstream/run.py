"""What works is handed a `Run`: it is counted there, said there, and stopped there.

asyncio orchestrates, threads carry bytes. The face of a job is a coroutine; in it, `Run.carry` lets
a thread do the work. Where the task of that coroutine is cancelled, the thread is asked to stop and
waited for: it ends at the next safe point, with an error that says what is left and how to go on.
"""

import asyncio
import contextlib
import functools
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from typing import Final, Generic, TypeVar

from blockstream.errors import InterruptedTransferError
from blockstream.pipeline.progress import Progress, Snapshot

T = TypeVar("T")

_TICK_SECONDS: Final = 0.5
_CANCELLED: Final = "cancelled"


@dataclass(frozen=True, slots=True, eq=False)
class _Hook:
    """How to end what a thread waits in, and how to let it notice the time."""

    stop: Callable[[str], None]
    tick: Callable[[], None] | None


class Run:
    """One piece of work, as whoever does it sees it; for one task, and one thread at a time.

    Attributes:
        progress: What is being counted now.
        why: What a cancellation of its task means, where nobody has said more.
        left_behind: Whether a thread was left behind, for which nobody need wait.
    """

    def __init__(
        self, tell: Callable[[str], None] = lambda _text: None, whole: "Run | None" = None
    ) -> None:
        """Begin.

        Args:
            tell: Says a line to people; any thread.
            whole: What it is a part of.
        """
        self.progress = Progress()
        self.why = _CANCELLED
        self._tell = tell
        self._whole = whole
        self._parts: list[Run] = []
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._reason = ""
        self._hooks: list[_Hook] = []
        self._refusals: list[Callable[[str], bool]] = []
        self._kept = 0
        self.left_behind = False

    def tell(self, text: str) -> None:
        """Say a line to people."""
        self._tell(text)

    def now(self) -> float:
        """Return seconds of a clock that is only good for differences."""
        return time.monotonic()

    def part(self) -> "Run":
        """Return a run that is stopped with this one, and may be stopped alone."""
        made = Run(self._tell, self)
        self._parts.append(made)
        return made

    def count_anew(self) -> Progress:
        """Return new counters, which are those that are shown from now on.

        What was looked through before the transfer is counted on.
        """
        self.progress = Progress(seen=self.progress.seen)
        return self.progress

    def stop(self, reason: str) -> bool:
        """Ask it to end at the next safe point; any thread.

        Returns:
            Whether it does; False where that comes too late, or has to wait.
        """
        with self._lock:
            refuse = self._refusals[-1] if self._refusals else None
            hooks = [] if refuse or self._reason else self._hooks[::-1]
            if refuse is None:
                self._reason = self._reason or reason
                self._stopping.set()
        if refuse is not None:
            return refuse(reason)
        for hook in hooks:
            hook.stop(reason)
        for part in self._parts:
            part.stop(reason)
        return True

    @property
    def must_end(self) -> bool:
        """Whether nobody may leave before this has ended: something would be left half done."""
        return bool(self._refusals or self._kept) or any(part.must_end for part in self._parts)

    @property
    def stopped(self) -> str:
        """Why it is to end; empty while it is not."""
        if self._refusals:
            return ""
        return self._reason or (self._whole.stopped if self._whole is not None else "")

    def parts(self, count: int, why: str) -> "list[Run]":
        """Return the runs of as many as work side by side, whose sum is what is counted here.

        Args:
            count: How many.
            why: What it means for one when others of them are stopped.
        """
        made = [self.part() for _ in range(count)]
        for each in made:
            each.why = why
        self.progress = _Sum(made)
        return made

    # The loop's side.

    async def carry(self, work: Callable[[], T]) -> T:
        """Let a thread do the work.

        A cancellation asks it to stop, and waits until it has: this raises what the work then
        raises, or returns what it did in spite of it. What is to be carried next is not begun.

        Raises:
            InterruptedTransferError: If the run was stopped before.
        """
        self.check()
        return await self.settle(work)

    async def settle(self, work: Callable[[], T]) -> T:
        """Let a thread do what has to be done after a stop as well. See `carry`."""
        done = _in_thread(work, "work")
        ticking = _Ticking(self)
        while not done.done():
            try:
                await asyncio.wait([done], timeout=_TICK_SECONDS)
            except asyncio.CancelledError:
                self._cancelled()
            ticking.go_on()
        await ticking.end()
        return done.result()

    async def ask(self, work: Callable[[], T], undo: Callable[[], object] | None = None) -> T:
        """Let a thread find out something, for which nobody need wait after a stop.

        Args:
            work: Changes nothing, or nothing that `undo` does not undo.
            undo: Called by the thread that was left behind, once it has ended its work.

        Raises:
            InterruptedTransferError: If the run was stopped before, or meanwhile.
        """
        self.check()
        asking = _Asking(work, undo)
        done = _in_thread(asking.run, "ask")
        while not done.done():
            try:
                await asyncio.wait([done])
            except asyncio.CancelledError:
                self._cancelled()
                if self.stopped and asking.give_up():
                    self.left_behind = True
                    done.add_done_callback(_forgotten)
                    self.check()
        return done.result()

    async def pause(self, seconds: float) -> None:
        """Wait.

        Raises:
            InterruptedTransferError: If it is stopped before, or meanwhile.
        """
        self.check()
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            self._cancelled()
        self.check()

    async def side_by_side(self, works: Sequence[Coroutine[object, object, T]]) -> list[T]:
        """Do several things at once, each with a part of this run.

        If one fails, the others are stopped, and waited for.

        Returns:
            What each of them returned.

        Raises:
            InterruptedTransferError: If the run was stopped.
            BaseException: The first error; the others ended because of it.
        """
        tasks: list[asyncio.Task[T]] = []
        try:
            async with asyncio.TaskGroup() as group:
                tasks += [group.create_task(each, name=f"part-{n}") for n, each in enumerate(works)]
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from errors.exceptions[0].__cause__
        except asyncio.CancelledError:
            self._cancelled()
            if any(task.cancelled() for task in tasks):
                self.check()
        # It may have come too late for all of them.
        return [task.result() for task in tasks]

    @contextlib.asynccontextmanager
    async def within(
        self, manager: AbstractContextManager[T], *, harmless: bool = False
    ) -> AsyncIterator[T]:
        """Enter and leave by threads what takes its time, as snapshots of LVM do.

        It is left whatever happens, also after a stop.

        Args:
            manager: What to enter.
            harmless: Whether nothing is made by entering, so that nobody need wait for it after a
                stop: the thread is left behind, and leaves again by itself.

        Raises:
            InterruptedTransferError: If the run was stopped before, or meanwhile.
            BlockstreamError: As the manager does.
        """
        async with contextlib.AsyncExitStack() as stack:
            if harmless:
                leave_again = functools.partial(manager.__exit__, None, None, None)
                inside = await self.ask(manager.__enter__, leave_again)
            else:
                inside = await self.carry(manager.__enter__)

            async def leave(*error: object) -> bool | None:
                return await self.settle(lambda: manager.__exit__(*error))  # type: ignore[arg-type]

            stack.push_async_exit(leave)
            self.check()
            yield inside

    def _cancelled(self) -> None:
        """Take the cancellation of the task for what it means."""
        self.stop((self._whole.stopped if self._whole is not None else "") or self.why)

    def ticks(self) -> list[Callable[[], None]]:
        """Return what lets the time be noticed by all that is being waited for."""
        with self._lock:
            return [hook.tick for hook in self._hooks if hook.tick is not None]

    # The thread's side.

    def check(self, undone: str = "") -> None:
        """Go on, unless it is to end.

        Args:
            undone: What was not done, in that case.

        Raises:
            InterruptedTransferError: If it is to end.
        """
        if reason := self.stopped:
            raise InterruptedTransferError(f"{reason}; {undone}" if undone else reason)

    def wait(self, seconds: float, undone: str = "") -> None:
        """Wait in a thread.

        Raises:
            InterruptedTransferError: If it is to end, before or meanwhile.
        """
        self.check(undone)
        # Where nothing may stop us, nothing wakes us either.
        waiting = threading.Event() if self._refusals else self._stopping
        waiting.wait(seconds)
        self.check(undone)

    @contextlib.contextmanager
    def heeding(
        self, stop: Callable[[str], None], tick: Callable[[], None] | None = None
    ) -> Iterator[None]:
        """Say how to end what the block waits in.

        Args:
            stop: Makes it end soon, for the reason given; any thread. It is called at once where
                the run is stopped already.
            tick: Lets it notice the time, twice a second; may block.
        """
        hook = _Hook(stop, tick)
        with self._lock:
            self._hooks.append(hook)
            reason = self.stopped
        if reason:
            stop(reason)
        try:
            yield
        finally:
            with self._lock:
                self._hooks.remove(hook)

    @contextlib.contextmanager
    def kept_to_the_end(self) -> Iterator[None]:
        """Let a stop end the block, but nobody leave before it has ended; see `must_end`."""
        with self._lock:
            self._kept += 1
        try:
            yield
        finally:
            with self._lock:
                self._kept -= 1

    @contextlib.contextmanager
    def undisturbed(self) -> Iterator[None]:
        """Let nothing stop what must not be left half done."""

        def refuse(reason: str) -> bool:
            self.tell(f"{reason}, which comes too late: this must not be left half done")
            return False

        with self._refusing(refuse):
            yield

    @contextlib.contextmanager
    def postponed(self) -> Iterator[None]:
        """Let a stop wait for the end of what must be known to its end.

        Raises:
            InterruptedTransferError: Before the block, if the run was stopped; after it, if that
                came in it.
        """
        self.check()
        came: list[str] = []

        def refuse(reason: str) -> bool:
            came.append(reason)
            self.tell(f"{reason}: this ends first")
            return False

        with self._refusing(refuse):
            yield
        if came:
            self.stop(came[0])
            self.check()

    @contextlib.contextmanager
    def _refusing(self, refuse: Callable[[str], bool]) -> Iterator[None]:
        with self._lock:
            self._refusals.append(refuse)
        try:
            yield
        finally:
            with self._lock:
                self._refusals.remove(refuse)


class _Sum(Progress):
    """What is counted by several runs."""

    def __init__(self, parts: Sequence[Run]) -> None:
        super().__init__()
        self._parts = parts

    def snapshot(self) -> Snapshot:
        """Return the sums."""
        counts = [asdict(part.progress.snapshot()) for part in self._parts]
        return Snapshot(**{name: sum(each[name] for each in counts) for name in counts[0]})


class _Ticking:
    """Lets time pass in what a thread waits in, by another thread, one after the other."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._last: asyncio.Future[None] | None = None
        self._error: BaseException | None = None

    def go_on(self) -> None:
        """Do it once more, if the last time has ended; what fails ends the work."""
        if self._last is not None and not self._last.done():
            return
        self._note()
        ticks = self._run.ticks()

        def tick() -> None:
            for each in ticks:
                each()

        self._last = _in_thread(tick, "tick") if ticks and self._error is None else None

    async def end(self) -> None:
        """Wait for the last time.

        Raises:
            BaseException: What one of them raised.
        """
        while self._last is not None and not self._last.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([self._last])
        self._note()
        if self._error is not None:
            raise self._error

    def _note(self) -> None:
        error = self._last.exception() if self._last is not None else None
        if error is not None:
            self._error = error
            self._run.stop(f"{type(error).__name__}: {error}")


class _Asking(Generic[T]):
    """Work of a thread which nobody may wait for in the end."""

    def __init__(self, work: Callable[[], T], undo: Callable[[], object] | None) -> None:
        self._work = work
        self._undo = undo
        self._lock = threading.Lock()
        self._is_done = self._given_up = False

    def run(self) -> T:
        """Do it; what is given up by then is undone."""
        result = self._work()
        with self._lock:
            self._is_done = not self._given_up
        if self._given_up and self._undo is not None:
            self._undo()
        return result

    def give_up(self) -> bool:
        """Want it no more; tell whether that is in time."""
        with self._lock:
            self._given_up = not self._is_done
        return self._given_up


def _forgotten(done: "asyncio.Future[T]") -> None:
    """Take what comes of work that nobody wants any more."""
    done.exception()


def _in_thread(work: Callable[[], T], name: str) -> "asyncio.Future[T]":
    """Let a thread of its own do something.

    Not the default executor: its threads would hold up the exit when one hangs in the kernel.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(result)  # type: ignore[arg-type]  # no error, so it is a T

    def body() -> None:
        result: T | None = None
        caught: BaseException | None = None
        try:
            result = work()
        except StopIteration as error:  # which no future takes
            caught = RuntimeError(f"{name} ended by StopIteration: {error}")
        except BaseException as error:  # noqa: BLE001  # handed over to the loop
            caught = error
        with contextlib.suppress(RuntimeError):  # nobody waits: the loop has ended
            loop.call_soon_threadsafe(settle, result, caught)

    threading.Thread(target=body, name=name, daemon=True).start()
    return done
