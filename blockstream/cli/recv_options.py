"""The options of `recv`."""

from dataclasses import dataclass
from typing import ClassVar

from blockstream.cli.option_groups import OptionGroups
from blockstream.declared import option
from blockstream.jobs.foreign.options import ForeignOptions
from blockstream.transfers.receive_options import WriteOptions


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class TakeOptions:
    """What is done beside writing.

    Attributes:
        dry_run: Check everything, write nothing.
        receipt: File for a receipt, `-` for standard output; empty for none.
        lock_wait: Seconds to wait for whoever else uses the target.
    """

    dry_run: bool = option(False, "Check everything, write nothing.", short="-n")
    receipt: str = option(
        "",
        "Write a receipt for `blockstream confirm`; - is standard output.",
        metavar="FILE",
        completes="files",
    )
    lock_wait: float = option(
        0.0, "Wait that long for whoever else uses TARGET.", metavar="SECONDS", least=0
    )


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class SessionOptions:
    """What a `send` says to the `recv` that it starts on the other host.

    Attributes:
        session: Answer on standard output.
        standing: One after the other, until the sender hangs up.
        meeting: How many further connections come.
    """

    session: bool = option(
        False, "Answer on standard output: what `send` starts on the other host.", hidden=True
    )
    standing: bool = option(
        False, "With --session: one after the other, until the sender hangs up.", hidden=True
    )
    meeting: int = option(0, "With --session: further connections.", least=0, most=15, hidden=True)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class RecvGroups(OptionGroups):
    """The options of `recv`."""

    titles: ClassVar = {
        "write": "Writing TARGET",
        "take": "Beside that",
        "foreign": "A stream of another tool",
    }

    write: WriteOptions
    take: TakeOptions
    foreign: ForeignOptions
    session: SessionOptions
