"""A guest stands still no longer than is allowed, whatever hangs meanwhile."""

import threading
from functools import partial

import pytest

from blockstream.errors import InterruptedTransferError, SourceError
from blockstream.jobs.migration.downtime import Downtime, Watch


def test_what_ends_in_time_wakes_nobody() -> None:
    woken: list[str] = []
    with Watch(60, lambda: woken.append("woken")) as watch:
        pass
    assert (woken, watch.fired) == ([], False)


def test_what_hangs_is_not_waited_for() -> None:
    woken = threading.Event()
    watch = Watch(0.01, woken.set)
    with pytest.raises(InterruptedTransferError, match="did not end within"), watch:
        assert woken.wait(60), "the guest is woken while the pass still hangs"
    assert watch.fired
    assert watch.woken


def test_a_pass_that_fails_because_the_guest_was_woken_says_so() -> None:
    woken = threading.Event()

    def passing() -> None:
        with Watch(0.01, woken.set):
            woken.wait(60)
            raise SourceError("stopped")

    with pytest.raises(InterruptedTransferError, match="may stand still"):
        passing()


def test_a_guest_that_cannot_be_woken_is_known_of() -> None:
    tried = threading.Event()

    def wake() -> None:
        tried.set()
        raise InterruptedTransferError("no such domain")

    watch = Watch(0.01, wake)
    with pytest.raises(InterruptedTransferError), watch:
        tried.wait(60)
    assert watch.fired
    assert not watch.woken


def test_a_watch_whose_time_comes_after_the_pass_wakes_nobody() -> None:
    woken: list[int] = []
    with Watch(60, partial(woken.append, 1)) as watch:
        pass
    watch._fire()  # as its timer does that was about to when it was cancelled
    assert (woken, watch.fired) == ([], False)


def test_a_guest_that_is_being_woken_is_awake_when_the_pass_has_failed() -> None:
    begun, goes_on = threading.Event(), threading.Event()

    def wake() -> None:
        begun.set()
        goes_on.wait(60)

    threading.Timer(0.2, goes_on.set).start()
    watch = Watch(0.01, wake)
    with pytest.raises(InterruptedTransferError), watch:
        begun.wait(60)
    assert watch.woken


def test_the_downtime_is_all_of_it() -> None:
    assert Downtime(1.0, 2.0, 3.0, 4.0).total == 10.0
