"""No second carries more than the rate, and none much less while there is something to send."""

import itertools
import os
import threading
from bisect import bisect_left

import pytest

from blockstream.pipeline.frame_sink import PipeSink
from blockstream.pipeline.limiter import Limiter
from blockstream.pipeline.progress import Progress
from blockstream_protocol import Ping

MIB = 1 << 20
Write = tuple[float, int]


class Clock:
    """Time that passes only when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def written(limiter: Limiter, clock: Clock, seconds: float, pause: float = 0.0) -> list[Write]:
    """Write as fast as the limiter lets us; return (time, bytes) of each write."""
    writes, end = [], clock.now + seconds
    while clock.now < end:
        count = limiter.slice_bytes
        clock.now += max(0.0, limiter.delay(count)) + pause
        writes.append((clock.now, count))
    return writes


def busiest_second(writes: list[Write]) -> int:
    """Return the most bytes that began in any window of one second."""
    times = [when for when, _ in writes]
    sums = [0, *itertools.accumulate(count for _, count in writes)]
    return max(sums[bisect_left(times, when + 1.0)] - sums[i] for i, when in enumerate(times))


def rates(writes: list[Write], seconds: int) -> list[int]:
    """Return the bytes of each whole second."""
    begin = writes[0][0]
    return [
        sum(count for when, count in writes if second <= when - begin < second + 1)
        for second in range(seconds)
    ]


RATES = [64 << 10, 750 << 10, MIB, 10 * MIB, 117 * MIB, 1 << 30]


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("pause", [0.0, 0.0001, 0.003])
def test_no_second_carries_more_than_a_tenth_above_the_rate(rate: int, pause: float) -> None:
    clock = Clock()
    writes = written(Limiter(rate, clock), clock, 5, pause)
    assert busiest_second(writes) <= rate * 1.1


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("pause", [0.0, 0.0001])
def test_no_second_carries_less_than_a_tenth_below_the_rate(rate: int, pause: float) -> None:
    clock = Clock()
    if pause * rate > MIB / 2:
        return  # the pauses alone take longer than the slices
    for second in rates(written(Limiter(rate, clock), clock, 5, pause), 4):
        assert second >= rate * 0.9


@pytest.mark.parametrize(("before", "after"), [(MIB, 10 * MIB), (10 * MIB, MIB), (MIB, 64 << 10)])
def test_a_rate_that_changes_holds_at_once(before: int, after: int) -> None:
    clock = Clock()
    limiter = Limiter(before, clock)
    written(limiter, clock, 2)
    limiter.rate = after
    writes = written(limiter, clock, 4)
    assert busiest_second(writes) <= after * 1.1
    assert min(rates(writes, 3)) >= after * 0.9


def test_a_long_pause_saves_up_no_burst() -> None:
    clock = Clock()
    limiter = Limiter(MIB, clock)
    written(limiter, clock, 1)
    clock.now += 3600
    assert busiest_second(written(limiter, clock, 3)) <= MIB * 1.1


def test_without_a_rate_nobody_waits() -> None:
    clock = Clock()
    limiter = Limiter(None, clock)
    assert limiter.slice_bytes == MIB
    assert limiter.delay(1 << 40) == 0.0
    limiter.rate = MIB
    limiter.delay(MIB)
    assert limiter.delay(MIB) > 0.9
    limiter.rate = None
    assert limiter.delay(MIB) == 0.0


@pytest.mark.parametrize(
    ("rate", "wanted"), [(1, 1024), (100 << 10, 2048), (10 * MIB, 209715), (1 << 40, MIB)]
)
def test_slices_are_a_fiftieth_of_a_second_within_bounds(rate: int, wanted: int) -> None:
    assert Limiter(rate).slice_bytes == wanted


def test_an_outlet_that_stops_lets_go_and_leaves_the_limit_to_the_next() -> None:
    limiter = Limiter(1)
    limiter.delay(1 << 20)  # the line is taken for days
    reading, writing = os.pipe()
    try:
        outlet = PipeSink(writing, limiter, Progress())
        waiting = threading.Thread(target=outlet.send, args=(Ping(),), daemon=True)
        waiting.start()
        outlet.stop()
        waiting.join(10)
        assert not waiting.is_alive()
        outlet.close()
        assert limiter.delay(1) > 1000
    finally:
        os.close(reading)
        os.close(writing)
