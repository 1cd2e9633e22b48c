"""Why a program on another host ended: what it said, and what its exit status means."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from blockstream.errors import (
    AuthenticationError,
    BlockstreamError,
    ConnectionLostError,
    InterruptedTransferError,
    NotFoundError,
    error_of,
)
from blockstream.interfaces import Link
from blockstream.transfers.remote_command import PEER_COMMAND

_COMMAND_NOT_FOUND = 127
_NO_CONNECTION = 255  # of the system's ssh, and of ours
# What the system's ssh says before its 255 that no other attempt would change.
_DENIED = ("Permission denied", "Host key verification failed", "REMOTE HOST IDENTIFICATION")


@dataclass(slots=True)
class Said:
    """What came from another host on its standard error.

    Attributes:
        error: What our program there ended with; None if it said none.
        warnings: What it had to say besides.
        others: Lines of anybody else: a shell, ssh, a login script.
    """

    error: BlockstreamError | None = None
    warnings: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)


def said_in(words: str, name: str) -> Said:
    """Tell our lines of JSON from those of others.

    Args:
        words: All that was said.
        name: What people call the host.
    """
    found = Said()
    for line in words.splitlines():
        values = values_in(line)
        match values.get("event"):
            case "end" if values.get("error"):
                found.error = error_of(values, name)
            case "warning":
                found.warnings.append(str(values.get("message", "")))
            case None:
                found.others.append(line)
    return found


def values_in(line: str) -> dict[str, object]:
    """Return what a line of ours says; nothing for a line of anybody else."""
    if not line.startswith("{"):
        return {}
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def pass_on(link: Link, tell: Callable[[str], None]) -> None:
    """Wait for the end of our program there, and pass on what it has to say although all went well.

    Args:
        link: What it runs on, on which nothing more is said.
        tell: Takes each line.
    """
    for text in said_in(link.ended()[1], link.name).warnings:
        tell(f"{link.name}: {text}")


def explained(
    error: BlockstreamError, links: Sequence[Link], *, greeted: bool, again: bool = False
) -> BlockstreamError:
    """Return why a session ended, with what the far program said before it ended.

    Args:
        error: What was noticed here.
        links: The connections.
        greeted: Whether the program there spoke; where it never did, what it said is the reason.
        again: Whether an earlier connection did, so that something may have been sent.
    """
    link = links[0]
    for each in links:
        each.hang_up()
    status, words = link.ended()
    said = said_in(words, link.name)
    nothing = "nothing more was sent" if again else "nothing was sent"
    if greeted:
        lost = error.worded(f"the connection to {link.name} was lost: {error}")
        reason = "\n".join([*said.others, *([said.error.message] if said.error else [])])
        return lost.add(f"it said: {reason}") if reason else lost
    return said.error or _unspoken(link.name, status, "\n".join(said.others), nothing)


def _unspoken(name: str, status: int, words: str, nothing: str) -> BlockstreamError:
    """Return why no program of ours spoke.

    Args:
        name: What people call the host.
        status: What the way there, or the program, ended with.
        words: What others said.
        nothing: What became of the transfer.
    """
    said = f"; it said: {words}" if words else ""
    if status == _COMMAND_NOT_FOUND and PEER_COMMAND.split()[0] in words:
        return NotFoundError(
            f"{name} runs no `blockstream serve` for this key{said}; {nothing}; the line that "
            "`blockstream serve --show-key-line` prints there belongs before the key"
        )
    if status == _COMMAND_NOT_FOUND:
        return NotFoundError(
            f"blockstream was not found on {name}{said}; {nothing}; install it there, or give its "
            "name with --remote-command"
        )
    if status == AuthenticationError.exit_status and words:
        return AuthenticationError(words)
    denied = status == _NO_CONNECTION and any(text in words for text in _DENIED)
    if status == AuthenticationError.exit_status or denied:
        return AuthenticationError(f"{name} let us not in{said}; {nothing}")
    if status == _NO_CONNECTION and words:
        return ConnectionLostError(
            f"no session with {name}: {words}; {nothing}; is the name right, and the host up?"
        )
    # A program that ended by itself, other than for a lack of connection, would do so again.
    by_itself = 0 < status < _NO_CONNECTION
    return (InterruptedTransferError if by_itself else ConnectionLostError)(
        f"no session with {name}: the program that leads there ended with status {status}"
        f"{said}; {nothing}"
    )
