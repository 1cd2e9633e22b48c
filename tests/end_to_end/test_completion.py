"""What a shell offers for a word that is being typed."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from blockstream.cli.completion import places
from blockstream.cli.completion_cmd import _BASH
from tests.end_to_end.hosts import Host

pytestmark = pytest.mark.slow

# compopt works only within a completion.
_TRY = """
compopt() { :; }
while read -r line; do
    COMP_LINE="${line%$}" COMP_POINT=$((${#line} - 1))
    _blockstream_completion blockstream
    echo "${COMPREPLY[*]}"
done
"""


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_bash_completes_options_states_disks_and_points(host: Host, tmp_path: Path) -> None:
    disk, store = host.disk("disk"), f"dir:{tmp_path}/backups"
    for words in (
        ("store", "init", store),
        ("send", disk, f"{store}/mail"),
        ("send", disk, f"{store}/mail"),
        ("send", disk, f"{store}/web"),
        ("send", disk, host.folder / "copy", "--create", "--goal", "monday"),
    ):
        ended = host.run(*words)
        assert ended.status == 0, ended.err
    binary = tmp_path / "bin" / "blockstream"
    binary.parent.mkdir()
    binary.write_text(f'#!/bin/sh\nexec {sys.executable} -m blockstream "$@"\n')
    binary.chmod(0o755)
    asked = {
        "send --compa": "--compare",
        "send --base mo": "monday",
        "send --base ": "last monday",
        "send --apply ": "direct undo stage",
        f"restore {store}/": f"{tmp_path}/backups/mail {tmp_path}/backups/web".replace("dir:", ""),
        f"restore {store}/mail@": "last 1 2",
        "store ver": "verify",
        "migr": "migrate",
    }
    lines = "".join(f"blockstream {line}$\n" for line in asked)
    environment = os.environ | {
        "PATH": f"{binary.parent}:{os.environ['PATH']}",
        "PYTHONPATH": ":".join(filter(None, sys.path)),
        "BLOCKSTREAM_STATE_DIR": str(host.state_dir),
    }
    said = subprocess.run(  # noqa: S603
        ["bash", "-c", _BASH + _TRY],  # noqa: S607
        input=lines,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert dict(zip(asked, said.stdout.splitlines(), strict=True)) == asked, said.stderr


def test_what_cannot_be_opened_offers_nothing(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    offered = [each.value for each in places(f"dir:{tmp_path}/fo")]
    assert offered == [f"dir:{tmp_path}/folder/"]
    assert places(f"dir:{tmp_path}/nothing@") == []
    assert places("vsp")[0].value == "vsphere://"
