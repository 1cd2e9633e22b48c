"""What commands say of streams of other tools."""

from typing import TYPE_CHECKING

from blockstream.cli.console import emit, say
from blockstream.cli.options import warn
from blockstream.errors import StaleViewError
from blockstream.words import size_text

if TYPE_CHECKING:
    from blockstream.jobs.foreign.receive import (
        ForeignResult,  # numpy: what `recv` need not wait for
    )


def show_foreign(found: "ForeignResult", *, as_json: bool, quiet: bool) -> None:
    """Say what came, and what could not be checked.

    Raises:
        StaleViewError: If nothing says that all of it came.
    """
    taken = found.taken
    for text in taken.remarks:
        warn(text, as_json=as_json)
    if as_json:
        from blockstream.events import ForeignTaken

        emit(
            ForeignTaken(
                format=found.how.name,
                records=taken.records,
                data=taken.data,
                zeros=taken.zeros,
                stream=taken.wire,
                unchecked=found.unchecked,
                compared=found.compared,
            )
        )
    elif not quiet:
        checked = f"not checked, because it does not tell: {', '.join(found.unchecked)}"
        if found.compared:
            checked = f"the {found.compared} of the whole disk is that of its source"
        say(
            f"{found.how.title}: {taken.data} bytes in {taken.records} records, "
            f"{size_text(taken.zeros)} of zeros; {checked}"
        )
    if taken.uncompared and found.received.committed is not None:
        raise StaleViewError(
            f"{found.how.title} was committed as {found.received.committed.goal}, but its only "
            f"check, the {taken.uncompared} of the whole disk, is not known here, so nobody knows "
            "whether this is the disk that it was made for; compare both sides; a patch with "
            "sha256 is checked; --force-base says that it need not be"
        )
    if found.open_ended and found.received.committed is not None:
        raise StaleViewError(
            f"{found.how.title} has no end mark: what came was committed as "
            f"{found.received.committed.goal}, but nobody knows whether {taken.data} bytes in "
            f"{taken.records} records are all; compare with what its sender says; with "
            "--expect-bytes nothing is written unless they are, --accept-open-end believes it"
        )
