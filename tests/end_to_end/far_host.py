"""The other host of a session: this one, with a state directory of its own."""

import shlex
from pathlib import Path

from tests.end_to_end.hosts import COMMAND, ROOT, Host


def far_command(host: Host) -> str:
    """Return what blockstream is called on "the other host": with that host's own state."""
    path = f"PYTHONPATH={ROOT}:{ROOT / 'protocol'}"
    state = f"BLOCKSTREAM_STATE_DIR={host.folder / 'far-state'}"
    return shlex.join(["env", path, state, *COMMAND])


def far_status(host: Host, target: Path) -> dict[str, object]:
    """Return what the other host's journal says."""
    far = Host(host.folder, host.zygote)
    ended = far.run(
        "status",
        "--json",
        target,
        environment={"BLOCKSTREAM_STATE_DIR": f"{host.folder}/far-state"},
    )
    return ended.results[0] if ended.results else {"state": "unheard of"}
