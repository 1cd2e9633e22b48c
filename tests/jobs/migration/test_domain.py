"""A domain of libvirt is defined over there, stands still here, and runs in one place only."""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from blockstream.errors import InterruptedTransferError
from blockstream.jobs.migration.domain import DomainGuest, Leaving
from blockstream.jobs.migration.guests import FarHost
from blockstream.locations.ssh import Remote, Way
from blockstream.run import Run
from blockstream.transfers.peer_options import PeerOptions

pytestmark = [pytest.mark.slow, pytest.mark.needs("virsh", "libvirtd")]

DEFINITION = """
<domain type="test">
  <name>vm</name><memory>65536</memory><os><type>hvm</type></os>
  <metadata><app:note xmlns:app="http://app.example/">kept</app:note></metadata>
  <devices>
    <disk type="block" device="disk"><source dev="{disk}"/><target dev="vda"/></disk>
    <disk type="file" device="cdrom"><source file="/iso"/><target dev="hda"/><readonly/></disk>
  </devices>
</domain>
"""


@dataclass(frozen=True, slots=True)
class Libvirt:
    """A daemon of libvirt whose guests are imagined, by libvirt's own test driver."""

    folder: Path

    @property
    def uri(self) -> str:
        return f"test+unix:///default?socket={self.folder}/libvirt-sock"

    def virsh(self, *words: str) -> str:
        done = subprocess.run(
            ["virsh", "-c", self.uri, *words], capture_output=True, text=True, check=False
        )
        return (done.stdout + done.stderr).strip()

    def state(self) -> str:
        return self.virsh("domstate", "vm")


def _daemon(folder: Path) -> list[subprocess.Popen[bytes]]:
    """Start one, and somebody who stays connected: with the last one, its guests go."""
    empty = folder / "no-drivers"
    empty.mkdir(parents=True)
    config = folder / "conf"
    config.write_text(f'unix_sock_dir = "{folder}"\nauth_unix_rw = "none"\nauth_unix_ro = "none"\n')
    program = shutil.which("libvirtd", path=f"{os.environ['PATH']}:/usr/sbin") or ""
    daemon = subprocess.Popen(
        [program, "-f", str(config), "-p", str(folder / "pid")],
        env=os.environ | {"LIBVIRT_DRIVER_DIR": str(empty)},
        stderr=subprocess.DEVNULL,
    )
    libvirt = Libvirt(folder)
    while "list" not in libvirt.virsh("help", "list") or not (folder / "libvirt-sock").exists():
        assert daemon.poll() is None
        time.sleep(0.05)
    stays = subprocess.Popen(
        ["virsh", "-c", libvirt.uri, "event", "--all", "--loop"], stdout=subprocess.DEVNULL
    )
    time.sleep(0.3)
    return [stays, daemon]


@pytest.fixture(scope="module")
def daemons(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Libvirt, Libvirt]]:
    folders = [tmp_path_factory.mktemp(name) for name in ("here", "there")]
    running = [process for folder in folders for process in _daemon(folder)]
    yield Libvirt(folders[0]), Libvirt(folders[1])
    for process in running:
        process.terminate()
        process.wait()


@pytest.fixture
def hosts(
    daemons: tuple[Libvirt, Libvirt], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Libvirt, Libvirt]:
    here, there = daemons
    for host in daemons:
        host.virsh("destroy", "vm")
        host.virsh("undefine", "vm")
    definition = tmp_path / "vm.xml"
    definition.write_text(DEFINITION.format(disk=tmp_path / "disk"))
    here.virsh("define", str(definition))
    here.virsh("start", "vm")
    assert here.state() == "running"
    monkeypatch.setenv("LIBVIRT_DEFAULT_URI", here.uri)
    monkeypatch.setenv("URI_THERE", there.uri)
    return here, there


def guest(
    tmp_path: Path, leaving: Leaving = Leaving.SHUTDOWN, disks: dict[str, str] | None = None
) -> DomainGuest:
    way = Way(rsh="env sh -c 'LIBVIRT_DEFAULT_URI=$URI_THERE exec sh -c \"$0\"' {command}")
    far = FarHost(Remote("there", "/dev/vg/vm"), PeerOptions(way), Run())
    moves = disks or {str(tmp_path / "disk"): "/dev/other/vm"}
    return DomainGuest("vm", leaving, moves, tmp_path / "state", far, far.run)


