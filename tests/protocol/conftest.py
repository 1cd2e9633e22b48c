"""The protocol does no I/O: whoever opens, connects or spawns from inside it fails the test."""

import sys
from collections.abc import Iterator

import pytest

FORBIDDEN = frozenset(
    {
        "open",
        "os.exec",
        "os.fork",
        "os.forkpty",
        "os.listdir",
        "os.posix_spawn",
        "os.remove",
        "os.scandir",
        "os.system",
        "socket.__new__",
        "socket.bind",
        "socket.connect",
        "socket.getaddrinfo",
        "subprocess.Popen",
    }
)


class Guard:
    """What was caught; an audit hook cannot be taken out again, so there is one for all tests."""

    def __init__(self) -> None:
        self.armed = False
        self.caught: list[str] = []

    def hook(self, event: str, arguments: tuple[object, ...]) -> None:
        if self.armed and event in FORBIDDEN and _inside_protocol():
            self.caught.append(f"{event}{arguments}")


def _inside_protocol() -> bool:
    frame = sys._getframe(2)
    while frame.f_back is not None:
        name = str(frame.f_globals.get("__name__"))
        if name.startswith(("importlib.", "_frozen_importlib")):
            return False  # a first import reads its file, whoever asks for it
        if name.split(".")[0] == "blockstream_protocol":
            return True
        frame = frame.f_back
    return False


GUARD = Guard()
sys.addaudithook(GUARD.hook)


@pytest.fixture(autouse=True)
def guard() -> Iterator[Guard]:
    GUARD.caught.clear()
    GUARD.armed = True
    yield GUARD
    GUARD.armed = False
    assert not GUARD.caught, f"the protocol did I/O: {GUARD.caught}"
