"""What people read: numbers, and words that may be shown."""

import re
from datetime import UTC, datetime
from typing import Final

_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")


def size_text(count: float) -> str:
    """Return bytes as people read them: `312 MiB`, `1.2 GiB`."""
    unit = 0
    while count >= 1000 and unit < len(_UNITS) - 1:
        count /= 1024
        unit += 1
    digits = 0 if unit == 0 or count >= 100 else 1
    return f"{count:.{digits}f} {_UNITS[unit]}"


def counted(count: int, noun: str) -> str:
    """Return how many of something: `1 range`, `2 ranges`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def duration_text(seconds: float) -> str:
    """Return seconds as `0.8 s`, `42 s`, `3:07` or `2:03:07`."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


_NOISE: Final = 300
_SECOND: Final = 1_000_000_000
_CREDENTIALS: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://[^/?#\s@:'\"]*:)[^/?#\s'\"]*@")


def time_text(seconds: float, form: str = "%Y-%m-%dT%H:%M:%SZ") -> str:
    """Return a time since 1970 for people, in UTC; also one that no clock gave."""
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime(form)
    except (ValueError, OverflowError, OSError):
        return "an impossible time"


def moment_text(moment: int | None) -> str | None:
    """Return a moment in nanoseconds since 1970 as programs read it, in UTC; None for None."""
    if moment is None:
        return None
    seconds, rest = divmod(moment, _SECOND)
    return time_text(seconds, f"%Y-%m-%dT%H:%M:%S.{rest // 1000:06}Z")


def noise_text(name: str, said: bytes) -> str:
    """Return what it means that a host said something else before our program there did.

    Args:
        name: What people call the host.
        said: The first of it.
    """
    shown = " / ".join(line for line in said.decode(errors="replace").splitlines() if line.strip())
    lower = shown.lower()
    if "not available" in lower or "nologin" in lower:
        cause = "the user's shell there lets nobody run a command"
    elif "sudo" in lower or "password for" in lower:
        cause = "sudo asks for a password there: allow it without (NOPASSWD), or log in as root"
    else:
        cause = (
            "a login script there prints, as ~/.bashrc or /etc/profile: it must be silent where "
            "nobody looks, `[ -t 1 ] || return`"
        )
    return f"{name} said {shown[:_NOISE]!r} before blockstream did; nothing was sent; {cause}"


def holds_credentials(location: str) -> bool:
    """Tell whether there is a password in a location: everybody can read a command line."""
    return _CREDENTIALS.match(location) is not None


def printable(text: str) -> str:
    """Return text as it may be shown.

    What came from elsewhere moves no cursor, and has no bytes; lines stay lines. Passwords in
    locations are left out.
    """
    shown = "".join(
        each if each.isprintable() or each == "\n" else each.encode("unicode_escape").decode()
        for each in text
    )
    return _CREDENTIALS.sub(r"\1***@", shown)


class Secret:
    """A string that does not print itself."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def __repr__(self) -> str:
        return "***"

    def reveal(self) -> str:
        """Return the secret. Call it only where it is handed to a library."""
        return self._value
