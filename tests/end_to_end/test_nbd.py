"""What an NBD server exports is sent whole, and then by QEMU's bitmaps, also while a guest runs."""

import json
import random
import struct
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from blockstream.linux.qmp import Qmp, connected
from blockstream.locations.registry import disk_of
from blockstream.pipeline.workers import default_workers
from tests.devices import run
from tests.end_to_end.hosts import Host, content
from tests.machine import BLOCK, BOOT, DISK_BYTES, Machine, machine
from tests.nbd_servers import keyring, make_certificates, nbdkit, qemu_nbd

QEMU = pytest.mark.needs("qemu-nbd", "qemu-img", "qemu-io")


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """Give a disk of a guest that was written."""
    path = tmp_path / "disk.qcow2"
    run("qemu-img", "create", "-q", "-f", "qcow2", str(path), "32M")
    run("qemu-io", "-c", "write -P 1 0 10M", str(path))
    return path


def raw_of(disk: Path) -> bytes:
    raw = disk.with_suffix(".raw")
    run("qemu-img", "convert", "-O", "raw", str(disk), str(raw))
    return raw.read_bytes()


@pytest.mark.slow
@QEMU
def test_a_full_copy_and_increments_by_bitmaps_are_the_disk(host: Host, disk: Path) -> None:
    copy = host.folder / "copy"
    with qemu_nbd(host.folder, disk) as export:
        ended = host.run("send", export, copy, "--create", "--goal", "0")
        assert ended.status == 0, ended.err
    assert copy.read_bytes() == raw_of(disk)
    assert host.holds(copy, "0")
    # What became zeros must become zeros there, too, however it did.
    changes = ["write -P 2 1M 4k", "write -z -u 2M 1M", "write -z 4M 64k", "discard 6M 1M"]
    changes.append("write -P 3 20M 100k")
    for number, change in enumerate(changes, 1):
        run("qemu-img", "bitmap", "--add", str(disk), f"b{number}")
        run("qemu-io", "-c", change, str(disk))
        with qemu_nbd(host.folder, disk, "--bitmap", f"b{number}") as export:
            states = ["--base", str(number - 1), "--goal", str(number)]
            ended = host.run(
                "send", export, copy, *states, "--bitmap", f"b{number}", "--json", "--quiet"
            )
            assert ended.status == 0, ended.err
        run("qemu-img", "bitmap", "--remove", str(disk), f"b{number}")
        assert copy.read_bytes() == raw_of(disk)
        (committed,) = [each for each in ended.events if each["event"] == "committed"]
        counts = committed["counts"]
        assert isinstance(counts, dict)
        assert 0 < counts["covered"] <= 1 << 20
    assert host.holds(copy, str(len(changes)))


@pytest.mark.slow
@QEMU
def test_extents_shows_what_is_allocated_and_what_changed(host: Host, disk: Path) -> None:
    run("qemu-img", "bitmap", "--add", str(disk), "b")
    run("qemu-io", "-c", "write -z -u 2M 1M", str(disk))
    with qemu_nbd(host.folder, disk, "--bitmap", "b") as export:
        allocated = json.loads(host.run("extents", export).out)
        changed = json.loads(host.run("extents", export, "--bitmap", "b").out)
        refused = host.run("extents", export, "--bitmap", "c")
        unknown = host.run("extents", export.replace("/vm", "/mv"))
    data = [(each["offset"] >> 20, each["length"] >> 20) for each in allocated["extents"]]
    assert (allocated["meaning"], data) == ("allocated", [(0, 2), (2, 1), (3, 7), (10, 22)])
    assert changed["meaning"] == "changed"
    assert changed["extents"] == [{"offset": 2 << 20, "length": 1 << 20, "kind": "zero"}]
    assert (refused.status, unknown.status) == (17, 17)
    assert "it offers 'b'" in refused.err
    assert "it has 'vm'" in unknown.err


@pytest.mark.slow
@pytest.mark.needs("nbdkit")
def test_an_export_goes_through_a_pipe_and_into_a_store(host: Host) -> None:
    disk = host.disk("disk", 1_234_567)
    with nbdkit(host.folder, "-r", "file", disk) as export:
        copy = host.blank("copy", 1_234_567)
        assert host.pipe([export, "--goal", "A"], [copy]).statuses == (0, 0)
        assert copy.read_bytes() == disk.read_bytes()
        store = f"dir:{host.folder}/store"
        assert host.run("store", "init", store).status == 0
        assert host.run("send", export, f"{store}/vm").status == 0
        assert host.run("restore", f"{store}/vm", host.folder / "back", "--create").status == 0
        assert (host.folder / "back").read_bytes() == disk.read_bytes()
        other = host.disk("other", 1_234_567, seed=3)
        ended = host.run("extents", other, "--since", export)
        assert json.loads(ended.out)["meaning"] == "changed"


