"""A VMDK is read through its chain as qemu reads it, and never leads where nobody allowed."""

import json
import os
import random
import struct
import subprocess
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from blockstream.errors import BlockstreamError, NotFoundError, SourceError
from blockstream.extents import ExtentMap
from blockstream.linux.buffers import aligned_buffer
from blockstream.sources.vmdk import VmdkSource
from blockstream_protocol import Kind
from tests.vmdk_files import (
    Image,
    Zeros,
    cowd,
    described,
    difference,
    hosted,
    overlaid,
    sesparse,
    some_grains,
    stream,
    write_delta,
    write_flat,
)

MIB = 1 << 20
SECTORS = 10 * 2048 + 24
SUBFORMATS = [
    "monolithicSparse",
    "monolithicFlat",
    "twoGbMaxExtentSparse",
    "twoGbMaxExtentFlat",
    "streamOptimized",
]
OURS: dict[str, tuple[Callable[..., Image], int]] = {
    "cowd": (cowd, 512),
    "sesparse": (sesparse, 4096),
}


def qemu(*words: object) -> str:
    """Run a tool of qemu's."""
    command = [str(word) for word in words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout  # noqa: S603


def read(path: Path, *, outside: bool = False) -> bytes:
    with closing(VmdkSource(str(path), outside=outside)) as source:
        buffer = aligned_buffer(source.size)
        buffer[:] = b"\xa5" * source.size  # as used memory is
        for start in range(0, source.size, MIB):
            length = min(MIB, source.size - start)
            source.read_into([start], [length], buffer[start : start + length])
        source.validate()
        return bytes(buffer)


def converted(path: Path) -> bytes:
    out = path.with_suffix(".raw")
    qemu("qemu-img", "convert", "-f", "vmdk", "-O", "raw", path, out)
    return out.read_bytes()


def disk(size: int, seed: int = 1) -> bytes:
    """Return runs of random bytes and of zeros."""
    seeded = random.Random(seed)  # noqa: S311  # not secrets
    content = bytearray()
    while len(content) < size:
        run = seeded.choice([512, 4096, 65_536, 300_032])
        content += seeded.randbytes(run) if seeded.random() < 0.6 else bytes(run)
    return bytes(content[:size])


@pytest.mark.slow
@pytest.mark.needs("qemu-img")
@pytest.mark.parametrize("subformat", SUBFORMATS)
def test_what_qemu_writes_is_read(tmp_path: Path, subformat: str) -> None:
    content = disk(35 * MIB + 1536)
    (tmp_path / "raw").write_bytes(content)
    path = tmp_path / "disk.vmdk"
    option = f"subformat={subformat}"
    qemu("qemu-img", "convert", "-f", "raw", "-O", "vmdk", "-o", option, tmp_path / "raw", path)
    assert not difference(read(path), content)


@pytest.mark.slow
@pytest.mark.needs("qemu-img", "qemu-io")
def test_a_chain_that_qemu_wrote_is_read_as_qemu_reads_it(tmp_path: Path) -> None:
    base = tmp_path / "0.vmdk"
    (tmp_path / "raw").write_bytes(disk(5 * MIB))
    qemu("qemu-img", "convert", "-f", "raw", "-O", "vmdk", tmp_path / "raw", base)
    for number in (1, 2, 3):
        child = tmp_path / f"{number}.vmdk"
        options = ["-o", "zeroed_grain=on", "-b", f"{number - 1}.vmdk", "-F", "vmdk"]
        qemu("qemu-img", "create", "-f", "vmdk", *options, child)
        writes = [f"write -P {number} {number}M 200k", f"write -z {number * 64}k 64k"]
        qemu("qemu-io", "-f", "vmdk", *(word for each in writes for word in ("-c", each)), child)
    assert not difference(read(tmp_path / "3.vmdk"), converted(tmp_path / "3.vmdk"))


def esxi_chain(folder: Path, kind: str, links: int = 2) -> tuple[Path, bytes, set[int]]:
    """Write a base and deltas; return the newest, the model, and the newest's grains."""
    make, grain = OURS[kind]
    size = SECTORS * 512
    model = disk(size)
    path = write_flat(folder, "disk", model, cid="00000000")
    grains = {}
    for number in range(1, links + 1):
        grains = some_grains(size, grain, number, zeros=kind == "sesparse")
        about = {"parent_cid": f"{number - 1:08}", "cid": f"{number:08}", "parent": path.name}
        path = write_delta(folder, f"disk-{number:06}", make(SECTORS, grains), SECTORS, **about)
        model = overlaid(model, size, grain, grains)
    return path, model, set(grains)


@pytest.mark.slow
@pytest.mark.needs("qemu-img")
@pytest.mark.parametrize("kind", OURS)
def test_deltas_of_esxi_are_read_as_qemu_reads_them(tmp_path: Path, kind: str) -> None:
    path, model, grains = esxi_chain(tmp_path, kind)
    assert not difference(converted(path), model)
    assert not difference(read(path), model)
    grain = OURS[kind][1]
    found: set[int] = set()
    for entry in json.loads(qemu("qemu-img", "map", "-f", "vmdk", "--output=json", path)):
        if entry["depth"] == 0:
            first, last = entry["start"], entry["start"] + entry["length"]
            found |= set(range(first // grain, -(-last // grain)))
    assert found == grains
    with closing(VmdkSource(str(path), delta=True)) as source:
        assert numbers(source.changes(), grain) == grains


def numbers(extents: ExtentMap, grain: int) -> set[int]:
    return {
        number
        for offset, length, _ in extents
        for number in range(offset // grain, -(-(offset + length) // grain))
    }


def zeros_of(source: VmdkSource) -> ExtentMap:
    found = source.extents()
    rows = found.kinds == Kind.ZERO
    return ExtentMap.from_columns(
        found.offsets[rows], found.lengths[rows], found.kinds[rows], found.size
    )


def test_a_stream_as_vmware_exports_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "disk.vmdk"
    grains = some_grains(SECTORS * 512, 65_536, 1)
    text = described(f'RDONLY {SECTORS} SPARSE "other-name.vmdk"')
    path.write_bytes(stream(SECTORS, grains, text=text).data)
    assert not difference(read(path), overlaid(b"", SECTORS * 512, 65_536, grains))
    with closing(VmdkSource(str(path))) as source:
        assert numbers(source.extents().without(zeros_of(source)), 65_536) == set(grains)
        assert source.extents().total() == SECTORS * 512


def test_extents_of_every_type_make_one_disk(tmp_path: Path) -> None:
    flat, grains = disk(8 * 512), some_grains(900 * 512, 4096, 1, zeros=True)
    (tmp_path / "f.vmdk").write_bytes(bytes(5 * 512) + flat)
    (tmp_path / "s.vmdk").write_bytes(hosted(900, grains, grain=8).data)
    lines = ['RW 8 FLAT "f.vmdk" 5', "RW 3 ZERO", 'RW 900 SPARSE "s.vmdk"', 'RW 2 FLAT "f.vmdk" 5']
    path = tmp_path / "disk.vmdk"
    path.write_text(described(*lines))
    wanted = flat + bytes(3 * 512) + overlaid(b"", 900 * 512, 4096, grains) + flat[:1024]
    assert not difference(read(path), wanted)
    with closing(VmdkSource(str(path))) as source:
        for offset, length, kind in source.extents():
            assert kind == Kind.DATA or not wanted[offset : offset + length].strip(b"\0")


def test_an_extent_may_be_smaller_than_its_file(tmp_path: Path) -> None:
    grains: dict[int, bytes | Zeros] = {number: bytes([number + 1]) * 512 for number in range(8)}
    (tmp_path / "delta").write_bytes(cowd(8, grains).data)
    path = tmp_path / "disk.vmdk"
    path.write_text(described('RW 4 VMFSSPARSE "delta"', "RW 4 ZERO"))
    assert read(path) == overlaid(b"", 2048, 512, grains) + bytes(2048)
    with closing(VmdkSource(str(path))) as source:
        assert [(e.offset, e.length) for e in source.extents()] == [(0, 2048), (2048, 2048)]


def test_holes_of_a_flat_file_are_not_read(tmp_path: Path) -> None:
    path = write_flat(tmp_path, "disk", b"")
    with (tmp_path / "disk-flat.vmdk").open("wb") as file:
        file.truncate(64 * MIB)
        file.seek(32 * MIB)
        file.write(b"x" * 4096)
    path.write_text(described(f'RW {64 * 2048} VMFS "disk-flat.vmdk"'))
    with closing(VmdkSource(str(path))) as source:
        assert source.extents().total(Kind.DATA) == 4096


def test_states_are_called_by_content_ids(tmp_path: Path) -> None:
    path, _, _ = esxi_chain(tmp_path, "cowd")
    for delta in (False, True):
        with closing(VmdkSource(str(path), delta=delta)) as source:
            assert (source.state, source.is_delta) == ("vmdk:00000002", True)
            assert source.base_state == "vmdk:00000001"


def test_a_live_base_is_called_by_its_long_id_and_warned_of(tmp_path: Path) -> None:
    long_id = "0123456789abcdef01234567fffffffe"
    more = f'ddb.longContentID = "{long_id}"'
    write_flat(tmp_path, "base", bytes(512 * 512), cid="fffffffe", more=more)
    about = {"cid": "00000001", "parent_cid": "fffffffe", "parent": "base.vmdk"}
    path = write_delta(tmp_path, "delta", cowd(512, {1: bytes(512)}), 512, **about)
    with closing(VmdkSource(str(path), delta=True)) as source:
        assert source.base_state == f"vmdk:{long_id}"
    with closing(VmdkSource(str(path))) as source:
        assert "is in use by ESXi" in "".join(source.warnings)
    (tmp_path / "base.vmdk").unlink()
    with closing(VmdkSource(str(path), delta=True)) as source:
        assert source.base_state == ""


def test_a_delta_needs_no_parent_and_makes_nothing_up(tmp_path: Path) -> None:
    path, model, _ = esxi_chain(tmp_path, "sesparse", links=1)
    for name in ("disk.vmdk", "disk-flat.vmdk"):
        (tmp_path / name).unlink()
    for file in (path, path.with_name("disk-000001-sesparse.vmdk")):
        with closing(VmdkSource(str(file), delta=True)) as source:
            for offset, length, kind in source.changes():
                buffer = aligned_buffer(length)
                source.read_into([offset], [length], buffer)
                assert not difference(bytes(buffer), model[offset : offset + length])
                assert kind == Kind.DATA or not bytes(buffer).strip(b"\0")
            absent = next(iter(ExtentMap.whole(source.size).without(source.changes())))
            with pytest.raises(SourceError, match=f"offset {absent.offset} are in its parent"):
                source.read_into([absent.offset], [512], aligned_buffer(512))


def test_what_is_odd_but_harmless_is_said(tmp_path: Path) -> None:
    write_flat(tmp_path, "base", bytes(1024 * 512), cid="00000001")
    about = {"parent_cid": "00000001", "parent": "base.vmdk"}
    path = write_delta(tmp_path, "delta", cowd(512, {0: bytes(512)}, flags=1), 512, **about)
    with closing(VmdkSource(str(path))) as source:
        notes = "\n".join(source.warnings)
    assert "flags are 1" in notes
    assert "its parent 524288" in notes
    image = hosted(512, {}, text=described('RW 512 SPARSE "x.vmdk"'))
    image.data[72] = 1
    (tmp_path / "x.vmdk").write_bytes(image.data)
    with closing(VmdkSource(str(tmp_path / "x.vmdk"))) as source:
        assert "was not closed" in "".join(source.warnings)


def test_a_file_that_is_written_meanwhile_is_noticed(tmp_path: Path) -> None:
    path, _, _ = esxi_chain(tmp_path, "cowd")
    for name in ("disk-flat.vmdk", "disk-000001-delta.vmdk", "disk-000001.vmdk"):
        with closing(VmdkSource(str(path))) as source:
            source.extents()
            source.validate()
            with (tmp_path / name).open("r+b") as file:
                file.seek(0, 2)
                file.write(b"\n")
            with pytest.raises(SourceError, match=f"{name} was written while it was read"):
                source.validate()


def in_folder(folder: Path) -> Path:
    """Make a folder with a disk beside it that nobody may reach from within."""
    inner = folder / "vm"
    inner.mkdir()
    (folder / "secret").write_bytes(b"secret".ljust(512, b"!"))
    return inner


@pytest.mark.parametrize("name", ["{folder}/secret", "../secret", "sub/../../secret", "link"])
def test_a_name_that_leads_out_is_not_followed(tmp_path: Path, name: str) -> None:
    inner = in_folder(tmp_path)
    (inner / "link").symlink_to("../secret")
    (inner / "sub").mkdir()
    path = inner / "disk.vmdk"
    path.write_text(described(f'RW 1 FLAT "{name.format(folder=tmp_path)}" 0'))
    with pytest.raises(SourceError, match=r"outside its folder.*--allow-outside"):
        read(path)
    assert read(path, outside=True).startswith(b"secret!")


@pytest.mark.parametrize(
    "hint", ["/vmfs/volumes/1/vm/base.vmdk", "..\\x\\base.vmdk", "../base.vmdk"]
)
def test_a_parent_is_looked_for_beside_its_child(tmp_path: Path, hint: str) -> None:
    write_flat(tmp_path, "base", bytes([1]) * 4096, cid="00000001")
    about = {"parent_cid": "00000001", "parent": hint}
    path = write_delta(tmp_path, "delta", cowd(8, {0: bytes([2]) * 512}), 8, **about)
    assert read(path) == bytes([2]) * 512 + bytes([1]) * 3584
    (tmp_path / "base.vmdk").unlink()
    with pytest.raises(NotFoundError, match=r"base\.vmdk, the parent of .* does not exist"):
        read(path)


def text_of(*lines: str, **about: str) -> bytes:
    return described(*lines, **about).encode()


BELOW = {"cid": "00000001", "parent_cid": "00000001"}
COWD = bytes(cowd(8, {0: bytes(512)}).data)
REFUSED = {
    "its own extent": (text_of('RW 1 FLAT "disk.vmdk" 0'), "named twice"),
    "its own parent": (
        text_of('RW 8 VMFSSPARSE "delta"', parent="disk.vmdk", **BELOW),
        "named twice by the chain",
    ),
    "a loop of two": (
        text_of('RW 8 VMFSSPARSE "delta"', parent="loop.vmdk", **BELOW),
        "named twice by the chain",
    ),
    "another parent": (
        text_of('RW 8 VMFSSPARSE "delta"', parent="flat.vmdk", cid="1", parent_cid="2"),
        "has content 00000002, and this one has 00000009",
    ),
    "a bare parent": (
        text_of('RW 8 VMFSSPARSE "delta"', parent="delta2", **BELOW),
        "has no descriptor in it",
    ),
    "another kind of extent": (text_of('RW 8 SESPARSE "delta"'), "is no SESPARSE file"),
    "a larger extent": (text_of('RW 9 VMFSSPARSE "delta"'), "holds 4096 bytes"),
    "a shorter file": (text_of('RW 9 FLAT "flat" 1'), "wants 4608 from offset 512"),
    "a missing file": (text_of('RW 9 FLAT "nothing" 1'), "does not exist"),
    "a folder": (text_of('RW 9 FLAT "folder" 1'), "neither a file nor"),
    "a raw device": (text_of('RW 9 VMFSRDM "flat"'), "type VMFSRDM"),
    "a bare delta": (COWD, "has no descriptor in it"),
    "a bare extent": (bytes(hosted(8, {}).data), "has no descriptor in it"),
    "something else": (b"\0" * 4096, "no VMDK that we know"),
    "nothing": (b"", "no VMDK that we know"),
    "one of several": (
        bytes(hosted(8, {}, text=described('RW 8 SPARSE "a"', 'RW 8 SPARSE "b"')).data),
        "describes the others",
    ),
    "a giant descriptor": (text_of('RW 1 FLAT "flat" 0'), "longer than 1048575"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_chain_that_cannot_be_trusted_is_refused(tmp_path: Path, what: str) -> None:
    data, words = REFUSED[what]
    (tmp_path / "folder").mkdir()
    (tmp_path / "flat").write_bytes(bytes(4096))
    (tmp_path / "delta").write_bytes(COWD)
    (tmp_path / "delta2").write_bytes(COWD)
    (tmp_path / "flat.vmdk").write_bytes(text_of('RW 8 FLAT "flat" 0', cid="9"))
    loop = text_of('RW 8 VMFSSPARSE "delta2"', parent="disk.vmdk", **BELOW)
    (tmp_path / "loop.vmdk").write_bytes(loop)
    (tmp_path / "disk.vmdk").write_bytes(data)
    if what == "a giant descriptor":
        os.truncate(tmp_path / "disk.vmdk", 1 << 40)  # nothing may be read of it
    with pytest.raises(BlockstreamError, match=words) as caught:
        read(tmp_path / "disk.vmdk")
    assert str(tmp_path) in str(caught.value)


def test_a_chain_has_an_end(tmp_path: Path) -> None:
    for number in range(66):
        about = {"cid": "1", "parent_cid": "1", "parent": f"{number + 1}.vmdk"}
        (tmp_path / f"{number}.vmdk").write_bytes(text_of("RW 8 ZERO", **about))
    with pytest.raises(SourceError, match="more than 64 parents"):
        read(tmp_path / "0.vmdk")


def test_a_disk_that_a_descriptor_in_a_sparse_file_names_is_read(tmp_path: Path) -> None:
    (tmp_path / "flat").write_bytes(b"f" * 512)
    image = hosted(8, {}, text=described('RW 1 FLAT "flat" 0'))
    struct.pack_into("<Q", image.data, 12, 0)
    (tmp_path / "disk.vmdk").write_bytes(image.data)
    assert read(tmp_path / "disk.vmdk") == b"f" * 512


def test_grains_that_lie_scattered_are_put_in_order(tmp_path: Path) -> None:
    seeded = random.Random(5)  # noqa: S311
    grains: dict[int, bytes | Zeros] = {n: seeded.randbytes(512) for n in range(0, 4096, 2)}
    write_flat(tmp_path, "base", bytes([1]) * (4096 * 512), cid="00000001")
    about = {"parent_cid": "00000001", "parent": "base.vmdk"}
    path = write_delta(tmp_path, "delta", cowd(4096, grains), 4096, **about)
    model = overlaid(bytes([1]) * (4096 * 512), 4096 * 512, 512, grains)
    assert not difference(read(path), model)
