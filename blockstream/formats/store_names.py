"""What objects of a store are called. Anything else that lies there is somebody else's."""

import re
from typing import Final

DISK: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,127}")
IDENTITY: Final = re.compile(r"[0-9a-f]{12}-[0-9a-f]{16}")  # of a point: when it began, and chance
POINT: Final = re.compile(r"([0-9]{10})\.json")
MARK: Final = re.compile(r"([0-9]{10})\.([a-z]+)\.json")
UNNAMED: Final = re.compile(rf"{IDENTITY.pattern}\.unnamed\.json")
CLOCK: Final = re.compile(r"clock")
PACK: Final = re.compile(rf"{IDENTITY.pattern}/[0-9]{{4,8}}\.pack")
ALIVE: Final = re.compile(rf"{IDENTITY.pattern}/alive")
INDEX: Final = re.compile(rf"{IDENTITY.pattern}\.index")


def owner_of(name: str) -> str:
    """Return the id of the point that a pack, an index or a sign of life is of."""
    return name.replace("/", ".").partition(".")[0]


def began(identity: str) -> float:
    """Return when a point was begun, in seconds since 1970, by the clock of who wrote it."""
    return int(identity.partition("-")[0], 16) / 1000
