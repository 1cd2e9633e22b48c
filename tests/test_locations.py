"""What people type names one disk, on this host or another, and nothing else."""

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from blockstream.cli.location_types import disk_here
from blockstream.errors import NotFoundError, UsageError
from blockstream.locations.local import LocalDisk
from blockstream.locations.registry import disk_of, location_of
from blockstream.locations.ssh import HostFolder, Remote, Way, open_link
from blockstream.locations.store import open_objects, store_place

if TYPE_CHECKING:
    from blockstream.locations.interface import Location


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("host:/dev/vg/vm", Remote("host", "/dev/vg/vm")),
        ("root@host:/dev/vg/vm", Remote("host", "/dev/vg/vm", "root")),
        ("a.b@10.0.0.1:/x", Remote("10.0.0.1", "/x", "a.b")),
        ("root@[fe80::1%eth0]:/x", Remote("fe80::1%eth0", "/x", "root")),
        ("ssh://host/dev/vg/vm", Remote("host", "/dev/vg/vm")),
        ("ssh://root@host:2222/x y", Remote("host", "/x y", "root", 2222)),
        ("ssh://[::1]:2222/x", Remote("::1", "/x", "", 2222)),
        ("host:/with:colon", Remote("host", "/with:colon")),
        ("host::vm-1.a", Remote("host", "", name="vm-1.a")),
        ("root@host::vm", Remote("host", "", "root", name="vm")),
        ("CORP\\alice@host:/x", Remote("host", "/x", "CORP\\alice")),
        ("a@corp.example@host:/x", Remote("host", "/x", "a@corp.example")),
    ],
)
def test_a_disk_of_another_host_is_recognised(typed: str, meant: Remote) -> None:
    assert location_of(typed) == meant


@pytest.mark.parametrize(
    "typed",
    [
        "disk.img",
        "/dev/vg/vm",
        "./host:/x",
        "a/b:/c",
        "host:relative",
        "host:",
        "host::",
        "host::a/b",
        "ho st:/x",
        "/dev/disk/by-path/pci-0000:00:1f.2",
        "nbd://host/vm",
        "nbds://host:10809/vm",
        "nbd+unix:///vm?socket=/run/a@b:/c",
        "vmdk:/vm/disk.vmdk",
        "vmdk::disk",
    ],
)
def test_everything_else_is_none(typed: str) -> None:
    try:
        found: Location | None = location_of(typed)
    except UsageError:
        found = None
    assert not isinstance(found, Remote)


@pytest.mark.parametrize(
    "typed", ["ssh://", "ssh://host", "ssh://host:99999/x", "ssh://-oX/y", "-oProxyCommand:/x"]
)
def test_what_ssh_could_take_for_an_option_is_refused(typed: str) -> None:
    with pytest.raises(UsageError):
        location_of(typed)


@pytest.mark.parametrize(
    ("place", "paths"),
    [
        ("root@h:", ["/a/one", "/b/two"]),
        ("root@h:/there/", ["/there/one", "/there/two"]),
        ("root@h:/", ["/one", "/two"]),
    ],
)
def test_several_disks_go_to_their_own_places(place: str, paths: list[str]) -> None:
    found = location_of(place, many=True)
    assert isinstance(found, HostFolder)
    there = [found.place_of(path) for path in ("/a/one", "/b/two")]
    assert there == [Remote("h", path, "root") for path in paths]


@pytest.mark.parametrize("place", ["h:/there", "disk.img", "/dev/x", "h::name"])
def test_other_places_hold_one_disk(place: str) -> None:
    assert not isinstance(location_of(place, many=True), HostFolder)


@pytest.mark.parametrize(
    ("rsh", "expected"),
    [
        ("printf %s\\n", "root@host\nthe command\n"),
        ("printf %s\\n {command}", "the command\n"),
        ("printf %s\\n {host} -- {command}", "root@host\n--\nthe command\n"),
    ],
)
def test_a_program_of_the_users_gets_host_and_command(rsh: str, expected: str) -> None:
    where = Remote("host", "/x", "root")
    link = open_link(where, "the command", Way(rsh=rsh.replace("\\", "\\\\")))
    with open(link.from_peer, "rb", closefd=False) as file:  # a descriptor
        assert file.read().decode() == expected
    assert link.ended() == (0, "")
    link.close()


def test_a_port_is_given_to_a_program_that_says_nothing_of_it() -> None:
    link = open_link(Remote("h", "/x", "", 2222), "c", Way(rsh="echo"))
    with open(link.from_peer, "rb", closefd=False) as file:  # a descriptor
        assert file.read() == b"-p 2222 h c\n"
    link.close()


def test_without_asyncssh_the_other_way_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(NotFoundError, match="give --rsh ssh"):
        open_link(Remote("h", "/x"), "c", Way())


def test_paths_here_are_made_absolute_for_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = location_of("h:", folder=True)
    assert isinstance(found, HostFolder)
    assert found.place_of("disk") == Remote("h", f"{tmp_path}/disk")


