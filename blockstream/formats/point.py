"""The manifest of a restore point: one JSON object in canonical form, written last.

What it names is there and whole; what nothing names is garbage.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

from blake3 import blake3

from blockstream.errors import StoreDamagedError
from blockstream.formats.store_names import DISK, IDENTITY, PACK, owner_of
from blockstream.words import time_text
from blockstream_protocol import ALIGNMENT, DEVICE_BYTES, is_id

FORMAT: Final = 1
MANIFEST_BYTES: Final = 16 << 20
_SECOND: Final = 1_000_000_000
_MALFORMED: Final = (
    *(ValueError, TypeError, KeyError, AttributeError),
    *(OverflowError, RecursionError),
)


class Kind(StrEnum):
    """What a point is made of."""

    FULL = "full"
    INCREMENT = "increment"
    SYNTHETIC = "synthetic"  # a map of frames that were written for others, or copied


@dataclass(frozen=True, slots=True)
class Parent:
    """The point that an increment goes onto.

    Attributes:
        seq: Its number.
        digest: The digest of its manifest, hex.
    """

    seq: int
    digest: str


@dataclass(frozen=True, slots=True)
class Pack:
    """An object that holds frames.

    Attributes:
        key: Its key below the disk's `pack/`: the id of the point that wrote it, and its number.
        size: Its size in bytes.
    """

    key: str
    size: int

    @property
    def owner(self) -> str:
        """The id of the point that wrote it."""
        return owner_of(self.key)


@dataclass(frozen=True, slots=True)
class Point:
    """One state of a disk, as it can be restored.

    Attributes:
        disk: The disk's name.
        seq: Its number, from 1, without gaps.
        kind: What it is made of.
        id: Names its packs and its index; begins with the time.
        created: When it was committed, UTC, ISO 8601.
        state: The state's id, as the source names it.
        base: The state that an increment starts from; empty for a full copy.
        parent: The point that it goes onto; None for a full copy.
        size: Bytes of the disk.
        source: What the disk was called, its identity, and where it was: `name`, `identity`,
            `location`, and of a path its `host`; early ones lack the last two.
        transfer: Identity of the transfer that made it, hex.
        frames: EXTENTS frames of that transfer.
        chain: Its chain after all of them, hex.
        total: Bytes of the disk that they cover.
        data: Bytes of data in them, unpacked.
        index: Key of its index; empty for no frames.
        index_digest: Digest of the index as it is stored, hex; empty for no frames.
        packs: The packs that its index counts; those of a transfer, one after the other, are it as
            a stream. Own packs of a synthetic point come last.
        root: Digest of its history: of the parent's root and this chain, hex.
        milliseconds: How long it took.
        software: What wrote it.
        missed: Bytes that differed from its parent although its change tracker said they did not:
            an audit found them. They are right here; the points before may lack them.
        audits: How many audits there were up to it, so that the next one takes the next part.
        moment: When the source held that state, in nanoseconds since 1970, UTC; None where nobody
            knew.
        check: Digest of all the rest, hex, so that the newest manifest, of which no other has the
            digest, tells when it was altered; empty in early ones.
    """

    disk: str
    seq: int
    kind: Kind
    id: str
    created: str
    state: str
    base: str
    parent: Parent | None
    size: int
    source: Mapping[str, str]
    transfer: str
    frames: int
    chain: str
    total: int
    data: int
    index: str
    index_digest: str
    packs: tuple[Pack, ...]
    root: str
    milliseconds: int
    software: str
    missed: int = 0
    audits: int = 0
    moment: int | None = None
    check: str = ""

    def checked(self) -> "Point":
        """Return it with its check."""
        return replace(self, check=replace(self, check="").digest)

    @property
    def time(self) -> str:
        """When the source held it, UTC, ISO 8601; where nobody knew, when it was committed."""
        return self.created if self.moment is None else time_text(self.moment // _SECOND)

    @property
    def lag(self) -> float:
        """Seconds from its moment until it could be restored; at least what it took to save it."""
        if self.moment is None:
            return self.milliseconds / 1000
        committed = datetime.fromisoformat(self.created).timestamp()
        return max(self.milliseconds / 1000, committed - self.moment / _SECOND)

    @property
    def own_packs(self) -> tuple[Pack, ...]:
        """The packs that were written for it."""
        return tuple(pack for pack in self.packs if pack.owner == self.id)

    @property
    def stored(self) -> int:
        """Bytes of its own packs."""
        return sum(pack.size for pack in self.own_packs)

    def encode(self) -> bytes:
        """Return the manifest."""
        values = asdict(self) | {"format": FORMAT}
        for name in (*_OPTIONAL, "check"):
            if not values[name]:
                del values[name]
        return json.dumps(values, sort_keys=True, separators=(",", ":")).encode()

    @property
    def digest(self) -> str:
        """The digest of the manifest, hex."""
        return blake3(self.encode()).hexdigest()

    @classmethod
    def decode(cls, data: bytes) -> "Point":
        """Read a manifest.

        Raises:
            StoreDamagedError: If it is none, or of a format that this version does not know.
        """
        try:
            found = cls(**_checked(json.loads(data)))
        except _MALFORMED as error:
            raise StoreDamagedError(f"it is no manifest: {error}") from error
        if found.encode() != data:
            raise StoreDamagedError("it is no manifest in canonical form")
        if found.check and found != found.checked():
            raise StoreDamagedError("it is not as it was written")
        return found


_OPTIONAL: Final = frozenset({"missed", "audits", "moment"})
_COUNTS: Final = ("seq", "size", "frames", "total", "data", "milliseconds")
_DIGESTS: Final = ("transfer", "chain", "index_digest", "root", "check")
_TEXTS: Final = ("disk", "id", "created", "state", "base", "index", "software", *_DIGESTS)
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")


def _checked(values: dict[str, Any]) -> dict[str, Any]:
    """Return the fields with their types.

    Raises:
        ValueError: If one has another type.
    """
    if values.pop("format") != FORMAT:
        raise ValueError("it is of a later format")
    values.setdefault("check", "")
    for name in _TEXTS:
        if type(values[name]) is not str:
            raise ValueError(f"its {name} is no text")
    for name in (*_COUNTS, *(_OPTIONAL & values.keys())):
        _check_count(values[name], name, least=int(name in {"seq", *_OPTIONAL}))
    for name in _DIGESTS:
        if values[name] and not _DIGEST.fullmatch(values[name]):
            raise ValueError(f"its {name} is no digest")
    datetime.fromisoformat(values["created"])
    values["kind"] = Kind(values["kind"])
    source = values["source"]
    if any(type(text) is not str for text in [*source, *source.values()]):
        raise ValueError("its source is no text")
    parent = values["parent"]
    if parent is not None:
        values["parent"] = Parent(parent.pop("seq"), parent.pop("digest"))
        _nothing_more(parent)
        _check_parent(values["parent"], values["seq"])
    values["packs"] = tuple(_pack(each) for each in _items(values["packs"]))
    _check_names(values)
    _check_sizes(values)
    return values


def _check_count(value: Any, name: str, *, least: int = 0) -> None:
    if type(value) is not int or not least <= value <= DEVICE_BYTES:
        raise ValueError(f"its {name} is no count")


def _check_parent(parent: Parent, seq: int) -> None:
    _check_count(parent.seq, "parent", least=1)
    if parent.seq >= seq:
        raise ValueError("its parent comes after it")
    if not _DIGEST.fullmatch(parent.digest):
        raise ValueError("its parent has no digest")


def _check_names(values: Mapping[str, Any]) -> None:
    """Let nothing that it names lie elsewhere than it lies."""
    if not DISK.fullmatch(values["disk"]):
        raise ValueError("its disk is no name")
    for name in ("state", "base"):
        if (values[name] or name == "state") and not is_id(values[name]):
            raise ValueError(f"its {name} is no id")
    if not IDENTITY.fullmatch(values["id"]):
        raise ValueError("its id is none")
    if values["index"] not in {"", f"index/{values['id']}.index"}:
        raise ValueError("its index is not its own")
    if len({pack.key for pack in values["packs"]}) < len(values["packs"]):
        raise ValueError("it names a pack twice")


def _check_sizes(values: Mapping[str, Any]) -> None:
    """Compare its counts with what a disk of its size can need."""
    if values["total"] > values["size"]:
        raise ValueError("it covers more than the disk")
    if values["frames"] > values["size"] // ALIGNMENT + 1:
        raise ValueError("it has more frames than the disk has sectors")
    if len(values["packs"]) and not values["index"]:
        raise ValueError("it has packs without an index")


def _pack(values: Any) -> Pack:
    found = Pack(values.pop("key"), values.pop("size"))
    _nothing_more(values)
    _check_count(found.size, "pack")
    if not PACK.fullmatch(found.key):
        raise ValueError("its pack is no name")
    return found


def _items(value: Any) -> Sequence[Any]:
    if type(value) is not list:
        raise ValueError("its packs are no list")
    return value


def _nothing_more(values: Mapping[str, Any]) -> None:
    if values:
        raise ValueError(f"it says {sorted(values)}, which is not known")


def rooted(parent: Point | None, chain: str) -> str:
    """Return the root of a point that goes onto another."""
    before = parent.root if parent is not None else ""
    return blake3(f"{before} {chain}".encode()).hexdigest()
