"""Signals: one of them stops a job, none is lost on the way, and nothing is left half done."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Coroutine, Iterator

import pytest

from blockstream.cli import foreground
from blockstream.cli.foreground import done
from blockstream.errors import InterruptedTransferError
from blockstream.pipeline.progress import Progress
from blockstream.run import Run

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Mind signals as a command does; give them back to the tests."""
    numbers = (*STOPS, signal.SIGUSR1)
    before = {number: signal.getsignal(number) for number in numbers}
    foreground.mind_signals()
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def killed_by(run: Run, *numbers: signal.Signals) -> str:
    """Wait in a thread after signals have come; return why it ended."""
    stopped, reasons = threading.Event(), list[str]()

    def stop(reason: str) -> None:
        reasons.append(reason)
        stopped.set()

    with run.heeding(stop):
        for number in numbers:
            os.kill(os.getpid(), number)
        assert stopped.wait(30)
    run.check("half done")
    return reasons[0]


@pytest.mark.parametrize("number", STOPS)
def test_a_signal_stops_a_job_and_outside_it_is_an_error(number: signal.Signals) -> None:
    run = Run()
    with pytest.raises(InterruptedTransferError, match=f"stopped by {number.name}; half done"):
        done(run.carry(lambda: killed_by(run, number)), run)
    if number is signal.SIGHUP:
        return  # which is told twice
    with pytest.raises(InterruptedTransferError, match=f"^stopped by {number.name}$"):
        signal.raise_signal(number)


def test_a_terminal_that_goes_away_stops_a_job_once_though_it_is_told_twice() -> None:
    run = Run()
    with pytest.raises(InterruptedTransferError, match="stopped by SIGHUP"):
        done(run.carry(lambda: killed_by(run, signal.SIGHUP, signal.SIGHUP)), run)


def test_nohup_is_obeyed() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    foreground.mind_signals()
    run = Run(pytest.fail)

    def work() -> int:
        os.kill(os.getpid(), signal.SIGHUP)
        return 7

    assert done(run.carry(work), run) == 7
    signal.raise_signal(signal.SIGHUP)


def test_a_wait_of_the_loop_itself_ends_as_well() -> None:
    run = Run()

    async def waits() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(60)

    with pytest.raises(InterruptedTransferError, match="stopped by SIGTERM"):
        done(waits(), run)


def test_what_must_not_be_left_half_done_goes_on_and_a_later_signal_is_heard() -> None:
    heard = threading.Event()

    def tell(text: str) -> None:
        said.append(text)
        heard.set()

    said, run = list[str](), Run(tell)

    def work() -> str:
        with run.undisturbed():
            os.kill(os.getpid(), signal.SIGTERM)
            assert heard.wait(30)
        run.check()
        return killed_by(run, signal.SIGINT)

    with pytest.raises(InterruptedTransferError, match="stopped by SIGINT; half done"):
        done(run.carry(work), run)
    assert said == ["stopped by SIGTERM, which comes too late: this must not be left half done"]


@pytest.mark.parametrize("closing", [False, True])
def test_a_signal_while_the_loop_is_made_or_closed_is_no_end_without_a_word(
    monkeypatch: pytest.MonkeyPatch, *, closing: bool
) -> None:
    run_loop = asyncio.run

    def interrupted(job: Coroutine[object, object, int]) -> int:
        if closing:
            result = run_loop(job)
            signal.raise_signal(signal.SIGTERM)
            return result
        signal.raise_signal(signal.SIGTERM)
        return run_loop(job)

    monkeypatch.setattr(asyncio, "run", interrupted)
    run = Run()
    if closing:
        assert done(run.carry(lambda: 7), run) == 7
        return
    with pytest.raises(InterruptedTransferError, match=r"^stopped by SIGTERM$"):
        done(run.carry(lambda: 7), run)


def test_when_all_is_done_a_signal_changes_nothing() -> None:
    foreground.finish()
    for number in STOPS:
        signal.raise_signal(number)


