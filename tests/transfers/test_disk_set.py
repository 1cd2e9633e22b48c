"""Disks of a set wait for each other."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from blockstream.errors import ConnectionLostError
from blockstream.transfers.disk_set import _LineUp


def alive() -> None:
    """Nothing has failed."""


def test_all_pass_when_the_last_one_is_there_and_nobody_waits_again() -> None:
    line, passed = _LineUp(3), list[int]()
    with ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(lambda: line.wait(alive)) for _ in range(2)]
        assert not any(each.done() for each in waiting)
        passed.append(1)
        line.wait(alive)
        for each in waiting:
            each.result(5)
    line.wait(alive)


def test_whose_session_fails_meanwhile_is_not_there_any_more() -> None:
    """A connection that had ended while others were waited for counted as ready."""
    line, lost = _LineUp(2), threading.Event()

    def check() -> None:
        if lost.is_set():
            raise ConnectionLostError("it ended")

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(lambda: line.wait(check))
        lost.set()
        with pytest.raises(ConnectionLostError):
            first.result(5)
        second = pool.submit(lambda: line.wait(alive))
        with pytest.raises(TimeoutError):
            second.result(0.5)
        line.wait(alive)
        second.result(5)
