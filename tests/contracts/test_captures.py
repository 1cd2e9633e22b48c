"""Whatever is held still keeps the promises of `captures.interface.Capture`.

Those of LVM are `tests/lab/test_captures.py`.
"""

import contextlib
import json
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from blockstream.captures.interface import Capture, Captured
from blockstream.captures.options import CaptureOptions, StateOptions, VmdkOptions
from blockstream.captures.point import PointCapture
from blockstream.captures.registry import capture_of
from blockstream.captures.together import Together
from blockstream.captures.vsphere.capture import MachineCapture, MachineOptions
from blockstream.formats.extent_lists import ExtentList, Meaning
from blockstream.locations.interface import opened_source
from blockstream.locations.local import LocalDisk
from blockstream.locations.registry import disk_of
from blockstream.locations.vsphere import machine_place, open_vsphere, server_of
from blockstream.repository.repository import Repository
from blockstream.run import Run
from blockstream.sources.datastore import Server
from blockstream.sources.vsphere import VSphere
from blockstream.stores.folder import FolderObjects
from blockstream.transfers.compare import differing
from blockstream.transfers.save import save
from blockstream.transfers.send import TransferOptions
from blockstream.words import Secret
from tests.contracts.captures import PROMISES, Kind, check
from tests.nbd_servers import nbdkit, qemu_nbd
from tests.vmdk_files import sesparse, write_delta, write_flat
from tests.vsphere_simulator.server import PASSWORD, Simulator, simulator

SIZE = 2 << 20
BLOCK = 65536


