"""A machine of VMware arrives as it was at one moment, wherever it goes, and leaves no snapshot."""

import json
import os
import signal
from pathlib import Path

import pytest

from tests.end_to_end.far_host import far_command, far_status
from tests.end_to_end.hosts import Host, Words, wait_until
from tests.end_to_end.test_secrets import watched
from tests.vsphere_simulator.server import PASSWORD, VM, Simulator

pytestmark = [
    pytest.mark.slow,
    pytest.mark.needs("go", "govmomi"),
    pytest.mark.timeout(300),  # the first one builds the simulator
]
MIB = 1 << 20
SIZE = 3 * MIB + 512


@pytest.fixture
def machine(vcenter: Simulator, host: Host) -> Simulator:
    """A machine with two disks, for a host that knows the password."""
    vcenter.make_disk(SIZE)
    vcenter.make_disk(MIB, key=2001)
    vcenter.write(0, os.urandom(MIB))
    vcenter.write(100, os.urandom(1000), key=2001)
    host.environment |= vcenter.environment
    return vcenter


def copies(folder: Path) -> dict[int, bytes]:
    return {key: (folder / f"{VM}-{key}.raw").read_bytes() for key in (2000, 2001)}


def frozen(machine: Simulator) -> dict[int, bytes]:
    return {key: machine.frozen(key) for key in (2000, 2001)}


def test_all_disks_go_into_a_folder_again_and_again(machine: Simulator, host: Host) -> None:
    folder = host.folder / "copies"
    folder.mkdir()
    words: list[str | Path] = [
        "send",
        machine.location(),
        folder,
        "--create",
        "--enable-cbt",
        "--json",
    ]
    machine.control("busy", seed=1)
    for number in range(3):
        machine.write(2 * MIB + number, os.urandom(2000))
        ended = host.run(*words)
        assert ended.status == 0, ended.err
        assert copies(folder) == frozen(machine)
        told = next(each for each in ended.events if each["event"] == "machine")
        assert told["whole"] == (2 if number == 0 else 0)
        assert told["quiesced"] is True
    assert machine.snapshots() == []


def test_one_disk_goes_onto_a_disk_and_any_host_continues(machine: Simulator, host: Host) -> None:
    copy = host.folder / "copy"
    way = ["--rsh", "sh -c {command}", "--remote-command", far_command(host)]
    words = ["send", machine.location(disk=2000), f"lab:{copy}", "--create", "--enable-cbt"]
    assert host.run(*words, *way).status == 0
    assert copy.read_bytes() == machine.frozen()
    machine.write(MIB, b"new")
    # Another sender, which never heard of it: all it needs lies with the target.
    other = {"BLOCKSTREAM_STATE_DIR": str(host.folder / "other-state")}
    ended = host.run(*words, *way, environment=other)
    assert ended.status == 0, ended.err
    assert "64.0 KiB changed of" in ended.err
    assert copy.read_bytes() == machine.frozen()
    assert str(far_status(host, copy)["id"]).startswith("cbt:")


def test_a_disk_that_was_brought_up_to_date_can_go_back(machine: Simulator, host: Host) -> None:
    copy = host.folder / "copy"
    words: Words = ["send", machine.location(disk=2000), copy, "--enable-cbt"]
    assert host.run(*words, "--create").status == 0
    for number, mode in enumerate(("stage", "undo")):
        before = copy.read_bytes()
        machine.write(number * MIB, b"new")
        ended = host.run(*words, "--apply", mode)
        assert ended.status == 0, ended.err
        assert copy.read_bytes() == machine.frozen() != before
    assert host.run("undo", copy).status == 0
    assert copy.read_bytes() == before


def test_all_disks_go_to_another_host_as_one_set(machine: Simulator, host: Host) -> None:
    folder = host.folder / "there"
    folder.mkdir()
    way = ["--rsh", "sh -c {command}", "--remote-command", far_command(host)]
    words = ["send", machine.location(), f"lab:{folder}/", "--create", "--enable-cbt", *way]
    for number in range(2):
        machine.write(number * 70000, b"new")
        machine.write(number * 70000, b"new", key=2001)
        ended = host.run(*words)
        assert ended.status == 0, ended.err
        assert copies(folder) == frozen(machine)
        assert ("because" in ended.err) == (number == 0)


