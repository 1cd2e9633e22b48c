"""Virtual machines of VMware: all disks from one snapshot, again and again."""
