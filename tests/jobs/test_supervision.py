"""Signals: what a transfer installs it takes away again, and nothing is left half done."""

import os
import signal
import threading

import pytest

from blockstream.errors import InterruptedTransferError
from blockstream.jobs.supervision import Work, postponed, supervised, undisturbed
from blockstream.pipeline.progress import Progress

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class ToldError(Exception):
    """A signal came."""


@pytest.fixture(autouse=True)
def handlers() -> object:
    def tell(number: int, _frame: object) -> None:
        raise ToldError(number)

    before = {n: signal.signal(n, tell) for n in STOPS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_after_a_transfer_signals_are_heard_as_before() -> None:
    assert supervised(lambda: 7, Work(lambda _reason: None), Progress(), []) == 7
    for number in STOPS:
        with pytest.raises(ToldError):
            signal.raise_signal(number)


def test_what_must_not_be_left_half_done_is_done() -> None:
    said: list[str] = []
    with undisturbed(said.append):
        for number in STOPS:
            signal.raise_signal(number)
    assert [text.split()[0] for text in said] == ["SIGINT", "SIGTERM", "SIGHUP"]
    with pytest.raises(ToldError):
        signal.raise_signal(signal.SIGTERM)


def test_what_must_be_known_to_its_end_ends_first() -> None:
    said: list[str] = []
    ended = False
    with pytest.raises(InterruptedTransferError, match="stopped by SIGTERM"):  # noqa: PT012, SIM117
        with postponed(said.append):
            signal.raise_signal(signal.SIGTERM)
            ended = True
    assert ended
    assert said == ["SIGTERM: this ends first"]
    with postponed(said.append):
        pass
    with pytest.raises(ToldError):
        signal.raise_signal(signal.SIGTERM)


def test_a_terminal_that_goes_away_stops_a_transfer_once_though_it_is_told_twice() -> None:
    reasons: list[str] = []
    stopped = threading.Event()

    def stop(reason: str) -> None:
        reasons.append(reason)
        signal.raise_signal(signal.SIGHUP)
        stopped.set()

    def run() -> bool:
        os.kill(os.getpid(), signal.SIGHUP)
        return stopped.wait(10)

    assert supervised(run, Work(stop), Progress(), [])
    assert reasons == ["stopped by SIGHUP"]


def test_nohup_is_obeyed() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with postponed(pytest.fail):
        signal.raise_signal(signal.SIGHUP)

    def run() -> int:
        os.kill(os.getpid(), signal.SIGHUP)
        return 7

    assert supervised(run, Work(pytest.fail), Progress(), []) == 7
