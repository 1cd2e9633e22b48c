"""What `store verify` found is remembered, of the right points and no others."""

import pytest

from blockstream.formats.point import Point
from blockstream.repository.compaction import compact
from blockstream.repository.prune import prune
from blockstream.repository.repository import DAMAGED, StoredDisk
from blockstream.repository.retention import parse_rules
from blockstream.repository.verify import verified
from blockstream.run import Run
from tests.repository.test_prune import Model


def look(disk: StoredDisk, part: float = 1.0, *, newest: bool = False) -> None:
    verified(disk, Run(), part=part, newest=newest)


def damage(model: Model, seq: int) -> Point:
    """Change a byte of the first frame of a point."""
    point = model.disk.point(seq)
    path = model.store / model.disk.pack_key(point, 0)
    content = bytearray(path.read_bytes())
    content[model.disk.index(point).frames.offset[0] + 60] ^= 1
    path.write_bytes(content)
    return point


def test_a_look_marks_what_is_damaged_and_what_goes_onto_it(model: Model) -> None:
    damage(model, 1)
    look(model.disk)
    found = model.disk.found_damaged()
    assert 1 in found
    model.send(full=False)
    newest = max(model.disk.numbers())
    doubtful = newest - 1 in found
    assert (newest in model.disk.found_damaged()) == doubtful
    look(model.disk)
    again = model.disk.found_damaged()
    whole = set(model.disk.numbers()) - again.keys()
    model.send(full=True)
    assert max(model.disk.numbers()) not in model.disk.found_damaged()
    assert model.disk.found_damaged().keys() == again.keys()
    assert not whole & model.disk.found_damaged().keys()


@pytest.mark.parametrize("part", [0.5, 1.0])
def test_a_later_look_at_the_same_damage_hides_no_good_point(model: Model, part: float) -> None:
    """A sample found the old damage again, and a point that needs nothing of it was hidden."""
    model.send(full=True)
    good = max(model.disk.numbers())
    damage(model, 1)
    look(model.disk)
    before = model.disk.found_damaged().keys()
    assert good not in before
    for _ in range(3):
        look(model.disk, part)
    assert model.disk.found_damaged().keys() == before


def test_a_mark_is_of_its_point_and_not_of_its_number(model: Model) -> None:
    model.send(full=False, count=3)
    newest = max(model.disk.numbers())
    damage(model, newest)
    look(model.disk)
    assert newest in model.disk.found_damaged()
    (model.store / model.disk.point_key(newest)).unlink()
    model.send(full=True)
    assert max(model.disk.numbers()) == newest
    assert newest not in model.disk.found_damaged()


def test_pruning_a_damaged_point_forgets_nothing_of_what_names_its_packs(model: Model) -> None:
    damage(model, 1)
    look(model.disk)
    made = compact(model.disk, worth=0)
    assert made is not None
    inherits = made.point.seq in model.disk.found_damaged()
    model.send(full=True)
    prune(model.disk, parse_rules("last=2"), grace=0)
    assert (made.point.seq in model.disk.found_damaged()) == inherits
    look(model.disk)
    assert (made.point.seq in model.disk.found_damaged()) == inherits


def test_where_all_are_damaged_pruning_goes_on_by_the_rules(model: Model) -> None:
    damage(model, 1)
    for seq in model.disk.numbers():
        model.disk.mark_found(seq, max(model.disk.numbers()), whole=False)
    newest = max(model.disk.numbers())
    found = prune(model.disk, parse_rules("last=1"), grace=0)
    assert found.kept == [newest]
    assert newest in found.damaged


def test_without_a_mark_no_manifest_is_read(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StoredDisk, "readable", lambda _disk: pytest.fail("all were read"))
    assert not model.disk.marks(DAMAGED)
    assert model.disk.found_damaged() == {}
