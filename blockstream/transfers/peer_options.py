"""How the other end is reached: light enough for every command."""

from collections.abc import Callable
from dataclasses import dataclass, field

from blockstream.locations.ssh import Way

MOST_STREAMS = 16  # connections of one session


@dataclass(frozen=True, slots=True)
class PeerOptions:
    """How the other host is reached.

    Attributes:
        way: The way there.
        command: What blockstream is called there.
        retries: How often to connect again without getting any further in between.
        streams: Connections side by side; 0 to count them by the way's round-trip time.
        tell: Says to people that a connection was lost, and what is done about it.
    """

    way: Way = field(default_factory=Way)
    command: str = "blockstream"
    retries: int = 10
    streams: int = 1
    tell: Callable[[str], None] = lambda _text: None
