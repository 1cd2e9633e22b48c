"""Many worlds, over several processes: what `scripts/simulate` and the tests run."""

import multiprocessing
from collections import Counter
from dataclasses import dataclass, field
from functools import partial

from tests.simulation.mutants import MUTANTS, applied
from tests.simulation.simulator import Outcome, World, simulate

BATCH = 250  # seeds that a process takes at a time


@dataclass(slots=True)
class Tally:
    """What came of many worlds.

    Attributes:
        ends: How many ended in which way.
        faults: How many faults were injected, by kind.
        oracles: Broken promises, by number.
        first: The violation with the lowest seed.
    """

    ends: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    oracles: Counter[str] = field(default_factory=Counter)
    first: Outcome | None = None

    def add(self, outcome: Outcome) -> None:
        """Count one world."""
        self.ends[outcome.end] += 1
        self.faults += outcome.faults
        if outcome.end == "violation":
            self.oracles[outcome.oracle] += 1
            if self.first is None or outcome.seed < self.first.seed:
                self.first = outcome

    def merge(self, other: "Tally") -> None:
        """Add what another process counted."""
        self.ends += other.ends
        self.faults += other.faults
        self.oracles += other.oracles
        if other.first is not None and (self.first is None or other.first.seed < self.first.seed):
            self.first = other.first


def run_batch(mutant: str, until_caught: bool, seeds: range) -> Tally:
    """Run some worlds in this process.

    Args:
        mutant: A name from `MUTANTS`; empty for what is shipped.
        until_caught: Stop at the first violation.
        seeds: One world each.
    """
    tally = Tally()
    with applied(MUTANTS[mutant] if mutant else None) as rules:
        for seed in seeds:
            tally.add(simulate(seed, rules))
            if until_caught and tally.first is not None:
                break
    return tally


def run(seeds: range, *, mutant: str = "", until_caught: bool = False, jobs: int = 1) -> Tally:
    """Run many worlds, in `jobs` processes."""
    batches = [seeds[start : start + BATCH] for start in range(0, len(seeds), BATCH)]
    work = partial(run_batch, mutant, until_caught)
    tally = Tally()
    if jobs == 1 or len(batches) == 1:
        for batch in batches:
            tally.merge(work(batch))
            if until_caught and tally.first is not None:
                break
        return tally
    # Spawned, because a fork copies whatever threads a test runner holds.
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        for part in pool.imap(work, batches):
            tally.merge(part)
            if until_caught and tally.first is not None:
                break
    return tally


def story_of(seed: int, mutant: str = "") -> list[str]:
    """Run one world again and tell what happened in it."""
    story: list[str] = []
    with applied(MUTANTS[mutant] if mutant else None) as rules:
        World(seed, rules, story).run()
    return story
