"""Long campaigns: a run does a tenth of them, another one after each commit.

CAMPAIGN=all in the environment does all of it, as `scripts/reliability` does; CAMPAIGN=N does that
tenth, from 0.
"""

import os
import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TypeVar, overload

SHARES = 10
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
        ["git", "rev-list", "--count", "HEAD"],  # noqa: S607  # whichever is installed
        cwd=Path(__file__).parent,
        capture_output=True,
        check=False,
    )
    return int(done.stdout or 0)
