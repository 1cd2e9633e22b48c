"""What commands say to programs, by `--json`: one line of JSON each, of one of these kinds.

Events go to standard error, beside the data; results, which were asked for, to standard output. The
last line on standard error is always an `End`. `blockstream schema` prints the JSON schema, which
is made of these classes. Times are UTC, ISO 8601; sizes and offsets are bytes; what is not known is
null.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from types import NoneType, UnionType
from typing import Any, ClassVar, Final, Union, get_args, get_origin, get_type_hints

VERSION: Final = 1  # of the schema; a kind or a field that is only added does not change it

Counts = Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Event:
    """Anything that is said.

    Attributes:
        kind: Its name, the value of `event`.
    """

    kind: ClassVar[str]

    def values(self) -> dict[str, object]:
        """Return it as JSON has it."""
        return {"event": self.kind, **asdict(self)}


# While it goes on.


@dataclass(frozen=True, slots=True)
class Progress(Event):
    """How far it is, each second.

    Attributes:
        total: What the plan covers.
        covered: How much of it is done.
        size: The whole device.
        data: Bytes that were read or written; zeros cost none.
        zeros: Bytes that travelled as zeros.
        wire: Bytes on the wire.
        durable: How much of the plan is durable at the target; 0 where nobody tells.
        frames: Data frames.
        seen: Bytes of a stream that is looked through before the transfer begins.
        skipped: How much of what is done an earlier run had brought.
        rate: Bytes of the plan a second, lately.
        seconds_left: Until it is done, as it goes now.
    """

    kind: ClassVar[str] = "progress"
    total: int
    covered: int
    size: int
    data: int
    zeros: int
    wire: int
    durable: int
    frames: int
    seen: int
    skipped: int
    rate: int
    seconds_left: float | None


@dataclass(frozen=True, slots=True)
class Warned(Event):
    """Something that people should know, and that does not end it."""

    kind: ClassVar[str] = "warning"
    message: str


@dataclass(frozen=True, slots=True)
class Said(Event):
    """What people would read of it, and no other event says."""

    kind: ClassVar[str] = "said"
    message: str


# Before anything is sent.


@dataclass(frozen=True, slots=True)
class Machine(Event):
    """A machine of VMware stands still in a snapshot.

    Attributes:
        machine: Its path.
        snapshot: The snapshot's name.
        quiesced: Whether its guest was brought to rest.
        whole: How many of its disks are sent whole.
        disks: Each disk: `name`, `key`, `size`, `base`, `goal`, `why_whole`.
    """

    kind: ClassVar[str] = "machine"
    machine: str
    snapshot: str
    quiesced: bool
    whole: int
    disks: Sequence[Mapping[str, object]]


@dataclass(frozen=True, slots=True)
class Planned(Event):
    """What a `send -n` would send.

    Attributes:
        source: The source.
        base: State that the target must hold; empty for a full copy.
        goal: State that is sent.
        size: Of the disk.
        total: What is covered.
        extents: In how many extents.
        data: Bytes to read.
        zeros: Bytes that are known to be zeros.
        moment: When the source held it.
    """

    kind: ClassVar[str] = "plan"
    source: str
    base: str
    goal: str
    size: int
    total: int
    extents: int
    data: int
    zeros: int
    moment: str | None


@dataclass(frozen=True, slots=True)
class WouldApply(Event):
    """A target would take it."""

    kind: ClassVar[str] = "would-apply"
    target: str
    base: str
    goal: str


@dataclass(frozen=True, slots=True)
class WouldStore(Event):
    """A store would take it: at most so many bytes, with so many requests that write."""

    kind: ClassVar[str] = "would-store"
    bytes: int
    requests: int


@dataclass(frozen=True, slots=True)
class Rechecked(Event):
    """A disk was read whole, and its change tracker had missed so many bytes."""

    kind: ClassVar[str] = "rechecked"
    name: str
    missed: int


@dataclass(frozen=True, slots=True)
class BaseChecked(Event):
    """A target was read whole before, and held the base."""

    kind: ClassVar[str] = "base-checked"
    target: str


# What was done.


@dataclass(frozen=True, slots=True)
class Sent(Event):
    """A disk was sent.

    Attributes:
        target: Where to; empty for a stream.
        goal: The state.
        transfer: Identity of the transfer, hex.
        frames: Its data frames.
        chain: The chain after them, hex.
        total: What it covers.
        confirmed: Whether the target said that it holds it.
        moment: When the source held it.
        seconds: How long it took.
        counts: As in `progress`.
    """

    kind: ClassVar[str] = "sent"
    target: str
    goal: str
    transfer: str
    frames: int
    chain: str
    total: int
    confirmed: bool
    moment: str | None
    seconds: float
    counts: Counts


@dataclass(frozen=True, slots=True)
class Committed(Event):
    """A target of this host holds a state, durably.

    Attributes:
        target: The target.
        goal: The state.
        transfer: Identity of the transfer, hex.
        frames: Its data frames.
        chain: The chain after them, hex.
        total: What it covers.
        written: Whether anything was written; else it held that already.
        untouched_tail: Bytes behind the source's end.
        sampled: Why only samples told that it was the base; empty if more did.
        moment: When the source held it.
        seconds: How long it took.
        counts: As in `progress`.
    """

    kind: ClassVar[str] = "committed"
    target: str
    goal: str
    transfer: str
    frames: int
    chain: str
    total: int
    written: bool
    untouched_tail: int
    sampled: str
    moment: str | None
    seconds: float
    counts: Counts


@dataclass(frozen=True, slots=True)
class PointFields(Event):
    """What every event on a restore point says.

    Attributes:
        disk: The disk's name in the store.
        seq: Its number.
        type: `full`, `increment` or `synthetic`.
        id: What names its objects.
        created: When it was committed.
        state: The state.
        base: The state that it goes onto; empty for a full copy.
        parent: Number and digest of the point that it goes onto.
        size: Of the disk.
        source: What was saved: `name`, `identity`, `location`.
        transfer: Identity of the transfer, hex.
        frames: Its data frames.
        chain: The chain after them, hex.
        total: What it covers.
        data: Bytes of data in it, unpacked.
        stored: Bytes that were stored for it.
        root: Digest of its history, hex.
        milliseconds: How long it took.
        software: What wrote it.
        missed: Bytes that the list of changes had missed.
        audits: How many audits there were up to it.
        moment: When the source held it.
    """

    disk: str
    seq: int
    type: str
    id: str
    created: str
    state: str
    base: str
    parent: Mapping[str, object] | None
    size: int
    source: Mapping[str, str]
    transfer: str
    frames: int
    chain: str
    total: int
    data: int
    stored: int
    root: str
    milliseconds: int
    software: str
    missed: int
    audits: int
    moment: str | None


@dataclass(frozen=True, slots=True)
class Saved(PointFields):
    """A disk was saved as a restore point.

    Attributes:
        place: The store, the disk and the point.
        counts: As in `progress`.
        audited: Bytes that were compared although they were called unchanged.
        existed: Whether an earlier run had saved it.
    """

    kind: ClassVar[str] = "saved"
    place: str
    counts: Counts
    audited: int
    existed: bool


@dataclass(frozen=True, slots=True)
class Written(Event):
    """A stream was written for another tool, which alone tells what became of it."""

    kind: ClassVar[str] = "written"
    format: str
    counts: Counts


@dataclass(frozen=True, slots=True)
class Made(Event):
    """One stream was made of others.

    Attributes:
        format: Of the new one.
        base: State that it goes onto; empty for a whole disk.
        goal: State that it leads to.
        size: Of the disk.
        total: What it covers.
        counts: As in `progress`.
    """

    kind: ClassVar[str] = "made"
    format: str
    base: str
    goal: str
    size: int
    total: int
    counts: Counts


@dataclass(frozen=True, slots=True)
class ForeignTaken(Event):
    """A stream of another tool was taken.

    Attributes:
        format: Whose it is.
        records: Its records.
        data: Bytes of data in them.
        zeros: Bytes of zeros.
        stream: Bytes of the stream.
        unchecked: What it does not tell, so that nobody can check it.
        compared: The digest of the whole disk that was compared; empty for none.
    """

    kind: ClassVar[str] = "foreign"
    format: str
    records: int
    data: int
    zeros: int
    stream: int
    unchecked: Sequence[str]
    compared: str


@dataclass(frozen=True, slots=True)
class Compared(Event):
    """Two disks were compared.

    Attributes:
        size: How much of them.
        target_size: Size of the second.
        differing: Bytes that differ, by whole blocks.
        ranges: In how many ranges.
        repaired: State that the second holds after a repair.
    """

    kind: ClassVar[str] = "compared"
    size: int
    target_size: int
    differing: int
    ranges: int
    repaired: str | None


@dataclass(frozen=True, slots=True)
class Migrated(Event):
    """A guest runs on the other host.

    Attributes:
        rounds: Each round: `number`, `covered`, `wire`, `seconds`, `send_rate`, `dirty_rate` ...
        downtime: Seconds for which the guest stood still.
        downtime_parts: Of what they are made.
        seconds: All of it.
    """

    kind: ClassVar[str] = "migrated"
    rounds: Sequence[Mapping[str, object]]
    downtime: float
    downtime_parts: Mapping[str, float]
    seconds: float


@dataclass(frozen=True, slots=True)
class Adopted(Event):
    """A target is taken to hold a state."""

    kind: ClassVar[str] = "adopted"
    target: str
    id: str


@dataclass(frozen=True, slots=True)
class Undone(Event):
    """A target holds again what it held before."""

    kind: ClassVar[str] = "undone"
    target: str
    id: str


@dataclass(frozen=True, slots=True)
class Aborted(Event):
    """What was unfinished at a target was given up."""

    kind: ClassVar[str] = "aborted"
    target: str
    message: str


@dataclass(frozen=True, slots=True)
class Applied(Event):
    """What had arrived whole was applied to a target."""

    kind: ClassVar[str] = "applied"
    target: str
    goal: str


@dataclass(frozen=True, slots=True)
class Confirmed(Event):
    """A receipt says that a target holds what was sent."""

    kind: ClassVar[str] = "confirmed"
    source: str
    goal: str


@dataclass(frozen=True, slots=True)
class Tracked(Event):
    """Changes of a machine of VMware are tracked, since now or already."""

    kind: ClassVar[str] = "tracked"
    path: str
    already: bool


# Stores.


@dataclass(frozen=True, slots=True)
class Checked(Event):
    """What the points of a disk are made of was read.

    Attributes:
        disk: The disk's name.
        whole: Points that can be restored.
        broken: Points that cannot, or not all of them.
        damages: What is wrong: `seq`, `key`, `text`, and `extents` of the disk.
        checked: Bytes that were read.
        part: Of the frames, how many: 1 for all.
        unnamed: Ids of newer points of which there is no manifest.
        strays: Keys of what others put there.
        noted: Whether what was found could be noted in the store.
    """

    kind: ClassVar[str] = "checked"
    disk: str
    whole: Sequence[int]
    broken: Sequence[int]
    damages: Sequence[Mapping[str, object]]
    checked: int
    part: float
    unnamed: Sequence[str]
    strays: Sequence[str]
    noted: bool


@dataclass(frozen=True, slots=True)
class Pruned(Event):
    """Points were hidden and deleted.

    Attributes:
        disk: The disk's name.
        kept: Points that stay.
        hidden: Points that nobody sees any more.
        deleted: Points that are gone.
        freed: Bytes that were deleted.
        locked: Objects that the store does not let go yet.
        unfinished: Uploads of runs that died, given up now.
        uploads: Why such uploads could not be looked for; empty if they were.
        doubtful: Objects that no point names, and that a later run may delete.
        strays: Keys of what others put there.
        damaged: What is wrong with points that cannot be restored, by number.
    """

    kind: ClassVar[str] = "pruned"
    disk: str
    kept: Sequence[int]
    hidden: Sequence[int]
    deleted: Sequence[int]
    freed: int
    locked: int
    unfinished: int
    uploads: str
    doubtful: int
    strays: Sequence[str]
    damaged: Mapping[int, str]


@dataclass(frozen=True, slots=True)
class Repaired(Event):
    """What was damaged was replaced.

    Attributes:
        disk: The disk's name.
        replaced: Keys of objects that were.
        left: Keys of those for which nothing was found.
        healed: Frames that were made anew.
        lost: Damaged frames of which the disk holds something else now.
        filled: Keys of packs that are no stream any more.
        refusals: Why the disk could not be read.
    """

    kind: ClassVar[str] = "repaired"
    disk: str
    replaced: Sequence[str]
    left: Sequence[str]
    healed: int
    lost: int
    filled: Sequence[str]
    refusals: Sequence[str]


# Results.


@dataclass(frozen=True, slots=True)
class Status(Event):
    """What is known of a target.

    Attributes:
        target: The target.
        size: Its size.
        state: `clean`, `dirty` or `unknown`.
        id: Of a clean one, the state that it holds.
        prev: The state that it came from.
        moment: When its source held that.
        base: Of a dirty one, the state before.
        goal: The state that it is on its way to.
        covered: How much of that is durable.
        total: Of how much.
        token: What `send --resume` takes; empty if nothing is unfinished.
        staged: State that has arrived whole and waits for `apply`; empty for none.
        undo: Whether the last transfer can be undone.
        folder: Where this was read.
    """

    kind: ClassVar[str] = "status"
    target: str
    size: int
    state: str
    id: str | None
    prev: str | None
    moment: str | None
    base: str | None
    goal: str | None
    covered: int | None
    total: int | None
    token: str
    staged: str
    undo: bool
    folder: str


@dataclass(frozen=True, slots=True)
class Disk(Event):
    """A disk of a store."""

    kind: ClassVar[str] = "disk"
    name: str
    place: str


@dataclass(frozen=True, slots=True)
class Point(PointFields):
    """A restore point.

    Attributes:
        verified: When it was read and found whole.
        damaged: When it, or what it goes onto, was found damaged.
    """

    kind: ClassVar[str] = "point"
    verified: str | None
    damaged: str | None


@dataclass(frozen=True, slots=True)
class Key(Event):
    """A key that opens an encrypted store."""

    kind: ClassVar[str] = "key"
    id: str
    recipient: str
    created: str


@dataclass(frozen=True, slots=True)
class Stream(Event):
    """A stored stream, whose digests were all compared.

    Attributes:
        format: `bsx` for ours.
        size: Of the disk; null where it does not say.
        base: State that it goes onto; empty for a whole disk.
        goal: State that it leads to.
        whole: Whether it is a whole disk.
        data: Bytes of data in it.
        zeros: Bytes of zeros.
        moment: When the source held it.
        details: What else it says, as its format has it.
        problem: What is wrong with it.
    """

    kind: ClassVar[str] = "stream"
    format: str
    size: int | None
    base: str
    goal: str
    whole: bool
    data: int
    zeros: int
    moment: str | None
    details: Mapping[str, object]
    problem: str | None


@dataclass(frozen=True, slots=True)
class VirtualMachine(Event):
    """A machine of VMware.

    Attributes:
        path: Its path.
        uuid: Its id.
        tracked: Whether its changes are tracked.
        template: Whether it is a template.
        consolidation: Whether its disks have to be consolidated.
        disks: Each disk: `key`, `label`, `size`, `file`, `uuid`, `obstacle`, `why_untracked`.
        snapshots: Names of its snapshots.
        snapshots_made: When each was made; empty where that is not known.
    """

    kind: ClassVar[str] = "virtual-machine"
    path: str
    uuid: str
    tracked: bool
    template: bool
    consolidation: bool
    disks: Sequence[Mapping[str, object]]
    snapshots: Sequence[str]
    snapshots_made: Sequence[str]


# The end.


@dataclass(frozen=True, slots=True)
class Delivery:
    """One disk that was delivered.

    Attributes:
        source: Where it was.
        target: Where it is now; empty for a stream.
        state: The state.
        base: State that it came from; empty for a full copy.
        moment: When the source held it.
        committed_at: When the target had it durably; null where nobody said so.
        size: Of the disk.
        covered: Bytes of it that the transfer covered.
        data: Bytes of data among them.
        wire: Bytes that travelled, or were stored.
    """

    source: str
    target: str
    state: str
    base: str
    moment: str | None
    committed_at: str | None
    size: int
    covered: int
    data: int
    wire: int


@dataclass(frozen=True, slots=True)
class End(Event):
    """The last line: how a command ended.

    Attributes:
        version: Of this schema.
        status: The exit status.
        deliveries: What was delivered.
        error: Kind of the error; null for none.
        message: All that is said of it.
        what: What happened, with what was not done.
        more: What is to be added: of the place, of what is kept, of the next step.
        where: The host on which it happened; null for this one.
        durable: Bytes that are durable at a target that is left unfinished.
        advice: What to do next, where that is known apart from the message.
        left_behind: What of ours is left, as a snapshot that grows; null for nothing.
        seconds: How long it took.
    """

    kind: ClassVar[str] = "end"
    version: int
    status: int
    deliveries: Sequence[Delivery]
    error: str | None
    message: str | None
    what: str | None
    more: Sequence[str]
    where: str | None
    durable: int | None
    advice: str | None
    left_behind: str | None
    seconds: float


def kinds() -> list[type[Event]]:
    """Return all kinds of events."""
    found = [each for each in globals().values() if isinstance(each, type)]
    return [each for each in found if issubclass(each, Event) and "kind" in vars(each)]


def schema() -> dict[str, object]:
    """Return the JSON schema of a line."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"blockstream --json, version {VERSION}",
        "oneOf": [_schema_of(each) for each in kinds()],
    }


