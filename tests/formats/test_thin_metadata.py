"""What thin_delta says of metadata that a real kernel wrote; `scripts/make_stores` made it."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import zstandard

from blockstream.formats import thin_delta
from blockstream_protocol import Kind

REAL = Path(__file__).parents[1] / "data" / "lvm"
FACTS = json.loads((REAL / "thin-metadata.json").read_text())
CHUNK = 65_536


def test_the_changes_are_what_was_written_and_the_zeros_what_was_discarded() -> None:
    delta, size = FACTS["delta"].encode(), FACTS["size"]
    found = thin_delta.read(delta, size, unmapped=Kind.ZERO).extents
    read = thin_delta.read(delta, size).extents
    assert read.coverage() == found.coverage()
    assert read.total(Kind.ZERO) == 0  # of whose origin nobody knows
    written = {block * 4096 // CHUNK for block in FACTS["blocks"]}
    seen: dict[Kind, set[int]] = {Kind.DATA: set(), Kind.ZERO: set()}
    for offset, length, kind in found:
        seen[Kind(kind)] |= set(range(offset // CHUNK, (offset + length) // CHUNK))
    first, length = FACTS["discarded"]
    inside = set(range(first // CHUNK, (first + length) // CHUNK))
    assert seen[Kind.DATA] == written
    assert seen[Kind.ZERO] <= inside
    assert seen[Kind.ZERO]


@pytest.mark.needs("thin_delta")
def test_the_tool_says_of_the_stored_metadata_what_it_said_of_the_pool(tmp_path: Path) -> None:
    metadata = tmp_path / "metadata"
    packed = (REAL / "thin-metadata.zst").read_bytes()
    metadata.write_bytes(zstandard.ZstdDecompressor().decompress(packed, max_output_size=1 << 28))
    older, newer = FACTS["ids"]
    tool = shutil.which("thin_delta") or "/usr/sbin/thin_delta"
    words = [tool, "-m", "--snap1", older, "--snap2", newer, str(metadata)]
    said = subprocess.run(words, capture_output=True, text=True, check=True).stdout  # noqa: S603
    size = FACTS["size"]
    assert (
        thin_delta.read(said.encode(), size).extents
        == thin_delta.read(FACTS["delta"].encode(), size).extents
    )
