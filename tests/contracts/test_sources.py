"""Whatever is read keeps the promises of `interfaces.Source`."""

import os
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from blockstream.errors import SourceError
from blockstream.interfaces import Source
from blockstream.linux.buffers import aligned_buffer
from blockstream.linux.identity import node_of, share_bytes
from blockstream.locations.nbd import NbdExport
from blockstream.locations.registry import disk_of
from blockstream_protocol import Kind
from tests.contracts.disks import (
    DISKS,
    EXPORTS,
    Disk,
    Maker,
    content_of,
    in_empty_file,
    open_descriptors,
)
from tests.vmdk_files import cowd, overlaid, sesparse, some_grains, write_delta, write_flat

SECTORS = 2048


@contextmanager
def in_cowd_chain(folder: Path) -> Iterator[Disk]:
    content = content_of(SECTORS * 512)
    write_flat(folder, "disk", content, cid="aaaaaaaa")
    grains = some_grains(len(content), 512, 1)
    about = {"cid": "bbbbbbbb", "parent_cid": "aaaaaaaa", "parent": "disk.vmdk"}
    path = write_delta(folder, "disk-000001", cowd(SECTORS, grains), SECTORS, **about)
    content = overlaid(content, len(content), 512, grains)
    yield Disk(f"vmdk:{path}", content, 512, folder / "disk-flat.vmdk")


@contextmanager
def in_sesparse_chain(folder: Path) -> Iterator[Disk]:
    content = content_of(SECTORS * 512)
    write_flat(folder, "disk", content, cid="aaaaaaaa")
    below = "aaaaaaaa", "disk.vmdk"
    for number in (1, 2):
        grains = some_grains(len(content), 4096, number, zeros=True)
        name, cid = f"disk-{number:06}", f"{number:08}"
        about = {"cid": cid, "parent_cid": below[0], "parent": below[1]}
        path = write_delta(folder, name, sesparse(SECTORS, grains), SECTORS, **about)
        content, below = overlaid(content, len(content), 4096, grains), (cid, path.name)
    yield Disk(f"vmdk:{path}", content, 512, folder / "disk-000001-sesparse.vmdk")


SOURCES = [
    *DISKS,
    *EXPORTS,
    pytest.param(in_cowd_chain, id="vmdk-cowd"),
    pytest.param(in_sesparse_chain, id="vmdk-sesparse"),
]


@pytest.fixture(params=SOURCES)
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Disk]:
    make: Maker = request.param
    with make(tmp_path) as disk:
        yield disk


@pytest.fixture
def source(disk: Disk) -> Iterator[Source]:
    with closing(disk_of(disk.path).open_source()) as source:
        yield source


def read(source: Source, *ranges: tuple[int, int]) -> bytes:
    buffer = aligned_buffer(sum(length for _, length in ranges))
    buffer[:] = b"\xa5" * len(buffer)  # as used memory is
    source.read_into([offset for offset, _ in ranges], [length for _, length in ranges], buffer)
    return bytes(buffer)


def test_it_is_called_by_the_name_that_people_gave(disk: Disk, source: Source) -> None:
    assert source.name == disk.path


def test_its_size_is_in_bytes(disk: Disk, source: Source) -> None:
    assert source.size == len(disk.content)


def test_its_size_does_not_change(disk: Disk, source: Source) -> None:
    before = source.size
    with disk.file.open("ab") as file:
        file.write(b"more")
    assert source.size == before


def test_its_alignment_is_that_of_the_disk(disk: Disk, source: Source) -> None:
    assert source.alignment == disk.sector


def test_it_is_not_called_immutable_without_proof(source: Source) -> None:
    assert source.immutable is False


def test_what_may_be_written_meanwhile_is_of_no_one_moment(disk: Disk, source: Source) -> None:
    assert source.is_still is not any("no one moment" in text for text in source.warnings)
    # Of exports, one is exported for writing.
    assert source.is_still or isinstance(disk_of(disk.path), NbdExport)


def test_only_of_what_lies_elsewhere_more_may_be_asked_for_than_is_wanted(
    disk: Disk, source: Source
) -> None:
    assert (source.read_ahead > 0) == isinstance(disk_of(disk.path), NbdExport)