def _schema_of(kind: type[Any]) -> dict[str, object]:
    """Return the schema of a dataclass."""
    hints, texts = get_type_hints(kind), _texts_of(kind)
    named = {each.name: _type_of(hints[each.name]) for each in fields(kind)}
    for name, text in texts.items():
        if name in named:
            named[name] = named[name] | {"description": text}
    required = list(named)
    if issubclass(kind, Event):
        named["event"] = {"const": kind.kind}
        required.insert(0, "event")
    return {
        "type": "object",
        "description": (kind.__doc__ or "").partition("\n\n")[0],
        "properties": named,
        "required": required,
        "additionalProperties": False,
    }


def _texts_of(kind: type[Any]) -> dict[str, str]:
    """Return what the docstring says of each field."""
    found, name = dict[str, str](), ""
    if issubclass(kind, PointFields) and kind is not PointFields:
        found = _texts_of(PointFields)
    for line in (kind.__doc__ or "").partition("Attributes:\n")[2].splitlines():
        indent = len(line) - len(line.lstrip())
        if indent == 8:
            name, _, text = line.strip().partition(": ")
            found[name] = text
        elif indent > 8 and name:
            found[name] += " " + line.strip()
    return found


_PLAIN: Final[Mapping[object, dict[str, object]]] = {
    str: {"type": "string"},
    int: {"type": "integer"},
    float: {"type": "number"},
    bool: {"type": "boolean"},
    object: {},
    NoneType: {"type": "null"},
}


def _type_of(hint: Any) -> dict[str, object]:
    """Return the schema of a type."""
    origin, inner = get_origin(hint), get_args(hint)
    if hint in _PLAIN:
        return _PLAIN[hint]
    if origin in {UnionType, Union}:
        return {"anyOf": [_type_of(each) for each in inner]}
    if origin is Mapping or getattr(origin, "__name__", "") == "Mapping":
        return {"type": "object", "additionalProperties": _type_of(inner[1])}
    if getattr(origin, "__name__", "") == "Sequence":
        return {"type": "array", "items": _type_of(inner[0])}
    return _schema_of(hint)
