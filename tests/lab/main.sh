#!/bin/sh
# Stage 2, process 1 of the guest: disks by name, device-mapper, network, sshd; then it says so.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C
word() { sed -n "s/.*\\blab\\.$1=\\([^ ]*\\).*/\\1/p" /proc/cmdline; }
stage() { echo "T $1 $(cut -d' ' -f1 /proc/uptime)"; }
stage root
ip link set lo up
mkdir -p /dev/pts /dev/shm /dev/disk
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
hostname "$(word name)"
for pair in $(word disks | tr , ' '); do
    ln -s "/dev/${pair%%:*}" "/dev/disk/lab-${pair#*:}"
done
tar -C / --no-same-owner -xf /dev/disk/lab-seed
for module in dm-mod dm-snapshot dm-thin-pool; do modprobe "$module"; done
if ! [ -e /dev/mapper/control ]; then
    mkdir -p /dev/mapper
    mknod /dev/mapper/control c 10 "$(awk '$2 == "device-mapper" {print $1}' /proc/misc)"
fi
for number in 0 1; do # User-Mode Linux calls them so
    if [ -e "/sys/class/net/vec$number" ]; then ip link set "vec$number" name "eth$number"; fi
done
ip addr add 10.0.2.15/24 dev eth0
ip link set eth0 up
if [ -n "$(word ip)" ]; then
    ip addr add "$(word ip)" dev eth1
    ip link set eth1 up
fi
printf '127.0.0.1 localhost\n10.77.0.1 src\n10.77.0.2 dst\n' >/etc/hosts
mkdir -p /run/sshd /run/lock/lvm /run/lvm
# Each command would lock 8 MiB and look for a daemon that watches: most of its time.
echo 'activation { monitoring=0 reserved_memory=0 reserved_stack=0 }' >/etc/lvm/lvmlocal.conf
cat >/etc/ssh/sshd_config <<END
HostKey /etc/ssh/ssh_host_ed25519_key
UsePAM no
UseDNS no
PermitRootLogin yes
PrintMotd no
MaxStartups 100
Subsystem sftp internal-sftp
PermitUserEnvironment yes
END
chown -R root:root /root
chmod 700 /root /root/.ssh
chmod 600 /root/.ssh/*
# No udev: LVM makes the nodes itself and waits for nobody.
echo DM_DISABLE_UDEV=1 >/root/.ssh/environment
echo "PATH=$PATH" >>/root/.ssh/environment
/usr/sbin/sshd
while ! [ -s /run/sshd.pid ]; do sleep 0.05; done
stage ready
exec busybox sh -c 'trap "" INT; while :; do wait; sleep 3600 & wait $!; done'
