"""When a migration stops the guest, goes on, or gives up."""

import pytest

from blockstream.jobs.migration.convergence import MOST_ROUNDS, Next, Round, decide_next, projected

MIB = 1 << 20
WHOLE = Round(0, 1000 * MIB, 1000 * MIB, 10.0, 10.0)  # 100 MiB a second


def delta(
    number: int, mib: float, seconds: float, interval: float, sending: float | None = None
) -> Round:
    count = int(mib * MIB)
    return Round(number, count, count, seconds, seconds if sending is None else sending, interval)


def simulated(dirty_mib: float, max_downtime: float, rate: float = 100.0) -> tuple[Next, int]:
    """Let a guest change so much a second; return how it ends, and after how many rounds."""
    rounds, interval = [WHOLE], 10.0
    for number in range(1, 100):
        verdict = decide_next(rounds, max_downtime)
        if verdict is not Next.AGAIN:
            return verdict, number - 1
        mib = min(dirty_mib * interval, 1000.0)
        seconds = 0.5 + mib / rate
        rounds.append(delta(number, mib, seconds, interval))
        interval = seconds
    raise AssertionError("it does not end")


def test_after_the_whole_copy_nothing_is_known() -> None:
    assert projected([WHOLE]) is None
    assert decide_next([WHOLE], 1000.0) is Next.AGAIN


@pytest.mark.parametrize("dirty_mib", [0, 1, 10, 50])
def test_a_guest_that_writes_less_than_can_be_sent_is_stopped_soon(dirty_mib: float) -> None:
    verdict, rounds = simulated(dirty_mib, 5.0)
    assert verdict is Next.LAST
    assert rounds <= 6


@pytest.mark.parametrize("dirty_mib", [100, 150, 1000])
def test_a_guest_that_writes_more_than_can_be_sent_is_hopeless(dirty_mib: float) -> None:
    verdict, rounds = simulated(dirty_mib, 2.0)
    assert verdict is Next.HOPELESS
    assert 3 <= rounds < MOST_ROUNDS


def test_a_limit_that_even_nothing_does_not_fit_is_hopeless() -> None:
    assert simulated(0, 0.5)[0] is Next.HOPELESS


def test_zeros_of_the_whole_copy_do_not_make_the_line_fast() -> None:
    # 1000 MiB, nearly all zeros, in 10 s; then 40 MiB of changes in 10 s, made in 20 s.
    rounds = [Round(0, 1000 * MIB, 20 * MIB, 10.0, 10.0), delta(1, 40, 10.0, 20.0)]
    assert projected(rounds) == pytest.approx(1.0 + 2 * 10.0 / 4)
    assert decide_next(rounds, 5.0) is Next.AGAIN


def test_what_a_round_costs_besides_its_bytes_does_not_make_the_line_slow() -> None:
    # 10 MiB in 1 s of 6 s, made in 10 s: 6 MiB are changed since, at 10 MiB a second.
    rounds = [Round(0, 1000 * MIB, 20 * MIB, 100.0, 100.0), delta(1, 10, 6.0, 10.0, sending=1.0)]
    assert projected(rounds) == pytest.approx(1.0 + 6 / 10)


def test_a_line_that_has_become_slow_is_planned_with_as_it_is() -> None:
    """The best rate of an hour ago promised a pass of seconds, and it took minutes."""
    rounds = [WHOLE, delta(1, 100, 2.0, 10.0, 1.0), delta(2, 20, 10.0, 2.0)]
    assert projected(rounds) == pytest.approx(1.0 + 10.0 * 10.0 / 2.0)
    assert decide_next(rounds, 5.0) is Next.AGAIN


def test_what_was_changed_while_something_else_took_long_goes_over_first() -> None:
    # It gains no more: but 20 s later, another round does.
    rounds = [WHOLE, *(delta(number, 100, 2.0, 2.0) for number in range(1, 6))]
    assert decide_next(rounds, 1.0) is Next.HOPELESS
    assert decide_next(rounds, 1.0, waited=20.0) is Next.AGAIN


def test_one_round_that_gains_nothing_is_not_the_last() -> None:
    slower = [
        WHOLE,
        *(delta(number, 100, seconds, 10.0) for number, seconds in enumerate((40, 30, 31), 1)),
    ]
    assert decide_next(slower, 1.0) is Next.AGAIN
    assert decide_next([*slower, delta(4, 100, 31, 10.0)], 1.0) is Next.HOPELESS


def test_the_projection_is_what_was_changed_since_the_last_snapshot() -> None:
    # 20 MiB a second over the 2 s that this round took, at 100 MiB a second, and what is fixed.
    assert projected([WHOLE, delta(1, 200, 2.0, 10.0)]) == pytest.approx(1.0 + 40 / 100)
