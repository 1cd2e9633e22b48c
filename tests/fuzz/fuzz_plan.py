"""Whatever rows come in are a plan that gives back exactly them, or a RemoteProtocolError.

The first 8 bytes are the size of the device, the rest the rows.
"""

from tests.fuzz.engine import fuzz, instrumented

with instrumented("blockstream_protocol"):
    from blockstream_protocol import (
        DEVICE_BYTES,
        ROW_BYTES,
        Plan,
        PlanBuilder,
        RemoteProtocolError,
    )


def check(data: bytes) -> None:
    """Take one input."""
    size = int.from_bytes(data[:8], "little") & DEVICE_BYTES
    rows = data[8:]
    plan, pieces = whole(rows, size), piecewise(rows, size)
    if plan != pieces:
        raise AssertionError("the cut into frames matters")
    if plan is None:
        return
    end = -1
    for start, stop in plan:
        if not end < start < stop <= size:
            raise AssertionError((start, stop))
        end = stop
    if plan.rows() != rows or plan.total > size:
        raise AssertionError("the plan is not its rows")
    if not (plan.covers(plan) and Plan.whole(size).covers(plan)):
        raise AssertionError("the plan is not within the device")
    less = Plan.from_rows(rows[ROW_BYTES:], size)
    if not plan.covers(less) or (len(plan) and less.covers(plan)):
        raise AssertionError("a range less is not less")


def whole(rows: bytes, size: int) -> Plan | None:
    """Return the plan; None if it is refused."""
    try:
        return Plan.from_rows(rows, size)
    except RemoteProtocolError:
        return None


def piecewise(rows: bytes, size: int) -> Plan | None:
    """Return the same, taken row by row."""
    builder = PlanBuilder(size)
    try:
        for start in range(0, len(rows), ROW_BYTES):
            builder.add(rows[start : start + ROW_BYTES])
    except RemoteProtocolError:
        return None
    return builder.plan()


if __name__ == "__main__":
    fuzz(check)
