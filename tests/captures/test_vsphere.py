"""Of a machine only what changed is sent, or all, and no snapshot of ours stays."""

import contextlib
import json
import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA1
from pyVmomi import vim

from blockstream.captures.interface import Captured, Holding
from blockstream.captures.vsphere.capture import Frozen, MachineCapture, MachineOptions, OnLoss
from blockstream.captures.vsphere.readers import Readers
from blockstream.captures.vsphere.snapshots import MachineSnapshots, Quiesce, SnapshotPolicy
from blockstream.errors import (
    BlockstreamError,
    BusyError,
    InterruptedTransferError,
    LeftoverError,
    NotFoundError,
    RefusedError,
    SourceError,
    UsageError,
)
from blockstream.formats.changed_areas import TrackedState
from blockstream.linux.buffers import aligned_buffer
from blockstream.locations.ssh import Way
from blockstream.locations.vsphere import machine_place, open_vsphere, server_of
from blockstream.run import Run
from blockstream.sources.inventory import (
    GoneError,
    InTheWayError,
    Machine,
    MaybeDoneError,
    QuiesceError,
    Snapshot,
    VirtualDisk,
)
from blockstream.sources.vsphere import VSphere, id_of
from blockstream.transfers.send import TransferOptions, planned
from blockstream.words import Secret
from blockstream_protocol import Kind
from tests.devices import process
from tests.running import entered
from tests.vsphere_simulator.server import HERE, PASSWORD, Simulator, simulator

pytestmark = [
    pytest.mark.slow,
    pytest.mark.needs("go", "govmomi"),
    pytest.mark.timeout(300),  # the first one builds the simulator
]
MIB = 1 << 20
BLOCK = 65536
STANDIN = HERE / "vddk_plugin.py"
SIZE = 4 * MIB + 3 * 512


@dataclass(frozen=True)
class Opened:
    """One round that is open."""

    disks: Sequence[Captured]
    frozen: Frozen

    def virtual(self, session: VSphere, number: int = 0) -> VirtualDisk:
        """Return what VMware says of a disk."""
        there = {each.key: each for each in session.disks_of(self.frozen.snapshot)}
        return there[key_of(self.disks[number])]


def key_of(disk: Captured) -> int:
    return int(disk.name.rpartition("-")[2])


def options(**changes: Any) -> MachineOptions:
    """Return how a machine is read, without long pauses."""
    usual = {"snapshots": SnapshotPolicy(pause=0.01)}
    return MachineOptions(Path(), "target", **(usual | changes))


class Rounds:
    """A target that lives in memory, and one round after the other."""

    def __init__(self, vcenter: Simulator, state_dir: Path, **query: str | int | Path) -> None:
        self.vcenter = vcenter
        self.place = machine_place(vcenter.location(**query))
        self.server = server_of(self.place)
        self.session: VSphere = open_vsphere(self.place, Secret(PASSWORD))
        self.state_dir = state_dir
        self.said: list[str] = []
        self.held: dict[str, str] = {}
        self.copies: dict[str, bytearray] = {}
        self.context = Run(self.said.append)

    async def holding(self, name: str) -> Holding:
        return Holding(self.held.get(name, ""))

    @contextlib.contextmanager
    def opened(self, how: MachineOptions | None = None) -> Iterator[Opened]:
        """Open one round."""
        how = replace(how or options(), state_dir=self.state_dir)
        logged_in = contextlib.nullcontext((self.session, self.server))
        capture = MachineCapture(self.place, lambda: logged_in, how)
        with entered(capture.open(self.holding, self.context)) as disks:
            yield Opened(disks, capture.frozen)

    def snapshots(self) -> MachineSnapshots:
        machine = self.session.machine(self.place.path)
        return MachineSnapshots(self.session, machine, SnapshotPolicy(pause=0.01), self.context)

    def run(self, how: MachineOptions | None = None) -> Sequence[Captured]:
        """Do one round, and compare what arrived with what was frozen."""
        with self.opened(how) as found:
            for each in found.disks:
                self.take(each)
        for each in found.disks:
            assert bytes(self.copies[each.name]) == self.vcenter.frozen(key_of(each)), each.name
        assert self.ours() == []
        return found.disks

    def ours(self) -> list[str]:
        """Return the snapshots of ours that are there."""
        return [name for name in self.vcenter.snapshots() if name.startswith("blockstream_")]

    def take(self, disk: Captured) -> None:
        """Receive what is sent of a disk."""
        what = planned(disk, TransferOptions(self.state_dir))
        assert what.opening.base in {"", self.held.get(disk.name)}
        copy = self.copies.setdefault(disk.name, bytearray())
        if not what.opening.base:
            # What a whole copy does not mention would show.
            copy[:] = b"\xee" * disk.source.size
        # As a sender reads them: a frame at a time.
        for piece in what.extents.pieces():
            data = piece.kinds == Kind.DATA
            offsets, lengths = piece.offsets[data].tolist(), piece.lengths[data].tolist()
            buffer = aligned_buffer(sum(lengths))
            disk.source.read_into(offsets, lengths, buffer)
            at = 0
            for offset, length in zip(offsets, lengths, strict=True):
                copy[offset : offset + length] = buffer[at : at + length]
                at += length
            for offset, length in zip(piece.offsets[~data], piece.lengths[~data], strict=True):
                copy[offset : offset + length] = bytes(length)
        disk.source.validate()
        self.held[disk.name] = what.opening.goal


@pytest.fixture
def rounds(vcenter: Simulator, tmp_path: Path) -> Iterator[Rounds]:
    """A tracked machine with one disk, of which the target holds the newest state."""
    vcenter.make_disk(SIZE)
    vcenter.write(0, os.urandom(MIB))
    made = Rounds(vcenter, tmp_path)
    try:
        made.snapshots().enable_tracking()
        assert [each.why_whole for each in made.run()] == ["the target holds nothing of it yet"]
        yield made
    finally:
        made.session.close()  # which may be another one by now


def machine_of(session: VSphere, rounds: Rounds) -> Machine:
    return session.machine(rounds.place.path)


def changed_bytes(disk: Captured) -> int:
    assert disk.changes is not None
    return disk.changes.extents.total()


# Rounds.


