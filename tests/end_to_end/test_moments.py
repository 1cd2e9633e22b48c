"""When a state was true is known wherever it lies, however it came there."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.end_to_end.far_host import far_command, far_status
from tests.end_to_end.hosts import Host

pytestmark = pytest.mark.slow

MIB = 1 << 20


def moment_of(value: object) -> datetime:
    """Read a moment, which must be of the last minutes."""
    found = datetime.fromisoformat(str(value))
    assert timedelta(0) <= datetime.now(UTC) - found < timedelta(minutes=5)
    return found


def status(host: Host, target: Path) -> dict[str, object]:
    """Return what is known of a target."""
    return host.run("status", "--json", target).results[0]


@pytest.mark.parametrize("apply", ["direct", "undo", "stage"])
def test_a_pipe_carries_it_and_undo_leads_back_to_it(host: Host, apply: str) -> None:
    disk, copy = host.disk("disk"), host.folder / "copy"
    stream = host.stream(disk, "--goal", "a")
    assert host.run("recv", "--create", copy, data=stream).status == 0
    first = moment_of(status(host, copy)["moment"])
    new = host.changed("new", disk)
    changes = host.list_changes("changes", new, disk)
    stream = host.stream(new, "--base", "a", "--goal", "b", "--extents", changes)
    ended = host.run("recv", "--apply", apply, copy, "--json", data=stream)
    assert ended.status == 0, ended.err
    second = moment_of(status(host, copy)["moment"])
    assert second > first
    assert moment_of(ended.events[-1]["moment"]) == second
    assert f"MOMENT    {second:%Y-%m-%dT%H:%M:%S}Z" in host.run("status", copy).out.decode()
    if apply == "undo":
        assert host.run("undo", copy).status == 0
        assert moment_of(status(host, copy)["moment"]) == first


def test_it_goes_to_another_host_over_any_number_of_connections(host: Host) -> None:
    disk, copy = host.disk("disk", 3 * MIB), host.folder / "copy"
    way = ["--rsh", "sh -c {command}", "--remote-command", far_command(host), "--streams", "3"]
    ended = host.run("send", disk, f"lab:{copy}", "--create", "--json", *way)
    assert ended.status == 0, ended.err
    assert moment_of(far_status(host, copy)["moment"]) == moment_of(ended.events[-1]["moment"])


def test_a_point_keeps_it_and_a_restored_disk_has_it_again(host: Host) -> None:
    disk, copy = host.disk("disk"), host.folder / "copy"
    store = f"dir:{host.folder}/store"
    assert host.run("store", "init", store).status == 0
    assert host.run("send", disk, f"{store}/vm").status == 0
    (point,) = host.run("points", "--json", f"{store}/vm").results
    moment = moment_of(point["moment"])
    assert str(point["state"]).startswith(f"{moment:%Y-%m-%dT%H:%M:%S}Z-")
    assert f"{moment:%Y-%m-%dT%H:%M:%S}Z" in host.run("points", f"{store}/vm").out.decode()
    assert host.run("restore", f"{store}/vm", copy, "--create").status == 0
    assert moment_of(status(host, copy)["moment"]) == moment
    # By a time, the point is meant that was true then.
    early = moment - timedelta(days=1)
    assert host.run("restore", f"{store}/vm@{early:%Y-%m-%dT%H:%M}", copy).status == 17


def test_a_stream_says_it_and_so_does_what_is_made_of_it(host: Host) -> None:
    disk, merged = host.disk("disk"), host.folder / "merged.bsx"
    stream = host.stream(disk)
    shown = host.run("inspect", "--json", data=stream).results[0]
    moment = moment_of(shown["moment"])
    goal = shown["goal"]
    assert goal.startswith(f"{moment:%Y-%m-%dT%H:%M:%S}Z-")
    made = host.run("convert", "--to", "bsx", data=stream)
    merged.write_bytes(made.out)
    assert moment_of(host.run("inspect", "--json", merged).results[0]["moment"]) == moment


def test_what_another_tool_sent_has_none(host: Host) -> None:
    copy = host.folder / "copy"
    image = b"x" * MIB
    ended = host.run("recv", "--create", "--format", "raw", copy, data=image)
    assert ended.status in {0, 19}, ended.err
    assert status(host, copy)["moment"] is None
    assert "MOMENT" not in host.run("status", copy).out.decode()
    assert json.loads(host.run("status", "--json", copy).out)["state"] == "clean"
