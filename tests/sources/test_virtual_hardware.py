"""A disk is known by where it lies and hangs; what a snapshot does not hold is never taken."""

from typing import Any

import pytest
from pyVmomi import vim

from blockstream.sources.inventory import VirtualDisk
from blockstream.sources.virtual_hardware import disks

Device = vim.vm.device
Disk = Device.VirtualDisk


def described(backing: Any, bus: Any = None, **options: str) -> VirtualDisk:
    """Return what is understood of a disk, the second on its bus."""
    bus = bus or Device.ParaVirtualSCSIController(busNumber=0)
    bus.key = 1000
    disk = Disk(key=2001, controllerKey=1000, unitNumber=1, backing=backing, capacityInKB=64)
    extra = [vim.option.OptionValue(key=key, value=value) for key, value in options.items()]
    (found,) = disks({"config.hardware.device": [disk, bus], "config.extraConfig": extra})
    return found


@pytest.mark.parametrize(
    ("bus", "name"),
    [
        (Device.ParaVirtualSCSIController(busNumber=2), "scsi2:1.ctkEnabled"),
        (Device.VirtualLsiLogicSASController(busNumber=0), "scsi0:1.ctkEnabled"),
        (Device.VirtualAHCIController(busNumber=0), "sata0:1.ctkEnabled"),
        (Device.VirtualNVMEController(busNumber=1), "nvme1:1.ctkEnabled"),
        (Device.VirtualIDEController(busNumber=1), "ide1:1.ctkEnabled"),
        (Device.VirtualPCIController(busNumber=0), ""),
    ],
)
def test_the_setting_of_a_disk_is_named_after_its_place(bus: Any, name: str) -> None:
    assert described(Disk.FlatVer2BackingInfo(), bus).setting == name


@pytest.mark.parametrize(
    ("change", "options", "words"),
    [
        ("52 de/81", {"scsi0:1.ctkEnabled": "TRUE"}, ""),
        ("52 de/81", {"SCSI0:1.CTKENABLED": "true"}, ""),
        ("52 de/81", {}, ""),
        ("52 de/81", {"scsi0:1.ctkEnabled": "FALSE"}, "tracking is off for this disk"),
        ("", {"scsi0:1.ctkenabled": "false"}, "scsi0:1.ctkEnabled is false (set it to TRUE"),
        ("", {"scsi0:0.ctkEnabled": "TRUE"}, "scsi0:1.ctkEnabled is not set"),
        ("", {"scsi0:1.ctkEnabled": "TRUE"}, "that begins with a snapshot"),
    ],
)
def test_a_disk_without_tracking_is_told_by_its_setting(
    change: str, options: dict[str, str], words: str
) -> None:
    found = described(Disk.FlatVer2BackingInfo(changeId=change or None), **options)
    assert words in found.why_untracked
    assert bool(words) == bool(found.why_untracked)


@pytest.mark.parametrize(
    "backing",
    [
        Disk.FlatVer2BackingInfo(diskMode="persistent", fileName="[a] b.vmdk"),
        Disk.FlatVer2BackingInfo(sharing="sharingNone", fileName="[a] b.vmdk"),
        Disk.SparseVer2BackingInfo(fileName="[a] b.vmdk"),
        Disk.SeSparseBackingInfo(fileName="[a] b.vmdk"),
        Disk.RawDiskMappingVer1BackingInfo(compatibilityMode="virtualMode", fileName="[a] b.vmdk"),
        Disk.RawDiskVer2BackingInfo(descriptorFileName="[a] b.vmdk", deviceName="vmhba1:0:1"),
    ],
)
def test_what_a_snapshot_holds_is_taken(backing: Any) -> None:
    found = described(backing)
    assert (found.obstacle, found.file, found.size) == ("", "[a] b.vmdk", 65536)


@pytest.mark.parametrize(
    ("backing", "words"),
    [
        (Disk.FlatVer2BackingInfo(diskMode="independent_persistent"), "independent"),
        (Disk.SparseVer2BackingInfo(diskMode="independent_nonpersistent"), "independent"),
        (Disk.RawDiskMappingVer1BackingInfo(compatibilityMode="physicalMode"), "physical mode"),
        (Disk.FlatVer2BackingInfo(sharing="sharingMultiWriter"), "several machines"),
        (Disk.RawDiskMappingVer1BackingInfo(sharing="sharingMultiWriter"), "several machines"),
        (Disk.RawDiskVer2BackingInfo(sharing="sharingMultiWriter"), "several machines"),
        (Disk.FlatVer1BackingInfo(), "do not know"),
        (Disk.LocalPMemBackingInfo(), "do not know"),
    ],
)
def test_what_no_snapshot_holds_is_told(backing: Any, words: str) -> None:
    assert words in described(backing).obstacle


@pytest.mark.parametrize("sharing", ["virtualSharing", "physicalSharing", "noSharing"])
def test_a_bus_of_several_machines_is_told(sharing: str) -> None:
    bus = Device.VirtualLsiLogicController(busNumber=0, sharedBus=sharing)
    found = described(Disk.FlatVer2BackingInfo(), bus)
    assert ("bus" in found.obstacle) == (sharing != "noSharing")
