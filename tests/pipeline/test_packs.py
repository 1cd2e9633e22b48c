"""A stream that is cut into packs is the same stream, and each pack leads to its own index."""

import asyncio
import random
from contextlib import closing
from pathlib import Path

import blake3
import pytest

from blockstream.captures.interface import Captured
from blockstream.formats.point_index import PointIndex
from blockstream.formats.point_map import merged
from blockstream.jobs.inspect import inspect
from blockstream.pipeline.compression import CompressionChoice
from blockstream.pipeline.limiter import Limiter
from blockstream.pipeline.packs import TRAILER, TRAILER_MAGIC, PackSink
from blockstream.pipeline.progress import Progress
from blockstream.pipeline.sender import SendEngine, SendOptions
from blockstream.run import Run
from blockstream.sources.disk import DiskSource
from blockstream.stores.folder import FolderObjects
from blockstream.transfers.send import TransferOptions, planned
from blockstream_protocol import HEAD_BYTES, Sender

MIB = 1 << 20


@pytest.mark.parametrize("pack_bytes", [1, 3 * MIB, 100 * MIB])
def test_packs_are_the_stream(tmp_path: Path, pack_bytes: int) -> None:
    path = tmp_path / "disk"
    content = random.Random(1).randbytes(5 * MIB) + bytes(2 * MIB)  # noqa: S311
    path.write_bytes(content + random.Random(2).randbytes(3 * MIB))  # noqa: S311
    objects = FolderObjects(tmp_path / "store")
    outlet = PackSink(objects, "pack/id/", 10 * MIB, Limiter(None), Progress(), pack_bytes)
    with closing(DiskSource(str(path))) as source:
        disk = Captured("disk", str(path), source, "a")
        what = planned(disk, TransferOptions(tmp_path / "state"))
        session = Sender(what.opening, what.plan, new_digest=blake3.blake3, duplex=False, now=0.0)
        options = SendOptions(compression=CompressionChoice(1))
        SendEngine(session, source, what.extents, outlet, Progress(), options).run()
    index = outlet.finish()
    index.check()
    assert len(outlet.packs) == {1: len(index.frames), 3 * MIB: 4, 100 * MIB: 1}[pack_bytes]
    assert merged([index]).size == 10 * MIB
    parts = []
    for number, pack in enumerate(outlet.packs):
        data = objects.read_whole(f"pack/{pack.key}", 1 << 30)
        assert len(data) == pack.size
        magic, start, length, digest = TRAILER.unpack(data[-TRAILER.size :])
        assert magic == TRAILER_MAGIC
        footer = data[start + HEAD_BYTES : start + HEAD_BYTES + length]
        assert blake3.blake3(footer).digest() == digest
        parts.append(PointIndex.decode(footer))
        assert set(parts[-1].frames.pack.tolist()) == {number}
    assert PointIndex.joined(10 * MIB, parts).encode() == index.encode()
    stream = tmp_path / "stream"
    stream.write_bytes(
        b"".join(objects.read_whole(f"pack/{pack.key}", 1 << 30) for pack in outlet.packs)
    )
    with stream.open("rb") as file:
        found = asyncio.run(inspect(file.fileno(), b"", Run()))
    assert found.problem is None
    assert found.frames == len(index.frames)
