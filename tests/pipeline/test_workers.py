"""Work done in parallel leaves in order, and when one fails all end."""

import threading
from itertools import count

import pytest

from blockstream.pipeline.workers import Turnstile, Workers, WorkersStoppedError


def test_numbers_pass_in_order_whoever_comes_first() -> None:
    turnstile, passed = Turnstile(5), list[int]()
    present = threading.Barrier(8)

    def work(number: int) -> None:
        present.wait()
        turnstile.wait_for(number)
        passed.append(number)
        turnstile.advance()

    threads = [
        threading.Thread(target=work, args=(n,), daemon=True) for n in reversed(range(5, 13))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert passed == list(range(5, 13))


def test_a_broken_turnstile_sends_everybody_away() -> None:
    turnstile, away = Turnstile(), list[int]()

    def work(number: int) -> None:
        try:
            turnstile.wait_for(number)
        except WorkersStoppedError:
            away.append(number)

    threads = [threading.Thread(target=work, args=(n,), daemon=True) for n in range(1, 5)]
    for thread in threads:
        thread.start()
    turnstile.break_open()
    for thread in threads:
        thread.join(10)
    assert sorted(away) == [1, 2, 3, 4]
    with pytest.raises(WorkersStoppedError):
        turnstile.wait_for(0)  # even whose turn it is


def test_a_crew_returns_when_all_its_members_have_ended() -> None:
    done = list[str]()
    crew = Workers(lambda: None)
    crew.run(lambda: done.append(threading.current_thread().name), 3)
    assert sorted(done) == ["worker-0", "worker-1", "worker-2"]
    assert crew.error is None


@pytest.mark.parametrize("at", range(1, 6))
@pytest.mark.parametrize("kind", [ValueError, MemoryError, KeyboardInterrupt, SystemExit])
def test_an_error_of_any_member_at_any_item_ends_the_crew(
    kind: type[BaseException], at: int
) -> None:
    turnstile, items, taking = Turnstile(), count(), threading.Lock()
    crew = Workers(turnstile.break_open)

    def work() -> None:
        while True:
            with taking:
                number = next(items)
            if number == at:
                raise kind(f"item {at}")
            turnstile.wait_for(number)
            turnstile.advance()

    crew.run(work, 4)
    assert type(crew.error) is kind
    assert str(crew.error) == f"item {at}"


def test_the_first_error_is_kept() -> None:
    crew, calls = Workers(lambda: calls.append(1)), list[int]()
    first = ValueError("first")
    crew.fail(first)
    crew.fail(ValueError("second"))
    assert crew.error is first
    assert len(calls) == 2  # the others may not have heard the first time


def test_whoever_is_sent_away_is_no_error() -> None:
    turnstile = Turnstile()
    crew = Workers(turnstile.break_open)
    turnstile.break_open()
    crew.run(lambda: turnstile.wait_for(3), 1)
    assert crew.error is None
