"""Guests for the lab's tests: one for all that need a single host, a pair for the others."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.guest import Guest, guests
from tests.lab.hardware import Disk
from tests.lab.image import Image, NoLabError, cached

NBD_PORT = 10809
DISKS = (Disk("pv0", 640), Disk("pv1", 320))


def figure(name: str, **values: object) -> None:
    """Put down what a test measured, if somebody collects it."""
    if path := os.environ.get("LAB_FIGURES"):
        with Path(path).open("a") as file:
            file.write(json.dumps({"figure": name, **values}) + "\n")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/lab/" in str(item.path):
            item.add_marker(pytest.mark.lab)
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(600))


@pytest.fixture(scope="session")
def lab_image() -> Image:
    """The image, built if it is not in the cache; where it cannot be, CI fails and others skip."""
    try:
        return cached()
    except NoLabError as error:
        say = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        say(str(error))


@pytest.fixture(scope="session")
def _guest(lab_image: Image) -> Iterator[Guest]:
    with guests(lab_image, "src", disks=DISKS) as (guest,):
        yield guest


@pytest.fixture(scope="session")
def _pair(lab_image: Image) -> Iterator[list[Guest]]:
    with guests(lab_image, "src", "dst", disks=DISKS, forwards=[NBD_PORT]) as pair:
        yield pair


@pytest.fixture
def lab(_guest: Guest) -> Iterator[Guest]:
    """A host with an empty volume group `vg`, which must be as empty of mappings afterwards."""
    yield from _with_group(_guest)


@pytest.fixture
def src(_pair: list[Guest]) -> Iterator[Guest]:
    """The first of two hosts, which reaches the second as `dst`."""
    yield from _with_group(_pair[0])


@pytest.fixture
def dst(_pair: list[Guest]) -> Iterator[Guest]:
    """The second of two hosts."""
    yield from _with_group(_pair[1])


def _with_group(guest: Guest) -> Iterator[Guest]:
    guest.run(
        "rm -rf /var/lib/blockstream; "
        "pvcreate -qq -ff -y /dev/disk/lab-pv0 /dev/disk/lab-pv1 && "
        "vgcreate -qq -s 1M vg /dev/disk/lab-pv0 /dev/disk/lab-pv1"
    )
    yield guest
    # Volumes of the test's own go with it; what else is mapped, somebody forgot.
    guest.run(
        "for pool in $(dmsetup ls --target thin-pool | cut -f1); do "
        'dmsetup message "$pool" 0 release_metadata_snap 2>/dev/null; done; '
        "pkill -x fio; rm -rf /root/copy /root/bin; vgremove -qq -f -y vg; "
        "pvremove -qq -ff -y /dev/disk/lab-pv0 /dev/disk/lab-pv1"
    )
    left = guest.run("dmsetup ls").strip()
    assert left == "No devices found", left
    log = guest.run("dmesg -c")
    for word in ("BUG:", "Oops", "WARNING: CPU"):
        assert word not in log, log[-3000:]