def test_its_nodes_share_bytes_with_itself(disk: Disk, source: Source) -> None:
    if isinstance(
        disk_of(disk.path), NbdExport
    ):  # another program has the bytes, and does not say where
        assert not source.nodes
        return
    fd = os.open(disk.file if ":" in disk.path else disk.path, os.O_RDONLY)
    try:
        assert any(share_bytes(node, node_of(fd)) for node in source.nodes)
    finally:
        os.close(fd)


def test_its_nodes_share_bytes_with_what_it_lies_on(disk: Disk, source: Source) -> None:
    if isinstance(disk_of(disk.path), NbdExport):
        assert not source.nodes
        return
    fd = os.open(disk.file, os.O_RDONLY)
    try:
        assert any(share_bytes(node, node_of(fd)) for node in source.nodes)
    finally:
        os.close(fd)


def test_its_nodes_share_nothing_with_a_neighbour(source: Source, tmp_path: Path) -> None:
    with (tmp_path / "neighbour").open("wb") as file:
        assert not any(share_bytes(node, node_of(file.fileno())) for node in source.nodes)


def test_an_idle_disk_needs_no_warning(source: Source) -> None:
    assert list(source.warnings) == []


def test_its_extents_cover_it_from_end_to_end(disk: Disk, source: Source) -> None:
    position = 0
    for extent in source.extents():
        assert extent.offset == position
        assert extent.kind in set(Kind)
        position += extent.length
    assert position == len(disk.content)


def test_its_zero_extents_are_zeros(disk: Disk, source: Source) -> None:
    for offset, length, kind in source.extents():
        if kind == Kind.ZERO:
            assert not disk.content[offset : offset + length].strip(b"\0")


def test_its_extents_can_be_read_as_they_are(disk: Disk, source: Source) -> None:
    for offset, length, _ in source.extents():
        assert offset % source.alignment == 0
        end = offset + length
        assert end % source.alignment == 0 or end == source.size
        assert read(source, (offset, length)) == disk.content[offset:end]


def test_ranges_are_read_one_after_the_other(disk: Disk, source: Source) -> None:
    unit = source.alignment
    ranges = [(0, unit), (4 * unit, 2 * unit), (16 * unit, unit)]
    last = source.size // unit * unit
    ranges.append((last - 2 * unit, source.size - last + 2 * unit))
    wanted = b"".join(disk.content[offset : offset + length] for offset, length in ranges)
    assert read(source, *ranges) == wanted


def test_every_offset_and_length_of_whole_units_can_be_read(disk: Disk, source: Source) -> None:
    seeded = random.Random(7)  # noqa: S311  # not secrets
    units = source.size // source.alignment
    for _ in range(50):
        first, last = sorted((seeded.randrange(units + 1), seeded.randrange(units + 1)))
        start, end = first * source.alignment, last * source.alignment
        assert read(source, (start, end - start)) == disk.content[start:end]


def test_several_threads_read_at_once(disk: Disk, source: Source) -> None:
    step = 64 << 10
    starts = range(0, source.size, step)

    def part(start: int) -> bytes:
        return read(source, (start, min(step, source.size - start)))

    with ThreadPoolExecutor(8) as threads:
        for _ in range(3):
            assert b"".join(threads.map(part, starts)) == disk.content


def test_a_range_past_the_end_is_an_error_with_its_offset(source: Source) -> None:
    offset = -(-source.size // 4096) * 4096 + 8192
    with pytest.raises(SourceError, match=rf"offset {offset}\b|{source.size} bytes"):
        read(source, (offset, source.alignment))


def test_what_nobody_changed_is_valid(source: Source) -> None:
    read(source, (0, source.alignment))
    source.validate()


def test_closing_gives_every_descriptor_back(disk: Disk) -> None:
    before = open_descriptors()
    source = disk_of(disk.path).open_source()
    source.extents()
    source.close()
    assert open_descriptors() == before


def test_an_empty_disk_is_one_too(tmp_path: Path) -> None:
    with in_empty_file(tmp_path) as disk, closing(disk_of(disk.path).open_source()) as source:
        assert source.size == 0
        assert list(source.extents()) == []
        assert read(source) == b""
        source.validate()
