"""The two faults of a conversation, ours and theirs, and the codes that travel."""

from enum import Enum, IntEnum


class Code(IntEnum):
    """Why a transfer ended without COMMITTED (SPEC 9); also the exit status of a command."""

    BUG = 1
    REFUSED = 10  # nothing was written
    INTERRUPTED = 11  # resumable
    INTEGRITY = 12  # malformed, altered, or bytes after the end
    TARGET = 13  # the target could not be written; it is DIRTY
    SOURCE = 14  # the source became invalid or changed
    UNKNOWN = 15  # nobody told us the outcome


class Grounds(Enum):
    """Why a receiver refused, so that its people can be told what to do."""

    BASE = "the target does not hold the base"
    TOO_SMALL = "the target is smaller than the source"
    TOO_LARGE = "the target is larger than the source"
    WRITTEN = "somebody wrote to the target since its commit"
    FORBIDDEN = "the receiver's people do not allow it"


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


class RefusedError(RemoteProtocolError):
    """The receiver's own rules forbid what the peer asks; nothing was written.

    Attributes:
        grounds: Which rule.
    """

    def __init__(self, text: str, grounds: Grounds) -> None:
        super().__init__(text, Code.REFUSED)
        self.grounds = grounds