@pytest.mark.parametrize("esx", [False, True], ids=["vcenter", "esx"])
def test_rounds_are_frozen_moments_while_the_guest_writes(tmp_path: Path, esx: bool) -> None:
    with simulator(esx=esx, max_areas=3) as vcenter, ExitStack() as stack:
        vcenter.make_disk(SIZE)
        vcenter.make_disk(MIB, key=2001)
        rounds = Rounds(vcenter, tmp_path)
        stack.callback(rounds.session.close)
        rounds.snapshots().enable_tracking()
        for key in (2000, 2001):
            vcenter.control("busy", key=key, seed=key)
        for number in range(4):
            for block in range(number, 60, 5):
                vcenter.write(block * BLOCK + number, os.urandom(512))
            vcenter.write(SIZE - 5, b"final", key=2000)
            disks = rounds.run()
            assert [key_of(each) for each in disks] == [2000, 2001]
            assert [bool(each.why_whole) for each in disks] == [not number, not number]
        assert vcenter.stats()["calls"]["QueryChangedDiskAreas"] > 3 * 4  # several pages a round


def test_only_the_areas_that_changed_are_read(rounds: Rounds) -> None:
    for block in (3, 4, 17, 40):
        rounds.vcenter.write(block * BLOCK + 100, b"new")
    before = rounds.vcenter.stats()["bytes"]
    (disk,) = rounds.run()
    assert not disk.why_whole
    assert changed_bytes(disk) == 4 * BLOCK
    # And the descriptor, and a byte of each file to learn its size.
    assert rounds.vcenter.stats()["bytes"] - before < 4 * BLOCK + 2000


def test_areas_that_lie_close_together_are_read_in_one_request(
    vcenter: Simulator, tmp_path: Path
) -> None:
    vcenter.make_disk(SIZE, block=4096)
    rounds = Rounds(vcenter, tmp_path)
    with contextlib.closing(rounds.session):
        rounds.run(options(enable=True))
        count, step = 100, 32 << 10
        for number in range(count):
            vcenter.write(number * step + 5, b"new")
        before = vcenter.stats()
        (disk,) = rounds.run()
        after = vcenter.stats()
        # What is between them is read, and not sent.
        assert changed_bytes(disk) == count * 4096
        assert after["reads"] - before["reads"] <= 1 + count * step // MIB + 1
        assert after["bytes"] - before["bytes"] < count * step
        for number in range(20):
            vcenter.write(number * 2 * BLOCK, b"newer")
        before = after
        (disk,) = rounds.run()
        after = vcenter.stats()
        # Of what lies farther apart, nothing between is read.
        assert after["reads"] - before["reads"] >= 20
        assert after["bytes"] - before["bytes"] < changed_bytes(disk) + 2000


def test_grains_that_lie_close_together_in_a_delta_are_read_in_one_request(
    rounds: Rounds,
) -> None:
    machine = rounds.session.machine(rounds.place.path)
    theirs = rounds.session.make_snapshot(machine, "theirs", "", quiesced=False)
    for number in range(60):
        # In the delta they follow each other; on the disk, 64 KiB of the base lie between.
        rounds.vcenter.write(number * BLOCK + 1000, os.urandom(9000))
    before = rounds.vcenter.stats()
    (disk,) = rounds.run()
    after = rounds.vcenter.stats()
    assert changed_bytes(disk) == 60 * BLOCK
    assert after["reads"] - before["reads"] <= 20
    assert after["bytes"] - before["bytes"] < changed_bytes(disk) + 60 * 20_000
    rounds.session.remove_snapshot(theirs)


def test_older_snapshots_are_read_through(rounds: Rounds) -> None:
    machine = rounds.session.machine(rounds.place.path)
    theirs = rounds.session.make_snapshot(machine, "before the update", "", quiesced=False)
    for start in range(0, MIB, 130_000):
        rounds.vcenter.write(start, os.urandom(3000))
    (disk,) = rounds.run()
    assert not disk.why_whole
    rounds.vcenter.write(2 * MIB, os.urandom(700))
    rounds.run()
    rounds.session.remove_snapshot(theirs)
    rounds.vcenter.write(3 * MIB, os.urandom(700))
    (disk,) = rounds.run()
    assert changed_bytes(disk) <= 2 * BLOCK


def test_an_empty_page_in_the_middle_is_gone_past(rounds: Rounds) -> None:
    for block in (1, 50):
        rounds.vcenter.write(block * BLOCK, b"new")
    rounds.vcenter.arm("lie", "empty")
    (disk,) = rounds.run()
    assert not disk.why_whole
    assert changed_bytes(disk) == 2 * BLOCK


def test_a_session_that_ends_in_the_middle_is_begun_again(rounds: Rounds) -> None:
    for block in range(0, 60, 3):
        rounds.vcenter.write(block * BLOCK, os.urandom(600))
    rounds.vcenter.control("expire-in", reads=4)
    (disk,) = rounds.run()
    assert not disk.why_whole
    rounds.vcenter.control("expire")
    (disk,) = rounds.run()
    assert not disk.why_whole


def test_what_the_tracker_calls_allocated_is_enough_for_a_whole_copy(rounds: Rounds) -> None:
    rounds.held.clear()
    before = rounds.vcenter.stats()["bytes"]
    wish = options(allocated=True)
    (disk,) = rounds.run(wish)
    assert disk.why_whole
    assert rounds.vcenter.stats()["bytes"] - before < MIB + BLOCK


# Other readers.


def test_a_mounted_datastore_is_read_in_place(rounds: Rounds, tmp_path: Path) -> None:
    vcenter = rounds.vcenter
    mounted = Rounds(vcenter, tmp_path, reader="file", mount=vcenter.datastore)
    mounted.held, mounted.copies = rounds.held, rounds.copies
    with contextlib.closing(mounted.session):
        vcenter.control("busy", seed=3)
        vcenter.write(BLOCK, b"new")
        before = vcenter.stats()["reads"]
        (disk,) = mounted.run()
        assert not disk.why_whole
        # It knows what it lies on, so that it cannot become its own target.
        assert disk.source.nodes
        assert vcenter.stats()["reads"] == before


def test_two_datastores_are_not_read_from_one_folder(rounds: Rounds, tmp_path: Path) -> None:
    (tmp_path / "LocalDS_0").symlink_to(rounds.vcenter.datastore)
    session = rounds.session
    for mount, outcome in (
        (rounds.vcenter.datastore, pytest.raises(UsageError, match="both LocalDS_0 and LocalDS_1")),
        (tmp_path / "{datastore}", pytest.raises(NotFoundError, match="LocalDS_1/DC0_H0_VM0/")),
    ):
        place = machine_place(rounds.vcenter.location(reader="file", mount=mount))
        with rounds.opened() as found:
            disk = found.virtual(rounds.session)
            # A folder of the machine's name is in each of its datastores.
            other = replace(disk, key=2001, file=disk.file.replace("LocalDS_0", "LocalDS_1"))
            readers = Readers(
                session, rounds.server, place, Way(), found.frozen.machine, found.frozen.snapshot
            )
            with contextlib.closing(readers), contextlib.closing(readers.open(disk)), outcome:
                readers.open(other)


