"""`serve`: what a key that may only write certain disks gets to do, and nothing that it asks."""

import contextlib
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from blockstream.errors import BlockstreamError, NotFoundError, RefusedError, UsageError
from blockstream.linux.streams import WakeableReader
from blockstream.locations.local import LocalDisk
from blockstream.pipeline.error_map import discreet
from blockstream.pipeline.limiter import Limiter
from blockstream.pipeline.receiver import FrameReader
from blockstream.run import Run
from blockstream.transfers.digests import digests_sent
from blockstream.transfers.receive import Answering, greeting_in_time, receive_frames
from blockstream.transfers.receive_options import ApplyMode, ReceiveRequest
from blockstream.transfers.remote_command import PEER_COMMAND
from blockstream_protocol import DEVICE_BYTES

RECEIVE, VERIFY = "recv", "verify"

_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_SIZE = re.compile(r"(\d{1,18})([KMGTP]?)")
_UNITS = {unit: 1 << (10 * power) for power, unit in enumerate(["", *"KMGTP"])}


@dataclass(frozen=True, slots=True)
class Grant:
    """What may be done with one disk.

    Attributes:
        name: What the peer calls it.
        path: Where it is.
        identity: What it must be, as `blockstream serve --identity PATH` prints.
        operations: Those of `recv` and `verify` that are allowed.
        largest: Most bytes that a source may have.
        rate: Most bytes a second; None for no limit.
        bases: The states that an increment may start from; None for any. "" is a full copy.
        apply: How streams come onto it.
        allow_larger: Whether a smaller source is taken.
    """

    name: str
    path: str
    identity: str
    operations: frozenset[str]
    largest: int = DEVICE_BYTES
    rate: int | None = None
    bases: frozenset[str] | None = None
    apply: ApplyMode = ApplyMode.DIRECT
    allow_larger: bool = False


