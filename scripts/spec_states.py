#!/usr/bin/env python3
"""Draw SPEC 8 from the state tables; with --check only tell whether it is up to date."""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "protocol"))

from blockstream_protocol import RECEIVER, SENDER, State  # noqa: E402  # needs the path above
from blockstream_protocol._messages import Message  # noqa: E402  # not a public name

SPEC = ROOT / "protocol" / "SPEC.md"
BEGIN = "<!-- states: begin; written by scripts/spec_states.py -->\n"
END = "<!-- states: end -->"

Table = Mapping[State, Mapping[type[Message], State]]
Steps = tuple[tuple[State, str, State], ...]

# What a side does of itself, between two messages. tests/protocol/test_states.py sees each happen.
RECEIVER_STEPS: Steps = (
    (State.PLANNING, "plan is whole", State.DECIDING),
    (State.DECIDING, "DIRTY is durable", State.STREAM),
    (State.DECIDING, "holds the goal, one-way", State.SKIM),
    (State.DECIDING, "holds the goal, duplex", State.DONE),
    (State.ENDING, "CLEAN is durable", State.DONE),
)
SENDER_STEPS: Steps = (
    (State.GREET, "one-way", State.STREAM),
    (State.STREAM, "says END", State.ENDING),
    (State.STREAM, "says END, one-way", State.DONE),
)
NAMES = {"PlanRows": "PLAN"}


def drawn() -> str:
    """Return what belongs between the two markers."""
    return "\n".join(
        [
            "",
            *section("Receiver", RECEIVER, RECEIVER_STEPS),
            *section("Sender", SENDER, SENDER_STEPS),
        ]
    )


def section(title: str, table: Table, steps: Steps) -> list[str]:
    """Return one side: a picture, then the table in words."""
    used = [state for state in State if state in reachable(table, steps)]
    return [
        f"### {title}",
        "",
        "```mermaid",
        "stateDiagram-v2",
        f"    [*] --> {State.GREET.name}",
        *(
            f"    {state.name} --> {following.name}: {message}"
            for state, row in table.items()
            for message, following in named(row).items()
        ),
        *(f"    {before.name} --> {after.name}: [{step}]" for before, step, after in steps),
        f"    {State.DONE.name} --> [*]",
        "```",
        "",
        "| state | meaning | takes |",
        "|---|---|---|",
        *(f"| {state.name} | {state.value} | {taken(table, state)} |" for state in used),
        "",
    ]


def reachable(table: Table, steps: Steps) -> set[State]:
    """Return the states that this side has."""
    found = {State.GREET}
    for row in table.values():
        found |= set(row.values())
    return found | set(table) | {state for before, _, after in steps for state in (before, after)}


def taken(table: Table, state: State) -> str:
    """Return what may be received in a state, for a cell."""
    return ", ".join(named(table.get(state, {}))) or "nothing"


def named(row: Mapping[type[Message], State]) -> dict[str, State]:
    """Return a row of the table under the names that messages have in SPEC 4."""
    return {NAMES.get(kind.__name__, kind.__name__.upper()): after for kind, after in row.items()}


def main() -> int:
    """Rewrite or check the page; 1 if it was stale."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing")
    only_check = parser.parse_args().check
    text = SPEC.read_text()
    before, rest = text.split(BEGIN)
    after = rest[rest.index(END) :]
    wanted = before + BEGIN + drawn() + after
    if wanted == text:
        return 0
    if only_check:
        print("protocol/SPEC.md: section 8 is stale; run scripts/spec_states.py", file=sys.stderr)
        return 1
    SPEC.write_text(wanted)
    print("protocol/SPEC.md: section 8 written")
    return 0


if __name__ == "__main__":
    sys.exit(main())
