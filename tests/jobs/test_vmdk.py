"""A delta of too many pieces for a plan is sent with what its parents hold between them."""

from pathlib import Path

import pytest

from blockstream.errors import SourceError
from blockstream.jobs.vmdk import opened_vmdk
from blockstream.linux.buffers import aligned_buffer
from blockstream.transfers.send import SendRequest
from tests.vmdk_files import cowd, write_delta, write_flat


@pytest.mark.parametrize("limit", [3, 4])
def test_gaps_can_be_read_where_they_will_be_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    monkeypatch.setattr("blockstream.jobs.vmdk.PLAN_EXTENTS", limit)
    write_flat(tmp_path, "base", bytes([1]) * 4096, cid="00000001")
    about = {"cid": "00000002", "parent_cid": "00000001", "parent": "base.vmdk"}
    grains = {number: bytes([2]) * 512 for number in (0, 2, 4, 6)}
    path = write_delta(tmp_path, "delta", cowd(8, grains), 8, **about)
    request = SendRequest(source=f"vmdk:{path}", state_dir=tmp_path)
    with opened_vmdk(str(path), request, delta=True, outside=False) as (source, asked):
        assert (asked.base, asked.goal) == ("vmdk:00000001", "vmdk:00000002")
        assert asked.changes is not None
        assert len(asked.changes.extents) == 4
        buffer = aligned_buffer(512)
        if limit == 4:
            with pytest.raises(SourceError, match="are in its parent"):
                source.read_into([512], [512], buffer)
        else:
            source.read_into([512], [512], buffer)
            assert bytes(buffer) == bytes([1]) * 512