def load_policy(path: Path) -> dict[str, Grant]:
    """Read a policy.

    Raises:
        NotFoundError: If it cannot be read.
        UsageError: If it is none; nothing is allowed then.
    """
    try:
        with path.open("rb") as file:
            _check_owner(path, os.fstat(file.fileno()))
            content = tomllib.loads(file.read().decode())
    except OSError as error:
        raise NotFoundError(
            f"{path} cannot be read: {error.strerror}; nothing is allowed"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is no policy: {error}; nothing is allowed") from None
    targets = content.get("targets")
    if not isinstance(targets, dict) or content.keys() != {"targets"}:
        raise UsageError(
            f"{path} needs one table for each disk: [targets.NAME]; nothing is allowed"
        )
    try:
        return {name: _grant(path, name, table) for name, table in targets.items()}
    except UsageError as error:
        raise UsageError(f"{error}; nothing is allowed") from None


def _check_owner(path: Path, info: os.stat_result) -> None:
    """Refuse a policy that others than its user and root may have written.

    Raises:
        UsageError: If they may.
    """
    if info.st_uid not in {0, os.geteuid()} or info.st_mode & 0o022:
        raise UsageError(
            f"{path} can be written by others; nothing is allowed; `chmod go-w`, and `chown` to "
            "whom it serves or to root"
        )


def _grant(path: Path, name: str, table: object) -> Grant:
    where = f"{path}, [targets.{name}]"
    if not _NAME.fullmatch(name) or not isinstance(table, Mapping):
        raise UsageError(f"{where}: a name has 1 to 64 letters, digits, dots, dashes, underscores")
    known = {"path", "identity", "operations", "max_size", "rate", "bases", "apply", "allow_larger"}
    if unknown := table.keys() - known:
        raise UsageError(
            f"{where}: {min(unknown)!r} means nothing; there may be {', '.join(sorted(known))}"
        )
    for key in ("path", "identity"):
        if not isinstance(table.get(key), str) or not table[key]:
            raise UsageError(f"{where}: {key} is missing")
    if not table["path"].startswith("/"):
        raise UsageError(f"{where}: path begins with /, so that it means the same everywhere")
    operations = _words(where, table, "operations")
    if operations is None:
        operations = frozenset({RECEIVE})
    if operations - {RECEIVE, VERIFY}:
        raise UsageError(f"{where}: operations are recv and verify")
    apply = table.get("apply", "direct")
    if apply not in list(ApplyMode):
        raise UsageError(f"{where}: apply is direct, undo or stage")
    if not isinstance(table.get("allow_larger", False), bool):
        raise UsageError(f"{where}: allow_larger is true or false")
    return Grant(
        name=name,
        path=table["path"],
        identity=table["identity"],
        operations=operations,
        largest=_size(where, table, "max_size") or DEVICE_BYTES,
        rate=_size(where, table, "rate"),
        bases=_words(where, table, "bases"),
        apply=ApplyMode(apply),
        allow_larger=table.get("allow_larger", False),
    )


def _words(where: str, table: Mapping[str, object], key: str) -> frozenset[str] | None:
    words = table.get(key)
    if words is None:
        return None
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise UsageError(f"{where}: {key} is a list of words")
    return frozenset(words)


def _size(where: str, table: Mapping[str, object], key: str) -> int | None:
    text = table.get(key)
    if text is None:
        return None
    found = _SIZE.fullmatch(str(text))
    if found is None or int(found[1]) == 0:
        raise UsageError(f"{where}: {key} is bytes, as 750K, 10M or 2T")
    return int(found[1]) * _UNITS[found[2]]


def key_line(program: str, policy: Path) -> str:
    """Return what goes before a key in authorized_keys.

    Raises:
        UsageError: If the names cannot stand there.
    """
    text = f"{program} serve --policy {policy}"
    if not re.fullmatch(r"[A-Za-z0-9 ._/+-]+", text):
        raise UsageError(f"{text!r} cannot stand in authorized_keys; choose plainer names")
    return f'restrict,command="{text}"'


async def serve(
    policy: Path, asked: str | None, state_dir: Path, from_peer: int, to_peer: int, run: Run
) -> str:
    """Do the one thing that a peer may ask for, with the one disk that it names.

    Args:
        policy: What it may.
        asked: The command that it gave, which is only compared.
        state_dir: Where journals lie.
        from_peer: Where it speaks.
        to_peer: Where it hears.
        run: Counts, and stops it.

    Returns:
        What was done, for a log.

    Raises:
        RefusedError: If it asked for anything else.
        BlockstreamError: As for `recv`; the peer has heard less of it.
    """
    return await run.carry(lambda: _served(policy, asked, state_dir, from_peer, to_peer, run))


def _served(
    policy: Path, asked: str | None, state_dir: Path, from_peer: int, to_peer: int, run: Run
) -> str:
    if asked != PEER_COMMAND:
        raise RefusedError(
            "this key runs one command only, and that is not it; nothing was done; send to "
            "HOST::NAME, or `blockstream verify` with it"
        )
    grants = load_policy(policy)
    with contextlib.ExitStack() as stack:
        reader = stack.enter_context(contextlib.closing(WakeableReader(from_peer)))
        answering = stack.enter_context(contextlib.closing(Answering(to_peer)))
        frames = FrameReader(reader)
        hello = greeting_in_time(frames, run)
        if hello.target.get("operation") == VERIFY:
            grant = granted(grants, hello.target, VERIFY)
            most = hello.target.get("most")
            size = most if type(most) is int and most >= 0 else 0
            digests_sent(LocalDisk(grant.path), size, to_peer, run, identity=grant.identity)
            return f"{grant.name} was compared"
        try:
            grant = granted(grants, hello.target, RECEIVE)
            frames.wait = Limiter(grant.rate).wait
            request = request_for(grant, state_dir)
            receive_frames(request, frames, answering, run).check()
        except BlockstreamError as error:
            answering.explain(error.worded(discreet(error)))
            raise
        return f"{grant.name} was committed"


def granted(grants: Mapping[str, Grant], told: Mapping[str, object], operation: str) -> Grant:
    """Return the grant for what a peer named, if it may do that.

    Raises:
        RefusedError: If not; the same words for what is not there and what is not allowed.
    """
    name = told.get("name")
    grant = grants.get(name) if isinstance(name, str) else None
    if grant is None or operation not in grant.operations:
        raise RefusedError(
            "there is no such target for this key; nothing was done; ask whoever wrote the policy "
            "there"
        )
    return grant


def request_for(grant: Grant, state_dir: Path) -> ReceiveRequest:
    """Return what a grant means for a receiver."""
    return ReceiveRequest(
        target=grant.path,
        state_dir=state_dir,
        apply=grant.apply,
        force_larger=grant.allow_larger,
        identity=grant.identity,
        name=grant.name,
        largest=grant.largest,
        bases=grant.bases,
        is_discreet=True,
    )