@pytest.mark.needs("/usr/lib/openssh/sftp-server")
def test_files_are_read_over_ssh_from_the_host_that_has_them(
    rounds: Rounds, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vcenter = rounds.vcenter
    (tmp_path / "volumes").mkdir()
    (tmp_path / "volumes" / "LocalDS_0").symlink_to(vcenter.datastore)
    query = {"reader": "sftp", "ssh": "root@esxi", "volumes": str(tmp_path / "volumes")}
    there = Rounds(vcenter, tmp_path, **query)
    there.held, there.copies = rounds.held, rounds.copies
    wish = options(way=Way(rsh="sh -c {command}"))
    with contextlib.closing(there.session):
        theirs = there.session.make_snapshot(
            there.session.machine(there.place.path), "theirs", "", quiesced=False
        )
        vcenter.control("busy", seed=3)
        vcenter.write(2 * MIB, os.urandom(MIB + 5))
        before = vcenter.stats()["reads"]
        (disk,) = there.run(wish)
        assert not disk.why_whole
        assert vcenter.stats()["reads"] == before
        # More than the server gives at once: what is missing is asked for again.
        monkeypatch.setattr("blockstream.sources.sftp._CHUNK", MIB)
        vcenter.write(2 * MIB, os.urandom(MIB + 5))
        there.run(wish)
        there.session.remove_snapshot(theirs)
        (tmp_path / "volumes" / "LocalDS_0").unlink()
        with pytest.raises(NotFoundError, match=r"DC0_H0_VM0\.vmdk does not exist"):
            there.run(wish)
        with pytest.raises(SourceError, match=r"was lost: .*, with status 3"):
            there.run(options(way=Way(rsh="sh -c 'exit 3' {command}")))


@pytest.mark.needs("nbdkit")
def test_a_server_of_others_has_the_disk(rounds: Rounds, tmp_path: Path) -> None:
    vcenter = rounds.vcenter
    socket, pid = tmp_path / "socket", tmp_path / "pid"
    command: list[str | Path] = ["nbdkit", "-f", "-r", "-U", socket, "-P", pid, "file"]
    with process([*command, f"dir={vcenter.kept}"], pid.exists):
        query = {"reader": "nbd", "export": f"nbd+unix:///{{name}}-{{key}}.raw?socket={socket}"}
        served = Rounds(vcenter, tmp_path, **query)
        served.held, served.copies = rounds.held, rounds.copies
        with contextlib.closing(served.session):
            vcenter.write(BLOCK, b"new")
            before = vcenter.stats()["reads"]
            (disk,) = served.run()
            assert not disk.why_whole
            assert vcenter.stats()["reads"] == before
    strange = Rounds(vcenter, tmp_path, reader="nbd", export="nbd://127.0.0.1/{colour}")
    with contextlib.closing(strange.session), pytest.raises(UsageError, match=r"may name \{vm\}"):
        strange.run()


@pytest.mark.needs("nbdkit")
def test_a_server_of_large_blocks_is_asked_for_whole_ones(
    vcenter: Simulator, tmp_path: Path
) -> None:
    vcenter.make_disk(4 * MIB, block=512)
    socket, pid = tmp_path / "socket", tmp_path / "pid"
    command: list[str | Path] = ["nbdkit", "-f", "-r", "-U", socket, "-P", pid]
    command += ["--filter=blocksize-policy", "file", f"dir={vcenter.kept}"]
    command += [
        "blocksize-minimum=4096",
        "blocksize-preferred=4096",
        "blocksize-error-policy=error",
    ]
    with process(command, pid.exists):
        query = {"reader": "nbd", "export": f"nbd+unix:///{{name}}-{{key}}.raw?socket={socket}"}
        served = Rounds(vcenter, tmp_path, **query)
        with contextlib.closing(served.session):
            served.run(options(enable=True))
            vcenter.write(BLOCK + 700, b"new")
            (disk,) = served.run()
            assert (disk.why_whole, changed_bytes(disk)) == ("", 512)
            assert disk.source.alignment == 4096


@pytest.mark.needs("nbdkit")
def test_two_disks_are_not_read_from_one_export(rounds: Rounds, tmp_path: Path) -> None:
    vcenter = rounds.vcenter
    vcenter.make_disk(SIZE, key=2001)
    socket, pid = tmp_path / "socket", tmp_path / "pid"
    image = vcenter.kept / f"{vcenter.machine}-2000.raw"
    command: list[str | Path] = ["nbdkit", "-f", "-r", "-U", socket, "-P", pid, "file", image]
    with process(command, pid.exists):
        query = {"reader": "nbd", "export": f"nbd+unix:///{{name}}?socket={socket}"}
        served = Rounds(vcenter, tmp_path, **query)
        with (
            contextlib.closing(served.session),
            pytest.raises(UsageError, match=r"both disk 2000 and disk 2001.*write \{key\}"),
        ):
            served.run()
    assert rounds.ours() == []


@pytest.mark.needs("nbdkit:python")
def test_nbdkit_is_told_all_that_it_needs(
    rounds: Rounds, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vcenter, notes = rounds.vcenter, tmp_path / "notes"
    query: dict[str, str | Path] = {"reader": "nbdkit", "plugin": STANDIN, "libdir": "/opt/vddk"}
    monkeypatch.setenv("STANDIN_FILE", str(vcenter.kept / f"{vcenter.machine}-2000.raw"))
    monkeypatch.setenv("STANDIN_NOTES", str(notes))
    served = Rounds(vcenter, tmp_path, **query)
    served.held, served.copies = rounds.held, rounds.copies
    with contextlib.closing(served.session):
        vcenter.write(BLOCK, b"new")
        vcenter.write(SIZE - 7, b"and the end"[:7])
        before = vcenter.stats()["reads"]
        with served.opened() as found:
            snapshot = id_of(found.frozen.snapshot)
            assert [each.why_whole for each in found.disks] == [""]
            told = json.loads(notes.read_text())
            assert told["snapshot"] == snapshot
        served.run()
        assert vcenter.stats()["reads"] == before
    assert told["vm"] == f"moref={id_of(found.frozen.machine)}"
    assert told["libdir"] == "/opt/vddk"
    assert told["file"] == "[LocalDS_0] DC0_H0_VM0/DC0_H0_VM0.vmdk"
    certificate = x509.load_pem_x509_certificate(vcenter.ca.read_bytes())
    shown = certificate.fingerprint(SHA1()).hex()  # noqa: S303  # VDDK wants it
    assert told["thumbprint"].replace(":", "").lower() == shown
    assert told["said_password"] == PASSWORD
    assert PASSWORD not in told["line"]
    # Or a Ctrl-C would end it before we have ended what it is read for.
    assert told["group"] != os.getpgrp()


@pytest.mark.needs("nbdkit:python")
def test_nbdkit_that_fails_is_told_of_without_the_password(
    rounds: Rounds, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vcenter = rounds.vcenter
    monkeypatch.setenv("STANDIN_FILE", str(vcenter.kept / f"{vcenter.machine}-2000.raw"))
    monkeypatch.setenv("STANDIN_NOTES", str(tmp_path / "notes"))
    served = Rounds(vcenter, tmp_path, reader="nbdkit", plugin=STANDIN)
    with contextlib.closing(served.session):
        for fails, words in (("password", "Cannot complete login"), ("size", "nbdkit serves")):
            monkeypatch.setenv("STANDIN_FAILS", fails)
            with pytest.raises(SourceError, match=words) as caught:
                served.run()
            assert PASSWORD not in str(caught.value)
            assert served.ours() == []


# Full again.


ENVELOPE = (
    '<?xml version="1.0"?><soapenv:Envelope xmlns:soapenv="http://schemas.xmlsoap.org/soap/'
    'envelope/"><soapenv:Body><QueryChangedDiskAreasResponse xmlns="urn:vim25">{}'
    "</QueryChangedDiskAreasResponse></soapenv:Body></soapenv:Envelope>"
)


def test_a_tracker_that_cannot_tell_costs_a_whole_copy(rounds: Rounds) -> None:
    for fault, words in (
        ("FileFault:vim.hostd.vmsvc.cbt.noTrack", "change tracking is off"),
        ("FileFault:vim.hostd.vmsvc.cbt.noEpoch", "does not know the moment"),
        ("FileFault:vim.hostd.vmsvc.cbt.cannotGetChanges", "map is lost"),
        ("FileFault:", "the tracker failed"),
        ("FileFaultText:failed with vim.hostd.vmsvc.cbt.noEpoch", "does not know the moment"),
        ("InvalidArgument:changeId", "does not know the change id"),
        ("InvalidArgument:startOffset", "does not take offset 0"),
        # What nobody foresaw; one was a bug of ours, with a traceback.
        ("Odd:SystemError", "the tracker failed"),
        ("Odd:NotSupported", "the tracker failed"),
        ("Odd:GenericVmConfigFault", "the tracker failed"),
        ("Odd:NoFaultThatWeKnow", "the tracker failed"),
        (f"Garbage:{ENVELOPE.format('<returnval></returnval>')}", "the tracker"),
        (f"Garbage:{ENVELOPE.format('<returnval><a>b</a></returnval>')}", "the tracker"),
    ):
        rounds.vcenter.write(BLOCK, os.urandom(9))
        rounds.vcenter.arm("query", fault)
        (disk,) = rounds.run()
        assert words in disk.why_whole, fault
        rounds.vcenter.write(BLOCK, os.urandom(9))
        (disk,) = rounds.run()
        assert not disk.why_whole


def test_a_list_that_cannot_be_true_costs_a_whole_copy(rounds: Rounds) -> None:
    lies = ("start", "length", "past", "descending", "overlapping", "outside", "negative")
    for lie in lies:
        rounds.vcenter.write(BLOCK, os.urandom(9))
        rounds.vcenter.arm("lie", lie)
        (disk,) = rounds.run()
        assert "cannot be true" in disk.why_whole, lie


def test_a_disk_that_is_gone_ends_the_round(rounds: Rounds) -> None:
    kinds: tuple[tuple[str, type[BlockstreamError]], ...] = (
        ("InvalidArgument:deviceKey", GoneError),
        ("InvalidArgument:snapshotId", GoneError),
        ("InvalidArgument:snapshot", GoneError),
        ("ManagedObjectNotFound:", GoneError),
    )
    for fault, kind in kinds:
        rounds.vcenter.arm("query", fault)
        with pytest.raises(kind) as caught:
            rounds.run()
        assert type(caught.value) is kind, fault
        assert rounds.ours() == []


def test_a_call_that_did_not_run_is_made_again(rounds: Rounds) -> None:
    rounds.vcenter.write(BLOCK, b"new")
    rounds.vcenter.arm("query", "NotAuthenticated:")
    (disk,) = rounds.run()
    assert not disk.why_whole
    assert changed_bytes(disk) == BLOCK


def test_a_session_that_another_thread_has_renewed_is_not_ended_again(rounds: Rounds) -> None:
    session = rounds.session
    stale = session.cookie()
    before = rounds.vcenter.stats()["calls"]["Login"]

    def late() -> str:
        if session.cookie() == stale:
            session.cookie(stale)  # as another thread does, whose call was refused, too
            raise vim.fault.NotAuthenticated
        return session.cookie()

    assert session._call(late) == session.cookie() != stale
    assert rounds.vcenter.stats()["calls"]["Login"] == before + 1


def test_a_connection_that_breaks_at_the_login_is_tried_again(
    rounds: Rounds, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("blockstream.sources.vsphere._FIRST_PAUSE_SECONDS", 0.001)
    rounds.vcenter.control("expire")
    rounds.vcenter.arm("drop:Login", times=2)
    (disk,) = rounds.run()
    assert not disk.why_whole
    rounds.vcenter.control("expire")
    rounds.vcenter.arm("drop:Login", times=99)
    with pytest.raises(MaybeDoneError, match="is not reached any more"):
        rounds.run()
    rounds.vcenter.arm("drop:Login", times=0)
    rounds.vcenter.arm("drop:Login")
    with pytest.raises(NotFoundError, match="does not let us in"):
        open_vsphere(rounds.place, Secret(PASSWORD))


def test_a_reset_tracker_is_noticed_by_its_id(rounds: Rounds) -> None:
    rounds.vcenter.control("reset")
    (disk,) = rounds.run()
    assert "was reset" in disk.why_whole
    assert "QueryChangedDiskAreas" not in rounds.vcenter.stats()["calls"]


def test_a_release_known_for_wrong_answers_is_not_believed(rounds: Rounds) -> None:
    for version, words in (("6.0.0", "release 6.0.0 are known"), ("6.5.0", ""), ("7.0.3", "")):
        rounds.vcenter.control("release", version=version)
        rounds.vcenter.write(BLOCK, os.urandom(9))
        with contextlib.closing(rounds.session):
            rounds.session = open_vsphere(rounds.place, Secret(PASSWORD))
        (disk,) = rounds.run()
        assert words in disk.why_whole
        assert bool(words) == bool(disk.why_whole)


def test_a_disk_that_grew_is_sent_whole(rounds: Rounds) -> None:
    rounds.vcenter.control("grow", bytes=SIZE + MIB)
    rounds.vcenter.write(SIZE, b"beyond")
    (disk,) = rounds.run()
    assert f"had {SIZE} bytes" in disk.why_whole


def test_a_disk_that_was_replaced_is_sent_whole(rounds: Rounds) -> None:
    rounds.vcenter.control("reset")
    held = TrackedState.parse(rounds.held["DC0_H0_VM0-2000"])
    assert held is not None
    rounds.held["DC0_H0_VM0-2000"] = str(held).replace(held.disk, "6000c29")
    (disk,) = rounds.run()
    assert "replaced" in disk.why_whole


def test_another_machines_disk_is_not_overwritten(rounds: Rounds) -> None:
    held = TrackedState.parse(rounds.held["DC0_H0_VM0-2000"])
    assert held is not None
    rounds.held["DC0_H0_VM0-2000"] = str(held).replace(held.machine, "5029")
    with pytest.raises(RefusedError, match="holds disk 2000 of machine 5029"):
        rounds.run()
    assert rounds.ours() == []


def test_not_even_where_nothing_is_tracked(rounds: Rounds) -> None:
    rounds.vcenter.control("bar")
    held = TrackedState.parse(rounds.held["DC0_H0_VM0-2000"])
    assert held is not None
    rounds.held["DC0_H0_VM0-2000"] = str(held).replace(held.machine, "5029")
    with pytest.raises(RefusedError, match="holds disk 2000 of machine 5029"):
        rounds.run()


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        (
            "FALSE",
            "tracking is off for this disk, though on for its machine: scsi0:0.ctkEnabled is",
        ),
        ("", "though its machine is tracked: scsi0:0.ctkEnabled is not set"),
        ("TRUE", "nothing is tracked of it yet, though scsi0:0.ctkEnabled is TRUE"),
    ],
)
def test_a_disk_that_is_not_tracked_is_sent_whole_each_time(
    rounds: Rounds, setting: str, words: str
) -> None:
    rounds.vcenter.control("bar", setting=setting)
    for _ in range(2):
        (disk,) = rounds.run()
        # Switched on it is, but not for this disk: what switches it on would do nothing.
        assert words in disk.why_whole
        assert "enable-cbt" not in disk.why_whole
        assert not disk.state


def test_a_disk_whose_setting_says_no_is_named_before_it_costs_a_round(rounds: Rounds) -> None:
    rounds.vcenter.make_disk(MIB, key=2001)
    rounds.run()
    assert [each.why_untracked for each in machine_of(rounds.session, rounds).disks] == ["", ""]
    rounds.vcenter.control("bar", key=2001, setting="FALSE")
    first, second = machine_of(rounds.session, rounds).disks
    assert (first.setting, first.setting_value, first.why_untracked) == (
        *("scsi0:0.ctkEnabled", "TRUE"),
        "",
    )
    assert "scsi0:1.ctkEnabled is FALSE (set it to TRUE while" in second.why_untracked


def test_a_new_disk_is_whole_and_the_others_are_not(rounds: Rounds) -> None:
    rounds.vcenter.make_disk(MIB, key=2001)
    rounds.vcenter.write(7, b"new", key=2001)
    for expected in (["", "nothing is tracked"], ["", "no state of this tracker"], ["", ""]):
        # Without an id of its own, the target calls the state by a name that we made up.
        disks = rounds.run()
        for disk, words in zip(disks, expected, strict=True):
            assert words in disk.why_whole
            assert bool(words) == bool(disk.why_whole)
            rounds.held[disk.name] = rounds.held[disk.name] or "random"


def test_whoever_wants_no_whole_copy_gets_none(rounds: Rounds) -> None:
    rounds.vcenter.control("reset")
    wish = options(on_loss=OnLoss.FAIL)
    with pytest.raises(SourceError, match="was reset, so that all of it"):
        rounds.run(wish)
    assert rounds.ours() == []


# Snapshots.


def test_a_guest_that_comes_to_rest_in_the_end_is_quiesced(rounds: Rounds) -> None:
    rounds.vcenter.arm("quiesce", "ApplicationQuiesceFault", times=2)
    with rounds.opened() as found:
        assert found.frozen.quiesced
    assert len(rounds.said) == 1  # that tracking is on


def test_a_guest_that_does_not_is_read_as_after_a_power_cut_and_that_is_said(
    rounds: Rounds,
) -> None:
    rounds.vcenter.arm("quiesce", "ApplicationQuiesceFault", times=9)
    with rounds.opened() as found:
        assert not found.frozen.quiesced
    assert "as after a power cut" in rounds.said[-1]


def test_whoever_requires_rest_gets_no_other_snapshot(rounds: Rounds) -> None:
    rounds.vcenter.arm("quiesce", "FilesystemQuiesceFault", times=9)
    wish = options(snapshots=SnapshotPolicy(Quiesce.REQUIRE, pause=0.01))
    with pytest.raises(QuiesceError, match="3 times"):
        rounds.run(wish)
    assert rounds.ours() == []


def test_a_snapshot_that_fails_says_why(rounds: Rounds) -> None:
    for fault, words in (
        ("GenericVmConfigFault", "GenericVmConfigFault"),
        ("MultipleSnapshotsNotSupported", "takes no snapshot beside the one it has .*nothing was"),
    ):
        rounds.vcenter.arm("create", fault)
        with pytest.raises(SourceError, match=words):
            rounds.run()
        assert rounds.ours() == []


PASSING = [
    (
        "TaskInProgress",
        "another task works on the machine (VirtualMachine.migrate, TaskInProgress)",
    ),
    ("now:TaskInProgress", "another task works on the machine (VirtualMachine.migrate, TaskInPr"),
    ("FileLocked", "[LocalDS_0] mail/mail.vmdk is locked (FileLocked)"),
]


@pytest.mark.parametrize(("fault", "words"), PASSING)
@pytest.mark.parametrize("step", ["create", "remove", "consolidating"])
def test_what_passes_is_waited_for(rounds: Rounds, step: str, fault: str, words: str) -> None:
    rounds.vcenter.arm("consolidate")
    rounds.vcenter.arm(step, fault, times=3)
    before = len(rounds.said)
    (disk,) = rounds.run()
    assert not disk.why_whole
    waited = [text for text in rounds.said[before:] if "waited for" in text]
    assert len(waited) == 1
    assert f"DC0/vm/DC0_H0_VM0: {words}" in waited[0]


@pytest.mark.parametrize(("fault", "words"), PASSING)
def test_what_does_not_pass_is_not_waited_for_for_ever(
    rounds: Rounds, fault: str, words: str
) -> None:
    rounds.vcenter.arm("create", fault, times=99)
    before = rounds.vcenter.stats()["calls"]["CreateSnapshot_Task"]
    with pytest.raises(InTheWayError, match="no snapshot was made and nothing was sent") as caught:
        rounds.run()
    assert words in str(caught.value)
    assert rounds.vcenter.stats()["calls"]["CreateSnapshot_Task"] == before + 25
    assert rounds.ours() == []


def test_whoever_waits_can_be_stopped(rounds: Rounds) -> None:
    rounds.vcenter.arm("create", "TaskInProgress", times=99)

    def tell(text: str) -> None:
        if "is waited for" in text:
            threading.Timer(0.2, run.stop, ("stopped by SIGTERM",)).start()

    run = Run(tell)
    rounds.context, wish = run, options(snapshots=SnapshotPolicy(pause=20))
    began = time.monotonic()
    with pytest.raises(InterruptedTransferError, match="stopped by SIGTERM"):
        rounds.run(wish)
    assert time.monotonic() - began < 10
    assert rounds.ours() == []


def test_a_tracker_behind_a_lock_is_waited_for_before_all_is_sent(rounds: Rounds) -> None:
    rounds.vcenter.write(BLOCK, b"new")
    rounds.vcenter.arm("query", "FileLocked", times=3)
    (disk,) = rounds.run()
    assert (disk.why_whole, changed_bytes(disk)) == ("", BLOCK)
    rounds.vcenter.arm("query", "FileLocked", times=99)
    (disk,) = rounds.run()
    assert "is locked (FileLocked), which did not pass" in disk.why_whole


def test_tracking_is_switched_on_once_nothing_is_in_the_way(
    vcenter: Simulator, tmp_path: Path
) -> None:
    vcenter.make_disk(MIB)
    rounds = Rounds(vcenter, tmp_path)
    with contextlib.closing(rounds.session):
        for step, words in (
            ("reconfigure", "nothing was switched on"),
            ("create", "tracking is on"),
        ):
            vcenter.arm(step, "TaskInProgress", times=99)
            with pytest.raises(InTheWayError, match=words):
                rounds.snapshots().enable_tracking()
            vcenter.arm(step, "TaskInProgress", times=2)
        rounds.snapshots().enable_tracking()
        assert machine_of(rounds.session, rounds).tracked
        assert rounds.ours() == []


def test_a_lost_answer_makes_no_second_snapshot(rounds: Rounds) -> None:
    made = rounds.vcenter.stats()["calls"]["CreateSnapshot_Task"]
    rounds.vcenter.arm("lost:CreateSnapshot_Task")
    with rounds.opened():
        assert len(rounds.ours()) == 1
    assert rounds.ours() == []
    assert rounds.vcenter.stats()["calls"]["CreateSnapshot_Task"] == made + 1


def test_an_answer_that_is_lost_after_a_lost_call_makes_no_second_one_either(
    rounds: Rounds,
) -> None:
    rounds.vcenter.arm("drop:CreateSnapshot_Task")
    rounds.vcenter.arm("lost:CreateSnapshot_Task")
    with rounds.opened():
        assert len(rounds.ours()) == 1
    assert rounds.ours() == []


def test_a_task_that_ends_while_it_is_looked_for_makes_no_second_one_either(
    rounds: Rounds, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine, look = rounds.session.machine(rounds.place.path), rounds.session._properties
    late = open_vsphere(rounds.place, Secret(PASSWORD))

    def ending(ref: Any, paths: Sequence[str]) -> dict[str, Any]:
        found = look(ref, paths)
        if paths == ("recentTask",):
            late.make_snapshot(machine_of(late, rounds), "name", "", quiesced=False)
        return found

    rounds.vcenter.arm("drop:CreateSnapshot_Task")
    monkeypatch.setattr(rounds.session, "_properties", ending)
    with contextlib.closing(late):
        rounds.session.make_snapshot(machine, "name", "", quiesced=False)
    assert rounds.vcenter.snapshots() == ["name"]


def test_a_snapshot_that_may_be_there_is_named(
    rounds: Rounds, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("blockstream.sources.vsphere._FIRST_PAUSE_SECONDS", 0.001)
    machine = rounds.session.machine(rounds.place.path)
    rounds.vcenter.arm("lost:CreateSnapshot_Task")
    rounds.vcenter.arm("drop:RetrievePropertiesEx", times=99)
    with pytest.raises(MaybeDoneError, match="may have the snapshot name now: the same command"):
        rounds.session.make_snapshot(machine, "name", "", quiesced=False)
    assert rounds.vcenter.snapshots() == ["name"]


def test_a_call_that_was_lost_on_its_way_is_made_again(rounds: Rounds) -> None:
    for method in ("CreateSnapshot_Task", "QueryChangedDiskAreas", "RemoveSnapshot_Task"):
        rounds.vcenter.arm(f"drop:{method}")
    # A proxy between that has a word of its own.
    rounds.vcenter.arm("html:QueryChangedDiskAreas")
    (disk,) = rounds.run()
    assert not disk.why_whole


def test_a_server_that_is_gone_for_good_is_told_and_the_snapshot_too(
    rounds: Rounds, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("blockstream.sources.vsphere._FIRST_PAUSE_SECONDS", 0.001)

    def round_that_fails() -> None:
        with rounds.opened() as found:
            for method in ("QueryChangedDiskAreas", "RemoveSnapshot_Task"):
                rounds.vcenter.arm(f"drop:{method}", times=99)
            disk = found.virtual(rounds.session)
            rounds.session.changed(found.frozen.machine, found.frozen.snapshot, disk, disk.change)

    with pytest.raises(SourceError, match="is not reached any more"):
        round_that_fails()
    assert "could not be removed" in rounds.said[-1]
    assert rounds.ours()[0] in rounds.said[-1]


def test_a_snapshot_that_stays_is_named(rounds: Rounds) -> None:
    rounds.vcenter.arm("remove", "GenericVmConfigFault")
    words = (
        r"all was sent and committed, but the snapshot blockstream_\w+ of \S+ could not be removed"
    )
    with pytest.raises(LeftoverError, match=words):
        rounds.run()
    (left,) = rounds.ours()
    # Beside it there must be no other; of this one, nothing was sent.
    rounds.vcenter.arm("remove", "FileLocked", times=25)
    with pytest.raises(SourceError, match=f"nothing was sent, but the snapshot {left}"):
        rounds.run()
    assert rounds.ours() == [left]
    rounds.run()
    assert any(
        f"the snapshot {left} of an earlier round is removed" in text for text in rounds.said
    )


def test_files_that_are_not_put_together_are_told(rounds: Rounds) -> None:
    rounds.vcenter.arm("consolidate")
    rounds.vcenter.arm("consolidating", "FileLocked", times=25)
    words = (
        r"all was sent and committed, but the files of the snapshot \w+ of \S+, which was removed, "
    )
    with pytest.raises(LeftoverError, match=words):
        rounds.run()
    assert rounds.ours() == []
    rounds.run()
    assert "had to be consolidated" in rounds.said[-1]


def test_a_snapshot_that_went_with_a_lost_answer_is_no_failure(
    rounds: Rounds, monkeypatch: pytest.MonkeyPatch
) -> None:
    remove = rounds.session.remove_snapshot

    def meet_the_first(snapshot: Snapshot) -> None:
        remove(snapshot)
        raise SourceError("TaskInProgress")

    monkeypatch.setattr(rounds.session, "remove_snapshot", meet_the_first)
    rounds.run()


def test_a_task_that_nobody_tells_of_is_not_waited_for(
    rounds: Rounds, monkeypatch: pytest.MonkeyPatch
) -> None:
    look = rounds.session._properties

    def blind(ref: Any, paths: Sequence[str]) -> dict[str, Any]:
        return {} if isinstance(ref, vim.Task) else look(ref, paths)

    monkeypatch.setattr(rounds.session, "_properties", blind)
    # What became of it is seen in the machine.
    rounds.run()


def test_a_failed_round_is_told_of_its_own_failure_and_of_the_snapshot(rounds: Rounds) -> None:
    rounds.vcenter.arm("remove", "GenericVmConfigFault")
    rounds.vcenter.arm("query", "InvalidArgument:deviceKey")
    with pytest.raises(GoneError):
        rounds.run()
    assert rounds.said[-1].startswith("the snapshot blockstream_")


def test_snapshots_of_others_stay(rounds: Rounds) -> None:
    machine = rounds.session.machine(rounds.place.path)
    for name in ("blockstream_0a1b2c3d_4e5f6a7b", "mine"):
        rounds.session.make_snapshot(machine, name, "made by blockstream on mars", quiesced=False)
    with rounds.opened():
        pass
    assert rounds.vcenter.snapshots() == ["blockstream_0a1b2c3d_4e5f6a7b", "mine"]
    assert "made by blockstream on mars" in rounds.said[-1]


def test_a_snapshot_that_is_open_for_long_is_told(rounds: Rounds) -> None:
    session, vcenter = rounds.session, rounds.vcenter
    theirs = session.make_snapshot(machine_of(session, rounds), "theirs", "", quiesced=False)
    before = len(rounds.said)
    vcenter.write(0, os.urandom(BLOCK))
    vcenter.control("age", hours=23)
    rounds.run()
    assert rounds.said[before:] == []
    vcenter.control("age", hours=7)
    rounds.run()
    (text,) = rounds.said[before:]
    assert "has the snapshot theirs for 30 h; what its snapshots hold is 8" in text, text
    assert "KiB and grows; if nobody needs it, remove it" in text
    vcenter.write(0, os.urandom(2 * MIB))
    rounds.run()
    assert "2.0 MiB, is more than 1/4 of its disks" in rounds.said[-1]
    session.remove_snapshot(theirs)
    before = len(rounds.said)
    rounds.run()
    assert rounds.said[before:] == []


def test_our_own_one_is_told_of_while_it_is_read(
    rounds: Rounds, monkeypatch: pytest.MonkeyPatch
) -> None:
    buffer = aligned_buffer(512)
    with rounds.opened() as found:
        later = time.monotonic() + 23 * 3600
        monkeypatch.setattr("blockstream.captures.vsphere.capture.time.monotonic", lambda: later)
        found.disks[0].source.read_into([0], [512], buffer)
        before = len(rounds.said)
        later += 3600
        found.disks[0].source.read_into([0], [512], buffer)
        found.disks[0].source.read_into([0], [512], buffer)
        (text,) = rounds.said[before:]
        assert (
            f"the snapshot {found.frozen.snapshot.name}, which is being read, is open for 24 h"
            in text
        )


def test_disks_that_have_to_be_consolidated_are(rounds: Rounds) -> None:
    rounds.vcenter.arm("consolidate")
    rounds.run()
    assert rounds.vcenter.stats()["calls"]["ConsolidateVMDisks_Task"] == 1
    assert "had to be consolidated" in rounds.said[-1]


def test_a_snapshot_that_vanishes_is_noticed_before_the_end(rounds: Rounds) -> None:
    with rounds.opened() as found:
        rounds.session.remove_snapshot(found.frozen.snapshot)
        with pytest.raises(GoneError):
            found.disks[0].source.validate()


def test_a_snapshot_of_others_that_comes_meanwhile_does_no_harm(rounds: Rounds) -> None:
    rounds.vcenter.write(BLOCK, b"new")
    with rounds.opened() as found:
        machine = rounds.session.machine(rounds.place.path)
        frozen = rounds.vcenter.frozen()
        theirs = rounds.session.make_snapshot(machine, "theirs", "", quiesced=False)
        rounds.vcenter.write(BLOCK, b"newer")
        rounds.take(found.disks[0])
    assert rounds.vcenter.snapshots() == ["theirs"]
    assert bytes(rounds.copies[found.disks[0].name]) == frozen
    rounds.vcenter.write(2 * BLOCK, b"newest")
    (disk,) = rounds.run()
    assert not disk.why_whole
    rounds.session.remove_snapshot(theirs)
    (disk,) = rounds.run()
    assert not disk.why_whole


def test_files_that_are_put_together_meanwhile_are_noticed(rounds: Rounds) -> None:
    machine = rounds.session.machine(rounds.place.path)
    theirs = rounds.session.make_snapshot(machine, "theirs", "", quiesced=False)
    rounds.vcenter.write(BLOCK, b"new")
    with rounds.opened() as found:
        found.disks[0].source.validate()
        # What was in a delta of ours goes into the file below, which may be being read.
        rounds.session.remove_snapshot(theirs)
        with pytest.raises(GoneError, match="no one state"):
            found.disks[0].source.validate()
    (disk,) = rounds.run()
    assert not disk.why_whole


def test_two_at_a_time_are_one_too_many(rounds: Rounds) -> None:
    with rounds.opened(), pytest.raises(BusyError, match="is busy"):
        rounds.run()


# What is not sent.


def test_a_disk_that_no_snapshot_holds_is_left_out(rounds: Rounds) -> None:
    rounds.vcenter.make_disk(MIB, key=2001, mode="independent_persistent")
    assert [key_of(each) for each in rounds.run()] == [2000]
    assert "Hard disk 2 is independent of snapshots, so it is left out" in rounds.said[-1]


def test_it_is_refused_where_it_was_asked_for(rounds: Rounds, tmp_path: Path) -> None:
    rounds.vcenter.make_disk(MIB, key=2001, mode="independent_persistent")
    single = Rounds(rounds.vcenter, tmp_path, disk=2001)
    with contextlib.closing(single.session), pytest.raises(RefusedError, match="is independent"):
        single.run()


@pytest.mark.parametrize("kind", ["SparseVer2", "SeSparse", "RawDiskMappingVer1", "RawDiskVer2"])
def test_disks_of_other_kinds_are_tracked_as_well(
    vcenter: Simulator, tmp_path: Path, kind: str
) -> None:
    vcenter.make_disk(SIZE, backing=kind, compatibility="virtualMode")
    rounds = Rounds(vcenter, tmp_path)
    with contextlib.closing(rounds.session):
        rounds.run(options(enable=True))
        for number in range(2):
            vcenter.write(number * 5 * BLOCK, os.urandom(700))
            (disk,) = rounds.run()
            assert (disk.why_whole, changed_bytes(disk)) == ("", BLOCK)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"mode": "independent_nonpersistent"}, "is independent of snapshots"),
        (
            {"backing": "RawDiskMappingVer1", "compatibility": "physicalMode"},
            "is a raw device in physical mode",
        ),
        ({"sharing": "sharingMultiWriter"}, "is written by several machines"),
        (
            {"backing": "RawDiskMappingVer1", "sharing": "sharingMultiWriter"},
            "is written by several machines",
        ),
        ({"backing": "FlatVer1"}, "lies in what we do not know"),
    ],
)
def test_what_no_snapshot_holds_is_left_out_and_nothing_is_switched_on(
    vcenter: Simulator, tmp_path: Path, more: dict[str, Any], words: str
) -> None:
    vcenter.make_disk(MIB)
    vcenter.make_disk(MIB, key=2001, **more)
    rounds = Rounds(vcenter, tmp_path)
    with contextlib.closing(rounds.session):
        assert [key_of(each) for each in rounds.run()] == [2000]
        assert any(f"Hard disk 2 {words}" in text for text in rounds.said)
        with pytest.raises(RefusedError, match=f"Hard disk 2 {words}.*nothing was switched on"):
            rounds.run(options(enable=True))
        assert not machine_of(rounds.session, rounds).tracked
        single = Rounds(vcenter, tmp_path, disk=2001)
        with contextlib.closing(single.session), pytest.raises(RefusedError, match=words):
            single.run()


@pytest.mark.parametrize("sharing", ["virtualSharing", "physicalSharing"])
def test_a_bus_that_several_machines_share_is_refused(rounds: Rounds, sharing: str) -> None:
    rounds.vcenter.control("share", sharing=sharing)
    with pytest.raises(RefusedError, match="no disk that a snapshot holds"):
        rounds.run()
    assert "Hard disk 1 hangs on a bus that several machines share" in rounds.said[-1]


def test_a_template_is_refused(rounds: Rounds) -> None:
    rounds.vcenter.control("template")
    with pytest.raises(RefusedError, match="is a template"):
        rounds.run()


# Tracking.


def test_tracking_is_not_begun_among_snapshots(vcenter: Simulator, tmp_path: Path) -> None:
    vcenter.make_disk(MIB)
    rounds = Rounds(vcenter, tmp_path)
    with contextlib.closing(rounds.session):
        machine = rounds.session.machine(rounds.place.path)
        rounds.session.make_snapshot(machine, "theirs", "", quiesced=False)
        wish = options(enable=True)
        with pytest.raises(RefusedError, match="has snapshots"):
            rounds.run(wish)
        assert not rounds.session.machine(rounds.place.path).tracked


def test_tracking_needs_hardware_that_has_it(vcenter: Simulator, tmp_path: Path) -> None:
    vcenter.make_disk(MIB)
    rounds = Rounds(vcenter, tmp_path)
    with contextlib.closing(rounds.session):
        for version in ("vmx-04", ""):
            vcenter.control("hardware", version=version)
            with pytest.raises(RefusedError, match=r"has hardware version \d, .* needs 7; nothing"):
                rounds.run(options(enable=True))
            assert not machine_of(rounds.session, rounds).tracked
        vcenter.control("hardware", version="vmx-07")
        rounds.run(options(enable=True))
        assert machine_of(rounds.session, rounds).tracked


def test_a_snapshot_that_stays_before_anything_was_sent_is_no_success(
    vcenter: Simulator, tmp_path: Path
) -> None:
    vcenter.make_disk(MIB)
    rounds = Rounds(vcenter, tmp_path)
    with contextlib.closing(rounds.session):
        vcenter.arm("remove", "GenericVmConfigFault")
        words = (
            "change tracking is on, but the snapshot .* could not be removed.*; nothing was sent"
        )
        with pytest.raises(SourceError, match=words):
            rounds.run(options(enable=True))
        assert len(rounds.ours()) == 1
        rounds.run(options(enable=True))


def test_tracking_that_is_switched_on_works_from_the_first_round(
    vcenter: Simulator, tmp_path: Path
) -> None:
    vcenter.make_disk(MIB)
    rounds = Rounds(vcenter, tmp_path)
    with contextlib.closing(rounds.session):
        wish = options(enable=True)
        rounds.run(wish)
        vcenter.write(BLOCK, b"new")
        (disk,) = rounds.run(wish)
        assert (disk.why_whole, changed_bytes(disk)) == ("", BLOCK)
