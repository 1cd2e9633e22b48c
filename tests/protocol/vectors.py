"""Golden vectors: how they are read, and what their bytes mean to us now."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from blockstream.errors import RefusedError
from blockstream.pipeline.journal import Journal
from blockstream_protocol import (
    MAGIC,
    Clean,
    Extents,
    Finish,
    Frame,
    FrameDecoder,
    Kind,
    Open,
    Plan,
    PlanRows,
    RemoteProtocolError,
    TargetState,
    Unknown,
    Write,
    link,
    message_of,
    parse_table,
)
from tests.protocol.host import Host, decompress, new_digest

FOLDER = Path(__file__).resolve().parents[2] / "protocol" / "vectors"

Json = dict[str, Any]  # as it lies in the file


@dataclass(frozen=True)
class Vector:
    """One golden case.

    Attributes:
        name: A sentence; unique in its file.
        spec: The section of SPEC that it shows.
        given: What goes in; hex under "wire", and what the case needs besides.
        means: What must come out, or under "error" the code and the exact text.
    """

    name: str
    spec: str
    given: Json
    means: Json

    def __str__(self) -> str:
        return self.name.replace(" ", "-")

    @property
    def wire(self) -> bytes:
        """The bytes."""
        return bytes.fromhex(self.given["wire"])


def load_vectors(name: str, *, refused: bool | None = None) -> list[Vector]:
    """Return the vectors of one file: all, only refused ones, or only good ones."""
    content = json.loads((FOLDER / f"{name}.json").read_text())
    vectors = [Vector(**entry) for entry in content["vectors"]]
    return [one for one in vectors if refused is None or ("error" in one.means) is refused]


def meaning(decode: Callable[[Json], Json], given: Json) -> Json:
    """Return what `decode` makes of the input, or how it refuses it."""
    try:
        return decode(given)
    except RemoteProtocolError as error:
        return {"error": {"code": int(error.code), "text": str(error)}}
    except RefusedError as error:
        return {"error": {"code": int(error.exit_status), "text": str(error)}}


def frame_json(frame: Frame) -> Json:
    """Return a frame as it is written down."""
    return {
        "type": frame.kind.name,
        "codec": frame.codec.name,
        "raw_len": frame.raw_len,
        "digest": frame.digest.hex(),
        "payload": bytes(frame.payload).hex(),
    }


def decode_frames(given: Json) -> Json:
    """SPEC 3: a whole direction of a stream."""
    decoder = FrameDecoder()
    frames = [frame_json(frame) for frame in decoder.feed(bytes.fromhex(given["wire"]))]
    decoder.end()
    return {"frames": frames}


def decode_message(given: Json) -> Json:
    """SPEC 4: one frame, without the magic."""
    (frame,) = FrameDecoder().feed(MAGIC + bytes.fromhex(given["wire"]))
    message = message_of(frame, new_digest, decompress)
    match message:
        case Extents():
            return {"message": "Extents", "fields": {}}
        case PlanRows(rows):
            return {"message": "PlanRows", "fields": {"rows": bytes(rows).hex()}}
    return {"message": type(message).__name__, "fields": json.loads(json.dumps(asdict(message)))}


def decode_table(given: Json) -> Json:
    """SPEC 4.4: an unpacked payload."""
    table = parse_table(bytes.fromhex(given["wire"]))
    extents = [[offset, length, Kind(kind).name] for offset, length, kind in table.extents]
    return {"extents": extents, "data": bytes(table.data).hex()}


def decode_plan(given: Json) -> Json:
    """SPEC 4.3: all rows of a plan, and the size of the source."""
    plan = Plan.from_rows(bytes.fromhex(given["wire"]), given["size"])
    return {
        "ranges": [list(one) for one in plan],
        "total": plan.total,
        "digest": plan.digest(new_digest).hex(),
    }


def decode_chain(given: Json) -> Json:
    """SPEC 6: an opening and the digests of its frames."""
    chain = Open(**given["open"]).identity(new_digest)
    chains = [chain.hex()]
    for digest in given["digests"]:
        chain = link(new_digest, chain, bytes.fromhex(digest))
        chains.append(chain.hex())
    return {"chains": chains}


def decode_stream(given: Json) -> Json:
    """SPEC 7 to 10: a whole one-way stream, onto a target."""
    host = host_of(given)
    return outcome(host, host.feed(bytes.fromhex(given["wire"])))


def host_of(given: Json) -> Host:
    """Return the target that a stream vector describes."""
    image = bytes.fromhex(given["image"]) if "image" in given else given["size"]
    state: TargetState = Unknown()
    if "holds" in given:
        state = Clean(given["holds"], "", Plan.whole(0), "", 0, "", "")
    return Host.of(image, state)


def outcome(host: Host, finish: Finish) -> Json:
    """Return what became of a stream, and what was written."""
    writes = [
        [offset, length, Kind(kind).name]
        for effect in host.did
        if isinstance(effect, Write)
        for offset, length, kind in effect.extents
    ]
    if finish.committed is None:
        return {"writes": writes, "error": {"code": finish.code, "text": finish.text}}
    image = bytes(host.image).hex()
    return {"writes": writes, "committed": asdict(finish.committed), "image": image}


@dataclass
class Slots:
    """Storage of a journal that is given as hex."""

    slots: list[bytes]
    plans: Mapping[str, bytes]

    def read_slot(self, index: int) -> bytes:
        return self.slots[index]

    def read_plan(self, name: str) -> bytes:
        try:
            return self.plans[name]
        except KeyError:
            raise FileNotFoundError(name) from None

    def write_slot(self, index: int, data: bytes) -> None:
        self.slots[index] = data

    def write_plan(self, name: str, rows: bytes) -> None:
        raise AssertionError(name, rows)

    def drop_plans(self, keep: str) -> None:
        raise AssertionError(keep)

    def flush(self) -> None:
        pass


def decode_journal(given: Json) -> Json:
    """SPEC 7.1: two slots, their padding left out, and the plans beside them."""
    slots = [bytes.fromhex(slot) for slot in given["slots"]]
    plans = {name: bytes.fromhex(rows) for name, rows in given["plans"].items()}
    entry = Journal(Slots(slots, plans), new_digest, given["size"]).entry
    state = entry.state
    fields: Json = {}
    if not isinstance(state, Unknown):
        fields = {name: getattr(state, name) for name in type(state).__dataclass_fields__}
        fields["plan"] = [list(one) for one in fields["plan"]]
        if fields.get("moment", 0) is None:
            del fields["moment"]
    return {
        "seq": entry.seq,
        "kind": type(state).__name__,
        "size": entry.size,
        "facts": dict(entry.facts),
        "fields": fields,
    }


DECODERS: Mapping[str, Callable[[Json], Json]] = {
    "frames": decode_frames,
    "messages": decode_message,
    "plans": decode_plan,
    "extents": decode_table,
    "chains": decode_chain,
    "streams": decode_stream,
    "journal": decode_journal,
}
