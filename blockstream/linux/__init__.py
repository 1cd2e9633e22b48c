"""The one place that talks to the kernel: ioctl, sysfs, descriptors, opening rules."""
