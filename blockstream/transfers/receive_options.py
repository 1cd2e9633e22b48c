"""How a disk may be written: what people say of it, and light enough for every command."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from blockstream.declared import Needs, option
from blockstream_protocol import DEVICE_BYTES, ReceiverPolicy


class ApplyMode(StrEnum):
    """How a stream comes onto the target."""

    DIRECT = "direct"
    UNDO = "undo"
    STAGE = "stage"


_ON_A_DISK = (Needs.TARGET, Needs.TARGET_DISK)


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteOptions:
    """How a disk may be written.

    Attributes:
        create: Make the target, a sparse file.
        apply: How a stream comes onto it.
        verify: Read everything back from the medium before it is called durable.
        force_in_use: Write although somebody uses the target.
        force_larger: Take a target that is larger than the source.
        force_base: Believe that the target is the base.
    """

    create: bool = option(
        False, "Make TARGET, a sparse file; refused if it exists.", needs=_ON_A_DISK
    )
    apply: ApplyMode = option(
        ApplyMode.DIRECT,
        "direct: straight in. undo: keep what is overwritten, for `blockstream undo`. stage: write "
        "nothing until all has arrived and was verified.",
        metavar="MODE",
        needs=_ON_A_DISK,
    )
    verify: bool = option(False, "Read everything back before it is durable.", needs=_ON_A_DISK)
    force_in_use: bool = option(
        False, "Write although somebody uses TARGET.", needs=_ON_A_DISK, rare=True
    )
    force_larger: bool = option(
        False, "Take a TARGET larger than the source.", needs=_ON_A_DISK, rare=True
    )
    force_base: bool = option(
        False, "Believe that TARGET holds the base.", needs=_ON_A_DISK, rare=True
    )

    def onto(self, target: str, state_dir: Path) -> "ReceiveRequest":
        """Return it as a request to take a stream."""
        return ReceiveRequest(
            target,
            state_dir,
            create=self.create,
            apply=self.apply,
            verify=self.verify,
            force_in_use=self.force_in_use,
            force_larger=self.force_larger,
            force_base=self.force_base,
        )


@dataclass(frozen=True, slots=True)
class ReceiveRequest(WriteOptions):
    """Where a stream goes, and what is allowed.

    Attributes:
        target: Location of the target.
        state_dir: Where journals lie.
        dry_run: Check everything, write nothing.
        lock_wait: Seconds to wait for somebody else who uses the target.
        identity: What the target must be known by; empty for anything.
        name: Name that the opening must give it; None for any.
        largest: Most bytes that a source may have.
        bases: States that an increment may start from, "" for a full copy; None for any.
        is_discreet: Tell the sender nothing of this host: no paths, no processes.
    """

    target: str
    state_dir: Path
    dry_run: bool = False
    lock_wait: float = 0.0
    identity: str = ""
    name: str | None = None
    largest: int = DEVICE_BYTES
    bases: frozenset[str] | None = None
    is_discreet: bool = False

    @property
    def policy(self) -> ReceiverPolicy:
        """The same, as the session understands it."""
        return ReceiverPolicy(
            force_base=self.force_base,
            allow_larger=self.force_larger,
            read_back=self.verify,
            dry_run=self.dry_run,
            name=self.name,
            largest=self.largest,
            bases=self.bases,
        )
