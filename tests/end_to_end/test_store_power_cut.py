"""Whenever the power fails, every point that was committed to a folder is there, and whole."""

import random
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from blockstream.errors import BlockstreamError
from blockstream.linux.buffers import aligned_buffer
from blockstream.repository.repository import Repository
from blockstream.repository.restore import opened_point
from blockstream.stores import folder as folder_store
from blockstream.stores.folder import FolderObjects
from tests.devices import loop_device, mounted, rigged, run, tmpfs
from tests.disk_log import Logged, lose_power, read_log
from tests.repository.test_prune import Model

pytestmark = [
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.needs("nbdkit:python", "nbdfuse", "mkfs.ext4"),
    pytest.mark.timeout(300),
]

DISK = 12 << 20
STEPS = ("full", "send", "send", "compact", "send", "prune", "full", "prune", "send")


@dataclass(frozen=True, slots=True)
class Recording:
    """What a disk with a store on it saw.

    Attributes:
        folder: Where everything lies.
        before: The disk, with an empty store.
        log: What reached it, in order.
        promises: After how many entries which points were promised.
        contents: What each point held that there ever was.
    """

    folder: Path
    before: bytes
    log: list[Logged]
    promises: list[tuple[int, set[int]]]
    contents: dict[int, bytes]


def record(folder: Path) -> Recording:
    """Let real commands work on a store on a logged disk."""
    (folder / "s").write_bytes(bytes(DISK))
    run("mkfs.ext4", "-q", "-b", "1024", "-N", "256", "-J", "size=1", folder / "s")
    promises: list[tuple[int, set[int]]] = []
    contents: dict[int, bytes] = {}
    with rigged(folder, folder / "s", log=True) as rig:
        with mounted(rig.devices["s"], folder / "mnt") as place:
            model = Model(folder, 1, place / "store")
            run("sync", "-f", place)
            start = rig.log.stat().st_size
            before = rig.image("s").read_bytes()
            for step in STEPS:
                match step:
                    case "send" | "full":
                        model.send(full=step == "full")
                    case "compact":
                        model.compact()
                    case "prune":
                        model.prune(2, grace=0)
                contents |= model.points
                entries = len(read_log(rig.log.read_bytes()[start:]))
                promises.append((entries, set(model.points)))
        log = read_log(rig.log.read_bytes()[start:])
    return Recording(folder, before, log, promises, contents)


def broken(recording: Recording, count: int) -> list[str]:
    """Cut the power `count` times; return what was broken."""
    found = []
    with tmpfs(recording.folder / "host", "32m") as host:
        (host / "s").write_bytes(bytes(DISK))
        with loop_device(host / "s") as device:
            for seed in range(count):
                rng = random.Random(seed)  # noqa: S311  # the same each time
                place = rng.randint(1, len(recording.log))
                disk = bytearray(recording.before)
                lose_power(recording.log[:place], {"s": disk}, rng)
                (host / "s").write_bytes(disk)
                with mounted(device, host / "mnt") as mount:
                    text = wrong(recording, place, mount / "store")
                if text:
                    found.append(f"seed {seed}, cut at {place}: {text}")
    return found


def wrong(recording: Recording, place: int, store: Path) -> str:
    """Return what is wrong with a store after a cut; empty for nothing."""
    done = [points for entries, points in recording.promises if entries <= place]
    later = [points for entries, points in recording.promises if entries > place]
    # What is being pruned now may be gone already.
    must = done[-1] & (later[0] if later else done[-1]) if done else set[int]()
    try:
        disk = Repository(FolderObjects(store)).disk("vm")
        shown = list(disk.points())
        for point in shown:
            with closing(opened_point(disk, point)) as source:
                buffer = aligned_buffer(source.size)
                source.read_into([0], [source.size], buffer)
            if buffer != recording.contents[point.seq]:
                return f"point {point.seq} is another"
    except BlockstreamError as error:
        return str(error)
    missing = must - {point.seq for point in shown}
    return f"points {sorted(missing)} are gone" if missing else ""


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    return record(tmp_path_factory.mktemp("store"))


def test_what_was_committed_is_there(recording: Recording) -> None:
    assert sum(entry.what == "F" for entry in recording.log) >= 20
    assert broken(recording, 150) == []


# The test of the test: a store that does not flush must be seen.


def test_a_store_that_does_not_flush_is_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.fsync", lambda _fd: None)
    monkeypatch.setattr(folder_store, "sync_names", lambda _folder: None)
    assert len(broken(record(tmp_path), 40)) >= 10
