"""Why a program on another host ended: what it said, and what its exit status means."""

from collections.abc import Callable, Sequence

from blockstream.errors import (
    AuthenticationError,
    BlockstreamError,
    ConnectionLostError,
    InterruptedTransferError,
    NotFoundError,
)
from blockstream.interfaces import Link
from blockstream.transfers.remote_command import PEER_COMMAND
from blockstream.words import NOTE, OURS

_COMMAND_NOT_FOUND = 127
_NO_CONNECTION = 255  # of the system's ssh, and of ours
# What the system's ssh says before its 255 that no other attempt would change.
_DENIED = ("Permission denied", "Host key verification failed", "REMOTE HOST IDENTIFICATION")


def pass_on(link: Link, tell: Callable[[str], None]) -> None:
    """Wait for the end of our program there, and pass on what it has to say although all went well.

    Args:
        link: What it runs on, on which nothing more is said.
        tell: Takes each line.
    """
    for line in link.ended()[1].splitlines():
        if line.startswith(OURS):
            tell(f"{link.name}: {line.removeprefix(NOTE).removeprefix(OURS)}")


def _without_notes(words: str) -> str:
    """Return why a program ended, without what it had noted before."""
    lines = words.splitlines()
    return "\n".join(line for line in lines if not line.startswith(NOTE)) or words


def explained(error: BlockstreamError, links: Sequence[Link], *, greeted: bool) -> BlockstreamError:
    """Add what the far program said before it ended; where it never spoke, that is the reason."""
    link = links[0]
    for each in links:
        each.hang_up()
    status, words = link.ended()
    words = _without_notes(words)
    said = f"; it said: {words}" if words else ""
    if greeted:
        return type(error)(f"the connection to {link.name} was lost: {error}{said}")
    if status == _COMMAND_NOT_FOUND and PEER_COMMAND.split()[0] in words:
        return NotFoundError(
            f"{link.name} runs no `blockstream serve` for this key{said}; nothing was sent; the "
            "line that `blockstream serve --show-key-line` prints there belongs before the key"
        )
    if status == _COMMAND_NOT_FOUND:
        return NotFoundError(
            f"blockstream was not found on {link.name}{said}; nothing was sent; install it there, "
            "or give its name with --remote-command"
        )
    if status == AuthenticationError.exit_status and words:
        return AuthenticationError(words)
    denied = status == _NO_CONNECTION and any(text in words for text in _DENIED)
    if status == AuthenticationError.exit_status or denied:
        return AuthenticationError(f"{link.name} let us not in{said}; nothing was sent")
    ours = words.removeprefix(OURS)
    if ours != words:
        # It was blockstream itself that ended, and said why.
        kinds = (kind for kind in BlockstreamError.__subclasses__() if kind.exit_status == status)
        return next(kinds, InterruptedTransferError)(f"{link.name}: {ours}")
    if status == _NO_CONNECTION and words:
        return ConnectionLostError(
            f"no session with {link.name}: {words}; nothing was sent; is the name right, and the "
            "host up?"
        )
    # A program that ended by itself, other than for a lack of connection, would do so again.
    by_itself = 0 < status < _NO_CONNECTION
    return (InterruptedTransferError if by_itself else ConnectionLostError)(
        f"no session with {link.name}: the program that leads there ended with status {status}"
        f"{said}; nothing was sent"
    )