def test_all_disks_become_restore_points(machine: Simulator, host: Host) -> None:
    store = f"dir:{host.folder}/store"
    assert host.run("store", "init", store).status == 0
    words = ["send", machine.location(), f"{store}/mail", "--enable-cbt"]
    for number in range(2):
        machine.write(number * 70000, b"new")
        ended = host.run(*words)
        assert ended.status == 0, ended.err
        for key in (2000, 2001):
            back = host.folder / f"back-{key}-{number}"
            ended = host.run("restore", f"{store}/mail-{key}", back, "--create")
            assert ended.status == 0, ended.err
            assert back.read_bytes() == machine.frozen(key)
    listed = host.run("points", f"{store}/mail-2000", "--json")
    assert [point["type"] for point in listed.results] == ["full", "increment"]


def test_a_tracker_that_lies_is_caught_by_the_audit(machine: Simulator, host: Host) -> None:
    store = f"dir:{host.folder}/store"
    assert host.run("store", "init", store).status == 0
    words = ["send", machine.location(disk=2000), f"{store}/mail", "--enable-cbt", "--audit", "1"]
    assert host.run(*words).status == 0
    machine.write(MIB, b"missed")
    machine.control("forget")
    ended = host.run(*words)
    assert ended.status == 19, ended.err
    assert "the list of changes had missed" in ended.err
    back = host.folder / "back"
    assert host.run("restore", f"{store}/mail", back, "--create").status == 0
    assert back.read_bytes() == machine.frozen()


@pytest.mark.parametrize("far", [False, True], ids=["here", "there"])
def test_a_tracker_that_lies_is_caught_without_it(
    machine: Simulator, host: Host, far: bool
) -> None:
    copy = host.folder / "copy"
    way = ["--rsh", "sh -c {command}", "--remote-command", far_command(host)] if far else []
    target = f"lab:{copy}" if far else copy
    words: list[str | Path] = ["send", machine.location(disk=2000), target, "--verify-cbt", *way]
    assert host.run(*words, "--create", "--enable-cbt").status == 0
    machine.write(MIB, b"missed")
    machine.control("forget")
    machine.write(2 * MIB, b"known")
    ended = host.run(*words)
    assert ended.status == 19, ended.err
    # Digests are of blocks of 64 KiB, two files are compared by smaller ones.
    assert f"had missed {'64.0' if far else '4.0'} KiB of {VM}-2000" in ended.err
    assert copy.read_bytes() == machine.frozen()
    machine.write(0, b"more")
    ended = host.run(*words)
    assert ended.status == 0, ended.err
    assert copy.read_bytes() == machine.frozen()


def test_a_round_that_found_more_and_was_cut_can_be_given_up(
    machine: Simulator, host: Host
) -> None:
    copy = host.folder / "copy"
    words: list[str | Path] = ["send", machine.location(disk=2000), copy]
    assert host.run(*words, "--create", "--enable-cbt").status == 0
    machine.write(MIB, b"missed")
    machine.control("forget")
    machine.write(2 * MIB, b"known")
    killed = {"BLOCKSTREAM_TESTING": "1", "BLOCKSTREAM_FAILPOINT": "recv.before_clean:1:kill"}
    assert host.run(*words, "--verify-cbt", environment=killed).status == -signal.SIGKILL
    # What the tracker does not know of is half-written, and nothing is missed there any more.
    for more in ([], ["--verify-cbt"]):
        ended = host.run(*words, *more)
        assert ended.status == 10, ended.err
        assert "`blockstream abort` gives that one up" in ended.err
    assert host.run("abort", copy).status == 0
    ended = host.run(*words)
    assert ended.status == 0, ended.err
    assert copy.read_bytes() == machine.frozen()
    assert machine.snapshots() == []


def test_several_disks_do_not_fit_one_place(machine: Simulator, host: Host) -> None:
    ended = host.run("send", machine.location(), host.folder / "copy", "--create")
    assert ended.status == 2
    assert "pick one with ?disk=2000" in ended.err
    assert machine.snapshots() == []


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGKILL])
def test_whoever_is_killed_leaves_no_snapshot_or_the_next_one_removes_it(
    machine: Simulator, host: Host, number: signal.Signals
) -> None:
    copy = host.folder / "copy"
    words: list[str | Path] = ["send", machine.location(disk=2000), copy, "--create"]
    # Reads are tried again for some seconds: it is in the middle of its work.
    machine.arm("folder500", times=1000)
    process = host.start(words)
    wait_until(lambda: machine.stats()["reads"] > 0)
    process.signal(number)
    status = process.wait().status
    if number == signal.SIGHUP:
        assert status == 11
        assert machine.snapshots() == []
    else:
        assert len(machine.snapshots()) == 1
    machine.arm("folder500", times=0)
    ended = host.run(*words)
    assert ended.status == 0, ended.err
    assert machine.snapshots() == []
    assert copy.read_bytes() == machine.frozen()
    assert ("of an earlier round is removed" in ended.err) == (number == signal.SIGKILL)


