"""The guard of conftest.py itself: it sees I/O from inside the protocol, and no other."""

from pathlib import Path
from typing import Protocol

import pytest


class Caught(Protocol):
    caught: list[str]


@pytest.mark.parametrize(
    "deed",
    [
        "open('/dev/null').close()",
        "import socket; socket.socket().close()",
        "import os; os.system('true')",
    ],
)
def test_io_from_inside_the_protocol_is_caught(guard: Caught, deed: str) -> None:
    exec(deed, {"__name__": "blockstream_protocol._made_up"})  # noqa: S102  # our own three lines
    assert len(guard.caught) == 1
    guard.caught.clear()


def test_io_from_elsewhere_is_not_our_business(guard: Caught) -> None:
    assert Path("/dev/null").read_bytes() == b""
    assert guard.caught == []