@pytest.mark.slow
@pytest.mark.needs("nbdkit")
@pytest.mark.parametrize(
    "words", [["send", "-q"], ["digests"], ["send", "-q", "--format", "rbd"]], ids=" ".join
)
def test_a_far_server_has_more_requests_than_there_are_workers(
    host: Host, words: list[str]
) -> None:
    disk = host.folder / "disk"
    disk.write_bytes(random.Random(5).randbytes(40 << 20))  # noqa: S311  # not secrets
    log = host.folder / "log"
    filters = ["-r", "--filter=log", "--filter=delay"]
    about = ["rdelay=20ms", f"logfile={log}"]
    with nbdkit(host.folder, *filters, "file", disk, *about) as export:
        ended = host.run(*words, export)
        assert ended.status == 0, ended.err
    assert most_reads_at_once(log) > 4 * default_workers()  # a frame is four
    if "digests" in words:
        assert ended.out == host.run(*words, disk).out
    else:
        assert host.run("recv", host.folder / "copy", "--create", data=ended.out).status == 0
        assert (host.folder / "copy").read_bytes() == disk.read_bytes()


def most_reads_at_once(log: Path) -> int:
    """Return how many reads nbdkit had before it had answered one of them, at most."""
    most = now = 0
    for line in log.read_text().splitlines():
        now += (" Read id" in line) - ("...Read id" in line)
        most = max(most, now)
    return most


@pytest.mark.slow
@pytest.mark.needs("nbdkit", "openssl")
def test_certificates_are_given_by_a_folder(host: Host) -> None:
    disk, copy = host.disk("disk"), host.folder / "copy"
    pki = host.folder / "pki"
    pki.mkdir()
    make_certificates(pki)
    theirs = keyring(host.folder / "server", pki, ca="ca", server="server")
    ours = keyring(host.folder / "our s", pki, ca="ca", client="client")
    stranger = keyring(host.folder / "stranger", pki, ca="stranger")
    tls = ["--tls=require", f"--tls-certificates={theirs}", "--tls-verify-peer"]
    with nbdkit(host.folder, "-r", *tls, "file", disk) as export:
        clear, export = export, export.replace("nbd+", "nbds+")
        words: list[str | Path] = ["send", export, copy, "--create", "--tls-certificates"]
        for refused in (host.run(*words, stranger), host.run("send", clear, copy, "--create")):
            assert refused.status == 16, refused.err
            assert not copy.exists()
        assert "nothing was sent in clear" in host.run("extents", export).err
        ended = host.run(*words, ours)
        assert ended.status == 0, ended.err
    assert copy.read_bytes() == disk.read_bytes()


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["send", "nbd://h/x", "y", "--bitmap", "b"], "--base must name"),
        (["send", "disk", "y", "--base", "A", "--bitmap", "b"], "--bitmap is for a SOURCE"),
        (["send", "nbd://h/x", "y", "--base", "A", "--bitmap", "b", "--extents", "l"], "leave"),
        (["send", "nbd://h/x", "y", "--since", "s"], "is an export of an NBD server"),
        (["send", "disk", "nbd://h/x"], "only read"),
        (["send", "nbd://h/x", "nbd://h/y", "root@h:"], "no path that it could have there"),
        (["send", "nbd://h/x", "y", "--tls-certificates", "d"], "is for nbds://"),
        (["extents", "disk", "--bitmap", "b"], "--bitmap is for an export"),
        (["extents", "nbd://h/x", "--since", "y", "--bitmap", "b"], "without --since"),
        (["extents", "nbd://h/x?socket=y"], "names no host"),
    ],
)
def test_what_makes_no_sense_is_refused(host: Host, words: list[str], what: str) -> None:
    host.disk("disk")
    words = [str(host.folder / word) if word in {"disk", "y"} else word for word in words]
    ended = host.run(*words)
    assert (ended.status, what in ended.err) == (2, True), ended.err


