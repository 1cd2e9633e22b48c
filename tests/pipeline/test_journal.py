"""The journal gives the newest whole record; whatever tears, the one before it is still there."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from blockstream.errors import RefusedError
from blockstream.pipeline.journal import SLOT_BYTES, Journal
from blockstream_protocol import Clean, Dirty, Plan, TargetState, Unknown
from tests.protocol.host import sectors
from tests.protocol.vectors import Vector, decode_journal, load_vectors, meaning

SIZE = 4096
HEX = "0123456789abcdef" * 4
PLANS = [Plan.whole(SIZE), Plan.whole(0), sectors(0, 3, size=SIZE), sectors(1, size=SIZE)]


@dataclass
class Disk:
    """Storage that keeps the contract: what is not flushed may be lost or torn.

    Attributes:
        slots: As they are read back now.
        durable: As they are after a power cut.
        plans: Durable as soon as they are written.
        calls: What was done, in order.
        broken: A call that raises.
    """

    slots: list[bytes] = field(default_factory=lambda: [b"", b""])
    durable: list[bytes] = field(default_factory=lambda: [b"", b""])
    plans: dict[str, bytes] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    broken: str = ""

    def _call(self, name: str) -> None:
        self.calls.append(name)
        if name == self.broken:
            raise OSError(5, "broken on purpose")

    def read_slot(self, index: int) -> bytes:
        return self.slots[index]

    def write_slot(self, index: int, data: bytes) -> None:
        self._call(f"slot {index}")
        self.slots[index] = data

    def read_plan(self, name: str) -> bytes:
        try:
            return self.plans[name]
        except KeyError:
            raise FileNotFoundError(name) from None

    def write_plan(self, name: str, rows: bytes) -> None:
        self._call("plan")
        self.plans[name] = rows

    def drop_plans(self, keep: str) -> None:
        self._call("drop")
        self.plans = {name: rows for name, rows in self.plans.items() if name == keep}

    def flush(self) -> None:
        self._call("flush")
        self.durable = list(self.slots)

    def copy(self) -> "Disk":
        return Disk(list(self.slots), list(self.durable), dict(self.plans))


def journal(disk: Disk, size: int = SIZE) -> Journal:
    return Journal(disk, blake3, size)


def dirty(goal: str = "g", plan: Plan = PLANS[2]) -> Dirty:
    return Dirty("b", goal, plan, HEX, 1, HEX, 512, 512)


IDS = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=256)
COUNTS = st.integers(0, (1 << 63) - 1)
STATES: st.SearchStrategy[TargetState] = st.one_of(
    st.just(Unknown()),
    st.builds(
        Clean,
        IDS,
        IDS | st.just(""),
        st.sampled_from(PLANS),
        st.just(HEX),
        COUNTS,
        st.just(HEX),
        st.just(HEX),
    ),
    st.builds(
        Dirty,
        IDS | st.just(""),
        IDS,
        st.sampled_from(PLANS),
        st.just(HEX),
        COUNTS,
        st.just(HEX),
        COUNTS,
        COUNTS,
    ),
)


def test_a_journal_that_was_never_written_knows_nothing() -> None:
    fresh = journal(Disk())
    assert fresh.state == Unknown()
    assert (fresh.entry.seq, fresh.entry.size, dict(fresh.entry.facts)) == (0, SIZE, {})


@settings(max_examples=40)
@given(st.lists(STATES, min_size=1, max_size=5))
def test_the_newest_record_counts(states: list[TargetState]) -> None:
    disk = Disk()
    for number, state in enumerate(states, start=1):
        journal(disk).record(state, {"path": f"/dev/{number}"})
        again = journal(disk)
        assert again.state == state
        assert (again.entry.seq, again.entry.facts["path"]) == (number, f"/dev/{number}")


@settings(max_examples=40)
@given(st.lists(STATES, min_size=1, max_size=5))
def test_one_journal_and_many_openings_leave_the_same_bytes(states: list[TargetState]) -> None:
    one, many = Disk(), Disk()
    kept = journal(one)
    for state in states:
        kept.record(state)
        journal(many).record(state)
    assert (one.slots, one.plans) == (many.slots, many.plans)
    assert kept.state == journal(one).state


@settings(max_examples=40)
@given(STATES, STATES, STATES, st.data())
def test_a_torn_write_leaves_the_record_before(
    first: TargetState, second: TargetState, third: TargetState, data: st.DataObject
) -> None:
    disk = Disk()
    writer = journal(disk)
    writer.record(first)
    writer.record(second)
    plans_before = dict(disk.plans)
    slots_before = list(disk.slots)
    writer.record(third)
    changed = [index for index in (0, 1) if disk.slots[index] != slots_before[index]]
    assert len(changed) == 1, "a record goes into the other slot"
    index = changed[0]
    kept = data.draw(st.integers(0, SLOT_BYTES // 512 - 1)) * 512
    old = slots_before[index].ljust(SLOT_BYTES, b"\0")
    torn = disk.slots[index][:kept] + old[kept:]
    slots = [*slots_before]
    slots[index] = torn
    state = journal(Disk(slots, plans={**plans_before, **disk.plans})).state
    assert state in ([second] if torn != disk.slots[index] else [third])


@settings(max_examples=40)
@given(STATES, STATES, st.integers(0, 8 * SLOT_BYTES - 1))
def test_any_flipped_bit_of_a_record_leaves_the_record_before(
    first: TargetState, second: TargetState, bit: int
) -> None:
    disk = Disk()
    writer = journal(disk)
    writer.record(first)
    plans = dict(disk.plans)
    writer.record(second)
    newest = bytearray(disk.slots[1])
    newest[bit // 8] ^= 1 << bit % 8
    in_padding = bit // 8 >= len(disk.slots[1].rstrip(b"\0"))
    disk.slots[1] = bytes(newest)
    disk.plans |= plans
    assert journal(disk).state == (second if in_padding else first)


def test_records_alternate_between_the_slots() -> None:
    disk = Disk()
    writer = journal(disk)
    for number in range(4):
        writer.record(dirty(str(number), PLANS[0]))
    assert [call for call in disk.calls if call.startswith("slot")] == [
        "slot 0",
        "slot 1",
        "slot 0",
        "slot 1",
    ]


def test_a_plan_is_durable_before_its_record_and_the_old_one_goes_after_it() -> None:
    disk = Disk()
    writer = journal(disk)
    writer.record(dirty(plan=PLANS[2]))
    assert disk.calls == ["plan", "slot 0", "flush", "drop"]
    disk.calls.clear()
    writer.record(dirty("h", PLANS[2]))
    assert disk.calls == ["slot 1", "flush"], "the same plan is written once"
    disk.calls.clear()
    writer.record(dirty("h", PLANS[3]))
    assert disk.calls == ["plan", "slot 0", "flush", "drop"]
    assert list(disk.plans) == [PLANS[3].digest(blake3).hex()]


@pytest.mark.parametrize("broken", ["plan", "slot 1", "flush"])
def test_a_record_that_failed_is_not_believed(broken: str) -> None:
    disk = Disk()
    writer = journal(disk)
    writer.record(dirty("old"))
    disk.broken = broken
    with pytest.raises(OSError, match="broken on purpose"):
        writer.record(dirty("new", PLANS[3]))
    assert writer.state == dirty("old")
    after = Disk(disk.durable, plans=disk.plans)
    assert journal(after).state == dirty("old"), "the old plan is still there"


@pytest.mark.parametrize("broken", ["slot 0", "flush"])
def test_what_was_read_is_durable_before_anybody_acts_on_it(broken: str) -> None:
    disk = Disk()
    journal(disk).record(dirty())
    seen = disk.copy()
    seen.durable = [b"", b""]
    journal(seen)
    assert journal(Disk(seen.durable, plans=seen.plans)).state == dirty()
    disk.broken = broken
    with pytest.raises(OSError, match="broken on purpose"):
        journal(disk)


def test_facts_stay_with_every_record_from_where_they_are_set() -> None:
    disk = Disk()
    writer = journal(disk)
    writer.facts = {"path": "/dev/vg/lv"}
    writer.record(dirty(), {"mode": "direct"})
    again = journal(disk)
    assert dict(again.entry.facts) == {"path": "/dev/vg/lv", "mode": "direct"}
    again.record(dirty("h"))
    assert dict(journal(disk).entry.facts) == {"path": "/dev/vg/lv", "mode": "direct"}


LONGEST = replace(dirty("g" * 256), base="b" * 256, frames=(1 << 63) - 1, covered=(1 << 63) - 1)
PATHS: Mapping[str, str] = {
    "ascii": "/" + "p" * 4095,
    "utf-8": "/" + "ü" * 2047,
    "not text": "/" + "\udcff" * 4095,
}


@pytest.mark.parametrize("path", PATHS.values(), ids=list(PATHS))
def test_the_longest_path_and_two_long_ids_fit(path: str) -> None:
    disk = Disk()
    journal(disk).record(LONGEST, {"path": path})
    again = journal(disk)
    assert (again.state, again.entry.facts["path"]) == (LONGEST, path)


def test_a_record_that_does_not_fit_is_refused_before_it_is_written() -> None:
    disk = Disk()
    writer = journal(disk)
    with pytest.raises(RefusedError, match="does not fit the journal"):
        writer.record(dirty(plan=PLANS[0]), {"path": "x" * SLOT_BYTES})
    assert disk.slots == [b"", b""]


def test_a_plan_of_a_smaller_source_of_odd_size_is_read_back() -> None:
    disk = Disk()
    odd = sectors(0, 3, size=1536 + 100)
    state = dirty(plan=odd)
    assert odd[1] == (1536, 1636)
    journal(disk, SIZE).record(state)
    assert journal(disk, SIZE).state == state


def test_a_target_that_has_grown_keeps_its_plan() -> None:
    disk = Disk()
    journal(disk, SIZE).record(dirty(plan=PLANS[0]))
    grown = journal(disk, 2 * SIZE)
    assert grown.state == dirty(plan=PLANS[0])
    assert grown.entry.size == SIZE
    grown.record(grown.state)
    assert journal(disk, 2 * SIZE).state == dirty(plan=PLANS[0])


@pytest.mark.parametrize("plan", PLANS, ids=["whole", "none", "two", "one"])
def test_a_target_that_has_shrunk_keeps_its_plan(plan: Plan) -> None:
    disk = Disk()
    journal(disk, SIZE).record(dirty(plan=plan))
    shrunk = journal(disk, SIZE - 3000)
    assert shrunk.state == dirty(plan=plan)
    shrunk.record(shrunk.state)
    assert journal(disk, SIZE - 3000).state == dirty(plan=plan)


@pytest.mark.parametrize("rows", [None, b"", b"x", bytes(32)], ids=["gone", "empty", "cut", "zero"])
def test_a_plan_that_is_missing_or_damaged_is_refused(rows: bytes | None) -> None:
    disk = Disk()
    journal(disk).record(dirty())
    (name,) = disk.plans
    if rows is None:
        del disk.plans[name]
    else:
        disk.plans[name] = rows
    with pytest.raises(RefusedError, match="missing or damaged"):
        journal(disk)


@pytest.mark.parametrize("rows", [b"x", bytes(16), b"\xff" * 32], ids=["cut", "zero", "far"])
def test_a_plan_that_is_none_though_its_digest_fits_is_refused(rows: bytes) -> None:
    disk = Disk()
    journal(disk).record(dirty())
    (name,) = disk.plans
    other = blake3(rows).hexdigest()
    disk.plans[other] = rows
    payload = disk.slots[0][44:].rstrip(b"\0").replace(name.encode(), other.encode())
    disk.slots[0] = slot(payload)
    with pytest.raises(RefusedError, match="missing or damaged"):
        journal(disk)


def slot(payload: bytes) -> bytes:
    head = b"BSJOURN1" + len(payload).to_bytes(4, "little") + blake3(payload).digest()
    return (head + payload).ljust(SLOT_BYTES, b"\0")


def test_a_slot_is_as_the_specification_says() -> None:
    disk = Disk()
    journal(disk).record(Unknown())
    payload = b'{"facts": {}, "kind": "unknown", "plan": "", "seq": 1, "size": 4096, "values": {}}'
    assert disk.slots[0] == slot(payload)


FOREIGN = [
    b"",
    b"[]",
    b"{}",
    b"\xff",
    b"[" * 4000,
    b'{"facts":{},"kind":"new","plan":"","seq":1,"size":1,"values":{}}',
    b'{"facts":{},"kind":"unknown","plan":"","seq":1,"size":1,"values":{"x":1}}',
    b'{"facts":{},"kind":"unknown","plan":"","seq":1,"size":1,"values":{},"more":1}',
    b'{"facts":{},"kind":"unknown","plan":"","seq":true,"size":1,"values":{}}',
    b'{"facts":{"a":1},"kind":"unknown","plan":"","seq":1,"size":1,"values":{}}',
    b'{"facts":{},"kind":"unknown","plan":"","seq":1,"size":-1,"values":{}}',
    b'{"facts":{},"kind":"unknown","plan":"","seq":1,"size":9223372036854775808,"values":{}}',
    b'{"facts":{},"kind":"clean","plan":"whole","seq":1,"size":1,"values":{"id":"g"}}',
]


@pytest.mark.parametrize("payload", FOREIGN, ids=range(len(FOREIGN)))
def test_a_whole_record_of_another_version_is_refused_not_guessed(payload: bytes) -> None:
    with pytest.raises(RefusedError, match="written by another version"):
        journal(Disk([slot(payload), b""]))


@given(st.lists(st.binary(max_size=200), min_size=2, max_size=2))
def test_other_bytes_are_no_record(slots: list[bytes]) -> None:
    assert journal(Disk(slots)).state == Unknown()


@pytest.mark.parametrize("vector", load_vectors("journal"), ids=str)
def test_vector(vector: Vector) -> None:
    assert meaning(decode_journal, vector.given) == vector.means
