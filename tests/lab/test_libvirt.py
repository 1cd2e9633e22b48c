"""A domain of a real libvirt, with a real QEMU, goes to another host, and counts on there."""

import time
from collections.abc import Iterator

import pytest

from tests.lab.guest import Guest
from tests.lab.test_live import wrong_blocks
from tests.lab.test_lvm_sources import make_thin, names
from tests.lab.test_migrate import report
from tests.machine import BOOT

MIB = 64
CONSOLE = "/root/console"
DEFINITION = f"""
<domain type="qemu">
  <name>vm</name><memory unit="MiB">32</memory><vcpu current="1">2</vcpu>
  <os><type arch="x86_64" machine="pc">hvm</type></os>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <disk type="block" device="disk">
      <driver name="qemu" type="raw" cache="none" io="native"/>
      <source dev="/dev/vg/vm"/><target dev="vda" bus="virtio"/>
    </disk>
    <controller type="usb" model="none"/>
    <serial type="file"><source path="{CONSOLE}"/></serial>
    <memballoon model="none"/>
  </devices>
</domain>
"""
# Everything is root's, and there are neither cgroups nor a log daemon.
SETTINGS = """
user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
security_driver = "none"
cgroup_controllers = []
namespaces = []
stdio_handler = "file"
"""
BEGIN = """
set -e
[ -L /var/run ] || { rm -rf /var/run && ln -s /run /var/run; }
mkdir -p /etc/libvirt /var/lib/libvirt /var/cache/libvirt /var/log/libvirt /run/libvirt
[ -s /etc/machine-id ] || tr -d - </proc/sys/kernel/random/uuid >/etc/machine-id
cat >/etc/libvirt/qemu.conf
printf 'auth_unix_rw = "none"\nunix_sock_group = "root"\n' >/root/libvirtd.conf
mkdir -p /root/drivers
ln -sf /usr/lib/x86_64-linux-gnu/libvirt/connection-driver/libvirt_driver_qemu.so /root/drivers/
# What the package's own script would have done.
grep -q libvirt-qemu /etc/group || {
    echo libvirt-qemu:x:64055: >>/etc/group
    echo libvirt-qemu:x:64055:64055::/nonexistent:/bin/false >>/etc/passwd
}
LIBVIRT_DRIVER_DIR=/root/drivers libvirtd -d -f /root/libvirtd.conf
until virsh -q list >/dev/null 2>&1; do sleep 0.2; done
"""
END = """
virsh -q destroy vm >/dev/null 2>&1
virsh -q undefine vm >/dev/null 2>&1
pkill -x libvirtd; while pgrep -x libvirtd >/dev/null; do sleep 0.1; done
pkill qemu-system; rm -f /root/console
"""
SECONDS = 120.0


@pytest.fixture
def hosts(src: Guest, dst: Guest) -> Iterator[tuple[Guest, Guest]]:
    """Two hosts with libvirt; on the first, a domain whose guest writes numbered records."""
    make_thin(src, "vm", MIB)
    make_thin(dst, "other", 4)
    src.run("dd of=/dev/vg/vm oflag=direct conv=sync bs=4k status=none", data=BOOT)
    for guest in (src, dst):
        guest.run(BEGIN, data=SETTINGS.encode(), limit=SECONDS)
    src.run(
        "cat >/root/vm.xml; virsh -q define /root/vm.xml && virsh -q start vm",
        data=DEFINITION.encode(),
        limit=240,
    )
    yield src, dst
    for guest in (src, dst):
        guest.run(END + "true", limit=SECONDS)


def numbers(guest: Guest) -> list[int]:
    """Return what the guest said there so far."""
    text = guest.run(f"cat {CONSOLE} 2>/dev/null || true")
    return [int(line, 16) for line in text[: text.rfind("\n") + 1].split()]


def wait_beyond(guest: Guest, number: int) -> None:
    deadline = time.monotonic() + SECONDS
    while max(numbers(guest), default=0) <= number:
        assert time.monotonic() < deadline, guest.run(
            "virsh list --all; tail -5 /var/log/libvirt/qemu/vm.log"
        )
        time.sleep(0.5)


@pytest.mark.timeout(900)
def test_a_domain_is_saved_and_goes_on_over_there(hosts: tuple[Guest, Guest]) -> None:
    src, dst = hosts
    wait_beyond(src, 20)
    src.run("virsh -q autostart vm")
    moved = src.blockstream(
        *("migrate", "vg/vm", "dst:vg/vm", "--create", "--pool", "pool", "--json"),
        *("--domain", "vm", "--leave-by", "save", "--max-downtime", "60"),
        *("--rsh", "ssh", "--remote-command", "blockstream-warm"),
    )
    values = report(moved)
    here = numbers(src)
    wait_beyond(dst, here[-1] + 20)
    assert src.run("virsh domstate vm").strip() == "shut off"
    assert dst.run("virsh domstate vm").strip() == "running"
    assert "enable" in dst.run("virsh dominfo vm | grep Autostart")
    assert "disable" in src.run("virsh dominfo vm | grep Autostart")
    dst.run("virsh -q destroy vm")
    said = here + numbers(dst)
    assert said == list(range(1, len(said) + 1))  # it never booted, and wrote each record once
    assert wrong_blocks(dst, said) == 0
    assert names(src) == {"pool", "vm"}
    assert 0 < values["downtime"] < 120  # type: ignore[operator]
