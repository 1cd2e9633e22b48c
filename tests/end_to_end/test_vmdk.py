"""VMDKs go to disks: whole chains, and deltas by the ids that they tell, or not at all."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.devices import loop_device
from tests.end_to_end.far_host import far_command, far_status
from tests.end_to_end.hosts import Host, content
from tests.vmdk_files import (
    Image,
    cowd,
    difference,
    overlaid,
    sesparse,
    some_grains,
    write_delta,
    write_flat,
)

SECTORS = 3 * 2048 + 8 * 3  # no multiple of a table
SIZE = SECTORS * 512
KINDS: dict[str, tuple[Callable[..., Image], int, str]] = {
    "cowd": (cowd, 512, "delta"),
    "sesparse": (sesparse, 4096, "sesparse"),
}


class Machine:
    """A virtual machine's folder, with its states one after the other."""

    def __init__(self, folder: Path, kind: str, **making: int) -> None:
        folder.mkdir()
        make, grain, self.suffix = KINDS[kind]
        grain = making.get("grain", grain // 512) * 512
        self.folder = folder
        self.states = [content(SIZE, 1)]
        self.base = write_flat(folder, "vm", self.states[0], cid="00000000")
        self.deltas: list[Path] = []
        for number in (1, 2):
            grains = some_grains(SIZE, grain, number, zeros=kind == "sesparse")
            parent = (self.base, *self.deltas)[-1]
            about = {"cid": f"{number:08}", "parent_cid": f"{number - 1:08}", "parent": parent.name}
            image = make(SECTORS, grains, **making)
            self.deltas.append(write_delta(folder, f"vm-{number:06}", image, SECTORS, **about))
            self.states.append(overlaid(self.states[-1], SIZE, grain, grains))

    def bare(self, number: int) -> Path:
        """Return the file of a delta that has no descriptor in it."""
        return self.folder / f"vm-{number:06}-{self.suffix}.vmdk"


@pytest.fixture(params=KINDS)
def machine(request: pytest.FixtureRequest, tmp_path: Path) -> Machine:
    return Machine(tmp_path / "vm", request.param)


def holds(host: Host, copy: Path, machine: Machine, number: int) -> bool:
    """Tell whether a copy is a state, and is recorded to be it."""
    assert not difference(copy.read_bytes(), machine.states[number])
    return host.holds(copy, f"vmdk:{number:08}")


@pytest.mark.slow
def test_a_chain_is_one_disk_however_it_is_sent(host: Host, machine: Machine) -> None:
    source, copy = f"vmdk:{machine.deltas[1]}", host.blank("copy", SIZE)
    ended = host.run("send", source, copy)
    assert ended.status == 0, ended.err
    assert holds(host, copy, machine, 2)
    other = host.blank("other", SIZE)
    assert host.pipe([source, "--goal", "mine"], [other]).statuses == (0, 0)
    assert other.read_bytes() == copy.read_bytes()
    assert host.holds(other, "mine")
    compared = host.run("extents", "-q", source, "--since", copy)
    assert (compared.status, json.loads(compared.out)["extents"]) == (0, [])


@pytest.mark.slow
def test_deltas_follow_each_other_by_their_ids(host: Host, machine: Machine) -> None:
    copy = host.folder / "copy"
    assert host.run("send", f"vmdk:{machine.base}", copy, "--create").status == 0
    assert holds(host, copy, machine, 0)
    ended = host.run("send", "--delta", f"vmdk:{machine.deltas[1]}", copy)
    assert (ended.status, "base of delta" in ended.err or "00000001" in ended.err) == (10, True)
    assert holds(host, copy, machine, 0)
    for number in (1, 2):
        ended = host.run("send", "--delta", f"vmdk:{machine.deltas[number - 1]}", copy)
        assert ended.status == 0, ended.err
        assert holds(host, copy, machine, number)


@pytest.mark.slow
def test_a_copy_made_by_others_is_adopted_first(host: Host, machine: Machine) -> None:
    copy = host.folder / "copy"
    copy.write_bytes(machine.states[0])
    first = f"vmdk:{machine.deltas[0]}"
    ended = host.run("send", "--delta", first, copy)
    assert (ended.status, "nothing is known of what the target holds" in ended.err) == (10, True)
    assert not difference(copy.read_bytes(), machine.states[0])
    assert host.run("adopt", copy, "--id", "vmdk:00000000").status == 0
    for name in ("vm.vmdk", "vm-flat.vmdk"):
        (machine.folder / name).unlink()  # a delta alone is enough
    assert host.run("send", "--delta", first, copy).status == 0
    assert holds(host, copy, machine, 1)


@pytest.mark.slow
def test_a_bare_delta_goes_onto_the_base_that_is_named(host: Host, machine: Machine) -> None:
    copy = host.folder / "copy"
    copy.write_bytes(machine.states[0])
    host.adopt(copy, "monday")
    bare = f"vmdk:{machine.bare(1)}"
    ended = host.run("send", "--delta", bare, copy)
    assert (ended.status, "--base must name" in ended.err) == (2, True)
    ended = host.run("send", bare, copy)
    assert (ended.status, "with --delta" in ended.err) == (14, True)
    ended = host.run("send", "--delta", "--base", "monday", "--goal", "tuesday", bare, copy)
    assert ended.status == 0, ended.err
    assert not difference(copy.read_bytes(), machine.states[1])
    assert host.holds(copy, "tuesday")


@pytest.mark.slow
def test_extents_are_those_of_the_delta_or_of_the_chain(host: Host, machine: Machine) -> None:
    newest = f"vmdk:{machine.deltas[0]}"
    changed = host.run("extents", "--delta", newest)
    listed = json.loads(changed.out)
    assert listed["meaning"] == "changed"
    assert json.loads(host.run("extents", newest).out)["meaning"] == "allocated"
    assert host.run("extents", "--delta", f"vmdk:{machine.bare(1)}").out == changed.out
    new = host.folder / "new"
    new.write_bytes(machine.states[1])
    (host.folder / "changed.json").write_bytes(changed.out)
    copy = host.folder / "copy"
    copy.write_bytes(machine.states[0])
    host.adopt(copy, "A")
    words = ["--base", "A", "--goal", "B", "--extents", str(host.folder / "changed.json")]
    assert host.run("send", *words, new, copy).status == 0
    assert not difference(copy.read_bytes(), machine.states[1])


@pytest.mark.slow
def test_a_delta_goes_to_another_host_and_into_a_store(host: Host, machine: Machine) -> None:
    copy, store = host.blank("copy", SIZE), f"dir:{host.folder}/store"
    way = ["--rsh", "sh -c {command}", "--remote-command", far_command(host)]
    base, delta = f"vmdk:{machine.base}", f"vmdk:{machine.deltas[0]}"
    assert host.run("store", "init", store).status == 0
    for words, number in (([base], 0), (["--delta", delta], 1)):
        ended = host.run("send", *words, f"far:{copy}", *way)
        assert ended.status == 0, ended.err
        assert not difference(copy.read_bytes(), machine.states[number])
        assert far_status(host, copy)["id"] == f"vmdk:{number:08}"
        ended = host.run("send", *words, f"{store}/vm")
        assert ended.status == 0, ended.err
    assert host.run("restore", f"{store}/vm", host.folder / "back", "--create").status == 0
    assert not difference((host.folder / "back").read_bytes(), machine.states[1])


# Where vmdksync failed: a disk that ends within a table, grains of 8 sectors, a directory
# elsewhere, other flags, and a regular file as the target.
ODD: list[dict[str, int]] = [{}, {"grain": 8}, {"directory": 9}, {"flags": 1}]


@pytest.mark.slow
@pytest.mark.parametrize("making", ODD, ids=str)
def test_odd_deltas_are_applied_to_a_file(host: Host, making: dict[str, int]) -> None:
    machine, copy = Machine(host.folder / "vm", "cowd", **making), host.folder / "copy"
    assert host.run("send", f"vmdk:{machine.base}", copy, "--create").status == 0
    ended = host.run("send", "--delta", f"vmdk:{machine.deltas[0]}", copy)
    assert ended.status == 0, ended.err
    assert ("flags are 1" in ended.err) == ("flags" in making)
    assert holds(host, copy, machine, 1)


@pytest.mark.root
@pytest.mark.slow
def test_deltas_are_applied_to_a_device(host: Host, machine: Machine) -> None:
    file = host.blank("file", SIZE)
    with loop_device(file) as device:
        assert host.run("send", f"vmdk:{machine.base}", device).status == 0
        for delta in machine.deltas:
            ended = host.run("send", "--delta", f"vmdk:{delta}", device)
            assert ended.status == 0, ended.err
    assert not difference(file.read_bytes(), machine.states[2])


@pytest.mark.parametrize("what", ["table past the end", "parent with another content"])
def test_what_vmdksync_would_have_applied_is_refused(host: Host, tmp_path: Path, what: str) -> None:
    machine, copy = Machine(tmp_path / "vm", "cowd"), host.blank("copy", SIZE)
    if what.startswith("table"):
        data = bytearray(machine.bare(2).read_bytes())
        data[2048:2052] = (1 << 30).to_bytes(4, "little")
        machine.bare(2).write_bytes(data)
    else:
        text = machine.deltas[1].read_text()
        machine.deltas[1].write_text(text.replace("parentCID=00000001", "parentCID=0000000a"))
    ended = host.run("send", f"vmdk:{machine.deltas[1]}", copy)
    assert (ended.status, "nothing was sent" in ended.err) == (14, True)
    assert not copy.read_bytes().strip(b"\0")


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["--delta", "{base}"], 2, "has no parent"),
        (["--delta", "disk.img"], 2, "are for vmdk:FILE"),
        (["--allow-outside", "disk.img"], 2, "are for vmdk:FILE"),
        (["--quiesced", "{delta}"], 2, "for logical volumes"),
        (["--delta", "--extents", "x", "{delta}"], 2, "leave --extents out"),
        (["--delta", "--audit", "9", "{delta}"], 2, "leave --audit out"),
        (["--delta", "far:/disk"], 2, "of this host"),
        (["--goal", "vmdk:00000000", "--delta", "{delta}"], 2, "the content id of its parent"),
        (["vmdk:nothing.vmdk"], 17, "does not exist"),
        (["{delta}", "vmdk:x.vmdk"], 2, "only read"),
        (["{delta}", "far:/folder/"], 2, "needs a TARGET that is named"),
    ],
)
def test_what_makes_no_sense_is_said(
    host: Host, tmp_path: Path, words: list[str], status: int, said: str
) -> None:
    machine = Machine(tmp_path / "vm", "cowd")
    names = {"base": f"vmdk:{machine.base}", "delta": f"vmdk:{machine.deltas[0]}"}
    host.disk("disk.img")
    target = f"dir:{tmp_path}/store/vm" if "--audit" in words else str(host.blank("copy", SIZE))
    given = [word.format(**names) for word in words]
    ended = host.run("send", *given, *([] if words[0] == "{delta}" else [target]))
    assert (ended.status, said in ended.err) == (status, True), ended.err
