"""A delta of too many pieces for a plan is sent with what its parents hold between them."""

from pathlib import Path

import pytest

from blockstream.captures.options import CaptureOptions, VmdkOptions
from blockstream.captures.vmdk_chain import VmdkCapture
from blockstream.errors import SourceError
from blockstream.linux.buffers import aligned_buffer
from blockstream.locations.vmdk import VmdkFile
from blockstream.run import Run
from tests.running import entered, nothing_held
from tests.vmdk_files import cowd, write_delta, write_flat


@pytest.mark.parametrize("limit", [3, 4])
def test_gaps_can_be_read_where_they_will_be_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    monkeypatch.setattr("blockstream.captures.vmdk_chain.PLAN_EXTENTS", limit)
    write_flat(tmp_path, "base", bytes([1]) * 4096, cid="00000001")
    about = {"cid": "00000002", "parent_cid": "00000001", "parent": "base.vmdk"}
    grains = {number: bytes([2]) * 512 for number in (0, 2, 4, 6)}
    path = write_delta(tmp_path, "delta", cowd(8, grains), 8, **about)
    capture = VmdkCapture(
        VmdkFile(str(path)), CaptureOptions(tmp_path, vmdk=VmdkOptions(delta=True))
    )
    with entered(capture.open(nothing_held, Run())) as (disk,):
        assert (disk.base, disk.state) == ("vmdk:00000001", "vmdk:00000002")
        assert disk.changes is not None
        assert len(disk.changes.extents) == 4
        source = disk.source
        buffer = aligned_buffer(512)
        if limit == 4:
            with pytest.raises(SourceError, match="are in its parent"):
                source.read_into([512], [512], buffer)
        else:
            source.read_into([512], [512], buffer)
            assert bytes(buffer) == bytes([1]) * 512
