"""A guest stands still no longer than is allowed, whatever hangs meanwhile."""

import asyncio
import threading
from collections.abc import Callable
from functools import partial

import pytest

from blockstream.errors import InterruptedTransferError, SourceError
from blockstream.jobs.migration.downtime import Downtime, Watch
from blockstream.run import Run


def watched(seconds: float, wake: Callable[[], None], work: Callable[[], object]) -> Watch:
    """Work under a watch; return that, and raise what it raises."""
    run = Run()
    watch = Watch(seconds, wake, run)
    seen.append(watch)

    async def passing() -> None:
        async with watch:
            await run.carry(work)

    asyncio.run(passing())
    return watch


seen: list[Watch] = []


def test_what_ends_in_time_wakes_nobody() -> None:
    woken: list[str] = []
    watch = watched(60, lambda: woken.append("woken"), lambda: None)
    assert (woken, watch.fired) == ([], False)


def test_what_hangs_is_not_waited_for() -> None:
    woken = threading.Event()

    def hangs() -> None:
        assert woken.wait(60), "the guest is woken while the pass still hangs"

    with pytest.raises(InterruptedTransferError, match="did not end within"):
        watched(0.01, woken.set, hangs)
    assert seen[-1].fired
    assert seen[-1].woken


def test_a_pass_that_fails_because_the_guest_was_woken_says_so() -> None:
    woken = threading.Event()

    def fails() -> None:
        woken.wait(60)
        raise SourceError("stopped")

    with pytest.raises(InterruptedTransferError, match="may stand still"):
        watched(0.01, woken.set, fails)


def test_a_guest_that_cannot_be_woken_is_known_of() -> None:
    tried = threading.Event()

    def wake() -> None:
        tried.set()
        raise InterruptedTransferError("no such domain")

    with pytest.raises(InterruptedTransferError):
        watched(0.01, wake, lambda: tried.wait(60))
    assert seen[-1].fired
    assert not seen[-1].woken


def test_a_watch_whose_time_comes_after_the_pass_wakes_nobody() -> None:
    woken: list[int] = []
    watch = watched(60, partial(woken.append, 1), lambda: None)
    watch._fire()  # as its timer does that was about to when it was cancelled
    assert (woken, watch.fired) == ([], False)


def test_a_guest_that_is_being_woken_is_awake_when_the_pass_has_failed() -> None:
    begun, goes_on = threading.Event(), threading.Event()

    def wake() -> None:
        begun.set()
        goes_on.wait(60)

    threading.Timer(0.2, goes_on.set).start()
    with pytest.raises(InterruptedTransferError):
        watched(0.01, wake, lambda: begun.wait(60))
    assert seen[-1].woken


def test_the_downtime_is_all_of_it() -> None:
    assert Downtime(1.0, 2.0, 3.0, 4.0).total == 10.0
