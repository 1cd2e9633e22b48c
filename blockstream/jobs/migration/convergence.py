"""Whether another round makes the last pass shorter: what a migration decides by."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

# What the last pass costs however little is left: a flush, LVM's commands, both commits.
_FIXED_SECONDS = 1.0
_FEWEST = 3  # rounds of changes before anything is called hopeless
_GAIN = 0.9  # a round that leaves more than this of the last projection gains nothing
MOST_ROUNDS = 30


@dataclass(frozen=True, slots=True)
class Round:
    """One pass over a set of volumes.

    Attributes:
        number: 0 for the whole copy.
        covered: Bytes of the volumes that were sent.
        wire: Bytes that travelled.
        seconds: How long it took, from its snapshot to its commit.
        sending: How much of that bytes were sent in.
        preparing: How much of that went into finding out what changed, as it does in the last pass.
        interval: Seconds over which these changes were made; 0 for the whole copy.
        filled: How full the fullest snapshot was at its end, in per cent.
    """

    number: int
    covered: int
    wire: int
    seconds: float
    sending: float
    interval: float = 0.0
    filled: float = 0.0
    preparing: float = 0.0

    @property
    def send_rate(self) -> float:
        """Bytes on the wire a second: what zeros gain in one round, no other round gains."""
        return self.wire / max(self.sending, 1e-3)

    @property
    def dirty_rate(self) -> float:
        """Bytes on the wire that a second of changes takes; 0 where that is not known."""
        return self.wire / self.interval if self.interval else 0.0


class Next(Enum):
    """What comes after a round."""

    LAST = "stop the guest and send the rest"
    AGAIN = "another round"
    HOPELESS = "more rounds will not make it shorter"


def projected(rounds: Sequence[Round], waited: float = 0.0) -> float | None:
    """Return the seconds that the last pass would take now; None before changes were seen.

    What has been changed since the last snapshot was made goes over as the last round did: what
    the line carried an hour ago, it may carry no more.

    Args:
        rounds: All so far, the whole copy first.
        waited: Seconds since the last one ended.
    """
    last = rounds[-1]
    if not last.interval:
        return None
    fixed = _FIXED_SECONDS + last.preparing
    return fixed + last.dirty_rate * (last.seconds + waited) / max(last.send_rate, 1.0)


def decide_next(rounds: Sequence[Round], max_downtime: float, waited: float = 0.0) -> Next:
    """Say what comes after these rounds.

    Args:
        rounds: All so far, the whole copy first.
        max_downtime: Seconds that the guest may stand still.
        waited: Seconds since the last one ended.
    """
    seconds, now = projected(rounds), projected(rounds, waited)
    if seconds is None or now is None:
        return Next.AGAIN
    if now <= max_downtime:
        return Next.LAST
    if seconds <= max_downtime or seconds <= now * _GAIN:
        return Next.AGAIN  # what was changed in the meantime goes over first
    deltas = len(rounds) - 1
    if deltas < _FEWEST:
        return Next.AGAIN
    # Twice in a row, because one round may have met with something else.
    gained = any(_gained(rounds[: len(rounds) - back]) for back in (0, 1))
    return Next.AGAIN if gained and deltas < MOST_ROUNDS else Next.HOPELESS


def _gained(rounds: Sequence[Round]) -> bool:
    """Tell whether the last of these rounds made the last pass shorter."""
    before, after = projected(rounds[:-1]), projected(rounds)
    return before is None or after is None or after <= before * _GAIN
