// What the API says a disk lies in: the kinds of backing that a snapshot may meet.
package main

import (
	"net/url"

	"github.com/vmware/govmomi/vim25/types"
)

type (
	flat     = types.VirtualDiskFlatVer2BackingInfo
	sparse   = types.VirtualDiskSparseVer2BackingInfo
	seSparse = types.VirtualDiskSeSparseBackingInfo
	mapping  = types.VirtualDiskRawDiskMappingVer1BackingInfo
)

func newBacking(kind, file, mode, uuid string, query url.Values) types.BaseVirtualDeviceBackingInfo {
	place := types.VirtualDeviceFileBackingInfo{FileName: file}
	switch kind {
	case "SparseVer2":
		return &sparse{VirtualDeviceFileBackingInfo: place, DiskMode: mode, Uuid: uuid}
	case "SeSparse":
		return &seSparse{VirtualDeviceFileBackingInfo: place, DiskMode: mode, Uuid: uuid}
	case "RawDiskMappingVer1":
		return &mapping{
			VirtualDeviceFileBackingInfo: place, DiskMode: mode, Uuid: uuid,
			CompatibilityMode: query.Get("compatibility"), Sharing: query.Get("sharing"),
		}
	case "LocalPMem":
		return &types.VirtualDiskLocalPMemBackingInfo{
			VirtualDeviceFileBackingInfo: place, DiskMode: mode, Uuid: uuid,
		}
	}
	return &flat{
		VirtualDeviceFileBackingInfo: place, DiskMode: mode, Uuid: uuid, Sharing: query.Get("sharing"),
	}
}

func fileOf(backing types.BaseVirtualDeviceBackingInfo) string {
	if file, ok := backing.(types.BaseVirtualDeviceFileBackingInfo); ok {
		return file.GetVirtualDeviceFileBackingInfo().FileName
	}
	return ""
}

// frozenAs returns a copy with a change id; shared objects stay as they are.
func frozenAs(backing types.BaseVirtualDeviceBackingInfo, id string) types.BaseVirtualDeviceBackingInfo {
	switch old := backing.(type) {
	case *flat:
		next := *old
		next.ChangeId = id
		return &next
	case *sparse:
		next := *old
		next.ChangeId = id
		return &next
	case *seSparse:
		next := *old
		next.ChangeId = id
		return &next
	case *mapping:
		next := *old
		next.ChangeId = id
		return &next
	}
	return backing
}

// childOf returns the backing of a delta in that file.
func childOf(backing types.BaseVirtualDeviceBackingInfo, file string) types.BaseVirtualDeviceBackingInfo {
	switch parent := backing.(type) {
	case *flat:
		next := *parent
		next.FileName, next.Parent = file, parent
		return &next
	case *sparse:
		next := *parent
		next.FileName, next.Parent = file, parent
		return &next
	case *seSparse:
		next := *parent
		next.FileName, next.Parent = file, parent
		return &next
	case *mapping:
		next := *parent
		next.FileName, next.Parent = file, parent
		return &next
	}
	return backing
}

// moved returns the backing of the same disk in another file, which may have been its parent's.
func moved(backing types.BaseVirtualDeviceBackingInfo, file string) types.BaseVirtualDeviceBackingInfo {
	switch old := backing.(type) {
	case *flat:
		next := *old
		next.FileName = file
		if next.Parent != nil && next.Parent.FileName == file {
			next.Parent = next.Parent.Parent
		}
		return &next
	case *sparse:
		next := *old
		next.FileName = file
		if next.Parent != nil && next.Parent.FileName == file {
			next.Parent = next.Parent.Parent
		}
		return &next
	case *seSparse:
		next := *old
		next.FileName = file
		if next.Parent != nil && next.Parent.FileName == file {
			next.Parent = next.Parent.Parent
		}
		return &next
	case *mapping:
		next := *old
		next.FileName = file
		if next.Parent != nil && next.Parent.FileName == file {
			next.Parent = next.Parent.Parent
		}
		return &next
	}
	return backing
}
