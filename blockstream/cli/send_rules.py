"""What does not go together in a `send`: an option without effect is an error."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from blockstream.cli.send_arguments import FAR, SendArguments
from blockstream.cli.send_options import SendGroups
from blockstream.declared import Needs
from blockstream.errors import UsageError
from blockstream.locations.local import LocalDisk
from blockstream.locations.nbd import NbdExport
from blockstream.locations.store import StorePlace


def _reaches_host(given: SendArguments) -> bool:
    by_sftp = given.machine is not None and given.machine.reader == "sftp"
    return given.to_host or given.from_host is not None or by_sftp


# Whether an option has what it needs.
_IS_MET: Final[Mapping[Needs, Callable[[SendArguments], bool]]] = {
    Needs.STATES: lambda given: given.point is None,
    Needs.NO_MACHINE: lambda given: given.machine is None,
    Needs.NAMED_STATES: lambda given: given.machine is None,
    Needs.ONE_DISK: lambda given: len(given.sources) == 1,
    Needs.DISK: lambda given: given.point is None and given.machine is None,
    Needs.HERE: lambda given: given.from_host is None,
    Needs.NBD_EXPORT: lambda given: all(isinstance(each, NbdExport) for each in given.sources),
    Needs.MACHINE: lambda given: given.machine is not None,
    Needs.STORE: lambda given: given.is_in_store or given.point is not None,
    Needs.INTO_STORE: lambda given: given.is_in_store,
    Needs.NO_STORE: lambda given: not given.is_in_store,
    Needs.HOST: _reaches_host,
    Needs.TARGET: lambda given: given.target is not None,
    Needs.TARGET_DISK: lambda given: not given.is_in_store,
    Needs.OPEN_TARGET: lambda given: (
        (given.to_host or given.within_one_host) and not given.to_named and given.machine is None
    ),
    Needs.ANY_TARGET: lambda given: given.target is not None,
    Needs.PIPE: lambda given: given.target is None,
    Needs.CONFIRMED: lambda given: given.target is None,
    Needs.TRAVELS: lambda given: not given.within_one_host,
    Needs.PUSHED: lambda given: given.from_host is None,
}


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class _Excludes:
    """An option that others have no effect beside, and why."""

    flag: str
    others: tuple[str, ...]
    why: str


_EXCLUDES: Final = (
    _Excludes(
        "--compare",
        ("--base", "--extents", "--since", "--bitmap", "--create", "--dry-run"),
        "finds out what changed since TARGET was written",
    ),
    _Excludes(
        "--check-base", ("--compare", "--create", "--dry-run"), "reads a TARGET that is there"
    ),
    _Excludes("--delta", ("--compare", "--audit"), "reads no parent"),
    _Excludes(
        "--format",
        (
            *("--compress", "--bwlimit", "--resume", "--dry-run", "--compare", "--session"),
            *("--require-receipt", "--rotate"),
        ),
        "is for a tool that knows nothing of ours",
    ),
)
# What an option has no effect without, and why.
_REQUIRES: Final = (
    ("--receipt-wait", "--require-receipt", "says how long --require-receipt waits"),
    ("--pool-chunk", "--format", "is for --format thin-send"),
    ("--check-base", "--base", "is for an increment, with --base"),
    ("--on-lost-base", "--since", "is for --since last"),
)


def check(given: SendArguments, options: SendGroups) -> None:
    """Refuse what has no effect between these places, or beside each other.

    Raises:
        UsageError: If something has none.
    """
    for each in options.typed:
        for need in () if each.is_usual else each.declared.needs:
            if not _IS_MET[need](given):
                raise UsageError(f"{each.flag} {need.value}; nothing was sent")
    for rule in _EXCLUDES:
        other = options.given(*rule.others)
        if options.given(rule.flag) and other:
            raise UsageError(f"{rule.flag} {rule.why}: leave {other} out; nothing was sent")
    for flag, wanted, why in _REQUIRES:
        if options.given(flag) and not options.given(wanted):
            raise UsageError(f"{flag} {why}, and has no effect without; nothing was sent")
    _check_values(given, options)


def _check_values(given: SendArguments, options: SendGroups) -> None:
    """Refuse what only a value makes wrong."""
    if options.lvm.on_lost_base and options.lvm.since != "last":
        raise UsageError("--on-lost-base is for --since last; nothing was sent")
    if given.machine is not None and options.states.base == "last":
        raise UsageError("the target of a machine is asked what it holds: leave --base last out")
    if given.from_host is not None and given.target is None:
        raise UsageError("a SOURCE of another host needs a TARGET here; nothing was sent")
    if given.from_host is not None and isinstance(given.target, StorePlace):
        raise UsageError("a disk of another host is sent into a store from there; nothing was sent")
    if given.from_host is not None and not isinstance(given.target, LocalDisk):
        raise UsageError(f"{FAR}; nothing was sent")
    waits = options.plumbing.session or options.travel.receipt_seconds
    if given.target is None and options.lvm.rotate and not waits:
        raise UsageError(
            "--rotate turns over when the target is committed, which nobody tells over a plain "
            "pipe: give a TARGET, or --require-receipt"
        )
