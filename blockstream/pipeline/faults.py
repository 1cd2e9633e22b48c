"""The border between the protocol's errors and ours: each is translated here, once."""

from blockstream.errors import (
    BaseMismatchError,
    BlockstreamError,
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