@pytest.mark.needs("nbdkit")
def test_the_same_export_is_the_same_source_from_every_folder(host: Host) -> None:
    disk = host.disk("disk")
    with nbdkit(host.folder, "-r", "file", disk) as export:
        sent = host.run("send", export, "--goal", "A")
        receipt = host.run(
            "recv", "--create", host.folder / "copy", "--receipt", "-", data=sent.out
        )
        assert host.run("confirm", "-", data=receipt.out).status == 0
        changes = host.list_changes("changes", disk, disk)
        states = ["--base", "last", "--goal", "B"]
        assert host.run("send", export, *states, "--extents", changes).status == 0


# A guest that runs.


@contextmanager
def frozen(qmp: Qmp, folder: Path, number: int) -> Iterator[str]:
    """Export one moment of a guest's disk, with the bitmap of what changed since the one before.

    Until that is over, QEMU copies what the guest overwrites into a file of its own.
    """
    fleece, path = folder / f"fleece{number}.qcow2", folder / f"live{number}.sock"
    run("qemu-img", "create", "-q", "-f", "qcow2", str(fleece), str(DISK_BYTES))
    file = {"driver": "file", "filename": str(fleece)}
    qmp.ask("blockdev-add", driver="qcow2", **{"node-name": "fleece"}, file=file, backing="d0")
    actions = [
        _action("blockdev-backup", device="d0", target="fleece", sync="none", job="moment"),
        _action("block-dirty-bitmap-add", node="d0", name=f"b{number + 1}"),
    ]
    bitmaps = {}
    if number:
        actions.append(_action("block-dirty-bitmap-disable", node="d0", name=f"b{number}"))
        bitmaps = {"bitmaps": [f"b{number}"]}
    qmp.ask("transaction", actions=actions)
    address = {"type": "unix", "data": {"path": str(path)}}
    qmp.ask("nbd-server-start", addr=address)
    export = {"type": "nbd", "id": "vm", "node-name": "fleece", "name": "vm"}
    qmp.ask("block-export-add", **export, **bitmaps)
    try:
        yield f"nbd+unix:///vm?socket={path}"
    finally:
        qmp.ask("nbd-server-stop")
        qmp.ask("block-job-cancel", device="moment")
        while qmp.ask("query-block-jobs"):
            pass  # it ends soon
        qmp.ask("blockdev-del", **{"node-name": "fleece"})


def _action(kind: str, job: str = "", **data: str) -> dict[str, object]:
    return {"type": kind, "data": data | ({"job-id": job} if job else {})}


def records(copy: Path) -> set[int]:
    """Return the numbers of all records of a disk."""
    image = copy.read_bytes()
    heads = (struct.unpack_from("<II", image, at) for at in range(BLOCK, len(image), BLOCK))
    return {number for block, (number, own) in enumerate(heads, 1) if number and own == block}


@pytest.mark.slow
@pytest.mark.needs("qemu-system-x86_64", "qemu-img")
def test_a_guest_that_runs_is_copied_moment_by_moment(host: Host) -> None:
    disk, copy, boot = (host.folder / name for name in ("disk.qcow2", "copy", "boot"))
    boot.write_bytes(BOOT + content(1 << 20, 5).ljust(DISK_BYTES - len(BOOT), b"\0"))
    run("qemu-img", "convert", "-O", "qcow2", str(boot), str(disk))
    words = f"driver=qcow2,file.driver=file,file.filename={disk}"
    with machine(host.folder / "vm", words) as guest:
        guest.start()
        with connected(str(guest.monitor)) as qmp:
            before: set[int] = set()
            for number in range(2):
                guest.wait_beyond(guest.last + 10)
                _copy_moment(host, qmp, guest, copy, number)
                found = records(copy)
                assert len(found) > len(before)
                # No record without those before it; a number beyond all blocks would overwrite.
                assert len(found) == max(found) < DISK_BYTES // BLOCK
                before = found


def _copy_moment(host: Host, qmp: Qmp, guest: Machine, copy: Path, number: int) -> None:
    with frozen(qmp, guest.folder, number) as export:
        at = guest.last
        words = (
            ["--create"] if not number else ["--base", f"m{number - 1}", "--bitmap", f"b{number}"]
        )
        ended = host.run("send", export, copy, "--goal", f"m{number}", *words)
        assert ended.status == 0, ended.err
        guest.wait_beyond(at + 5)  # it ran on meanwhile, and what it wrote since is not in there
        with closing(disk_of(export).open_source()) as source:
            moment = memoryview(bytearray(source.size))
            source.read_into([0], [source.size], moment)
        assert copy.read_bytes() == moment
