"""Whatever works is stopped at a safe point, and waited for; what must be done is done."""

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator

import pytest

from blockstream.errors import BlockstreamError, InterruptedTransferError, SourceError
from blockstream.run import Run


class Waiting:
    """Something that a thread waits in, until it is stopped or let go."""

    def __init__(self) -> None:
        self.begun, self._over = threading.Event(), threading.Event()
        self.reasons: list[str] = []

    def stop(self, reason: str) -> None:
        """End the waiting."""
        self.reasons.append(reason)
        self._over.set()

    def let_go(self) -> None:
        """End the waiting, for nobody's sake."""
        self._over.set()

    def wait(self) -> str:
        """Wait; return why it ended, empty for having been let go."""
        self.begun.set()
        assert self._over.wait(30)
        return self.reasons[0] if self.reasons else ""

    async def is_begun(self) -> None:
        """Wait, on the loop, until a thread waits."""
        assert await asyncio.to_thread(self.begun.wait, 30)


def heeding(run: Run, waiting: Waiting) -> Callable[[], str]:
    """Return work that waits, and can be stopped."""

    def work() -> str:
        with run.heeding(waiting.stop):
            if why := waiting.wait():
                raise InterruptedTransferError(f"{why}; half done")
            return "done"

    return work


async def cancelled_in(run: Run, waiting: Waiting, work: Callable[[], str]) -> asyncio.Task[str]:
    """Return the task that carries the work, cancelled while that waits."""
    task = asyncio.get_running_loop().create_task(run.carry(work))
    await waiting.is_begun()
    task.cancel()
    return task


def test_a_cancelled_job_stops_its_thread_and_says_what_that_says() -> None:
    async def main() -> None:
        run, waiting = Run(), Waiting()
        run.why = "cancelled for a test"
        task = await cancelled_in(run, waiting, heeding(run, waiting))
        with pytest.raises(InterruptedTransferError, match="cancelled for a test; half done"):
            await task
        with pytest.raises(InterruptedTransferError, match=r"^cancelled for a test$"):
            await run.carry(pytest.fail)
        assert await run.settle(lambda: 7) == 7

    asyncio.run(main())


def test_what_was_done_in_spite_of_a_stop_is_returned_and_nothing_follows() -> None:
    async def main() -> None:
        run, waiting = Run(), Waiting()
        task = await cancelled_in(run, waiting, waiting.wait)
        await asyncio.sleep(0)
        assert not task.done(), "the thread is waited for"
        waiting.let_go()
        assert await task == ""
        with pytest.raises(InterruptedTransferError):
            await run.pause(60)

    asyncio.run(main())


def test_what_fails_while_it_is_stopped_says_why_it_failed() -> None:
    async def main() -> None:
        run, waiting = Run(), Waiting()

        def fails() -> str:
            with run.heeding(waiting.stop):
                waiting.wait()
                raise SourceError("the disk is gone")

        with pytest.raises(SourceError, match="the disk is gone"):
            await (await cancelled_in(run, waiting, fails))

    asyncio.run(main())


def test_a_part_may_be_stopped_alone_and_is_with_the_whole() -> None:
    whole = Run()
    one, other = whole.part(), whole.part()
    one.stop("enough")
    assert (whole.stopped, one.stopped, other.stopped) == ("", "enough", "")
    reasons: list[str] = []
    with other.heeding(reasons.append):
        whole.stop("all of it")
    assert (whole.stopped, one.stopped, other.stopped) == ("all of it", "enough", "all of it")
    assert reasons == ["all of it"]
    assert whole.part().stopped == "all of it"


def test_whoever_waits_after_a_stop_is_told_at_once() -> None:
    run, reasons = Run(), list[str]()
    run.stop("before")
    with run.heeding(reasons.append):
        pass
    assert reasons == ["before"]
    run.stop("again")
    assert (run.stopped, reasons) == ("before", ["before"])


def test_a_thread_that_waits_is_woken() -> None:
    run = Run()
    threading.Timer(0.01, run.stop, ("enough",)).start()
    with pytest.raises(InterruptedTransferError, match="enough; nothing was made"):
        run.wait(60, "nothing was made")


def test_what_must_not_be_left_half_done_is_done() -> None:
    said: list[str] = []
    run = Run(said.append)
    with run.undisturbed():
        assert not run.stop("stopped by SIGTERM")
        run.check()
        run.wait(0)
    assert said == ["stopped by SIGTERM, which comes too late: this must not be left half done"]
    run.check()


def test_what_must_be_known_to_its_end_ends_first() -> None:
    said, ended = list[str](), False
    run = Run(said.append)
    with pytest.raises(InterruptedTransferError, match="stopped by SIGTERM"):  # noqa: PT012, SIM117
        with run.postponed():
            assert not run.stop("stopped by SIGTERM")
            run.check()
            ended = True
    assert ended
    assert said == ["stopped by SIGTERM: this ends first"]
    with pytest.raises(InterruptedTransferError), run.postponed():
        pytest.fail("nothing is begun any more")