class Seen:
    """A reporter that notes what it is shown."""

    interval = 0.005

    def __init__(self) -> None:
        self.reported, self.asked_for = threading.Event(), threading.Event()
        self.cleared = 0

    def report(self, progress: Progress) -> None:
        """Note it."""
        assert progress.snapshot().total == 7
        self.reported.set()

    def asked(self, progress: Progress) -> None:
        """Note it."""
        self.asked_for.set()

    def clear(self) -> None:
        """Note it."""
        self.cleared += 1


@pytest.mark.parametrize("parts", [0, 2])
def test_how_far_it_is_is_shown_once_that_is_known_and_when_somebody_asks(parts: int) -> None:
    run, seen = Run(), Seen()

    def work() -> None:
        os.kill(os.getpid(), signal.SIGUSR1)
        assert seen.asked_for.wait(30)
        counted = run.parts(parts, "")[0] if parts else run
        counted.count_anew().total = 7
        assert seen.reported.wait(30)

    done(run.carry(work), run, [seen])
    assert seen.cleared == 1
    signal.raise_signal(signal.SIGUSR1)  # nobody is there to be asked


TWICE = """
import os, signal, sys, threading
from blockstream.cli import foreground
from blockstream.run import Run

def tell(reason):
    print("told", flush=True)

def hangs():
    with run.heeding(tell):
        print("ready", flush=True)
        threading.Event().wait(60)

foreground.mind_signals()
run = Run()
foreground.done(run.carry(hangs), run)
"""


def test_the_second_signal_leaves_at_once() -> None:
    with subprocess.Popen([sys.executable, "-c", TWICE], stdout=subprocess.PIPE) as process:  # noqa: S603
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.terminate()
        assert process.stdout.readline() == b"told\n"
        process.terminate()
        assert process.wait(30) == 11


TIDYING = """
import os, signal, sys, threading, time
from blockstream.cli import foreground
from blockstream.errors import BlockstreamError
from blockstream.run import Run

numbers = [signal.Signals(int(each)) for each in sys.argv[2:]]
heard = threading.Semaphore(0)
run = Run(lambda text: heard.release())

def works():
    with run.heeding(lambda reason: heard.release()):
        os.kill(os.getpid(), numbers.pop(0))
        heard.acquire()
    run.check()

def tidies():
    with run.undisturbed():
        for number in numbers:
            os.kill(os.getpid(), number)
        heard.acquire()
    print("tidied up", flush=True)

async def job():
    if sys.argv[1] == "stopped":
        try:
            await run.carry(works)
        except BlockstreamError:
            with run.kept_to_the_end():
                os.kill(os.getpid(), numbers[0])
                await run.settle(tidies)
    else:
        await run.carry(tidies)

foreground.mind_signals()
foreground.done(job(), run)
"""
TERM, INT, HUP = (str(int(each)) for each in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP))


@pytest.mark.parametrize(
    "words",
    [["stopped", TERM, TERM], ["stopped", INT, TERM, INT], ["not", TERM, HUP], ["not", INT, TERM]],
    ids=" ".join,
)
def test_nobody_leaves_while_something_would_be_left_half_done(words: list[str]) -> None:
    """A second Ctrl-C, while the guest of a migration was being woken, left it standing still."""
    done = subprocess.run(  # noqa: S603  # ourselves
        [sys.executable, "-c", TIDYING, *words], capture_output=True, text=True, timeout=30
    )
    assert (done.stdout, done.returncode) == ("tidied up\n", 0), done.stderr


def test_a_terminal_that_goes_away_after_another_signal_says_nothing_new() -> None:
    run, told = Run(), threading.Semaphore(0)

    def work() -> str:
        with run.heeding(lambda _reason: told.release()):
            os.kill(os.getpid(), signal.SIGTERM)
            assert told.acquire(timeout=30)
            os.kill(os.getpid(), signal.SIGHUP)  # which would end us at once, as a second one
        return "ended in its own time"

    assert done(run.carry(work), run) == "ended in its own time"
    assert run.stopped == "stopped by SIGTERM"
