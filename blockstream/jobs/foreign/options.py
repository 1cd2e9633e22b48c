"""What people say of streams of other tools, which do not say it themselves."""

from dataclasses import dataclass

from blockstream.declared import option
from blockstream.errors import UsageError
from blockstream.formats.foreign.names import OURS, READ, WRITTEN
from blockstream.units import parse_size
from blockstream_protocol import is_id


def _state(text: str) -> str:
    """Return the name of a state, looked at before a stream is read to its end.

    Raises:
        UsageError: If none can be called like that.
    """
    if not is_id(text):
        raise UsageError(
            f"{text!r}: --base and --goal take up to 256 printable ASCII characters, no blank at "
            "either end"
        )
    return text


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class SaidOptions:
    """What is said of any stream of another tool.

    Attributes:
        format: Its format; empty to recognise it.
        base: State that it belongs onto; empty for what it says, or what the target holds.
        goal: Name of the state that it leads to; empty for what it says, or a random one.
        accept_open_end: Believe that a stream without an end mark is whole.
    """

    format: str = option(
        "",
        f"Format that is read: {', '.join(READ)}.",
        metavar="FORMAT",
        choices=READ,
        shown="as it begins",
    )
    base: str = option(
        "",
        "State that the stream belongs onto, where it does not say so.",
        parse=_state,
        completes="states",
    )
    goal: str = option(
        "", "Name of the state that it leads to, where it does not say so.", parse=_state
    )
    accept_open_end: bool = option(False, "Believe that a stream without an end mark is whole.")


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class ForeignOptions(SaidOptions):
    """What is said of one that is received.

    Attributes:
        expect_bytes: How many bytes of data it has; None if that was not said.
        snapback: Let the first record of a range win: lvmsync's undo log.
        force_raw: With format `raw`: it is one, although it begins like something else.
    """

    expect_bytes: int | None = option(
        None, "How many bytes of data it must have.", metavar="BYTES", least=0
    )
    snapback: bool = option(
        False, "It is lvmsync's undo log: the first of two records of a range wins."
    )
    force_raw: bool = option(
        False, "With --format raw: it is one, although it begins like something else."
    )


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class ConvertOptions(SaidOptions):
    """What is said of those of which another is made, and what that is.

    Attributes:
        to: Format that comes out.
        size: Bytes of the disk, where no stream says it; 0 if that was not said.
        compress: Codec and level of a stream of ours, as they are typed.
    """

    to: str = option(OURS, "Format that is written; bsx is ours.", choices=(OURS, *WRITTEN))
    size: int = option(
        0, "Size of the disk, where nothing else says it.", metavar="SIZE", parse=parse_size
    )
    compress: str = option("auto", "auto, none, zstd or zstd:LEVEL.")