@pytest.mark.parametrize("far", [False, True], ids=["here", "there"])
def test_an_increment_that_was_cut_is_covered_by_the_next_one(
    machine: Simulator, host: Host, far: bool
) -> None:
    copy = host.folder / "copy"
    way = ["--rsh", "sh -c {command}", "--remote-command", far_command(host)] if far else []
    target = f"lab:{copy}" if far else copy
    words: list[str | Path] = ["send", machine.location(disk=2000), target, *way]
    assert host.run(*words, "--create", "--enable-cbt").status == 0
    machine.write(0, os.urandom(SIZE))
    # The first frames arrive, then nothing does.
    before = machine.stats()["reads"]
    machine.arm("folder500", times=1000, after=3)
    process = host.start(words)
    wait_until(lambda: machine.stats()["reads"] > before + 4)
    process.signal(signal.SIGKILL)
    process.wait()
    machine.arm("folder500", times=0)
    machine.write(5, b"since then")
    ended = host.run(*words)
    assert ended.status == 0, ended.err
    assert "because" not in ended.err
    assert copy.read_bytes() == machine.frozen()
    machine.write(SIZE - 9, b"and again")
    ended = host.run(*words)
    assert ended.status == 0, ended.err
    assert copy.read_bytes() == machine.frozen()


def test_a_snapshot_that_stays_has_a_status_of_its_own_since_all_was_committed(
    machine: Simulator, host: Host
) -> None:
    copy = host.folder / "copy"
    words: list[str | Path] = ["send", machine.location(disk=2000), copy, "--create"]
    assert host.run("vsphere", "enable-cbt", machine.location()).status == 0
    machine.arm("remove", "GenericVmConfigFault")
    ended = host.run(*words)
    assert ended.status == 21, ended.err
    assert "committed:" in ended.err
    assert machine.snapshots()[0] in ended.err
    assert "it grows, and may fill its datastore, until it is removed" in ended.err
    machine.write(0, b"newer")
    ended = host.run(*words)
    assert ended.status == 0, ended.err
    assert "64.0 KiB changed of" in ended.err
    assert copy.read_bytes() == machine.frozen()
    assert machine.snapshots() == []


def test_what_the_tracker_missed_is_told_even_if_a_snapshot_stays(
    machine: Simulator, host: Host
) -> None:
    copy = host.folder / "copy"
    words: list[str | Path] = ["send", machine.location(disk=2000), copy, "--verify-cbt"]
    assert host.run(*words, "--create", "--enable-cbt").status == 0
    machine.write(MIB, b"missed")
    machine.control("forget")
    machine.arm("remove", "GenericVmConfigFault")
    ended = host.run(*words)
    assert ended.status == 21, ended.err
    assert f"had missed 4.0 KiB of {VM}-2000" in ended.err
    assert copy.read_bytes() == machine.frozen()


def test_what_an_audit_finds_in_one_disk_keeps_no_other_from_the_store(
    machine: Simulator, host: Host
) -> None:
    store = f"dir:{host.folder}/store"
    assert host.run("store", "init", store).status == 0
    words = ["send", machine.location(), f"{store}/mail", "--enable-cbt", "--audit", "1"]
    assert host.run(*words).status == 0
    for key in (2000, 2001):
        machine.write(70000, b"missed", key=key)
        machine.control("forget", key=key)
    ended = host.run(*words)
    assert ended.status == 19, ended.err
    for key in (2000, 2001):
        assert f"{store}/mail-{key}@2 is right, but the list of changes had missed" in ended.err
        back = host.folder / f"back-{key}"
        assert host.run("restore", f"{store}/mail-{key}", back, "--create").status == 0
        assert back.read_bytes() == machine.frozen(key)


