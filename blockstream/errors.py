"""Every way to fail: one class a meaning, each with its exit status.

A message says what happened, where, what was not done, and what to do next. Whoever knows more adds
it to the error on its way up. Programs, also ours on other hosts, read the fields.
`scripts/error_table.py` prints the table for the README.
"""

from collections.abc import Callable, Iterator, Mapping
from enum import IntEnum
from typing import Self


class ExitStatus(IntEnum):
    """What the shell sees. Stable: schedulers decide by these."""

    OK = 0
    BUG = 1
    USAGE = 2
    REFUSED = 10
    INTERRUPTED = 11
    INTEGRITY = 12
    TARGET = 13
    SOURCE = 14
    UNKNOWN = 15
    AUTHENTICATION = 16
    NOT_FOUND = 17
    PARTLY = 18
    STALE = 19
    STORE = 20
    LEFTOVER = 21


class BlockstreamError(Exception):
    """Anything that ends a command in a way that we foresaw.

    Attributes:
        exit_status: What the shell sees.
        advice: What to do next, where that is known apart from the message; else empty.
        what: What happened, with what was not done.
        more: What others added: of the place, of what is kept, of the next step.
        where: The host on which it happened; empty for this one.
        durable: Bytes that are durable at a target that is left unfinished; None for none.
    """

    exit_status = ExitStatus.BUG
    advice = ""

    def __init__(self, what: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.more: list[str] = []
        self.where = ""
        self.durable: int | None = None

    @property
    def message(self) -> str:
        """What is said of it on the host where it happened."""
        return "; ".join(filter(None, [self.what, *self.more]))

    def __str__(self) -> str:
        return f"{self.where}: {self.message}" if self.where else self.message

    def add(self, *texts: str) -> Self:
        """Say more of it; return it."""
        self.more += texts
        return self

    def worded(self, text: str) -> Self:
        """Return one of the same kind that says only this."""
        made = type(self).__new__(type(self))
        BlockstreamError.__init__(made, text)
        return made


class UsageError(BlockstreamError):
    """The command line does not make sense. Nothing was done."""

    exit_status = ExitStatus.USAGE


class RefusedError(BlockstreamError):
    """It would be wrong or dangerous to go on. Nothing was written."""

    exit_status = ExitStatus.REFUSED


class BaseMismatchError(RefusedError):
    """The increment does not start from what the target holds. Nothing was written."""

    advice = "send a full copy, or say what it holds with `blockstream adopt`"


class WrittenSinceError(RefusedError):
    """Somebody wrote to the target since its last commit. Nothing was written."""

    advice = (
        "send a full copy; or `send --check-base`, which reads all of it, and takes it if it is "
        "the base all the same; --force-base looks at nothing, and leaves what was written"
    )


class TargetTooSmallError(RefusedError):
    """The source does not fit the target. Nothing was written."""

    advice = "make it at least as large as the source"


class TargetTooLargeError(RefusedError):
    """The target is larger than the source, so it may be the wrong one. Nothing was written."""

    advice = "--force-larger takes it, and leaves the rest untouched"


class ForbiddenError(RefusedError):
    """What the target's people allow does not cover it. Nothing was written."""

    advice = "ask whoever wrote the policy of `blockstream serve` there"


class BusyError(RefusedError):
    """Somebody else uses the target or its journal. Nothing was written."""


class InterruptedTransferError(BlockstreamError):
    """The transfer was cut or stopped; the same command, or the token, continues it."""

    exit_status = ExitStatus.INTERRUPTED


class ConnectionLostError(InterruptedTransferError):
    """The connection ended before the transfer did; it may be tried again by itself."""


class IntegrityError(BlockstreamError):
    """Bytes were malformed, altered, or came after the end."""

    exit_status = ExitStatus.INTEGRITY


class ForeignStreamError(IntegrityError):
    """The stream is not one of ours; its first bytes tell whose it is. Nothing was written.

    Attributes:
        begin: Its first bytes: no more was read.
        words: Gives more of it, for people; then nobody else can read it.
    """

    def __init__(
        self, text: str, begin: bytes = b"", words: Callable[[], bytes] = lambda: b""
    ) -> None:
        super().__init__(text)
        self.begin = begin
        self.words = words


class ReadBackError(IntegrityError):
    """The medium does not hold what was written to it. It is marked DIRTY."""


class StoreDamagedError(IntegrityError):
    """An object of a store is missing, or not what was stored."""


class TargetError(BlockstreamError):
    """The target could not be written or flushed. It is marked DIRTY."""

    exit_status = ExitStatus.TARGET


class SourceError(BlockstreamError):
    """The source cannot be read, is not valid any more, or changed."""

    exit_status = ExitStatus.SOURCE


class ExtentListError(SourceError):
    """A list of extents from somebody's tracker cannot be trusted. Nothing was sent."""

    def __init__(self, origin: str, what: str, advice: str, entry: int | None = None) -> None:
        where = "" if entry is None else f", entry {entry}"
        super().__init__(f"list of extents ({origin}{where}): {what}; nothing was sent; {advice}")


class ExceptionStoreError(SourceError):
    """The exception store of a snapshot cannot be trusted. Nothing was committed."""

    def __init__(self, what: str) -> None:
        super().__init__(f"exception store: {what}")


class NbdError(SourceError):
    """An NBD server says what it must not say, or speaks another version. Nothing was believed."""

    def __init__(self, where: str, what: str) -> None:
        super().__init__(f"{where}: no NBD server that can be trusted: {what}; END was not sent")


class VmdkError(SourceError):
    """A VMDK, or its chain, cannot be trusted. Nothing was committed."""


class SnapshotInvalidError(SourceError):
    """A snapshot is not valid any more: it was filled, merged, or taken away."""


class StoreError(BlockstreamError):
    """A store could not be read or written. What was committed there stays."""

    exit_status = ExitStatus.STORE


class OutcomeUnknownError(BlockstreamError):
    """All was sent, but nobody said whether it was committed."""

    exit_status = ExitStatus.UNKNOWN


class AuthenticationError(BlockstreamError):
    """Authentication failed, or a host key is not the known one."""

    exit_status = ExitStatus.AUTHENTICATION


class NotAllowedError(AuthenticationError):
    """Whoever we are there, this one thing is not allowed."""


class NotFoundError(BlockstreamError):
    """Something that was named does not exist."""

    exit_status = ExitStatus.NOT_FOUND


class PartlyDoneError(BlockstreamError):
    """Some of several transfers failed."""

    exit_status = ExitStatus.PARTLY


class StaleViewError(BlockstreamError):
    """It was done, but what was shown may be out of date or incomplete."""

    exit_status = ExitStatus.STALE


class LeftoverError(BlockstreamError):
    """It was done, but something of ours is left, such as a snapshot, which grows."""

    exit_status = ExitStatus.LEFTOVER


class UnknownTargetError(NotFoundError):
    """A target is there, but no transfer to it was recorded."""


def _kinds(kind: type[BlockstreamError]) -> Iterator[type[BlockstreamError]]:
    yield kind
    for each in kind.__subclasses__():
        yield from _kinds(each)


def error_of(values: Mapping[str, object], where: str) -> BlockstreamError:
    """Return the error that a program of ours on another host ended with.

    Args:
        values: The last line of what that said: an `End`. What it leaves out is nothing.
        where: What people call the host.
    """
    kinds = list(_kinds(BlockstreamError))
    named = [kind for kind in kinds if kind.__name__ == values.get("error")]
    of_status = [kind for kind in kinds if kind.exit_status == values.get("status")]
    kind = next(iter([*named, *of_status]), InterruptedTransferError)
    made = kind.__new__(kind)
    more, durable = values.get("more"), values.get("durable")
    BlockstreamError.__init__(made, str(values.get("what") or values.get("message") or ""))
    made.more = [str(each) for each in more] if isinstance(more, list) else []
    made.durable = durable if type(durable) is int else None
    made.where = where
    return made