@pytest.mark.parametrize(
    ("typed", "advice"),
    [
        ("foo://x/y", "HOST:/PATH"),
        ("https://h/x", "HOST:/PATH"),
        ("file:/x", "HOST:/PATH"),
        ("s3:/bucket", "s3://BUCKET"),
        ("S3://bucket/x", "s3://BUCKET"),
        ("nbd:host", "nbd://HOST"),
        ("NBD+unix:///x", "nbd+unix:///EXPORT"),
        ("vsphere:/h/x", "vsphere://USER"),
        ("vshpere://h/x", "vsphere://USER"),
        ("dir:/backups/vm", "blockstream restore"),
        ("s3://bucket/vm", "blockstream restore"),
    ],
)
def test_a_kind_of_place_is_no_host(typed: str, advice: str) -> None:
    with pytest.raises(UsageError, match="nothing was done") as raised:
        disk_here(typed)
    assert advice in str(raised.value)


def test_a_refused_place_shows_no_password() -> None:
    with pytest.raises(UsageError) as raised:
        location_of("foo://me:secret@host/x")
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    ("typed", "advice"),
    [
        ("", "variable"),
        ("host:relative", "HOST:/PATH"),
        ("host::a/b", "HOST:/PATH"),
        ("host:/x", "over there"),
        ("vdmk:disk.vmdk", "vmdk:FILE"),
        ("vsphere://me@host/DC/vm/mail", "machine"),
        ("foo://x/y", "HOST:/PATH"),
    ],
)
def test_what_only_a_slip_would_take_for_a_file_is_refused(typed: str, advice: str) -> None:
    with pytest.raises(UsageError, match="nothing was done") as raised:
        disk_here(typed)
    assert advice in str(raised.value)


def test_a_file_that_is_there_is_one_whatever_it_is_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("vm-12:30.img").touch()
    assert location_of("vm-12:30.img") == LocalDisk("vm-12:30.img")
    assert disk_here("./vm-12:31.img") == LocalDisk("./vm-12:31.img")
    assert disk_here("/dev/disk/by-path/pci-0000:00:1f.2").path.startswith("/dev")


@pytest.mark.parametrize("typed", ["dir:", "dir:/", "dir://"])
def test_a_store_without_a_folder_is_not_where_we_happen_to_be(typed: str) -> None:
    with pytest.raises(UsageError, match="names no folder"):
        store_place(typed, disk=False)


@pytest.mark.parametrize("typed", ["dir:/vm", "dir:/vm/", "dir:/vm@last", "dir:vm"])
def test_a_folder_in_the_root_is_no_disk_of_a_store_where_we_happen_to_be(typed: str) -> None:
    with pytest.raises(UsageError, match="names no disk"):
        store_place(typed)


def test_an_endpoint_that_is_no_url_is_not_a_damaged_store() -> None:
    with pytest.raises(UsageError, match="nothing was done"):
        open_objects("s3://bucket/x", "s3.example.com")


@pytest.mark.parametrize(
    ("typed", "shown", "key", "name"),
    [
        ("nbd://h/a/vm", "nbd://h/a/vm", "nbd://h/a/vm", "vm"),
        ("nbd+unix:///?socket=/s", "nbd+unix:///?socket=/s", "nbd+unix:///?socket=/s", "disk"),
        ("vmdk:/x/mail.vmdk", "vmdk:/x/mail.vmdk", "vmdk:/x/mail.vmdk", "mail"),
        ("/dev/vg/root", "/dev/vg/root", "/dev/vg/root", "root"),
    ],
)
def test_a_disk_is_called_by_what_was_typed(typed: str, shown: str, key: str, name: str) -> None:
    found = disk_of(typed)
    assert (str(found), found.key, found.name) == (shown, key, name)


def test_a_relative_path_means_the_same_in_every_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert disk_of("disk").key == f"{tmp_path}/disk"
    assert disk_of("vmdk:a.vmdk").key == f"vmdk:{tmp_path}/a.vmdk"


@pytest.mark.parametrize("typed", ["host:/x", "dir:/a/b/vm", "vsphere://me@h/DC/vm/mail"])
def test_what_is_not_read_here_is_no_disk(typed: str) -> None:
    with pytest.raises(UsageError, match="nothing was done"):
        disk_of(typed)


@pytest.mark.parametrize(
    ("typed", "many", "folder", "kind"),
    [
        ("dir:/a/b/vm", False, True, "StorePlace"),
        ("dir:/a/b/", True, True, "StorePlace"),
        ("s3://b/x/", True, False, "StorePlace"),
        ("h:/f/", False, True, "HostFolder"),
        ("h:/f/", False, False, "Remote"),
        ("ssh://me@h:22/f/", False, True, "HostFolder"),
        ("h::name", True, True, "Remote"),
    ],
)
def test_where_several_go_depends_on_what_is_sent(
    typed: str, many: bool, folder: bool, kind: str
) -> None:
    assert type(location_of(typed, many=many, folder=folder)).__name__ == kind
