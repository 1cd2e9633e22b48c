"""What the first version of a store's format wrote is read by this one."""

import asyncio
import hashlib
import shutil
from contextlib import closing
from pathlib import Path

from blockstream.formats.point import Kind
from blockstream.linux.buffers import aligned_buffer
from blockstream.repository.repository import Repository
from blockstream.repository.restore import opened_point
from blockstream.repository.verify import verify_disk
from blockstream.run import Run
from blockstream.stores.folder import FolderObjects

FOLDER = Path(__file__).parents[1] / "data" / "store"  # `make` there says what it is


def test_every_point_comes_back(tmp_path: Path) -> None:
    copy = shutil.copytree(FOLDER, tmp_path / "store")
    digests = [line.split()[0] for line in (FOLDER / "digests").read_text().splitlines()]
    repository = Repository(FolderObjects(copy))
    assert repository.disks() == ["vm"]
    disk = repository.disk("vm")
    points = list(disk.points())
    assert [point.kind for point in points] == [
        Kind.FULL,
        Kind.INCREMENT,
        Kind.INCREMENT,
        Kind.SYNTHETIC,
    ]
    assert [point.state for point in points] == ["first", "second", "third", "third"]
    for point, digest in zip(points, digests, strict=True):
        with closing(opened_point(disk, point)) as source:
            buffer = aligned_buffer(source.size)
            source.read_into([0], [source.size], buffer)
        assert hashlib.sha256(buffer).hexdigest() == digest
    found = asyncio.run(verify_disk(disk, Run()))
    assert found.whole == [1, 2, 3, 4]
    assert not found.damages
