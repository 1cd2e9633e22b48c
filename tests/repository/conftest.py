"""A disk with some points, and what each of them holds."""

from pathlib import Path

import pytest

from tests.repository.test_prune import Model


@pytest.fixture
def model(tmp_path: Path) -> Model:
    made = Model(tmp_path, 1)
    made.send(full=True)
    for _ in range(4):
        made.send(full=False)
    return made
