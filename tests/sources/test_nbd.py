"""An NBD export is read as its server has it, whatever becomes of the connection meanwhile."""

import json
import os
import random
import signal
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import pytest

from blockstream.errors import (
    AuthenticationError,
    NbdError,
    NotFoundError,
    SourceError,
    UsageError,
)
from blockstream.linux.buffers import aligned_buffer
from blockstream.sources.nbd import NbdSource
from blockstream.sources.nbd_connection import Patience, Place
from blockstream.sources.nbd_tls import SecuredSocket
from blockstream_protocol import Kind
from tests.contracts.disks import content_of, open_descriptors
from tests.devices import run
from tests.nbd_servers import (
    ACK,
    MULTI,
    READ_ONLY,
    STARTTLS,
    answer,
    asked,
    data,
    fault,
    greeting,
    keyring,
    make_certificates,
    nbdkit,
    open_export,
    qemu_nbd,
    scripted,
    status,
    taken,
)

pytestmark = [pytest.mark.needs("nbdkit")]
MIB = 1 << 20
QUICK = Patience(connect=1.0, greeting=1.0, reply=1.0, pauses=(0.01, 0.05, 0.1))
CONTENT = random.Random(1).randbytes(MIB)  # noqa: S311  # not secrets
Script = Callable[[socket.socket], None]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(content_of(3 * MIB))
    return path


def opened(location: str, *, bitmap: str = "", patience: Patience = QUICK) -> closing[NbdSource]:
    return closing(NbdSource(location, bitmap=bitmap, patience=patience))


def read(source: NbdSource, offset: int, length: int) -> bytes:
    buffer = aligned_buffer(length)
    source.read_into([offset], [length], buffer)
    return bytes(buffer)


def whole(location: str) -> bytes:
    with opened(location) as source:
        return read(source, 0, source.size)


def rows(source: NbdSource) -> list[tuple[int, int, int]]:
    return [(offset, length, kind) for offset, length, kind in source.extents()]


# Locations.


@pytest.mark.parametrize(
    ("typed", "host", "port", "path", "export", "tls", "hostname"),
    [
        ("nbd://h", "h", 10809, "", "", False, "h"),
        ("nbd://h/", "h", 10809, "", "", False, "h"),
        ("nbd://h:1/a%20b/c", "h", 1, "", "a b/c", False, "h"),
        ("nbds://[::1]:2/x", "::1", 2, "", "x", True, "::1"),
        ("nbds://h/x?tls-hostname=other", "h", 10809, "", "x", True, "other"),
        ("nbd+unix:///x?socket=/s", "", 10809, "/s", "x", False, "localhost"),
        ("nbd+unix://?socket=/a%3Fb", "", 10809, "/a?b", "", False, "localhost"),
        ("nbd+unix:///?socket=/a+b", "", 10809, "/a+b", "", False, "localhost"),
        ("nbds+unix:////x?socket=s&tls-certificates=d", "", 10809, "s", "/x", True, "localhost"),
    ],
)
def test_a_location_is_understood_as_libnbd_does(
    typed: str, host: str, port: int, path: str, export: str, tls: bool, hostname: str
) -> None:
    place = Place.of(typed)
    found = (place.host, place.port, place.socket, place.export, place.tls, place.hostname)
    assert found == (host, port, path, export, tls, hostname)


@pytest.mark.parametrize(
    "typed",
    [
        "nbd://",
        "nbd:///x",
        "nbd://h:99999/x",
        "nbd://h:port/x",
        "nbd://user@h/x",
        "nbd://h/x#y",
        "nbd://h/x?socket=/s",
        "nbd://h/x?sockt=/s",
        "nbd://h/x?sockt",
        "nbd://h/x?tls-certificates=/d",
        "nbd+unix:///x",
        "nbd+unix://h/x?socket=/s",
        "nbd://h/%00",
        "nbd://h/" + 4097 * "x",
    ],
)
def test_what_names_no_export_is_refused(typed: str) -> None:
    with pytest.raises(UsageError, match="nbd"):
        NbdSource(typed)


