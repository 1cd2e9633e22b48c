"""Where a volume is on its way to, in the letters that LVM allows."""

import re
from dataclasses import replace

import pytest

from blockstream.jobs.migration.marks import places_of, tag_of
from blockstream.linux.lvm import Volume
from blockstream.locations.ssh import Remote

VOLUME = Volume(
    group="vg",
    name="vm",
    uuid="u",
    attributes="-wi-a-----",
    lv_size=0,
    origin="",
    origin_size=0,
    chunk=0,
    filled=None,
    pool="",
    thin_id=0,
    merging=False,
    suspended=False,
    dm_path="",
    path="",
    tags=frozenset(),
    created=0,
    transaction=0,
)


@pytest.mark.parametrize(
    "where",
    [
        Remote("dst", "/dev/vg/vm"),
        Remote("host-2.example", "/dev/vg+x/a.b_c", "root"),
        Remote("fe80::1", "/dev/vg/vm", "root"),
        Remote("dst", "/dev/vg/vm", "DOMAIN+user"),
        Remote("dst", "/dev/vg/vm", "root", port=2222),
        Remote("fe80::1", "/dev/vg/vm", port=2222),
    ],
)
def test_a_place_is_found_again(where: Remote) -> None:
    tag = tag_of(where)
    assert re.fullmatch(r"[A-Za-z0-9_+.\-/=!:&#]+", tag)
    assert places_of(replace(VOLUME, tags=frozenset({tag, "other"}))) == {tag: where}


@pytest.mark.parametrize(
    "tag",
    [
        "blockstream_to:",
        "blockstream_to:vm",
        "blockstream_to:h:/dev/vm",
        "blockstream_to:-o:/a/b/c",
    ],
)
def test_what_nobody_of_us_wrote_is_no_place(tag: str) -> None:
    assert places_of(replace(VOLUME, tags=frozenset({tag}))) == {}