class Blocks:
    """A content that is changed block by block, and is what it was each time again."""

    def __init__(self) -> None:
        self._rng = random.Random(5)  # noqa: S311  # the same each time
        self.content = self._rng.randbytes(SIZE - BLOCK) + bytes(BLOCK)

    def change(self, block: int = BLOCK) -> dict[int, bytes]:
        """Return what was written where."""
        places = [self._rng.randrange(SIZE // block) * block for _ in range(5)]
        written = {place: self._rng.randbytes(block) for place in places}
        content = bytearray(self.content)
        for place, data in written.items():
            content[place : place + block] = data
        self.content = bytes(content)
        return written


class InFile:
    """A file, and what people say of its changes."""

    is_frozen = False

    def __init__(self, folder: Path) -> None:
        self._blocks = Blocks()
        self._folder = folder
        self._disk, self._old = folder / "disk", folder / "old"
        self._disk.write_bytes(self._blocks.content)
        self._old.write_bytes(self._blocks.content)

    def _location(self) -> str:
        return str(self._disk)

    async def capture(self, number: int) -> Capture:
        states = StateOptions(goal=f"state-{number}")
        if number:
            states = StateOptions(f"state-{number - 1}", f"state-{number}", str(self._listing()))
        return await capture_of(
            disk_of(self._location()), CaptureOptions(self._folder, states), Run()
        )

    def _listing(self) -> Path:
        path = self._folder / "changes"
        with (
            opened_source(LocalDisk(str(self._disk))) as new,
            opened_source(LocalDisk(str(self._old))) as old,
        ):
            found = differing(new, old, Run())
        extents = [{"offset": o, "length": n, "kind": "data"} for o, n, _ in found]
        head = {"format": "blockstream-extents", "version": 1, "size": SIZE, "meaning": "changed"}
        path.write_text(json.dumps(head | {"extents": extents}))
        return path

    def contents(self) -> Sequence[bytes]:
        return [self._blocks.content]

    def write(self) -> None:
        self._old.write_bytes(self._blocks.content)
        self._blocks.change()
        self._disk.write_bytes(self._blocks.content)

    def leftovers(self) -> set[str]:
        return {path.name for path in self._folder.rglob("*.journal")}


class InExport(InFile):
    """The same, behind an NBD server."""

    def __init__(self, folder: Path, stack: contextlib.ExitStack) -> None:
        super().__init__(folder)
        self._export = stack.enter_context(nbdkit(folder, "-r", "file", self._disk))

    def _location(self) -> str:
        return self._export


class InBitmap:
    """An image whose server knows by a dirty bitmap what changed since it was begun."""

    is_frozen = False

    def __init__(self, folder: Path, stack: contextlib.ExitStack) -> None:
        self._blocks, self._folder, self._stack = Blocks(), folder, stack
        self._serving = contextlib.ExitStack()
        stack.callback(self._serving.close)
        self._image = folder / "image.qcow2"
        raw = folder / "raw"
        raw.write_bytes(self._blocks.content)
        _run("qemu-img", "convert", "-O", "qcow2", raw, self._image)

    async def capture(self, number: int) -> Capture:
        self._serving.close()
        if not number:
            export = self._serving.enter_context(qemu_nbd(self._folder, self._image))
            options = CaptureOptions(self._folder, StateOptions(goal="state-0"))
            return await capture_of(disk_of(export), options, Run())
        bitmap = f"b{number - 1}"
        export = self._serving.enter_context(qemu_nbd(self._folder, self._image, "-B", bitmap))
        states = StateOptions(f"state-{number - 1}", f"state-{number}")
        options = CaptureOptions(self._folder, states, bitmap=bitmap)
        return await capture_of(disk_of(export), options, Run())

    def contents(self) -> Sequence[bytes]:
        return [self._blocks.content]

    def write(self) -> None:
        self._serving.close()
        bitmaps = json.loads(_run("qemu-img", "info", "--output=json", self._image))
        data = bitmaps["format-specific"]["data"]
        number = len(data.get("bitmaps", []))
        for each in range(number):
            _run("qemu-img", "bitmap", "--disable", self._image, f"b{each}")
        _run("qemu-img", "bitmap", "--add", self._image, f"b{number}")
        for place, written in self._blocks.change().items():
            part = self._folder / "part"
            part.write_bytes(written)
            _run("qemu-io", "-c", f"write -q -s {part} {place} {BLOCK}", self._image)

    def leftovers(self) -> set[str]:
        return set()


class InVmdk:
    """A chain of files: the whole of it first, then one delta after the other."""

    is_frozen = False

    def __init__(self, folder: Path) -> None:
        self._blocks, self._folder, self._number = Blocks(), folder, 0
        write_flat(folder, "disk", self._blocks.content, cid="00000000")

    async def capture(self, number: int) -> Capture:
        path = self._folder / (f"disk-{number:06}.vmdk" if number else "disk.vmdk")
        options = CaptureOptions(self._folder, vmdk=VmdkOptions(bool(number)), name="vm")
        return await capture_of(disk_of(f"vmdk:{path}"), options, Run())

    def contents(self) -> Sequence[bytes]:
        return [self._blocks.content]

    def write(self) -> None:
        written = self._blocks.change(4096)
        grains = {place // 4096: data for place, data in written.items()}
        below = f"disk-{self._number:06}.vmdk" if self._number else "disk.vmdk"
        cid, self._number = f"{self._number:08}", self._number + 1
        about = {"cid": f"{self._number:08}", "parent_cid": cid, "parent": below}
        name, sectors = f"disk-{self._number:06}", SIZE // 512
        write_delta(self._folder, name, sesparse(sectors, grains), sectors, **about)

    def leftovers(self) -> set[str]:
        return set()


class InStore:
    """The points of a disk, one after the other."""

    is_frozen = True  # what is saved later is another point

    def __init__(self, folder: Path) -> None:
        self._blocks, self._folder = Blocks(), folder
        objects = FolderObjects(folder / "store")
        Repository.create(objects)
        self._disk = Repository(objects).disk("vm")
        self._held: tuple[bytes, str] | None = None
        self._first = 0

    async def capture(self, number: int) -> Capture:
        await self._save()
        last = self._disk.last()
        assert last is not None
        return PointCapture(self._disk, last, increments=bool(number))

    async def _save(self) -> None:
        path, changes, base = self._folder / "disk", None, ""
        path.write_bytes(self._blocks.content)
        if self._held is not None and self._held[0] == self._blocks.content:
            return
        with opened_source(LocalDisk(str(path))) as source:
            if self._held is not None:
                old = self._folder / "old"
                old.write_bytes(self._held[0])
                with opened_source(LocalDisk(str(old))) as before:
                    found = differing(source, before, Run())
                changes, base = ExtentList(found, Meaning.CHANGED, "test", SIZE), self._held[1]
            disk = Captured("vm", str(path), source, base=base, changes=changes)
            (saved,) = await save([disk], TransferOptions(self._folder), [self._disk], Run())
        self._held = self._blocks.content, saved.point.state

    def contents(self) -> Sequence[bytes]:
        assert self._held is not None
        return [self._held[0]]

    def write(self) -> None:
        self._blocks.change()

    def leftovers(self) -> set[str]:
        return set()


class InMachine:
    """The disks of a virtual machine of VMware."""

    is_frozen = True

    def __init__(self, folder: Path, vcenter: Simulator) -> None:
        self._folder, self._vcenter, self._number = folder, vcenter, 0
        for key in (2000, 2001):
            vcenter.make_disk(SIZE, key=key)

    async def capture(self, number: int) -> Capture:
        del number  # what the target holds says what is sent
        place = machine_place(self._vcenter.location())

        @contextlib.contextmanager
        def log_in() -> Iterator[tuple[VSphere, Server]]:
            with contextlib.closing(open_vsphere(place, Secret(PASSWORD))) as session:
                yield session, server_of(place)

        how = MachineOptions(self._folder, "somewhere", enable=True)
        return MachineCapture(place, log_in, how)

    def contents(self) -> Sequence[bytes]:
        return [self._vcenter.content(key) for key in (2000, 2001)]

    def write(self) -> None:
        self._number += 1
        for key in (2000, 2001):
            for place in (self._number * BLOCK, key * 512):
                self._vcenter.write(place, b"%d of %d" % (self._number, key), key=key)

    def leftovers(self) -> set[str]:
        return set(self._vcenter.snapshots())


class TwoFiles:
    """Two disks that go as one set."""

    is_frozen = False

    def __init__(self, folder: Path) -> None:
        self._disks = []
        for name in ("one", "two"):
            (folder / name).mkdir()
            self._disks.append(InFile(folder / name))
        shutil.move(folder / "two" / "disk", folder / "two" / "other")
        self._disks[1]._disk = folder / "two" / "other"

    async def capture(self, number: int) -> Capture:
        return Together([await disk.capture(number) for disk in self._disks])

    def contents(self) -> Sequence[bytes]:
        return [content for disk in self._disks for content in disk.contents()]

    def write(self) -> None:
        for disk in self._disks:
            disk.write()

    def leftovers(self) -> set[str]:
        return set()


def _run(*words: str | Path) -> str:
    command = [str(word) for word in words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout  # noqa: S603


@contextmanager
def in_file(folder: Path) -> Iterator[Kind]:
    yield InFile(folder)


@contextmanager
def in_export(folder: Path) -> Iterator[Kind]:
    with contextlib.ExitStack() as stack:
        yield InExport(folder, stack)


@contextmanager
def in_bitmap(folder: Path) -> Iterator[Kind]:
    with contextlib.ExitStack() as stack:
        yield InBitmap(folder, stack)


@contextmanager
def in_vmdk(folder: Path) -> Iterator[Kind]:
    yield InVmdk(folder)


@contextmanager
def in_store(folder: Path) -> Iterator[Kind]:
    yield InStore(folder)


@contextmanager
def in_two_files(folder: Path) -> Iterator[Kind]:
    yield TwoFiles(folder)


@contextmanager
def in_machine(folder: Path) -> Iterator[Kind]:
    with simulator() as vcenter:
        yield InMachine(folder, vcenter)


KINDS = [
    pytest.param(in_file, id="file"),
    pytest.param(in_export, id="nbd", marks=pytest.mark.needs("nbdkit")),
    pytest.param(
        in_bitmap,
        id="nbd-bitmap",
        marks=[pytest.mark.slow, pytest.mark.needs("qemu-nbd", "qemu-img", "qemu-io")],
    ),
    pytest.param(in_vmdk, id="vmdk"),
    pytest.param(in_store, id="point"),
    pytest.param(in_two_files, id="set"),
    pytest.param(
        in_machine,
        id="vsphere",
        marks=[pytest.mark.slow, pytest.mark.needs("go", "govmomi"), pytest.mark.timeout(300)],
    ),
]


@pytest.mark.parametrize("promise", PROMISES)
@pytest.mark.parametrize("make", KINDS)
def test_a_capture_keeps_its_promises(
    make: Callable[[Path], AbstractContextManager[Kind]], promise: str, tmp_path: Path
) -> None:
    with make(tmp_path) as kind:
        check(kind, promise)
