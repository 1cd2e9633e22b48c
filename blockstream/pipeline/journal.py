"""The journal of a target: what it holds, durable, in two alternating slots (SPEC 7.1).

A record is written to the slot that does not hold the newest one, so a torn write leaves the one
before. The plan lies in a file of its own, named by its digest, written before the record that
needs it.
"""

import json
import struct
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Protocol

from blockstream.errors import RefusedError
from blockstream.pipeline.failpoints import failpoint
from blockstream_protocol import (
    DEVICE_BYTES,
    ROW_BYTES,
    Clean,
    Dirty,
    NewDigest,
    Plan,
    RemoteProtocolError,
    TargetState,
    Unknown,
)

SLOT_BYTES = 8192  # two long ids, and a path of 4096 bytes
_MAGIC = b"BSJOURN1"
_MOMENT = "moment"  # of a state; records without it are as old as they look
_TRACE = "trace"  # among the facts, so that older versions read the record as well
_HEAD = struct.Struct("<8sI32s")
_ROW = struct.Struct("<QQ")
_STATES: Mapping[str, type[TargetState]] = {"clean": Clean, "dirty": Dirty, "unknown": Unknown}
_NAMES = {state: name for name, state in _STATES.items()}


class Storage(Protocol):
    """Where a journal lies. Writes are durable only after `flush`."""

    def read_slot(self, index: int) -> bytes:
        """Return the bytes of slot 0 or 1; fewer or none where it was never written."""

    def write_slot(self, index: int, data: bytes) -> None:
        """Write `SLOT_BYTES` bytes to a slot."""

    def read_plan(self, name: str) -> bytes:
        """Return a plan's rows.

        Raises:
            FileNotFoundError: If there is none of that name.
        """

    def write_plan(self, name: str, rows: bytes) -> None:
        """Make a plan's rows durable before returning."""

    def drop_plans(self, keep: str) -> None:
        """Remove all plans but one, after the record that needs it is durable."""

    def flush(self) -> None:
        """Make the slots durable."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One record.

    Attributes:
        seq: Its number; the highest valid one counts.
        state: What the target holds.
        size: Bytes of the target.
        facts: What people want to know: path, mode, what an undo log holds; and the trace.
    """

    seq: int
    state: TargetState
    size: int
    facts: Mapping[str, str]


class Journal:
    """The journal of one target. Not thread-safe."""

    def __init__(self, storage: Storage, new_digest: NewDigest, size: int) -> None:
        """Read what is there.

        Args:
            storage: Where it lies; held under a lock by the caller.
            new_digest: BLAKE3-256.
            size: Bytes of the target, for the next record.

        Raises:
            RefusedError: If a record needs a plan that is missing or damaged, or was written by
                another version.
        """
        self._storage = storage
        self._new_digest = new_digest
        self._size = size
        self._plan_name = ""
        self._slot = 1
        self.entry = self._load()
        if self.entry.seq:
            self._settle()
        # Kept with every record from here on.
        self.facts: Mapping[str, str] = {
            name: fact for name, fact in self.entry.facts.items() if name != _TRACE
        }

    @property
    def state(self) -> TargetState:
        """The newest durable state."""
        return self.entry.state

    @property
    def trace(self) -> str:
        """What the kernel knew of writes when the target was CLEAN, or left DIRTY; or nothing."""
        return self.entry.facts.get(_TRACE, "")

    def record(
        self, state: TargetState, facts: Mapping[str, str] | None = None, *, trace: str = ""
    ) -> None:
        """Make `state` durable; only afterwards may anybody be told of it.

        Args:
            state: What the target holds.
            facts: What people want to know, of this record.
            trace: What the kernel knows of writes to the target, once there will be no more.

        Raises:
            OSError: If the journal's disk failed. What is durable then is either record.
        """
        noted = {**self.facts, **(facts or {})} | ({_TRACE: trace} if trace else {})
        entry = Entry(self.entry.seq + 1, state, self._size, noted)
        name = self._write_plan(state)
        data = _encoded(entry, name, self._new_digest)
        failpoint("recv.plan_written")
        self._storage.write_slot(1 - self._slot, data)
        failpoint("recv.journal_unsynced")
        self._storage.flush()
        self._slot = 1 - self._slot
        self.entry = entry
        if name != self._plan_name:
            self._plan_name = name
            self._storage.drop_plans(keep=name)

    def _write_plan(self, state: TargetState) -> str:
        """Store the plan unless its name says it all; return its name."""
        if isinstance(state, Unknown):
            return ""
        if state.plan == Plan.whole(self._size):
            return "whole"
        if not len(state.plan):
            return "none"
        rows = state.plan.rows()
        name = self._new_digest(rows).digest().hex()
        if name != self._plan_name:
            self._storage.write_plan(name, rows)
        return name

    def _settle(self) -> None:
        """Make the record durable that was read: whoever wrote it may have died before its flush.

        Nobody may act on a record that a power cut can take back, nor leave two in doubt at once.
        It is written again because after a failed flush the page cache shows what the disk lost,
        and another flush alone succeeds without meaning it.
        """
        self._storage.write_slot(self._slot, self._storage.read_slot(self._slot))
        self._storage.flush()

    def _load(self) -> Entry:
        newest: _Raw | None = None
        for index in (0, 1):
            raw = _decoded(self._storage.read_slot(index), self._new_digest)
            if raw is not None and (newest is None or raw.seq > newest.seq):
                newest, self._slot = raw, index
        if newest is None:
            return Entry(0, Unknown(), self._size, {})
        self._plan_name = newest.plan
        return Entry(newest.seq, self._state_of(newest), newest.size, newest.facts)

    def _state_of(self, raw: "_Raw") -> TargetState:
        if raw.kind == "unknown":
            return Unknown()
        state = Clean if raw.kind == "clean" else Dirty
        plan = self._read_plan(raw.plan, raw.size)
        return state(plan=plan, **raw.values)  # type: ignore[arg-type]  # checked by `_is_ours`

    def _read_plan(self, name: str, size: int) -> Plan:
        if name in {"whole", "none"}:
            return Plan.whole(size if name == "whole" else 0)
        try:
            rows = self._storage.read_plan(name)
            if self._new_digest(rows).digest().hex() == name:
                return Plan.from_rows(rows, min(DEVICE_BYTES, _end_of(rows)))
        except (FileNotFoundError, RemoteProtocolError):
            pass
        raise RefusedError(
            "the journal's plan file is missing or damaged, so nothing is known of what the last "
            "transfer touched; nothing was written; send a full copy after `blockstream abort`"
        )


