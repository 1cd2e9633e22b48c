"""The two faults of a conversation, ours and theirs, and the codes that travel."""

from enum import IntEnum


class Code(IntEnum):
    """Why a transfer ended without COMMITTED (SPEC 9); also the exit status of a command."""

    BUG = 1
    REFUSED = 10  # nothing was written
    INTERRUPTED = 11  # resumable
    INTEGRITY = 12  # malformed, altered, or bytes after the end
    TARGET = 13  # the target could not be written; it is DIRTY
    SOURCE = 14  # the source became invalid or changed
    UNKNOWN = 15  # nobody told us the outcome


class ProtocolError(Exception):
    """The conversation broke its rules."""


class LocalProtocolError(ProtocolError):
    """Our own side called a session out of order: a bug."""


class RemoteProtocolError(ProtocolError):
    """The peer's bytes broke a rule.

    Attributes:
        code: What it means for the transfer.
    """

    def __init__(self, text: str, code: Code = Code.INTEGRITY) -> None:
        super().__init__(text)
        self.code = code
