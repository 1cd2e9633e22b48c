"""The border between the protocol's errors and ours: each is translated here, once."""

from blockstream.errors import (
    BaseMismatchError,
    BlockstreamError,
    BusyError,
    ConnectionLostError,
    ForbiddenError,
    IntegrityError,
    InterruptedTransferError,
    OutcomeUnknownError,
    ReadBackError,
    RefusedError,
    SourceError,
    TargetError,
    TargetTooLargeError,
    TargetTooSmallError,
    WrittenSinceError,
)
from blockstream_protocol import (
    Code,
    Grounds,
    LocalProtocolError,
    RemoteProtocolError,
)
from blockstream_protocol import RefusedError as Refusal

_CLASSES: dict[Code, type[BlockstreamError]] = {
    Code.REFUSED: RefusedError,
    Code.INTERRUPTED: ConnectionLostError,
    Code.INTEGRITY: IntegrityError,
    Code.TARGET: TargetError,
    Code.SOURCE: SourceError,
    Code.UNKNOWN: OutcomeUnknownError,
}


_REFUSALS: dict[Grounds, type[RefusedError]] = {
    Grounds.BASE: BaseMismatchError,
    Grounds.WRITTEN: WrittenSinceError,
    Grounds.TOO_SMALL: TargetTooSmallError,
    Grounds.TOO_LARGE: TargetTooLargeError,
    Grounds.FORBIDDEN: ForbiddenError,
}


def code_of(error: BaseException) -> Code:
    """Return what an error means for the transfer."""
    if isinstance(error, RemoteProtocolError):
        return error.code
    if isinstance(error, ReadBackError):
        return Code.TARGET  # no last barrier on a device that was just found to lie
    if isinstance(error, BlockstreamError):
        try:
            return Code(error.exit_status)
        except ValueError:
            return Code.REFUSED
    return Code.BUG


def translated(error: BaseException) -> BaseException:
    """Return the error as one of ours; a bug stays what it is."""
    if isinstance(error, Refusal):
        return _REFUSALS[error.grounds](str(error))
    if isinstance(error, RemoteProtocolError):
        return _CLASSES.get(error.code, InterruptedTransferError)(str(error))
    if isinstance(error, LocalProtocolError):
        return error
    return error


def error_for(code: Code, text: str) -> BlockstreamError:
    """Return the error class of a code with that text."""
    return _CLASSES.get(code, BlockstreamError)(text)


_DISCREET: dict[Code, str] = {
    Code.REFUSED: "the target cannot be written now",
    Code.TARGET: "the target failed",
    Code.INTEGRITY: "what was written reads back differently",
    Code.INTERRUPTED: "it was interrupted there",
}


def discreet(error: BaseException) -> str:
    """Return what a peer may hear of an error who is to know nothing of this host.

    No paths, no processes, no people: whatever names one is said in other words.
    """
    text = str(error)
    if "/" not in text and "process" not in text:
        return text
    if isinstance(error, BusyError):
        return "somebody else uses the target; nothing was written; try again later"
    said = _DISCREET.get(code_of(error), "it failed there")
    return f"{said}; whoever looks after that host finds the reason in its log"
