"""Disks of VMware: descriptors, the four sparse kinds, and chains of them."""
