"""Only the right server is spoken to, and only the ranges that were asked for are believed."""

import contextlib
import http.server
import itertools
import os
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from blockstream.errors import (
    AuthenticationError,
    BlockstreamError,
    NotFoundError,
    SourceError,
    UsageError,
)
from blockstream.linux.buffers import aligned_buffer
from blockstream.locations.registry import location_of
from blockstream.locations.vsphere import MachinePlace, machine_place, open_vsphere, server_of
from blockstream.pipeline.read_ahead import ReadAhead
from blockstream.sources.datastore import Datastore, DatastorePath
from blockstream.sources.virtual_disk import DatastoreFile, VirtualDiskSource, chain_of
from blockstream.sources.vsphere import VSphere
from blockstream.words import Secret
from tests.vsphere_simulator.server import PASSWORD, USER, VM, Simulator, make_certificate

pytestmark = [
    pytest.mark.slow,
    pytest.mark.needs("go", "govmomi"),
    pytest.mark.timeout(300),  # the first one builds the simulator
]
MIB = 1 << 20
SIZE = 2 * MIB + 512


@pytest.fixture
def place(vcenter: Simulator) -> MachinePlace:
    return machine_place(vcenter.location())


@pytest.fixture
def session(place: MachinePlace) -> Iterator[VSphere]:
    with contextlib.closing(open_vsphere(place, Secret(PASSWORD))) as made:
        yield made


@pytest.fixture
def store(place: MachinePlace, session: VSphere) -> Iterator[Datastore]:
    made = Datastore(server_of(place), session.cookie)
    with contextlib.closing(made):
        yield made


def flat(name: str = f"{VM}/{VM}-flat.vmdk") -> DatastorePath:
    return DatastorePath("DC0", "LocalDS_0", name)


def read(store: Datastore, path: DatastorePath, offset: int, length: int) -> bytes:
    buffer = aligned_buffer(length)
    store.read_into(path, offset, buffer)
    return bytes(buffer)


# Who it is.


def test_a_wrong_password_is_told_without_being_shown(place: MachinePlace) -> None:
    with pytest.raises(AuthenticationError, match="does not let") as caught:
        open_vsphere(place, Secret("wrong-canary"))
    assert "wrong-canary" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_certificate_that_nobody_vouches_for_is_refused(place: MachinePlace) -> None:
    with pytest.raises(AuthenticationError, match="certificate that is not trusted"):
        open_vsphere(replace(place, ca=""), Secret(PASSWORD))


def test_a_certificate_may_be_named_by_its_thumbprint(
    vcenter: Simulator, place: MachinePlace
) -> None:
    pinned = replace(place, ca="", thumbprint=vcenter.certificate, host="127.0.0.1")
    with contextlib.closing(open_vsphere(pinned, Secret(PASSWORD))) as session:
        store = Datastore(server_of(pinned), session.cookie)
        with contextlib.closing(store):
            vcenter.make_disk(SIZE)
            assert store.size(flat()) == SIZE
    with pytest.raises(AuthenticationError, match="and not 0000"):
        open_vsphere(replace(pinned, thumbprint="0" * 64), Secret(PASSWORD))


def test_a_port_where_nobody_listens_is_told(place: MachinePlace) -> None:
    with pytest.raises(NotFoundError, match="nobody speaks VMware's API"):
        open_vsphere(replace(place, port=1), Secret(PASSWORD))


