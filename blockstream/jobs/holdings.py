"""What targets hold, asked before anything is sent, wherever they are."""

import contextlib
import json
from pathlib import Path

from blockstream.errors import ConnectionLostError, ExitStatus, NotFoundError, UsageError
from blockstream.linux.streams import WakeableReader
from blockstream.locations import Remote, open_link
from blockstream.run import Run
from blockstream.transfers.opened_target import TargetStatus, status_at
from blockstream.transfers.remote_command import PeerOptions, remote_command
from blockstream.transfers.remote_errors import explained
from blockstream_protocol import Clean, Dirty

_PIECE = 1 << 16
_MOST_BYTES = 1 << 20  # of one status; a plan is not in it


def base_of(status: TargetStatus) -> str:
    """Return the state that an increment for a target may start from; empty for none."""
    if status.staged:
        return status.staged  # applied before anything else is taken
    if isinstance(status.state, Dirty):
        return status.state.base  # which is what a transfer that covers the unfinished one has
    return status.state.id if isinstance(status.state, Clean) else ""


def held_here(path: str, state_dir: Path) -> str:
    """Return what a disk or file of this host holds; empty where nothing is known of it.

    Raises:
        RefusedError: If it cannot be opened.
    """
    try:
        return base_of(status_at(path, state_dir))
    except NotFoundError:
        return ""


def held_there(where: Remote, options: PeerOptions, run: Run) -> str | None:
    """Return what a disk of another host holds; empty if nothing is known, None if it is not there.

    Args:
        where: The disk.
        options: How its host is reached.
        run: Stops it.

    Raises:
        UsageError: If only its policy knows where it lies.
        BlockstreamError: If the host is not reached.
    """
    if where.name:
        raise UsageError(
            f"{where} is not asked what it holds: give a HOST:/PATH, or the state with --base"
        )
    command = remote_command(options, ["status", "--json"], where)
    with contextlib.closing(open_link(where, command, options.way)) as link:
        with (
            contextlib.closing(WakeableReader(link.from_peer)) as reader,
            run.heeding(lambda _reason: reader.stop()),
        ):
            said, piece = bytearray(), memoryview(bytearray(_PIECE))
            while len(said) <= _MOST_BYTES and (count := reader.read_into(piece)):
                said += piece[:count]
        run.check("nothing was sent")
        status, words = link.ended()
        if status == ExitStatus.NOT_FOUND:
            return None if "does not exist" in words else ""
        if status:
            raise explained(ConnectionLostError("it ended"), [link], greeted=False)
    return _base_in(bytes(said), link.name)


def _base_in(text: bytes, name: str) -> str:
    """Read the line of `blockstream status --json`.

    Raises:
        ConnectionLostError: If it is none.
    """
    try:
        values = json.loads(text)
        kind = values["state"]
        found = values["staged"] or values.get({"clean": "id", "dirty": "base"}.get(kind, ""), "")
    except (ValueError, TypeError, KeyError, RecursionError):
        raise ConnectionLostError(f"what {name} says of its disk is not understood") from None
    return str(found)
