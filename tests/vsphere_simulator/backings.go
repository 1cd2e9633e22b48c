// What the API says a disk lies in. vcsim knows only flat files, and panics on anything else, so
// that disks have their own kinds of backing only while it does nothing with them.
package main

import (
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"
)

type (
	flat     = types.VirtualDiskFlatVer2BackingInfo
	sparse   = types.VirtualDiskSparseVer2BackingInfo
	seSparse = types.VirtualDiskSeSparseBackingInfo
	mapping  = types.VirtualDiskRawDiskMappingVer1BackingInfo
)

// show gives the disks of a machine, and of its snapshots, the backings that clients see.
func (s *sim) show(vm *simulator.VirtualMachine) {
	s.exchange(vm, func(d *disk, backing types.BaseVirtualDeviceBackingInfo) types.BaseVirtualDeviceBackingInfo {
		plain, ok := backing.(*flat)
		if !ok || d.kind == "" {
			return backing
		}
		shown := d.shown(plain)
		s.plain[shown] = plain
		return shown
	})
}

// hide gives them the ones that vcsim knows.
func (s *sim) hide(vm *simulator.VirtualMachine) {
	s.exchange(vm, func(_ *disk, backing types.BaseVirtualDeviceBackingInfo) types.BaseVirtualDeviceBackingInfo {
		if plain := s.plain[backing]; plain != nil {
			return plain
		}
		return backing
	})
}

func (s *sim) exchange(
	vm *simulator.VirtualMachine,
	change func(*disk, types.BaseVirtualDeviceBackingInfo) types.BaseVirtualDeviceBackingInfo,
) {
	exchanged := func(devices []types.BaseVirtualDevice) []types.BaseVirtualDevice {
		found := make([]types.BaseVirtualDevice, len(devices))
		for i, device := range devices {
			found[i] = device
			if old, ok := device.(*types.VirtualDisk); ok && s.disks[vm.Self][old.Key] != nil {
				copied := *old
				copied.Backing = change(s.disks[vm.Self][old.Key], old.Backing)
				found[i] = &copied
			}
		}
		return found
	}
	vm.Config.Hardware.Device = exchanged(vm.Config.Hardware.Device)
	for ref, each := range s.snapshots {
		if found, ok := simulator.Map.Get(ref).(*simulator.VirtualMachineSnapshot); ok && each.vm == vm.Self {
			found.Config.Hardware.Device = exchanged(found.Config.Hardware.Device)
		}
	}
}

// shown returns what clients see in place of a flat backing.
func (d *disk) shown(plain *flat) types.BaseVirtualDeviceBackingInfo {
	place, mode := plain.VirtualDeviceFileBackingInfo, plain.DiskMode
	switch d.kind {
	case "SparseVer2":
		return &sparse{
			VirtualDeviceFileBackingInfo: place, DiskMode: mode, Uuid: plain.Uuid, ChangeId: plain.ChangeId,
		}
	case "SeSparse":
		return &seSparse{
			VirtualDeviceFileBackingInfo: place, DiskMode: mode, Uuid: plain.Uuid, ChangeId: plain.ChangeId,
		}
	case "RawDiskVer2":
		return &types.VirtualDiskRawDiskVer2BackingInfo{
			VirtualDeviceDeviceBackingInfo: types.VirtualDeviceDeviceBackingInfo{DeviceName: "vmhba1:0:1"},
			DescriptorFileName:             plain.FileName, Uuid: plain.Uuid, ChangeId: plain.ChangeId,
		}
	case "RawDiskMappingVer1":
		return &mapping{
			VirtualDeviceFileBackingInfo: place, DiskMode: mode, Uuid: plain.Uuid, ChangeId: plain.ChangeId,
			CompatibilityMode: d.compatibility, Sharing: plain.Sharing,
		}
	}
	return &types.VirtualDiskFlatVer1BackingInfo{
		VirtualDeviceFileBackingInfo: place, DiskMode: mode,
	}
}

// machineOf returns the machine that a call is about; nil if it is about none.
func machineOf(on types.ManagedObjectReference) *simulator.VirtualMachine {
	switch found := simulator.Map.Get(on).(type) {
	case *simulator.VirtualMachine:
		return found
	case *simulator.VirtualMachineSnapshot:
		return simulator.Map.Get(found.Vm).(*simulator.VirtualMachine)
	}
	return nil
}