@pytest.mark.parametrize("status", [200, 404, 503])
def test_a_server_of_something_else_is_told(
    place: MachinePlace, tmp_path: Path, status: int
) -> None:
    class Other(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", "6")
            self.end_headers()
            self.wfile.write(b"<html>")

        def log_message(self, *_words: object) -> None:
            pass

    certificate, key, _ = make_certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with http.server.HTTPServer(("127.0.0.1", 0), Other) as other:
        other.socket = context.wrap_socket(other.socket, server_side=True)
        thread = threading.Thread(target=other.handle_request)
        thread.start()
        port = other.server_address[1]
        with pytest.raises(NotFoundError, match=f"answered with status {status}"):
            open_vsphere(replace(place, ca=str(certificate), port=port), Secret(PASSWORD))
        thread.join()


def test_a_machine_that_is_not_there_is_told(session: VSphere) -> None:
    for path in ("DC0/vm/none", "DC0/vm", "DC0/host/DC0_H0"):
        with pytest.raises(NotFoundError, match="no virtual machine"):
            session.machine(path)


def test_machines_are_listed_with_their_paths(session: VSphere) -> None:
    paths = [each.path for each in session.machines()]
    assert paths == sorted(paths)
    assert f"DC0/vm/{VM}" in paths
    machine = session.machine(f"DC0/vm/{VM}")
    assert session.datacenter(machine) == "DC0"
    assert next(each for each in session.machines() if each.uuid == machine.uuid) == machine


# Ranges.


def test_ranges_are_what_lies_there(vcenter: Simulator, store: Datastore) -> None:
    vcenter.make_disk(SIZE)
    content = os.urandom(SIZE)
    vcenter.write(0, content)
    assert store.size(flat()) == SIZE
    for offset, length in ((0, 512), (1, 1), (SIZE - 1, 1), (1000, MIB), (0, SIZE)):
        assert read(store, flat(), offset, length) == content[offset : offset + length]


def test_many_threads_read_at_once(vcenter: Simulator, store: Datastore) -> None:
    vcenter.make_disk(SIZE)
    content = os.urandom(SIZE)
    vcenter.write(0, content)
    vcenter.control("expire")
    wrong: list[int] = []

    def look(number: int) -> None:
        for offset in range(number * 512, SIZE - 4096, 100_000):
            wrong[:] += [offset] * (read(store, flat(), offset, 9) != content[offset : offset + 9])

    threads = [threading.Thread(target=look, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    # All of them were refused, and one of them logged in for all.
    assert vcenter.stats()["calls"]["Login"] == 2


def test_a_passing_trouble_is_passed(
    vcenter: Simulator, store: Datastore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("blockstream.sources.datastore._FIRST_PAUSE_SECONDS", 0.001)
    vcenter.make_disk(SIZE)
    content = os.urandom(SIZE)
    vcenter.write(0, content)
    for fault in ("folder500", "folder503", "folderShort", "folderDrop"):
        vcenter.arm(fault, times=2)
        assert read(store, flat(), 1000, MIB) == content[1000 : 1000 + MIB], fault


def test_what_does_not_pass_is_told(
    vcenter: Simulator, store: Datastore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("blockstream.sources.datastore._FIRST_PAUSE_SECONDS", 0.001)
    vcenter.make_disk(SIZE)
    faults: tuple[tuple[str, int, type[BlockstreamError], str], ...] = (
        ("folder200", 1, SourceError, "ignores ranges"),
        ("folderOther", 1, SourceError, "gave 'bytes 0-99/"),
        ("folder403", 1, SourceError, "Datastore.Browse"),
        ("folder404", 1, NotFoundError, r"dcPath localhost:\d+/DC0"),
        ("folder416", 1, SourceError, "not as large as"),
        ("folder500", 6, SourceError, "another program may have the file open"),
        ("folderShort", 6, SourceError, "too early"),
    )
    for fault, times, kind, words in faults:
        vcenter.arm(fault, times=times)
        with pytest.raises(kind, match=words):
            read(store, flat(), 512, 4096)
        vcenter.arm(fault, times=0)
    with pytest.raises(NotFoundError, match="does not exist"):
        store.size(flat("none/none.vmdk"))


def test_a_wrong_size_is_noticed(vcenter: Simulator, store: Datastore) -> None:
    vcenter.make_disk(SIZE)
    with pytest.raises(SourceError, match=f"describes {SIZE} bytes, and the disk has {2 * SIZE}"):
        chain_of(store, flat(f"{VM}/{VM}.vmdk"), 2 * SIZE)


def test_a_file_is_a_source(vcenter: Simulator, store: Datastore) -> None:
    vcenter.make_disk(SIZE)
    content = os.urandom(SIZE)
    vcenter.write(0, content)
    with contextlib.closing(DatastoreFile(store, flat())) as file:
        buffer = aligned_buffer(300)
        file.read_into([7, 9000], [100, 200], buffer)
        assert bytes(buffer) == content[7:107] + content[9000:9200]
        assert file.extents().total() == SIZE


def test_a_far_disk_is_read_by_as_many_requests_as_a_host_has_room_for(
    vcenter: Simulator, store: Datastore, monkeypatch: pytest.MonkeyPatch
) -> None:
    vcenter.make_disk(SIZE)
    content = os.urandom(SIZE)
    vcenter.write(0, content)
    source = VirtualDiskSource(
        "it",
        SIZE,
        "key",
        chain_of(store, flat(f"{VM}/{VM}.vmdk"), SIZE),
        lambda: None,
        lambda: None,
    )
    count, step = 8, 4096
    together, once = threading.Barrier(count, timeout=10), store._once

    def held(path: DatastorePath, offset: int, view: memoryview) -> int:
        together.wait()
        return once(path, offset, view)

    with contextlib.closing(source), contextlib.closing(ReadAhead(source, count_up())) as ahead:
        for _ in range(12):  # it is far
            ahead.read_into([0], [512], aligned_buffer(512))
        monkeypatch.setattr(store, "_once", held)
        starts = range(0, 4 * count * step, step)
        for start in ahead.following(starts, lambda start: ([start], [step])):
            buffer = aligned_buffer(step)
            ahead.read_into([start], [step], buffer)
            assert bytes(buffer) == content[start : start + step]


def count_up() -> Callable[[], float]:
    """Return a clock that goes on by a second each time it is looked at."""
    seconds = itertools.count()
    return lambda: float(next(seconds))


def test_a_session_is_kept_alive_while_files_are_read(
    vcenter: Simulator, session: VSphere, store: Datastore, monkeypatch: pytest.MonkeyPatch
) -> None:
    vcenter.make_disk(SIZE)
    chain = chain_of(store, flat(f"{VM}/{VM}.vmdk"), SIZE)
    source = VirtualDiskSource("it", SIZE, "key", chain, lambda: None, session.keep_alive)
    buffer = aligned_buffer(512)
    with contextlib.closing(source):
        source.read_into([0], [512], buffer)
        assert "CurrentTime" not in vcenter.stats()["calls"]
        later = time.monotonic() + 700
        monkeypatch.setattr("blockstream.sources.vsphere.time.monotonic", lambda: later)
        source.read_into([0], [512], buffer)
        source.read_into([0], [512], buffer)
        assert vcenter.stats()["calls"]["CurrentTime"] == 1


# Locations.


def test_a_location_is_read() -> None:
    place = machine_place(
        "vsphere://dom%5Cann@vsphere.local@vc.example:8443/My%20DC/vm/a%2Fb?disk=2001"
    )
    assert place == MachinePlace(
        "dom\\ann@vsphere.local", "vc.example", 8443, "My DC/vm/a%2fb", disk=2001
    )
    assert str(place) == "vsphere://dom\\ann@vsphere.local@vc.example:8443/My DC/vm/a%2fb?disk=2001"
    assert machine_place(f"vsphere://{USER}@vc").path == ""
    assert isinstance(location_of(f"vsphere://{USER}@vc/DC/vm/a"), MachinePlace)


@pytest.mark.parametrize(
    "location",
    [
        "vsphere://",
        "vsphere://vc/DC/vm/a",
        "vsphere://ann@/DC/vm/a",
        "vsphere://ann@vc:99999/DC",
        "vsphere://ann@vc/DC?disk=x",
        "vsphere://ann@vc/DC?reader=magic",
        "vsphere://ann@vc/DC?thumbprint=12",
        "vsphere://ann@vc/DC?flavour=sweet",
        "vsphere://ann@vc/DC?mount=/mnt",
        "vsphere://ann@vc/DC?reader=file",
        "vsphere://ann@vc/DC?reader=sftp",
        "vsphere://ann@vc/DC?reader=nbd",
        "vsphere://ann@vc/DC?reader=sftp&ssh=-x",
        "vsphere://ann@vc/DC?reader=file&mount=/mnt&plugin=nfc",
        "vsphere://ann@vc/DC#top",
    ],
)
def test_what_is_no_location_is_refused(location: str) -> None:
    with pytest.raises(UsageError):
        machine_place(location)


def test_a_password_in_a_location_is_refused_and_not_repeated() -> None:
    with pytest.raises(UsageError, match="does not belong on the command line") as caught:
        machine_place("vsphere://ann:canary@vc/DC/vm/a")
    assert "canary" not in str(caught.value)
