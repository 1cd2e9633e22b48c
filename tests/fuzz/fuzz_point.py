"""Whatever lies in a manifest names objects of its own disk and counts that fit it, or is refused.

The input is JSON in any form: an altered manifest is hardly ever canonical.
"""

import json

from tests.fuzz.engine import fuzz, instrumented

with instrumented("blockstream.formats"):
    from blockstream.errors import StoreDamagedError
    from blockstream.formats.point import Point


def check(data: bytes) -> None:
    """Take one input."""
    for manifest in (data, canonical(data)):
        try:
            point = Point.decode(manifest)
        except StoreDamagedError:
            continue
        names = [point.disk, point.id, *point.index.split("/")]
        names += [word for pack in point.packs for word in pack.key.split("/")]
        if any(word in {".", ".."} or not word.isascii() or "\0" in word for word in names):
            raise AssertionError(names)
        if point.total > point.size or point.frames > point.size // 512 + 1:
            raise AssertionError(point)


def canonical(data: bytes) -> bytes:
    """Return JSON in canonical form, and without what would tell that it was altered."""
    try:
        values = json.loads(data)
        values.pop("check", None)
        return json.dumps(values, sort_keys=True, separators=(",", ":")).encode()
    except (ValueError, AttributeError, TypeError, RecursionError):
        return data


if __name__ == "__main__":
    fuzz(check)