def test_what_an_audit_found_is_told_even_if_a_snapshot_stays(
    machine: Simulator, host: Host
) -> None:
    store = f"dir:{host.folder}/store"
    assert host.run("store", "init", store).status == 0
    words = ["send", machine.location(disk=2000), f"{store}/mail", "--enable-cbt", "--audit", "1"]
    assert host.run(*words).status == 0
    machine.write(MIB, b"missed")
    machine.control("forget")
    machine.arm("remove", "GenericVmConfigFault")
    ended = host.run(*words)
    assert ended.status == 21, ended.err
    assert "the list of changes had missed" in ended.err
    assert "all was sent and committed, but the snapshot" in ended.err


def test_the_password_comes_out_nowhere(machine: Simulator, host: Host) -> None:
    copy, file = host.folder / "copy", host.folder / "password"
    file.write_text(f"{PASSWORD}\n")
    machine.control("expire")
    host.environment.pop("BLOCKSTREAM_VSPHERE_PASSWORD")
    one = machine.location(disk=2000)
    given: list[str | Path] = ["--password-file", file]
    said: list[bytes] = []
    with watched() as lines:
        commands: tuple[tuple[list[str | Path], int], ...] = (
            (["send", one, copy, "--create", *given, "--json"], 0),
            (["send", one, copy, *given], 0),
            (["send", one, copy], 16),
            (["vsphere", "ls", one, *given], 0),
            (["send", one.replace("@localhost", f":{PASSWORD}@localhost"), copy], 2),
        )
        for words, status in commands:
            ended = host.run(*words)
            assert ended.status == status, ended.err
            said += [ended.out, ended.err.encode()]
    kept = [path.read_bytes() for path in host.state_dir.rglob("*") if path.is_file()]
    asked = f":{PASSWORD}@".encode()
    for text in (*said, *kept, *(line for line in lines if asked not in line)):
        assert PASSWORD.encode() not in text


def test_machines_are_listed_and_tracked(machine: Simulator, host: Host) -> None:
    ended = host.run("vsphere", "ls", machine.location(), "--json")
    (found,) = ended.results
    assert (found["path"], found["tracked"]) == (f"DC0/vm/{VM}", False)
    disks = json.loads(json.dumps(found["disks"]))
    assert [(each["key"], each["size"]) for each in disks] == [(2000, SIZE), (2001, MIB)]
    ended = host.run("vsphere", "enable-cbt", machine.location())
    assert ended.status == 0, ended.err
    assert machine.snapshots() == []
    ended = host.run("vsphere", "enable-cbt", machine.location())
    assert "were tracked already" in ended.err
    ended = host.run("vsphere", "ls", machine.location())
    assert f"DC0/vm/{VM}   tracked" in ended.out.decode()
    assert "ctkEnabled" not in ended.out.decode()
    machine.control("bar", key=2001, setting="FALSE")
    said = "tracking is off for this disk, though on for its machine: scsi0:1.ctkEnabled is FALSE"
    ended = host.run("vsphere", "ls", machine.location())
    assert ended.out.decode().count(said) == 1
    ended = host.run("vsphere", "enable-cbt", machine.location())
    assert ended.status == 0
    assert f"Hard disk 2: {said}" in ended.err


@pytest.mark.parametrize(
    "words",
    [
        ["--since", "last"],
        ["--rotate"],
        ["--quiesced"],
        ["--extents", "x"],
        ["--goal", "x"],
        ["--base", "last"],
        ["-n"],
        ["--compare"],
        ["--audit", "3"],
        ["--bwlimit", "1M"],
        ["--compress", "zstd:3"],
        ["--bitmap", "x"],
        ["--delta"],
        ["--streams", "2"],
    ],
)
def test_an_option_without_effect_is_refused(host: Host, words: list[str]) -> None:
    ended = host.run("send", "vsphere://ann@127.0.0.1:1/DC/vm/a", host.folder / "copy", *words)
    assert ended.status == 2, ended.err


def test_a_store_is_not_verified_as_disks_are(host: Host) -> None:
    place, store = "vsphere://ann@127.0.0.1:1/DC/vm/a", f"dir:{host.folder}/store/mail"
    for words, said in ((["--verify-cbt"], "by --audit 1"), (["--create"], "a store is none")):
        ended = host.run("send", place, store, *words)
        assert ended.status == 2
        assert said in ended.err


def test_options_of_machines_are_refused_elsewhere(host: Host) -> None:
    disk = host.disk("disk")
    for words in (["--enable-cbt"], ["--on-cbt-loss", "fail"], ["--quiesce-guest", "no"]):
        ended = host.run("send", disk, host.folder / "copy", "--create", *words)
        assert ended.status == 2
        assert "is for a vsphere:// location" in ended.err
