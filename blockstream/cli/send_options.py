"""The options of `send`, in the order in which people need them."""

from dataclasses import dataclass
from typing import ClassVar

from blockstream.captures.options import (
    LvmOptions,
    NbdOptions,
    StateOptions,
    VmdkOptions,
    VsphereOptions,
)
from blockstream.cli.option_groups import OptionGroups
from blockstream.cli.other_tool import OtherToolOptions
from blockstream.cli.remote_options import RemoteOptions
from blockstream.cli.store_options import StoreOptions
from blockstream.declared import Needs, option
from blockstream.transfers.receive_options import WriteOptions

_RECEIPT_SECONDS = 60.0


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class CheckOptions:
    """What is looked at before anything is sent.

    Attributes:
        dry_run: Only say what would be sent.
        compare: Find out what changed by reading both sides.
        check_base: Read what is said not to have changed, and only then believe the base.
        audit: In how many increments all of a store's point is compared; 0 for never.
    """

    dry_run: bool = option(
        False,
        "Say what would be sent, and whether TARGET would take it; write nothing.",
        short="-n",
        needs=(Needs.PUSHED, Needs.NO_MACHINE),
    )
    compare: bool = option(
        False,
        "Where nobody tracked changes: read both sides whole, and send what differs.",
        needs=(Needs.PUSHED, Needs.NO_MACHINE, Needs.ANY_TARGET, Needs.ONE_DISK),
    )
    check_base: bool = option(
        False,
        "Of an increment: read all of TARGET, and compare with SOURCE what is said not to have "
        "changed; only then take it for the base, whoever may have written to it.",
        needs=(Needs.OPEN_TARGET,),
        rare=True,
    )
    audit: int = option(
        0,
        "Into a store: compare what is said not to have changed with the point before, all of it "
        "once in CYCLE increments.",
        metavar="CYCLE",
        least=0,
        needs=(Needs.INTO_STORE,),
        rare=True,
    )


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class TravelOptions:
    """How it travels.

    Attributes:
        compress: Codec and level, as they are typed.
        bwlimit: Most bytes a second, or the file that says it; empty for no limit.
        require_receipt: Over a pipe, wait for `blockstream confirm`.
        receipt_wait: How long, in seconds; None for as long as is usual.
    """

    compress: str = option("auto", "auto, none, zstd or zstd:LEVEL.", needs=(Needs.TRAVELS,))
    bwlimit: str = option(
        "",
        "Most bytes a second: 10M; or @FILE, which may change meanwhile.",
        metavar="RATE",
        needs=(Needs.TRAVELS,),
    )
    require_receipt: bool = option(
        False,
        "Wait for `blockstream confirm`; exit 15 if nothing comes.",
        needs=(Needs.CONFIRMED,),
        rare=True,
    )
    receipt_wait: float | None = option(
        None,
        "How long --require-receipt waits.",
        metavar="SECONDS",
        above=0,
        shown=f"{_RECEIPT_SECONDS:.0f}",
        rare=True,
    )

    @property
    def receipt_seconds(self) -> float:
        """How long to wait for a receipt; 0 for not at all."""
        return (self.receipt_wait or _RECEIPT_SECONDS) if self.require_receipt else 0.0


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class PlumbingOptions:
    """What a fetching `send` says to the one that it starts on the other host.

    Attributes:
        session: Hear answers on standard input.
        on_behalf_of: What its target is known as here.
        meeting: How many further connections come.
    """

    session: bool = option(
        False,
        "Hear answers on standard input: what a fetching `send` starts on the other host.",
        needs=(Needs.PIPE,),
        hidden=True,
    )
    on_behalf_of: str = option("", "With --session: who fetches.", hidden=True)
    meeting: int = option(0, "With --session: further connections.", least=0, most=15, hidden=True)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class SendGroups(OptionGroups):
    """The options of `send`."""

    titles: ClassVar = {
        "states": "What changed, where you know it",
        "checks": "Finding out, and checking",
        "lvm": "Kinds of SOURCE",
        "nbd": "Kinds of SOURCE",
        "vmdk": "Kinds of SOURCE",
        "vsphere": "A machine of VMware, vsphere://...",
        "write": "Writing TARGET",
        "travel": "On the way",
        "remote": "On the way",
        "store": "Stores, and other tools",
        "other": "Stores, and other tools",
    }

    states: StateOptions
    checks: CheckOptions
    lvm: LvmOptions
    nbd: NbdOptions
    vmdk: VmdkOptions
    vsphere: VsphereOptions
    write: WriteOptions
    travel: TravelOptions
    remote: RemoteOptions
    store: StoreOptions
    other: OtherToolOptions
    plumbing: PlumbingOptions
