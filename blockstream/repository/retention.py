"""Which points are kept: the newest of each hour, day, week, month or year, so many of them."""

import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Final

from blockstream.errors import UsageError
from blockstream.formats.point import Point

# What two points have in common that are of the same period.
_PERIODS: Final[Mapping[str, Callable[[datetime], object]]] = {
    "last": lambda when: when,
    "hourly": lambda when: (when.date(), when.hour),
    "daily": lambda when: when.date(),
    "weekly": lambda when: when.isocalendar()[:2],
    "monthly": lambda when: (when.year, when.month),
    "yearly": lambda when: when.year,
}
_RULE: Final = re.compile(rf"({'|'.join(_PERIODS)})=(\d{{1,6}})")

Rules = Mapping[str, int]


def parse_rules(text: str) -> Rules:
    """Parse `hourly=24,daily=30`.

    Raises:
        UsageError: If it is not that, or would keep nothing.
    """
    rules = {}
    for word in text.split(","):
        found = _RULE.fullmatch(word.strip())
        if found is None:
            raise UsageError(
                f"--keep is {', '.join(f'{name}=N' for name in _PERIODS)}; not {word!r}"
            )
        rules[found[1]] = int(found[2])
    if not any(rules.values()):
        raise UsageError("--keep would keep nothing")
    return rules


def kept(points: Sequence[Point], rules: Rules) -> set[int]:
    """Return the numbers of the points that rules keep; the newest is always one of them.

    Args:
        points: The points, oldest first.
        rules: How many of each period; a period without a point does not count.
    """
    keep = {points[-1].seq} if points else set[int]()
    for name, most in rules.items():
        period, seen = _PERIODS[name], list[object]()
        for number, point in enumerate(reversed(points)):
            when = number if name == "last" else period(datetime.fromisoformat(point.created))
            if when in seen:
                continue
            if len(seen) == most:
                break
            seen.append(when)
            keep.add(point.seq)
    return keep