@pytest.mark.parametrize("leaving", list(Leaving))
def test_a_domain_goes_over(
    hosts: tuple[Libvirt, Libvirt], tmp_path: Path, leaving: Leaving
) -> None:
    here, there = hosts
    here.virsh("autostart", "vm")
    # The test driver restores nothing that was altered, so there it keeps its path.
    there_too = str(tmp_path / "disk") if leaving is Leaving.SAVE else "/dev/other/vm"
    moving = guest(tmp_path, leaving, {str(tmp_path / "disk"): there_too})
    assert moving.problems() == []
    moving.prepare()
    assert (here.state(), there.state()) == ("running", "shut off")
    began = moving.pause()
    assert began <= time.monotonic()
    assert (here.state(), there.state()) == ("shut off", "shut off")
    moving.start_there()
    assert (here.state(), there.state()) == ("shut off", "running")
    definition = there.virsh("dumpxml", "vm", "--inactive")
    assert f"'{there_too}'" in definition
    assert f"'{there_too}'" in there.virsh("dumpxml", "vm")
    assert definition.count("<source") == 2
    assert "app.example" in definition
    assert "migrating" not in definition
    # Whoever starts the old host again must not start the old guest.
    assert "disable" in here.virsh("dominfo", "vm").partition("Autostart:")[2]
    assert "enable" in there.virsh("dominfo", "vm").partition("Autostart:")[2]
    assert list((tmp_path / "state").glob("*")) == []
    moving.call_off()  # nothing that is over is undone
    assert there.state() == "running"


@pytest.mark.parametrize("leaving", list(Leaving))
@pytest.mark.parametrize("paused", [False, True])
def test_a_domain_comes_back(
    hosts: tuple[Libvirt, Libvirt], tmp_path: Path, leaving: Leaving, paused: bool
) -> None:
    here, there = hosts
    moving = guest(tmp_path, leaving)
    moving.prepare()
    if paused:
        moving.pause()
    again = guest(tmp_path, leaving)  # as a run does that comes after one which died
    again.roll_back()
    again.call_off()
    assert here.state() == "running"
    assert "failed to get domain" in there.state()
    assert list(tmp_path.glob("state/*")) == []


@pytest.mark.parametrize("leaving", list(Leaving))
def test_one_that_cannot_be_started_there_comes_back(
    hosts: tuple[Libvirt, Libvirt], tmp_path: Path, leaving: Leaving
) -> None:
    here, there = hosts
    moving = guest(tmp_path, leaving)
    moving.prepare()
    moving.pause()
    there.virsh("undefine", "vm")
    if leaving is Leaving.SAVE:
        (tmp_path / "state" / "vm.save").write_bytes(b"damaged")
        with pytest.raises(InterruptedTransferError, match="virsh save-image-dumpxml failed"):
            moving.start_there()
        return
    with pytest.raises(InterruptedTransferError, match="failed to get domain"):
        moving.start_there()
    moving.roll_back()
    assert here.state() == "running"


def test_a_definition_that_was_there_before_is_not_taken_away(
    hosts: tuple[Libvirt, Libvirt], tmp_path: Path
) -> None:
    here, there = hosts
    (tmp_path / "vm.xml").write_text(here.virsh("dumpxml", "vm", "--inactive"))
    there.virsh("define", str(tmp_path / "vm.xml"))
    moving = guest(tmp_path)
    assert moving.problems() == []
    moving.prepare()
    assert "/dev/other/vm" in there.virsh("dumpxml", "vm")
    moving.call_off()
    assert there.state() == "shut off"


def test_what_is_wrong_is_said_before(hosts: tuple[Libvirt, Libvirt], tmp_path: Path) -> None:
    here, there = hosts
    (stays,) = guest(tmp_path, disks={"/dev/vg/other": "/dev/vg/other"}).problems()
    assert "has disks that would not move" in stays
    disks = {str(tmp_path / "disk"): "/dev/other/vm", "/dev/vg/data": "/dev/vg/data"}
    (unused,) = guest(tmp_path, disks=disks).problems()
    assert "does not have /dev/vg/data" in unused
    there.virsh("define", str(tmp_path / "vm.xml"))
    there.virsh("start", "vm")
    other, twice = guest(tmp_path).problems()
    assert "there: another domain is called vm there" in other
    assert "there: the domain vm is running there" in twice
    here.virsh("destroy", "vm")
    assert "the domain vm is shut off" in guest(tmp_path).problems()[0]
    here.virsh("undefine", "vm")
    here.virsh("create", str(tmp_path / "vm.xml"))
    assert "the domain vm is transient" in guest(tmp_path).problems()[0]
