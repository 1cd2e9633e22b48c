"""Options, declared once: a field of a frozen dataclass, with what people read of it.

The dataclass lies where the option acts. Command lines are made of it (`cli/option_groups.py`):
the option itself, its place in `--help`, and its refusal where it has no effect.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Final, TypeVar

_METADATA: Final = "option"
T = TypeVar("T")


class Needs(Enum):
    """What an option has a meaning for; in the words that follow its name where it has none."""

    STATES = "has no effect on a restore point, which says itself what it is, and what changed"
    NO_MACHINE = (
        "is not for a machine of VMware: only its snapshot tells what would be sent; `blockstream "
        "vsphere ls` changes nothing"
    )
    NAMED_STATES = "is not for a machine: its target is asked what it holds"
    ONE_DISK = "is for one disk at a time"
    DISK = (
        "is for a disk, and not for a restore point, nor for a machine of VMware, of which what "
        "changed is sent without being asked for"
    )
    HERE = "is for a vmdk:FILE of this host"
    NBD_EXPORT = "is for a SOURCE that is an export of an NBD server"
    MACHINE = "is for a vsphere:// location"
    STORE = "is for a store"
    INTO_STORE = "is for a TARGET in a store"
    NO_STORE = "is for disks and files; a store verifies by --audit 1"
    HOST = "needs another host, as HOST:/PATH, and none was named"
    TARGET = "needs a TARGET; over a pipe, give it to `recv`"
    TARGET_DISK = "is for a TARGET that is a disk, and a store is none"
    OPEN_TARGET = (
        "reads a TARGET that is there: HOST:/PATH, or a disk of this host; not HOST::NAME, a "
        "store, or the disks of a machine"
    )
    ANY_TARGET = "reads a TARGET, and there is none"
    PIPE = "is for a stream on standard output: leave TARGET out"
    CONFIRMED = (
        "has no effect here: what is sent to another host, a store, or a disk of this host is "
        "confirmed, and goes on by itself when the same command is run again"
    )
    TRAVELS = "has no effect on a copy within one host"
    PUSHED = "has no effect on what is fetched from another host"


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Declared:
    """What a field is on the command line.

    Attributes:
        text: Its help.
        flag: What it is called; empty for the field's name with `--`.
        short: A letter, as `-n`; empty for none.
        metavar: What stands for its value in help.
        choices: The values that it takes; empty for any.
        least: The least number that it takes.
        above: A number that it has to be above.
        most: The greatest number that it takes.
        shown: What its help calls the default; empty for the default itself, if that says anything.
        parse: Makes the value of the text that was typed; raises UsageError.
        variable: Environment variable that says it, too.
        completes: What the shell offers for its value: `files`, `states`; empty for nothing.
        needs: What it has a meaning for, all of it.
        rare: Whether only `--help-all` shows it.
        hidden: Whether nobody types it.
    """

    text: str
    flag: str = ""
    short: str = ""
    metavar: str = ""
    choices: Sequence[str] = ()
    least: float | None = None
    above: float | None = None
    most: float | None = None
    shown: str = ""
    parse: Callable[[str], object] | None = None
    variable: str = ""
    completes: str = ""
    needs: tuple[Needs, ...] = ()
    rare: bool = False
    hidden: bool = False


def option(
    default: T,
    text: str,
    *,
    flag: str = "",
    short: str = "",
    metavar: str = "",
    choices: Sequence[str] = (),
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    shown: str = "",
    parse: Callable[[str], object] | None = None,
    variable: str = "",
    completes: str = "",
    needs: tuple[Needs, ...] = (),
    rare: bool = False,
    hidden: bool = False,
) -> T:
    """Declare a field as an option; `default` is its value where nobody gives one.

    See `Declared` for the rest.
    """
    how = Declared(
        text,
        flag=flag,
        short=short,
        metavar=metavar,
        choices=choices,
        least=least,
        above=above,
        most=most,
        shown=shown,
        parse=parse,
        variable=variable,
        completes=completes,
        needs=needs,
        rare=rare,
        hidden=hidden,
    )
    return field(default=default, metadata={_METADATA: how})


def declared(metadata: Mapping[str, object]) -> Declared | None:
    """Return what a field is on the command line, by its metadata; None if it is nothing there."""
    found = metadata.get(_METADATA)
    return found if isinstance(found, Declared) else None
