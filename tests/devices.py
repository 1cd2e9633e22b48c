"""Block devices for tests: loop devices, and disks that fail, forget or write a log on demand.

Everything made here is given back when its `with` ends, failures included.
"""

import json
import os
import shutil
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

PLUGIN = Path(__file__).with_name("disk_plugin.py")
_PATIENCE_SECONDS = 20.0


def run(*command: str | Path) -> str:
    """Run a command of the system, and say what it said if it fails."""
    done = subprocess.run(  # noqa: S603
        [str(word) for word in command], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


@contextmanager
def loop_device(file: Path, *, sector: int = 512, direct: bool = False) -> Iterator[str]:
    """Give the path of a loop device over `file`; a direct one passes the file's own cache."""
    options = ["--sector-size", str(sector), *(["--direct-io=on"] if direct else [])]
    device = run("losetup", "--find", "--show", *options, file).strip()
    try:
        yield device
    finally:
        run("losetup", "--detach", device)
        _wait(lambda: not Path(f"/sys/block/{Path(device).name}/loop").exists(), "a detach")


@contextmanager
def mounted(device: str, place: Path, *options: str) -> Iterator[Path]:
    """Mount a device."""
    place.mkdir(exist_ok=True)
    run("mount", *options, device, place)
    try:
        yield place
    finally:
        run("umount", place)


@contextmanager
def tmpfs(place: Path, size: str) -> Iterator[Path]:
    """Mount a small file system in memory."""
    place.mkdir(exist_ok=True)
    run("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", place)
    try:
        yield place
    finally:
        run("umount", "--lazy", place)


@contextmanager
def partitions(device: str, *ranges: tuple[int, int]) -> Iterator[list[str]]:
    """Give the paths of partitions with these (offset, length) in bytes.

    They are told to the kernel directly: it may know no table, and there may be no udev.
    """
    found: list[str] = []
    try:
        for number, (offset, length) in enumerate(ranges, 1):
            run("addpart", device, str(number), str(offset // 512), str(length // 512))
            found.append(_partition_node(f"{device}p{number}"))
        yield found
    finally:
        for number in range(1, len(found) + 1):
            run("delpart", device, str(number))


def _partition_node(path: str) -> str:
    name = Path(path).name
    major, minor = map(int, Path(f"/sys/class/block/{name}/dev").read_text().split(":"))
    if not Path(path).exists():
        os.mknod(path, 0o600 | stat.S_IFBLK, os.makedev(major, minor))
    return path


@dataclass(frozen=True)
class Rigged:
    """Disks served by `disk_plugin.py`.

    Attributes:
        folder: Where the images lie.
        devices: Loop device of each image, by name.
        log: What reached them, in order.
    """

    folder: Path
    devices: dict[str, str]
    log: Path

    def image(self, name: str) -> Path:
        return self.folder / name

    def order(self, **faults: int | str) -> None:
        """Give new orders; counting begins anew. None makes a healthy disk."""
        temporary = self.folder / "orders.new"
        temporary.write_text(json.dumps(faults))
        temporary.replace(self.folder / "orders")

    def hits(self) -> int:
        """Return how many faults were given since the last order."""
        path = self.folder / "hits"
        return int(path.read_text() or 0) if path.exists() else 0


@contextmanager
def rigged(folder: Path, *images: Path, log: bool = False) -> Iterator[Rigged]:
    """Serve copies-in-place of `images`: nbdkit -> nbdfuse -> loop devices."""
    disks = folder / "disks"
    disks.mkdir()
    for image in images:
        shutil.copyfile(image, disks / image.name)
    rig = Rigged(disks, {}, disks / "log")
    rig.order()
    socket = folder / "nbd.sock"
    orders = ["log=1"] if log else []
    with ExitStack() as stack:
        stack.enter_context(
            process(
                ["nbdkit", "-f", "-U", socket, "python", PLUGIN, f"folder={disks}", *orders],
                socket.exists,
            )
        )
        for image in images:
            place = folder / f"fuse-{image.name}"
            place.mkdir()
            uri = f"nbd+unix:///{image.name}?socket={socket}"
            stack.enter_context(_fuse(place, uri))
            rig.devices[image.name] = stack.enter_context(loop_device(place / "nbd", direct=True))
        yield rig


@contextmanager
def _fuse(place: Path, uri: str) -> Iterator[None]:
    file = place / "nbd"
    with process(["nbdfuse", file, uri], file.exists):
        try:
            yield
        finally:
            run("fusermount3", "-u", "-z", place)


@contextmanager
def process(command: list[str | Path], ready: Callable[[], bool]) -> Iterator[None]:
    """Run a server until the `with` ends."""
    words, quiet = [str(word) for word in command], subprocess.DEVNULL
    child = subprocess.Popen(words, stdout=quiet, stderr=quiet)  # noqa: S603
    try:
        _wait(lambda: ready() or child.poll() is not None, str(command[0]))
        assert child.poll() is None, f"{command} ended with {child.returncode}"
        yield
    finally:
        child.terminate()
        with suppress(subprocess.TimeoutExpired):
            child.wait(_PATIENCE_SECONDS)
        child.kill()
        child.wait()


def _wait(happened: Callable[[], bool], what: str) -> None:
    """Wait for something outside that cannot be waited for otherwise."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while not happened():
        assert time.monotonic() < deadline, f"{what} never happened"
        time.sleep(0.005)
