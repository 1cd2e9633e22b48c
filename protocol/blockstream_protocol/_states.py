"""Which message may come when: the whole grammar of a conversation, for both sides.

A message that is not in the table is an error. PING and ABORT may come at any time and are
not listed. SPEC 8 is drawn from these tables by `scripts/spec_states.py`.
"""

from collections.abc import Mapping
from enum import Enum

from blockstream_protocol._messages import (
    Ack,
    Checkpoint,
    Committed,
    End,
    Extents,
    Hello,
    Message,
    Moment,
    Open,
    PlanRows,
    Refuse,
)


class State(Enum):
    """Where a session stands."""

    GREET = "waiting for the peer's HELLO"
    OPENING = "the opening is on its way or awaited"
    PLANNING = "taking the plan"
    DECIDING = "checking the target and marking it DIRTY"
    STREAM = "data"
    SKIM = "data that is compared, not written"
    ENDING = "all was sent; the last barrier"
    DONE = "over"


Table = Mapping[State, Mapping[type[Message], State]]

# What a receiver may be sent. DECIDING, ENDING and DONE take nothing.
RECEIVER: Table = {
    State.GREET: {Hello: State.OPENING},
    State.OPENING: {Moment: State.OPENING, Open: State.PLANNING},
    State.PLANNING: {PlanRows: State.PLANNING},
    State.STREAM: {Extents: State.STREAM, Checkpoint: State.STREAM, End: State.ENDING},
    State.SKIM: {Extents: State.SKIM, Checkpoint: State.SKIM, End: State.ENDING},
}

# What a sender may be answered; nobody answers over a one-way pipe. The first ACK is the
# resume point. COMMITTED instead of it means that the target holds the goal already.
SENDER: Table = {
    State.GREET: {Hello: State.OPENING, Refuse: State.DONE},
    State.OPENING: {Ack: State.STREAM, Committed: State.DONE, Refuse: State.DONE},
    State.STREAM: {Ack: State.STREAM, Refuse: State.DONE},
    State.ENDING: {Ack: State.ENDING, Committed: State.DONE, Refuse: State.DONE},
}
