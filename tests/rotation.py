"""Long campaigns: a run does a tenth of them, another one whenever work was taken up again.

CAMPAIGN=all in the environment does all of it, as `scripts/reliability` does; CAMPAIGN=N does that
tenth, from 0.
"""

import itertools
import os
import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TypeVar, overload

SHARES = 10
_PAUSE_SECONDS = 3600
T = TypeVar("T")


@overload
def share(cases: range) -> range: ...
@overload
def share(cases: Sequence[T]) -> Sequence[T]: ...
def share(cases: Sequence[T]) -> Sequence[T]:
    """Return the cases whose turn it is: every tenth, of fewer than ten one."""
    if os.environ.get("CAMPAIGN") == "all":
        return cases
    step = min(SHARES, len(cases))
    return cases[_turn() % step :: step]


@cache
def _turn() -> int:
    if said := os.environ.get("CAMPAIGN"):
        return int(said)
    # What is no checkout has the first turn.
    done = subprocess.run(
        ["git", "log", "--format=%at"],  # noqa: S607  # whichever is installed
        cwd=Path(__file__).parent,
        capture_output=True,
        check=False,
    )
    times = [int(line) for line in done.stdout.split()]
    # Commits close to each other are tested as one, so to count them would leave some turns out.
    return sum(later - earlier > _PAUSE_SECONDS for later, earlier in itertools.pairwise(times))
