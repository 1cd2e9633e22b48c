#!/bin/busybox sh
# Stage 1, in the initial RAM disk: finds the root disk, lays a writable layer over it, goes there.
busybox mount -t proc proc /proc
busybox mount -t sysfs sys /sys
busybox mount -t devtmpfs dev /dev
word() { busybox sed -n "s/.*\\blab\\.$1=\\([^ ]*\\).*/\\1/p" /proc/cmdline; }
echo "T init $(busybox cut -d' ' -f1 /proc/uptime)"
if [ -n "$(word modules)" ]; then # in a folder of the outer host
    busybox mount -t hostfs none /lib/modules -o "$(word modules)"
fi
for module in virtio_pci virtio_blk virtio_net virtio_rng overlay ext4; do
    busybox modprobe "$module" 2>/dev/null
done
busybox mount -t ext4 -o ro "/dev/$(word root)" /lower
busybox mount -t tmpfs tmpfs /rw
busybox mkdir /rw/u /rw/w
busybox mount -t overlay -o lowerdir=/lower,upperdir=/rw/u,workdir=/rw/w overlay /newroot
for place in proc sys dev; do busybox mount --move "/$place" "/newroot/$place"; done
busybox mount -t tmpfs tmpfs /newroot/run
busybox mount -t tmpfs tmpfs /newroot/tmp
busybox mkdir -p /newroot/lib/modules
if ! busybox mount --move /lib/modules /newroot/lib/modules 2>/dev/null; then
    busybox mount -t tmpfs tmpfs /newroot/lib/modules
    busybox cp -a /lib/modules/. /newroot/lib/modules/
fi
busybox cp /main.sh /newroot/lab-main.sh
exec busybox switch_root /newroot /lab-main.sh
