"""Where a migrated volume comes to lie: what the source's host asks of the target's."""

import contextlib
import json
import os
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from blockstream.errors import BlockstreamError, ConnectionLostError, InterruptedTransferError
from blockstream.linux import lvm
from blockstream.linux.streams import WakeableReader
from blockstream.locations.ssh import Remote, open_link
from blockstream.pipeline.target_status import status_at
from blockstream.run import Run
from blockstream.transfers.opened_target import wait_for_receiver
from blockstream.transfers.peer_options import PeerOptions
from blockstream.transfers.remote_command import LOCK_WAIT_SECONDS
from blockstream.transfers.remote_errors import explained
from blockstream.words import noise_text
from blockstream_protocol import Clean, Dirty

_PIECE = 65_536
_LONGEST_ANSWER = 1 << 20


@dataclass(frozen=True, slots=True)
class Landing:
    """What the target's host says of one volume.

    Attributes:
        path: Its device.
        problems: Why nothing can go there; empty if it can.
        state: `clean`, `dirty` or `unknown`, as its journal says.
        holds: The state that it holds, or is on the way to.
        base: Where it is on the way from, or came from by an increment.
        made: Whether it was made for this migration.
    """

    path: str
    problems: tuple[str, ...] = ()
    state: str = "unknown"
    holds: str = ""
    base: str = ""
    made: bool = False


@dataclass(frozen=True, slots=True)
class LandingWish:
    """What is to become of a volume there.

    Attributes:
        group: Its volume group.
        name: Its name.
        size: Bytes of the source.
        create: Whether it may be made.
        pool: Pool that it is made in; empty for a thick one.
        dry_run: Only look.
        remove: Take it away again, if it was made for this and not finished.
        settle: It is finished, so never take it away.
        mark: A tag that tells that it was made for this, and is not finished.
    """

    group: str
    name: str
    size: int = 0
    create: bool = False
    pool: str = ""
    dry_run: bool = False
    remove: bool = False
    settle: bool = False
    mark: str = ""


def land(wish: LandingWish, state_dir: Path) -> Landing:
    """Look at the place, and make the volume if that is wished: what runs on the target's host."""
    path = f"/dev/{wish.group}/{wish.name}"
    if os.geteuid() != 0 or shutil.which("lvs") is None:
        return Landing(path, ("LVM is not there, or we are not root",))
    try:
        there, volume = _found(wish)
        if volume is not None and volume.is_open and not wish.settle:
            # The receiver of a run that was killed may hold it until it notices.
            wait_for_receiver(path, LOCK_WAIT_SECONDS)
            there, volume = _found(wish)
    except BlockstreamError as error:
        return Landing(path, (str(error),))
    if wish.remove or wish.settle:
        if volume is not None and wish.mark in volume.tags:
            lvm.remove(volume) if wish.remove else lvm.drop_tag(volume, wish.mark)
        return Landing(path)
    if volume is None:
        return _absent(wish, path, there)
    return _present(wish, path, volume, there, state_dir)


def _found(wish: LandingWish) -> tuple[Sequence[lvm.Volume], lvm.Volume | None]:
    there = lvm.volumes(wish.group)
    return there, next((each for each in there if each.name == wish.name), None)


def _absent(wish: LandingWish, path: str, there: Sequence[lvm.Volume]) -> Landing:
    problems = []
    if not wish.create:
        problems.append(f"{wish.group}/{wish.name} does not exist; --create makes it")
    elif wish.pool:
        pool = next((each for each in there if each.name == wish.pool), None)
        if pool is None or pool.attributes[:1] != "t":
            problems.append(f"{wish.group} has no thin pool {wish.pool}")
    elif lvm.free_bytes(wish.group) < wish.size:
        free = lvm.free_bytes(wish.group)
        problems.append(f"{wish.group} has {free} bytes free, {wish.size} are needed")
    if problems or wish.dry_run:
        return Landing(path, tuple(problems))
    lvm.make_volume(wish.group, wish.name, wish.size, tag=wish.mark, pool=wish.pool)
    return Landing(path, made=True)


def _present(
    wish: LandingWish,
    path: str,
    volume: lvm.Volume,
    there: Sequence[lvm.Volume],
    state_dir: Path,
) -> Landing:
    problems = []
    if wish.create and wish.mark not in volume.tags:
        problems.append(f"{volume} exists already; without --create it is overwritten")
    if volume.size < wish.size:
        problems.append(f"{volume} has {volume.size} bytes, the source {wish.size}")
    if volume.attributes[:1] not in {"-", "V", "m", "M", "r", "R"}:
        problems.append(f"{volume} is an origin, a snapshot or a part of a pool")
    if any(each.origin == volume.name for each in there):
        problems.append(f"{volume} has snapshots, which would be filled or would lie")
    if not volume.is_active:
        problems.append(f"{volume} is not active")
    if volume.is_open:
        problems.append(f"{volume} is in use")
    made = wish.mark in volume.tags
    if problems:
        return Landing(path, tuple(problems), made=made)
    found = Landing(path, made=made)
    with contextlib.suppress(BlockstreamError):
        match status_at(path, state_dir).state:
            case Clean() as state:
                found = Landing(path, (), "clean", state.id, state.prev, made=made)
            case Dirty() as state:
                found = Landing(path, (), "dirty", state.goal, state.base, made=made)
    return found


def ask(where: Remote, wish: LandingWish, options: PeerOptions, run: Run) -> Landing:
    """Ask the target's host.

    Raises:
        BlockstreamError: If it is not reached, or says something else.
    """
    words = ["landing", "--size", str(wish.size), "--group", wish.group, "--name", wish.name]
    words += ["--create"] if wish.create else []
    words += ["--pool", wish.pool] if wish.pool else []
    words += ["--dry-run"] if wish.dry_run else []
    words += ["--remove"] if wish.remove else []
    words += ["--settle"] if wish.settle else []
    command = f"{options.command} {shlex.join([*words, '--mark', wish.mark])}"
    text = _run_there(where, command, options, run)
    try:
        values = json.loads(text)
        return Landing(**(values | {"problems": tuple(values["problems"])}))
    except (ValueError, TypeError, KeyError) as error:
        raise InterruptedTransferError(noise_text(where.account, text.encode())) from error


def _run_there(where: Remote, command: str, options: PeerOptions, run: Run) -> str:
    """Run a command on the target's host; return what it wrote.

    Raises:
        BlockstreamError: If it failed, with what it said.
    """
    with (
        contextlib.closing(open_link(where, command, options.way)) as link,
        contextlib.closing(WakeableReader(link.from_peer)) as reader,
        run.heeding(lambda _reason: reader.stop()),
    ):
        link.hang_up()
        said, piece = bytearray(), memoryview(bytearray(_PIECE))
        while len(said) < _LONGEST_ANSWER and (count := reader.read_into(piece)):
            said += piece[:count]
        run.check()
        status, _ = link.ended()
        if status:
            raise explained(ConnectionLostError("it ended"), [link], greeted=False)
    return said.decode(errors="replace")


def landing_line(found: Landing) -> str:
    """Return an answer as one line."""
    return json.dumps(asdict(found), sort_keys=True)
