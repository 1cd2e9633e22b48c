"""A few worlds of `scripts/chaos`, others for each commit."""

from pathlib import Path

import pytest

from tests.end_to_end.chaos import KINDS, campaign
from tests.rotation import SHARES, share


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("turn", share(range(SHARES)))
def test_nothing_is_broken_by_killing_it(tmp_path: Path, turn: int) -> None:
    worlds = 6 * len(KINDS)
    tally = campaign(tmp_path, turn * worlds, lambda done: done >= worlds)
    assert tally.violations == []
    assert tally.worlds.total() == worlds
    assert tally.kills.total() > 0
    assert tally.damages.total() > 0
