"""Whatever fails and whenever, no promise about data is broken; a rule less, and one is."""

import pytest

from tests.rotation import share
from tests.simulation.campaign import Tally, run, story_of
from tests.simulation.mutants import MUTANTS
from tests.simulation.simulator import simulate

SEEDS = 20_000
MUTANT_SEEDS = 3_000
# Caught within the first few worlds, so that even the quick run tests the simulation itself.
QUICK = ("no-fsync", "no-dirty-mark", "ack-before-fsync", "no-base-check", "no-intent")
CAUGHT = sorted(name for name, mutant in MUTANTS.items() if not mutant.covered_by)


def first_of(tally: Tally) -> str:
    """Return the story of the first violation, for the report of a failed test."""
    if tally.first is None:
        return ""
    return "\n".join([f"scripts/simulate --seed {tally.first.seed} --trace", tally.first.text])


def test_five_hundred_worlds_keep_every_promise() -> None:
    tally = run(range(500))
    assert tally.first is None, first_of(tally)
    assert tally.ends["done"] > 400


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_twenty_thousand_worlds_keep_every_promise() -> None:
    seeds = share(range(SEEDS))
    tally = run(seeds, jobs=2)
    assert tally.first is None, first_of(tally)
    assert tally.ends["done"] + tally.ends["refused"] == len(seeds)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_every_kind_of_fault_is_injected() -> None:
    kinds = {
        *("cut", "hang", "flip", "lose", "stop"),
        *("skill", "spower", "rkill", "rpower"),
        *("eio", "weio", "jeio", "drop", "tamper"),
        *("mutate", "resnap"),
    }
    assert set(run(range(1_000)).faults) == kinds


@pytest.mark.parametrize("name", QUICK)
def test_a_missing_rule_is_found_at_once(name: str) -> None:
    assert run(range(100), mutant=name, until_caught=True).first is not None


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", CAUGHT)
def test_a_missing_rule_is_found(name: str) -> None:
    assert run(range(MUTANT_SEEDS), mutant=name, until_caught=True).first is not None


def test_a_seed_is_the_whole_story() -> None:
    assert story_of(7) == story_of(7)
    assert simulate(7) == simulate(7)


def test_the_story_of_a_violation_ends_with_it() -> None:
    first = run(range(100), mutant="no-fsync", until_caught=True).first
    assert first is not None
    story = story_of(first.seed, "no-fsync")
    assert first.text in story[-1]
    assert "session" in story[0]
