"""Sizes and rates as people type them."""

from typing import Final

from blockstream.errors import UsageError

_UNITS: Final = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_SECTOR: Final = 512


def parse_rate(text: str) -> int:
    """Return bytes a second from `750k`, `10M`, `1.5G`, or plain bytes.

    Raises:
        UsageError: If it is none of these.
    """
    try:
        return parse_size(text.strip().lower().removesuffix("/s"))
    except UsageError:
        raise UsageError(
            f"a rate is bytes a second such as 750k, 10M or 1G, not {text!r}"
        ) from None


def parse_size(text: str) -> int:
    """Return bytes from `750k`, `10M`, `1.5G`, `2T`, or plain bytes.

    Raises:
        UsageError: If it is none of these.
    """
    number, unit = text.strip().lower().removesuffix("ib").removesuffix("b"), ""
    if number and number[-1] in _UNITS:
        number, unit = number[:-1], number[-1]
    try:
        size = float(number) * _UNITS[unit]
    except ValueError:
        size = 0.0
    if not 1 <= size < 1 << 50:
        raise UsageError(f"a size is bytes, such as 512M or 10G, not {text!r}")
    return int(size)


def parse_sectors(text: str) -> int:
    """Return bytes in whole sectors: a size, rounded up.

    Raises:
        UsageError: If it is no size.
    """
    return -(-parse_size(text) // _SECTOR) * _SECTOR