def test_time_passes_in_what_is_waited_for() -> None:
    run, ticks = Run(), threading.Event()

    def work() -> bool:
        with run.heeding(lambda _reason: None, ticks.set):
            return ticks.wait(30)

    assert asyncio.run(run.carry(work))


def test_a_tick_that_fails_ends_the_work() -> None:
    run, waiting = Run(), Waiting()

    def tick() -> None:
        raise SourceError("no time")

    def work() -> None:
        with run.heeding(waiting.stop, tick):
            waiting.wait()

    with pytest.raises(SourceError, match="no time"):
        asyncio.run(run.carry(work))
    assert waiting.reasons == ["SourceError: no time"]


def test_nobody_waits_for_an_answer_after_a_stop_and_it_is_undone() -> None:
    run, waiting, undone = Run(), Waiting(), threading.Event()

    async def main() -> None:
        task = asyncio.get_running_loop().create_task(run.ask(waiting.wait, undone.set))
        await waiting.is_begun()
        task.cancel()
        with pytest.raises(InterruptedTransferError, match="cancelled"):
            await task
        waiting.let_go()

    asyncio.run(main())
    assert undone.wait(30)


@pytest.mark.parametrize("harmless", [False, True])
def test_what_was_entered_is_left_also_after_a_stop(*, harmless: bool) -> None:
    happened: list[str] = []

    @contextlib.contextmanager
    def entered() -> Iterator[int]:
        happened.append("entered")
        try:
            yield 7
        except BlockstreamError as error:
            happened.append(f"saw {error}")
            raise
        finally:
            happened.append(threading.current_thread().name)

    async def main(run: Run) -> None:
        async with run.within(entered(), harmless=harmless) as inside:
            assert inside == 7
            run.stop("enough")
            await run.carry(pytest.fail)

    with pytest.raises(InterruptedTransferError, match="enough"):
        asyncio.run(main(Run()))
    assert happened == ["entered", "saw enough", "work"]


def test_what_is_being_entered_when_it_is_stopped_is_left_again() -> None:
    run, waiting, left = Run(), Waiting(), threading.Event()

    @contextlib.contextmanager
    def entered() -> Iterator[str]:
        yield waiting.wait()
        left.set()

    async def main(*, harmless: bool) -> None:
        async def inside() -> None:
            async with run.within(entered(), harmless=harmless):
                pytest.fail("nothing was to be done inside")

        task = asyncio.get_running_loop().create_task(inside())
        await waiting.is_begun()
        task.cancel()
        await asyncio.sleep(0)
        waiting.let_go()
        with pytest.raises(InterruptedTransferError):
            await task

    asyncio.run(main(harmless=True))
    assert left.wait(30)


def test_when_one_of_several_fails_the_others_are_stopped_and_waited_for() -> None:
    whole = Run()
    parts = whole.parts(3, "another one failed")
    waitings = [Waiting() for _ in parts]
    said: list[str] = []

    async def one(number: int) -> str:
        try:
            return await parts[number].carry(heeding(parts[number], waitings[number]))
        except InterruptedTransferError as error:
            said.append(str(error))
            raise

    async def failing() -> str:
        for each in waitings[1:]:
            await each.is_begun()
        raise SourceError("the first")

    async def main() -> None:
        await whole.side_by_side([failing(), one(1), one(2)])

    with pytest.raises(SourceError, match="the first"):
        asyncio.run(main())
    assert said == ["another one failed; half done"] * 2
    assert not whole.stopped


def test_when_all_have_done_it_in_spite_of_a_stop_that_is_known() -> None:
    whole = Run()
    parts, waitings = whole.parts(2, "another one failed"), [Waiting(), Waiting()]

    async def main() -> list[str]:
        works = [part.carry(each.wait) for part, each in zip(parts, waitings, strict=True)]
        task = asyncio.get_running_loop().create_task(whole.side_by_side(works))
        for each in waitings:
            await each.is_begun()
        task.cancel()
        await asyncio.sleep(0)
        for each in waitings:
            each.let_go()
        return await task

    assert asyncio.run(main()) == ["", ""]
    assert whole.stopped == "cancelled"


def test_what_several_count_is_their_sum() -> None:
    whole = Run()
    for number, part in enumerate(whole.parts(2, "")):
        part.count_anew().total = 100
        part.progress.frame(data=10 * (number + 1), covered=50, wire=7)
    counts = whole.progress.snapshot()
    assert (counts.total, counts.data, counts.covered, counts.wire) == (200, 30, 100, 14)
