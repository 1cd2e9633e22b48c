"""Chunks are compared with their base where that is faster than the line."""

import pytest

from blockstream.errors import BlockstreamError
from blockstream.extents import ExtentMap
from blockstream.formats.extent_lists import ExtentList, Meaning
from blockstream.jobs.migration.narrowing import Narrowing
from blockstream.run import Run
from tests.jobs.migration.test_marks import VOLUME


@pytest.mark.parametrize(
    ("compared", "kept", "line", "pays"),
    [
        (0.0, 0.0, 100e6, True),  # nothing is known: it is tried
        (500e6, 1 / 16, 0.0, True),
        (500e6, 1 / 16, 100e6, True),
        (500e6, 1.0, 100e6, False),  # all of it was written
        (500e6, 1 / 16, 1000e6, False),  # the line is faster than the disk
        (500e6, 0.5, 249e6, True),
        (500e6, 0.5, 251e6, False),
    ],
)
def test_it_pays_as_long_as_the_line_is_slower(
    compared: float, kept: float, line: float, pays: bool
) -> None:
    narrowing = Narrowing()
    narrowing._compared, narrowing._kept, narrowing._line = compared, kept, line
    assert narrowing.pays is pays


def test_after_a_pass_that_was_not_finished_a_list_is_taken_whole_once() -> None:
    """The target would keep what the guest has put back by now."""
    narrowing = Narrowing()
    changed = ExtentMap.whole(1 << 20)
    found = ExtentList(changed, Meaning.CHANGED, "a test", 1 << 20)
    narrowing.rest()
    assert narrowing.narrowed(VOLUME, VOLUME, found, Run()) is found
    with pytest.raises(BlockstreamError):  # it is compared again, and this volume is on no host
        narrowing.narrowed(VOLUME, VOLUME, found, Run())