def test_an_export_is_known_by_its_place(image: Path) -> None:
    with nbdkit(image.parent, "-r", "file", image) as location:
        before = Path.cwd()
        os.chdir(image.parent)
        try:
            with opened("nbd+unix:///?socket=nbd.sock") as source, opened(location) as same:
                assert source.identity == same.identity
                assert source.identity.key == f"nbd:{image.parent}/nbd.sock/"
        finally:
            os.chdir(before)


# Servers of others.


VARIANTS = {
    "structured replies": [],
    "simple replies": ["--no-sr"],
    "zeroes after the name": ["--mask-handshake=1"],
    "one connection": ["--filter=multi-conn", "multi-conn-mode=disable"],
    "no extents": ["--filter=noextents"],
    "large blocks": [
        "--filter=blocksize-policy",
        "blocksize-minimum=4096",
        "blocksize-preferred=4096",
        "blocksize-maximum=65536",
        "blocksize-error-policy=error",
    ],
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_kind_of_server_gives_all_bytes(image: Path, variant: str) -> None:
    words = VARIANTS[variant]
    options = [word for word in words if word.startswith("--")]
    with nbdkit(
        image.parent, "-r", *options, "file", image, *[w for w in words if w not in options]
    ) as location:
        assert whole(location) == image.read_bytes()


def test_the_block_size_of_a_server_is_kept(image: Path) -> None:
    policy = VARIANTS["large blocks"]
    with (
        nbdkit(image.parent, "-r", policy[0], "file", image, *policy[1:]) as location,
        opened(location) as source,
    ):
        assert source.alignment == 4096
        assert all(not offset % 4096 for offset, *_ in rows(source))
        with pytest.raises(SourceError, match=r"512 bytes at offset 512 .*EINVAL.*END was not"):
            read(source, 512, 512)


def test_a_server_that_gives_a_little_at_once_is_asked_for_that(tmp_path: Path) -> None:
    lengths = set[int]()

    def script(line: socket.socket) -> None:
        open_export(line, 2048, least=1, most=256)
        while True:
            kind, cookie, offset, length = asked(line)
            if kind:
                return  # the goodbye
            lengths.add(length)
            line.sendall(data(cookie, offset, CONTENT[offset : offset + length]))

    with scripted(tmp_path, script) as location, opened(location) as source:
        assert source.alignment == 512
        assert read(source, 0, 2048) == CONTENT[:2048]
    assert lengths == {256}


@pytest.mark.parametrize("size", [1, 511, 513, MIB + 1])
def test_a_disk_of_an_odd_size_is_read_to_its_last_byte(image: Path, size: int) -> None:
    with nbdkit(
        image.parent, "-r", "--filter=truncate", "file", image, f"truncate={size}"
    ) as location:
        assert whole(location) == image.read_bytes()[:size]


def test_a_server_on_a_port_is_read(image: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with nbdkit(image.parent, "-r", "file", image) as unix, _forwarded(port, unix):
        assert whole(f"nbd://127.0.0.1:{port}/") == image.read_bytes()


def _forwarded(port: int, location: str) -> ExitStack:
    """Lead a port to a socket, because nbdkit cannot be waited for on a port."""
    stack = ExitStack()
    listener = stack.enter_context(socket.create_server(("127.0.0.1", port)))

    def serve() -> None:
        with suppress(OSError):
            while True:
                near, _ = listener.accept()
                far = socket.socket(socket.AF_UNIX)
                far.connect(Place.of(location).socket)
                for ends in ((near, far), (far, near)):
                    threading.Thread(target=_copy, args=ends).start()

    thread = threading.Thread(target=serve)
    thread.start()
    stack.callback(thread.join)
    stack.callback(listener.shutdown, socket.SHUT_RDWR)
    return stack


def _copy(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while piece := source.recv(1 << 16):
            sink.sendall(piece)
        sink.shutdown(socket.SHUT_WR)
    source.close()


def test_oldstyle_is_refused_in_words(image: Path) -> None:
    with (
        nbdkit(image.parent, "-r", "--oldstyle", "file", image) as location,
        pytest.raises(NbdError, match="oldstyle"),
    ):
        NbdSource(location)


def test_a_server_that_is_not_fixed_is_refused_in_words(image: Path) -> None:
    with (
        nbdkit(image.parent, "-r", "--mask-handshake=0", "file", image) as location,
        pytest.raises(NbdError, match="fixed newstyle"),
    ):
        NbdSource(location)


def test_nobody_there_is_not_found(tmp_path: Path) -> None:
    for location in (f"nbd+unix:///?socket={tmp_path}/nothing", "nbd://127.0.0.1:1/"):
        with pytest.raises(NotFoundError, match="nobody answers there"):
            NbdSource(location)


def test_an_error_is_told_with_its_place(image: Path) -> None:
    trigger = image.parent / "trigger"
    words = ["error-pread=EIO", "error-pread-rate=100%", f"error-file={trigger}"]
    with (
        nbdkit(image.parent, "-r", "--filter=error", "file", image, *words) as location,
        opened(location) as source,
    ):
        assert read(source, 0, 4096) == image.read_bytes()[:4096]
        trigger.touch()
        with pytest.raises(SourceError, match=r"4096 bytes at offset 8192 .*EIO.*END was not sent"):
            read(source, 8192, 4096)
        trigger.unlink()
        assert read(source, 8192, 4096) == image.read_bytes()[8192:12288]


def test_a_writable_export_is_warned_about(image: Path) -> None:
    with nbdkit(image.parent, "file", image) as location, opened(location) as source:
        assert "may be written while it is read" in "".join(source.warnings)


# Allocation.


HOLES = """0 64K
64K 64K hole
128K 64K zero
192K 64K hole,zero
300K 1
1M 1M hole,zero
"""


def test_only_what_is_promised_to_be_zeros_is_not_read(image: Path) -> None:
    listed = image.parent / "extents"
    listed.write_text(HOLES)
    with (
        nbdkit(
            image.parent, "-r", "--filter=extentlist", "file", image, f"extentlist={listed}"
        ) as location,
        opened(location) as source,
    ):
        # What is in no line is a hole that is zeros (nbdkit-extentlist-filter).
        assert rows(source) == [
            (0, 128 << 10, Kind.DATA),
            (128 << 10, 172 << 10, Kind.ZERO),
            (300 << 10, 512, Kind.DATA),
            ((300 << 10) + 512, 3 * MIB - (300 << 10) - 512, Kind.ZERO),
        ]


@pytest.mark.parametrize("words", [["--filter=noextents"], ["--no-sr"]])
def test_without_a_map_everything_is_data(image: Path, words: list[str]) -> None:
    with nbdkit(image.parent, "-r", *words, "file", image) as location, opened(location) as source:
        assert rows(source) == [(0, 3 * MIB, Kind.DATA)]


def test_where_the_map_fails_everything_is_data(image: Path) -> None:
    words = ["error-extents=EIO", "error-extents-rate=100%"]
    with (
        nbdkit(image.parent, "-r", "--filter=error", "memory", "3G", *words) as location,
        opened(location) as source,
    ):
        assert rows(source) == [(0, 3 << 30, Kind.DATA)]


@pytest.mark.needs("nbdinfo")
def test_the_map_is_that_of_nbdinfo(image: Path) -> None:
    words = ["sparse-random", "7G", "seed=7", "percent=1", "runlength=4194304"]
    with nbdkit(image.parent, "-r", *words) as location, opened(location) as source:
        told = json.loads(run("nbdinfo", "--map", "--json", location))
        zero = [(each["offset"], each["length"]) for each in told if each["type"] & 2]
        assert [(o, n) for o, n, kind in rows(source) if kind == Kind.ZERO] == zero
        assert len(zero) > 10


# TLS.


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder with an authority, certificates of a server and a client, and a stranger's."""
    return make_certificates(tmp_path_factory.mktemp("pki"))


@pytest.fixture
def secured(image: Path, certificates: Path) -> Iterator[str]:
    ring = keyring(image.parent / "server", certificates, ca="ca", server="server")
    words = ["--tls=require", f"--tls-certificates={ring}"]
    with nbdkit(image.parent, "-r", *words, "file", image) as location:
        yield location.replace("nbd+", "nbds+")


def with_ring(location: str, ring: Path) -> str:
    return f"{location}&tls-certificates={ring}"


@pytest.mark.needs("openssl")
def test_tls_gives_all_bytes_to_several_threads(
    image: Path, secured: str, certificates: Path
) -> None:
    ring = keyring(image.parent / "ours", certificates, ca="ca", server="server")
    alone = ["--filter=multi-conn", "file", str(image), "multi-conn-mode=disable"]
    tls = ["--tls=require", f"--tls-certificates={ring}"]
    with nbdkit(image.parent, "-r", *tls, *alone, name="alone") as single:
        for location in (secured, single.replace("nbd+", "nbds+")):
            with opened(with_ring(location, ring)) as source, ThreadPoolExecutor(8) as threads:
                starts = range(0, 3 * MIB, 1 << 14)
                parts = list(threads.map(lambda at: read(source, at, 1 << 14), starts))
                assert b"".join(parts) == image.read_bytes()


@pytest.mark.needs("openssl")
def test_inside_tls_one_thread_asks_while_another_one_reads(
    tmp_path: Path, certificates: Path
) -> None:
    ring = keyring(tmp_path / "ring", certificates, ca="ca", server="server")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(ring / "server-cert.pem", ring / "server-key.pem")

    def patient(line: socket.socket) -> None:
        with open_export(line, MIB, tls=context) as secured:
            while True:
                several = [asked(secured) for _ in range(8)]  # four of each thread
                for _, cookie, offset, length in reversed(several):
                    secured.sendall(data(cookie, offset, CONTENT[offset : offset + length]))

    with scripted(tmp_path, patient) as location:
        location = with_ring(location.replace("nbd+", "nbds+"), ring)
        with opened(location) as source, ThreadPoolExecutor(2) as threads:
            for _ in range(20):
                assert list(threads.map(read, [source] * 2, [0] * 2, [MIB] * 2)) == [CONTENT] * 2


@pytest.mark.needs("openssl")
def test_what_is_enciphered_is_never_taken_for_data(tmp_path: Path, certificates: Path) -> None:
    ring = keyring(tmp_path / "ring", certificates, ca="ca", server="server")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(ring / "server-cert.pem", ring / "server-key.pem")
    ours, theirs = socket.socketpair()
    with ThreadPoolExecutor(1) as threads:
        serving = threads.submit(context.wrap_socket, theirs, server_side=True)
        secured = SecuredSocket(ours, str(ring), "localhost")
        server = serving.result(10)
    with server, closing(secured):
        server.sendall(b"secret" * 1000)
        secured.shutdown(socket.SHUT_RDWR)
        view = memoryview(bytearray(1 << 16))
        taken_in = b""
        while count := secured.recv_into(view):
            taken_in += bytes(view[:count])
        assert taken_in == b"secret" * 1000


@pytest.mark.needs("openssl")
def test_a_server_that_nobody_vouches_for_is_refused(
    image: Path, secured: str, certificates: Path
) -> None:
    ring = keyring(image.parent / "ours", certificates, ca="stranger")
    for location in (with_ring(secured, ring), secured):
        with pytest.raises(AuthenticationError, match=r"TLS failed.*nothing was sent in clear"):
            NbdSource(location)


@pytest.mark.needs("openssl")
def test_a_certificate_of_another_host_is_refused(image: Path, certificates: Path) -> None:
    ring = keyring(image.parent / "server", certificates, ca="ca", server="other")
    words = ["--tls=require", f"--tls-certificates={ring}"]
    with nbdkit(image.parent, "-r", *words, "file", image) as location:
        location = with_ring(location.replace("nbd+", "nbds+"), ring)
        with pytest.raises(AuthenticationError, match="TLS failed: Hostname mismatch"):
            NbdSource(location)
        assert whole(f"{location}&tls-hostname=elsewhere") == image.read_bytes()


@pytest.mark.needs("openssl")
def test_a_server_may_ask_for_our_certificate(image: Path, certificates: Path) -> None:
    ring = keyring(image.parent / "server", certificates, ca="ca", server="server")
    ours = keyring(image.parent / "ours", certificates, ca="ca", client="client")
    nothing = keyring(image.parent / "nothing", certificates, ca="ca")
    wrong = keyring(image.parent / "wrong", certificates, ca="ca", client="stranger")
    words = ["--tls=require", f"--tls-certificates={ring}", "--tls-verify-peer"]
    with nbdkit(image.parent, "-r", *words, "file", image) as location:
        location = location.replace("nbd+", "nbds+")
        assert whole(with_ring(location, ours)) == image.read_bytes()
        for refused in (nothing, wrong):
            with pytest.raises(AuthenticationError, match="hung up as soon as TLS had begun"):
                NbdSource(with_ring(location, refused), patience=QUICK)


@pytest.mark.needs("openssl")
def test_each_side_may_require_tls(image: Path, secured: str) -> None:
    with pytest.raises(AuthenticationError, match="use nbds://"):
        NbdSource(secured.replace("nbds+", "nbd+"))
    with (
        nbdkit(image.parent, "-r", "file", image, name="plain") as location,
        pytest.raises(AuthenticationError, match="begins no TLS"),
    ):
        NbdSource(location.replace("nbd+", "nbds+"))


def test_certificates_that_are_not_there_are_told(image: Path) -> None:
    def script(line: socket.socket) -> None:
        line.sendall(greeting() + answer(STARTTLS, ACK))
        taken(line, 1 << 20)

    with scripted(image.parent, script) as location:
        location = with_ring(location.replace("nbd+", "nbds+"), image.parent / "nowhere")
        with pytest.raises(AuthenticationError, match="nowhere: the certificates cannot be used"):
            NbdSource(location)


# Lost connections.


def serving(content: bytes, *, flags: int = READ_ONLY, replies: int = 1 << 30) -> Script:
    """Return a script that answers so many reads, and then hangs up."""

    def script(line: socket.socket) -> None:
        open_export(line, len(content), flags)
        for _ in range(replies):
            kind, cookie, offset, length = asked(line)
            if kind == 2:
                return
            line.sendall(data(cookie, offset, content[offset : offset + length]))

    return script


def test_what_was_not_answered_is_asked_again(tmp_path: Path) -> None:
    scripts = [serving(CONTENT, replies=count) for count in (2, 0, 1)]
    with scripted(tmp_path, *scripts, serving(CONTENT)) as location, opened(location) as source:
        assert read(source, 0, MIB) == CONTENT


def test_a_reply_that_is_cut_off_is_asked_for_again(tmp_path: Path) -> None:
    def cut(line: socket.socket) -> None:
        open_export(line, MIB)
        _, cookie, offset, length = asked(line)
        line.sendall(data(cookie, offset, b"x" * length)[:-1])

    with scripted(tmp_path, cut, serving(CONTENT)) as location, opened(location) as source:
        assert read(source, 0, MIB) == CONTENT


def test_a_server_that_shuts_down_is_asked_again(tmp_path: Path) -> None:
    def leaving(line: socket.socket) -> None:
        open_export(line, MIB)
        while True:
            line.sendall(fault(asked(line)[1], 108))

    with scripted(tmp_path, leaving, serving(CONTENT)) as location, opened(location) as source:
        assert read(source, 0, MIB) == CONTENT


def test_after_some_attempts_it_is_given_up(tmp_path: Path) -> None:
    with (
        scripted(tmp_path, serving(CONTENT, replies=0)) as location,
        opened(location) as source,
        pytest.raises(
            SourceError, match=r"offset 4096: [^;[]*; it was tried 3 more times; END was"
        ),
    ):
        read(source, 4096, 4096)


def test_a_server_that_never_answers_is_given_up(tmp_path: Path) -> None:
    def silent(line: socket.socket) -> None:
        open_export(line, MIB)
        while True:
            asked(line)

    patience = Patience(reply=0.05, pauses=(0.01,))
    with (
        scripted(tmp_path, silent) as location,
        opened(location, patience=patience) as source,
        pytest.raises(SourceError, match="did not answer within"),
    ):
        read(source, 0, 4096)


@pytest.mark.parametrize("said", [b"", b"NBDMAGICIHAVEOPT\0\3"])
def test_a_server_that_never_opens_is_given_up(tmp_path: Path, said: bytes) -> None:
    def silent(line: socket.socket) -> None:
        line.sendall(said)
        while True:
            taken(line, 1)

    with (
        scripted(tmp_path, silent) as location,
        pytest.raises(SourceError, match="did not open it within"),
    ):
        NbdSource(location, patience=Patience(greeting=0.05))


def test_a_server_that_hangs_up_while_it_opens_is_told(tmp_path: Path) -> None:
    with (
        scripted(tmp_path, lambda line: line.sendall(b"NBDMAGIC")) as location,
        pytest.raises(SourceError, match="hung up before the export was open; nothing was sent"),
    ):
        NbdSource(location)


def test_another_disk_in_its_place_is_noticed(tmp_path: Path) -> None:
    with (
        scripted(tmp_path, serving(CONTENT, replies=0), serving(CONTENT * 2)) as location,
        opened(location) as source,
        pytest.raises(SourceError, match=f"had {MIB} bytes and has {2 * MIB} now"),
    ):
        read(source, 0, 4096)


def test_a_server_that_breaks_the_rules_is_not_asked_again(tmp_path: Path) -> None:
    def wrong(line: socket.socket) -> None:
        open_export(line, MIB)
        _, cookie, offset, length = asked(line)
        line.sendall(data(cookie, offset + 512, bytes(length)))
        asked(line)

    with scripted(tmp_path, wrong, serving(CONTENT)) as location, opened(location) as source:
        with pytest.raises(NbdError, match=r"offset 512 for 4096 bytes at offset 0"):
            read(source, 0, 4096)
        assert read(source, 0, 4096) == CONTENT[:4096]


def test_replies_out_of_order_come_to_whom_they_belong(tmp_path: Path) -> None:
    def backwards(line: socket.socket) -> None:
        open_export(line, MIB)
        while True:
            several = [asked(line) for _ in range(4)]
            for _, cookie, offset, length in reversed(several):
                line.sendall(data(cookie, offset, CONTENT[offset : offset + length]))

    with scripted(tmp_path, backwards) as location, opened(location) as source:
        assert read(source, 0, MIB) == CONTENT
        with ThreadPoolExecutor(4) as threads:
            ready = threading.Barrier(4)

            def part(number: int) -> bytes:
                ready.wait()
                return read(source, number * 4096, 4096)

            assert b"".join(threads.map(part, range(4))) == CONTENT[:16384]


def test_whose_requests_are_answered_goes_on_while_another_waits(tmp_path: Path) -> None:
    def script(line: socket.socket) -> None:
        open_export(line, MIB)
        first = asked(line)
        reads.release()  # the first one reads for both
        for _ in range(2):  # the second one asks, and then once more
            _, cookie, offset, length = asked(line)
            line.sendall(data(cookie, offset, CONTENT[offset : offset + length]))
        _, cookie, offset, length = first
        line.sendall(data(cookie, offset, CONTENT[offset : offset + length]))
        taken(line, 28)

    reads = threading.Semaphore(0)
    with (
        scripted(tmp_path, script) as location,
        opened(location) as source,
        ThreadPoolExecutor(1) as threads,
    ):
        first = threads.submit(read, source, 0, 4096)
        reads.acquire()
        (line,) = source._lines._users
        while not line._has_reader:
            os.sched_yield()
        assert read(source, 8192, 4096) == CONTENT[8192:][:4096]
        assert read(source, 4096, 4096) == CONTENT[4096:][:4096]
        assert first.result(10) == CONTENT[:4096]


def test_a_server_with_no_room_for_a_second_connection_is_read_over_one(tmp_path: Path) -> None:
    refused: list[int] = []

    def second(line: socket.socket) -> None:
        refused.append(1)
        line.close()

    with (
        scripted(tmp_path, serving(CONTENT, flags=READ_ONLY | MULTI), second) as location,
        opened(location) as source,
        ThreadPoolExecutor(4) as threads,
    ):
        for _ in range(20):
            parts = threads.map(lambda at: read(source, at, 1 << 16), range(0, MIB, 1 << 16))
            assert b"".join(parts) == CONTENT
        assert len(refused) == 1


@pytest.mark.parametrize(
    "told",
    [
        pytest.param([[(512, 2)]] * 8, id="a little at a time"),
        pytest.param([[(512, 2), (3072, 2), (5000, 2)]], id="past the end"),
        pytest.param([[(700, 2)], [(4096, 2)]], id="within a sector"),
    ],
)
def test_what_a_map_leaves_is_asked_again(
    tmp_path: Path, told: list[list[tuple[int, int]]]
) -> None:
    def script(line: socket.socket) -> None:
        open_export(line, 4096)
        for each in told:
            line.sendall(status(asked(line)[1], *each))
        taken(line, 28)

    with scripted(tmp_path, script) as location, opened(location) as source:
        assert rows(source) == [(0, 4096, Kind.ZERO)]


def test_a_map_that_does_not_go_on_leaves_data(tmp_path: Path) -> None:
    def script(line: socket.socket) -> None:
        open_export(line, 4096)
        line.sendall(status(asked(line)[1], (1024, 2)))
        line.sendall(status(asked(line)[1], (100, 2)))
        taken(line, 28)

    with scripted(tmp_path, script) as location, opened(location) as source:
        assert rows(source) == [(0, 1024, Kind.ZERO), (1024, 3072, Kind.DATA)]


def test_a_killed_server_fails_all_reads_at_once_and_a_new_one_answers_them(image: Path) -> None:
    folder, words = image.parent, ["file", str(image)]
    # A server waits for its clients before it ends.
    with ExitStack() as servers, ExitStack() as clients:
        slow = ["--filter=delay", *words, "delay-read=30"]
        location = servers.enter_context(nbdkit(folder, "-r", *slow))
        patient = opened(location, patience=Patience(pauses=(0.2,) * 50))
        source = clients.enter_context(patient)
        threads = clients.enter_context(ThreadPoolExecutor(4))
        parts = [threads.submit(read, source, at * MIB, MIB) for at in range(3)]
        _wait_for_requests(source)
        os.kill(int((folder / "nbd.pid").read_text()), signal.SIGKILL)
        (folder / "nbd.sock").unlink()
        servers.enter_context(nbdkit(folder, "-r", *words))
        assert b"".join(part.result(10) for part in parts) == image.read_bytes()


def _wait_for_requests(source: NbdSource) -> None:
    """Return when reads are pending: nobody can be asked to tell."""
    while sum(source._lines._users.values()) < 3:
        os.sched_yield()


def test_a_killed_server_that_stays_away_is_an_error_soon(image: Path) -> None:
    slow = ["--filter=delay", "file", str(image), "delay-read=30"]
    with (
        nbdkit(image.parent, "-r", *slow) as location,
        opened(location) as source,
        ThreadPoolExecutor(4) as threads,
    ):
        parts = [threads.submit(read, source, at * MIB, MIB) for at in range(3)]
        _wait_for_requests(source)
        os.kill(int((image.parent / "nbd.pid").read_text()), signal.SIGKILL)
        for part in parts:
            with pytest.raises(SourceError, match="connection was lost"):
                part.result(5)


def test_threads_that_wait_share_an_attempt_that_fails(tmp_path: Path) -> None:
    attempts: list[int] = []
    count, ready = 16, threading.Barrier(16)

    def lost(line: socket.socket) -> None:
        open_export(line, MIB)
        for _ in range(count):
            asked(line)

    def silent(line: socket.socket) -> None:
        attempts.append(1)
        taken(line, 1 << 20)

    patience = Patience(connect=0.1, greeting=0.1, pauses=(0.001,))
    with (
        scripted(tmp_path, lost, silent) as location,
        opened(location, patience=patience) as source,
        ThreadPoolExecutor(count) as threads,
    ):

        def part(number: int) -> str:
            ready.wait()
            with pytest.raises(SourceError) as caught:
                read(source, number * 4096, 4096)
            return str(caught.value)

        words = list(threads.map(part, range(count)))
    assert all("did not open it within 0 s; it was tried 1 more times" in each for each in words)
    assert len(attempts) <= 4


def test_nothing_stays_open_after_losses(tmp_path: Path) -> None:
    before = open_descriptors()
    losses = [serving(CONTENT, replies=1)] * 3
    with (
        scripted(tmp_path, *losses, serving(CONTENT)) as location,
        opened(location) as source,
    ):
        assert read(source, 0, MIB) == CONTENT
    assert open_descriptors() == before


# Bitmaps of QEMU.


def test_what_a_bitmap_does_not_tell_may_have_changed(tmp_path: Path) -> None:
    def script(line: socket.socket) -> None:
        open_export(line, 4096, bitmap="b0")
        line.sendall(status(asked(line)[1], (1024, 0), number=2))
        line.sendall(fault(asked(line)[1], 5))
        line.sendall(status(asked(line)[1], (2048, 0), (2048, 2)))
        taken(line, 28)

    with scripted(tmp_path, script) as location, opened(location, bitmap="b0") as source:
        found = [(offset, length, kind) for offset, length, kind in source.changes().extents]
    assert found == [(1024, 1024, Kind.DATA), (2048, 2048, Kind.ZERO)]


@pytest.fixture
def guest(tmp_path: Path) -> Path:
    """Give a disk of 64 MiB that was written, and then written again under a bitmap `b0`."""
    disk = tmp_path / "disk.qcow2"
    run("qemu-img", "create", "-q", "-f", "qcow2", str(disk), "64M")
    run("qemu-io", "-c", "write -P 1 0 20M", str(disk))
    run("qemu-img", "bitmap", "--add", str(disk), "b0")
    changes = ["write -P 3 1M 64k", "write -z -u 4M 1M", "write -P 9 40M 128k", "discard 8M 1M"]
    run("qemu-io", *[word for each in changes for word in ("-c", each)], str(disk))
    return disk


@pytest.mark.slow
@pytest.mark.needs("qemu-nbd", "qemu-img", "qemu-io", "nbdinfo")
def test_a_bitmap_lists_what_changed_and_zeros_are_changes_too(guest: Path) -> None:
    raw = guest.parent / "raw"
    run("qemu-img", "convert", "-O", "raw", str(guest), str(raw))
    with qemu_nbd(guest.parent, guest, "--bitmap", "b0") as location:
        # It takes one client at a time.
        told = json.loads(run("nbdinfo", "--map=qemu:dirty-bitmap:b0", "--json", location))
        dirty = [(each["offset"], each["length"]) for each in told if each["type"] & 1]
        with opened(location, bitmap="b0") as source, ThreadPoolExecutor(4) as threads:
            found = source.changes()
            parts = threads.map(lambda at: read(source, at, MIB), range(0, source.size, MIB))
            assert b"".join(parts) == raw.read_bytes()
        assert [(o, n) for o, n, _ in found.extents.coverage()] == dirty
        assert [(o >> 10, n >> 10, kind) for o, n, kind in found.extents] == [
            (1 << 10, 64, Kind.DATA),
            (4 << 10, 1024, Kind.ZERO),
            (8 << 10, 1024, Kind.ZERO),
            (40 << 10, 128, Kind.DATA),
        ]


@pytest.mark.needs("qemu-nbd", "qemu-img", "qemu-io")
def test_a_bitmap_that_is_not_offered_is_answered_by_those_that_are(guest: Path) -> None:
    with (
        qemu_nbd(guest.parent, guest, "--bitmap", "b0") as location,
        pytest.raises(NotFoundError, match="no bitmap 'b1' with this export; it offers 'b0'"),
    ):
        NbdSource(location, bitmap="b1")
    with (
        nbdkit(guest.parent, "-r", "null") as location,
        pytest.raises(NotFoundError, match="it offers none"),
    ):
        NbdSource(location, bitmap="b1")


@pytest.mark.needs("qemu-nbd", "qemu-img", "qemu-io")
def test_an_unknown_export_is_answered_by_those_that_there_are(guest: Path) -> None:
    with qemu_nbd(guest.parent, guest) as location:
        for bitmap in ("", "b0"):
            with pytest.raises(NotFoundError, match="no export 'mv'; it has 'vm'"):
                NbdSource(location.replace("/vm", "/mv"), bitmap=bitmap)