@dataclass(frozen=True, slots=True)
class _Raw:
    """A record whose digest matched, its plan not yet read."""

    seq: int
    kind: str
    size: int
    plan: str
    facts: Mapping[str, str]
    values: Mapping[str, str | int]


def _encoded(entry: Entry, plan: str, new_digest: NewDigest) -> bytes:
    state = entry.state
    values = {f.name: getattr(state, f.name) for f in fields(state) if f.name != "plan"}
    if values.get(_MOMENT, 0) is None:
        del values[_MOMENT]
    raw = _Raw(entry.seq, _NAMES[type(state)], entry.size, plan, entry.facts, values)
    # Paths are not always text, and must not grow sixfold by escapes.
    text = json.dumps(asdict(raw), sort_keys=True, ensure_ascii=False)
    payload = text.encode(errors="surrogateescape")
    digest = new_digest(payload).digest()
    data = _HEAD.pack(_MAGIC, len(payload), digest) + payload
    if len(data) > SLOT_BYTES:
        raise RefusedError("the record does not fit the journal; nothing was written")
    return data.ljust(SLOT_BYTES, b"\0")


def _decoded(data: bytes, new_digest: NewDigest) -> _Raw | None:
    """Parse a slot; None for one that is empty, torn or of another format."""
    if len(data) < _HEAD.size:
        return None
    magic, length, digest = _HEAD.unpack_from(data)
    payload = data[_HEAD.size : _HEAD.size + length]
    if magic != _MAGIC or len(payload) != length or new_digest(payload).digest() != digest:
        return None
    try:
        content = json.loads(payload.decode(errors="surrogateescape"))
    except (ValueError, RecursionError):
        content = None
    if not _is_ours(content):
        raise RefusedError(
            "the journal was written by another version of blockstream, so nothing is known of "
            "what the target holds; nothing was written; use that version"
        )
    return _Raw(**content)


def _is_ours(content: object) -> bool:
    """Tell whether a whole record has exactly the fields that this version writes."""
    if not isinstance(content, dict) or not _has(content, _Raw):
        return False
    state, facts = _STATES.get(content["kind"]), content["facts"]
    return (
        state is not None
        and _has(content["values"], state)
        and all(isinstance(fact, str) for fact in facts.values())
        and 0 <= content["size"] <= DEVICE_BYTES
    )


def _has(content: Mapping[str, object], cls: type) -> bool:
    """Tell whether `content` has the fields of `cls`, each of its type; a plan lies elsewhere."""
    wanted = {f.name: f.type if f.type in {int, str} else dict for f in fields(cls)}
    if issubclass(cls, Clean | Dirty):
        del wanted["plan"]
    if issubclass(cls, Clean):
        del wanted[_MOMENT]
        wanted |= {_MOMENT: int} if _MOMENT in content else {}
    return content.keys() == wanted.keys() and all(
        type(content[name]) is kind for name, kind in wanted.items()
    )


def _end_of(rows: bytes) -> int:
    """Return where the last range ends.

    Not where the target does: the source may be smaller, and the target may have shrunk since.
    """
    return sum(_ROW.unpack(rows[-ROW_BYTES:].rjust(ROW_BYTES, b"\0")))
