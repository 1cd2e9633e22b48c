"""Whatever lies in the slots, a journal loads or raises RefusedError; what loads, it can record.

The first byte chooses: two raw slots; or two payloads under right digests. They are cut at the
first zero byte pair. The last part is the rows of every plan that is asked for.
"""

from tests.fuzz.engine import fuzz, instrumented

with instrumented("blockstream_protocol", "blockstream"):
    from blake3 import blake3

    from blockstream.errors import RefusedError
    from blockstream.pipeline.journal import Journal

SIZE = 4096


class Disk:
    """Storage in memory, that has any rows for a plan."""

    def __init__(self, slots: list[bytes], rows: bytes) -> None:
        """Begin with these bytes."""
        self.slots = slots
        self.rows = rows
        self.plans: dict[str, bytes] = {}

    def read_slot(self, index: int) -> bytes:
        """Return a slot."""
        return self.slots[index]

    def write_slot(self, index: int, data: bytes) -> None:
        """Keep a slot."""
        self.slots[index] = data

    def read_plan(self, name: str) -> bytes:
        """Return what was written, else the rows of the input."""
        return self.plans.get(name, self.rows)

    def write_plan(self, name: str, rows: bytes) -> None:
        """Keep a plan."""
        self.plans[name] = rows

    def drop_plans(self, keep: str) -> None:
        """Forget the others."""
        self.plans = {name: rows for name, rows in self.plans.items() if name == keep}

    def flush(self) -> None:
        """Everything is durable already."""


def check(data: bytes) -> None:
    """Take one input."""
    first, _, rest = data[1:].partition(b"\0\0")
    second, _, rows = rest.partition(b"\0\0")
    if data[:1] == b"\1":
        name = blake3(rows).hexdigest().encode()
        parts = [part.replace(b"PLAN", name) for part in (first, second)]
        slots = [signed(part) if part else b"" for part in parts]
    else:
        slots = [data[1 : 1 + len(data) // 2], data[1 + len(data) // 2 :]]
    disk = Disk(slots, rows)
    try:
        journal = Journal(disk, blake3, SIZE)
        state = journal.state
        journal.record(state)
    except RefusedError:
        return
    if Journal(disk, blake3, SIZE).state != state:
        raise AssertionError(state)


def signed(payload: bytes) -> bytes:
    """Return a slot with this payload."""
    return b"BSJOURN1" + len(payload).to_bytes(4, "little") + blake3(payload).digest() + payload


if __name__ == "__main__":
    fuzz(check)
