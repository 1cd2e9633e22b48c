"""How a disk may be written: what people say of it, and light enough for every command."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from blockstream_protocol import DEVICE_BYTES, ReceiverPolicy


class ApplyMode(StrEnum):
    """How a stream comes onto the target."""

    DIRECT = "direct"
    UNDO = "undo"
    STAGE = "stage"


@dataclass(frozen=True, slots=True)
class ReceiveRequest:
    """Where a stream goes, and what is allowed.

    Attributes:
        target: Location of the target.
        state_dir: Where journals lie.
        create: Make the target, a sparse file.
        apply: How it is applied.
        verify: Read everything back from the medium before it is called durable.
        dry_run: Check everything, write nothing.
        force_in_use: Write although somebody uses the target.
        force_larger: Take a target that is larger than the source.
        force_base: Believe that the target is the base.
        lock_wait: Seconds to wait for somebody else who uses the target.
        identity: What the target must be known by; empty for anything.
        name: Name that the opening must give it; None for any.
        largest: Most bytes that a source may have.
        bases: States that an increment may start from, "" for a full copy; None for any.
        is_discreet: Tell the sender nothing of this host: no paths, no processes.
    """

    target: str
    state_dir: Path
    create: bool = False
    apply: ApplyMode = ApplyMode.DIRECT
    verify: bool = False
    dry_run: bool = False
    force_in_use: bool = False
    force_larger: bool = False
    force_base: bool = False
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
