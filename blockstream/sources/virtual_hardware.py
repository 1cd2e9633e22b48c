"""The disks in the configuration of a machine, or of a snapshot, as VMware's API tells it."""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from pyVmomi import vim

from blockstream.sources.inventory import VirtualDisk

# What `disks` has to be given.
DISK_PATHS: Final = ("config.hardware.device", "config.extraConfig")
_BUSES: Final = (
    (vim.vm.device.VirtualSCSIController, "scsi"),
    (vim.vm.device.VirtualSATAController, "sata"),
    (vim.vm.device.VirtualNVMEController, "nvme"),
    (vim.vm.device.VirtualIDEController, "ide"),
)
_SHARED: Final = ("virtualSharing", "physicalSharing")
_BACKINGS: Final = (
    *("FlatVer2BackingInfo", "SparseVer2BackingInfo", "SeSparseBackingInfo"),
    *("RawDiskMappingVer1BackingInfo", "RawDiskVer2BackingInfo"),
)


def disks(values: Mapping[str, Any]) -> Iterator[VirtualDisk]:
    """Give the disks of a configuration, of which `DISK_PATHS` were asked for."""
    devices = values.get("config.hardware.device") or ()
    options = values.get("config.extraConfig") or ()
    # Its lines do not care for upper and lower case.
    settings = {str(each.key).lower(): str(each.value) for each in options}
    by_key = {int(device.key): device for device in devices}
    for device in devices:
        if not isinstance(device, vim.vm.device.VirtualDisk):
            continue
        backing = device.backing
        info = device.deviceInfo
        bus = by_key.get(int(device.controllerKey or 0))
        setting = _setting(bus, device.unitNumber)
        # A raw device has a name of its own, and is described by a file.
        file = getattr(backing, "fileName", None) or getattr(backing, "descriptorFileName", None)
        yield VirtualDisk(
            key=int(device.key),
            label=str(info.label) if info is not None else f"disk {device.key}",
            file=str(file or ""),
            uuid=str(getattr(backing, "uuid", None) or ""),
            # Kibibytes in old versions.
            size=int(device.capacityInBytes or device.capacityInKB * 1024),
            change=str(getattr(backing, "changeId", None) or ""),
            obstacle=_obstacle(backing, bus),
            setting=setting,
            setting_value=settings.get(setting.lower(), ""),
        )


def _setting(bus: Any, unit: int | None) -> str:
    """Return what lets the disk at a place of a bus be tracked; empty where that is not known."""
    kind = next((name for kind, name in _BUSES if isinstance(bus, kind)), "")
    return f"{kind}{bus.busNumber}:{unit}.ctkEnabled" if kind and unit is not None else ""


def _obstacle(backing: Any, bus: Any) -> str:
    """Say why a snapshot does not hold a disk; empty if it does."""
    if str(getattr(bus, "sharedBus", None) or "") in _SHARED:
        return "hangs on a bus that several machines share"
    if str(getattr(backing, "diskMode", None) or "").startswith("independent"):
        return "is independent of snapshots"
    if str(getattr(backing, "compatibilityMode", None) or "") == "physicalMode":
        return "is a raw device in physical mode"
    if str(getattr(backing, "sharing", None) or "") == "sharingMultiWriter":
        return "is written by several machines"
    if not type(backing).__name__.endswith(_BACKINGS):
        return f"lies in what we do not know ({type(backing).__name__})"
    return ""
