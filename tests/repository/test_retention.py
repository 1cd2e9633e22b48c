"""Rules keep the newest point of each period, and always the newest of all."""

from dataclasses import replace

import pytest

from blockstream.errors import UsageError
from blockstream.formats.point import Point
from blockstream.repository.retention import kept, parse_rules
from tests.formats.test_points import BASE


def points(*times: str) -> list[Point]:
    return [
        replace(BASE, seq=number, created=f"2026-{when}:00Z")
        for number, when in enumerate(times, 1)
    ]


MONTH = points(*(f"11-{day:02}T{hour:02}:30" for day in range(1, 31) for hour in (0, 6, 12, 18)))


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ("last=1", [120]),
        ("last=3", [118, 119, 120]),
        ("hourly=2", [119, 120]),
        ("daily=3", [112, 116, 120]),
        ("weekly=2", [116, 120]),  # the 29th is a Sunday
        ("monthly=5", [120]),
        ("yearly=1,daily=2", [116, 120]),
        ("last=2,daily=2", [116, 119, 120]),
        ("daily=0,last=1", [120]),
    ],
)
def test_rules_keep_the_newest_of_each_period(rules: str, expected: list[int]) -> None:
    assert sorted(kept(MONTH, parse_rules(rules))) == expected


def test_a_period_without_a_point_does_not_count() -> None:
    few = points("01-01T00:00", "03-05T00:00", "11-20T00:00")
    assert sorted(kept(few, parse_rules("daily=2"))) == [2, 3]
    assert kept([], parse_rules("daily=2")) == set()


@pytest.mark.parametrize("text", ["", "daily", "daily=x", "minutely=3", "daily=0", "daily=-1"])
def test_what_is_no_rule_is_said(text: str) -> None:
    with pytest.raises(UsageError, match="--keep"):
        parse_rules(text)
