"""What every way to another host promises: bytes both ways, an end, a status, and last words."""

import os
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from blockstream.errors import NotFoundError
from blockstream.interfaces import Link
from blockstream.locations.ssh import Remote, Way, open_link
from blockstream.words import printable

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60)]

Connect = Callable[[str], Link]


@pytest.fixture(
    params=[
        "pipe",
        pytest.param("system ssh", marks=pytest.mark.needs("sshd")),
        pytest.param("our ssh", marks=pytest.mark.needs("sshd")),
    ]
)
def connect(request: pytest.FixtureRequest) -> Connect:
    if request.param == "pipe":
        way = Way(rsh="sh -c {command}")
    elif request.param == "system ssh":
        way = Way(rsh=f"ssh -F {request.getfixturevalue('server').config}")
    else:
        way = Way(ssh_config=str(request.getfixturevalue("server").config))
    return lambda command: open_link(Remote("lab", "/"), command, way)


def read_all(fd: int) -> bytes:
    parts = []
    while part := os.read(fd, 1 << 16):
        parts.append(part)
    return b"".join(parts)


@pytest.mark.parametrize("size", [0, 1, 65_537, 8 << 20])
def test_bytes_go_there_and_back_unchanged(connect: Connect, size: int) -> None:
    content = os.urandom(size)
    with closing(connect("cat")) as link:

        def feed() -> None:
            view = memoryview(content)
            while view:
                view = view[os.write(link.to_peer, view) :]
            link.hang_up()

        feeder = threading.Thread(target=feed)
        feeder.start()
        assert read_all(link.from_peer) == content
        feeder.join()
        assert link.ended() == (0, "")


@pytest.mark.parametrize("status", [0, 1, 10, 127])
def test_the_far_status_and_last_words_are_told(connect: Connect, status: int) -> None:
    with closing(connect(f"echo sorry >&2; exit {status}")) as link:
        assert read_all(link.from_peer) == b""
        assert link.ended() == (status, "sorry")


def test_last_words_come_as_they_were_said_and_are_shown_without_moving_a_cursor(
    connect: Connect,
) -> None:
    with closing(connect(r"printf 'a\033[2Jb\r\n\0c\n' >&2")) as link:
        read_all(link.from_peer)
        status, words = link.ended()
        assert (status, words) == (0, "a\x1b[2Jb\n\x00c")
        assert printable(words) == r"a\x1b[2Jb" + "\n" + r"\x00c"


def test_endless_words_are_cut(connect: Connect) -> None:
    with closing(connect("yes complaint | head -c 3000000 >&2; echo end >&2")) as link:
        read_all(link.from_peer)
        status, words = link.ended()
        assert status == 0
        assert words.endswith("end")
        assert len(words) < 10_000


def test_a_far_program_that_does_not_end_is_ended(connect: Connect) -> None:
    with closing(connect("trap '' HUP; exec sleep 100")) as link:
        status, _ = link.ended()
        assert status != 0


def test_hanging_up_twice_is_hanging_up(connect: Connect) -> None:
    with closing(connect("cat")) as link:
        link.hang_up()
        link.hang_up()
        assert link.ended()[0] == 0


def test_descriptors_are_given_back(connect: Connect) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(2):
        with closing(connect("true")) as link:
            read_all(link.from_peer)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_way_that_is_not_there_is_said() -> None:
    with pytest.raises(NotFoundError, match="/none/ssh cannot be started"):
        open_link(Remote("lab", "/"), "true", Way(rsh="/none/ssh"))
