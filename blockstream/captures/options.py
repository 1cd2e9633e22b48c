"""What people say of how a disk is read: which states are meant, and what each kind can do."""

from dataclasses import dataclass, field
from pathlib import Path

from blockstream.errors import UsageError
from blockstream.pipeline.token import ResumeToken


@dataclass(frozen=True, slots=True)
class StateOptions:
    """What the states are called, and what changed between them, where people say so.

    Attributes:
        base: State that the destination holds; empty for a full copy, or to find out.
        goal: Name of the state that is sent; empty to give it one.
        extents: File with the ranges that changed, or without a base are allocated.
        resume: Token of an unfinished transfer, which knows base and goal.
    """

    base: str = ""
    goal: str = ""
    extents: str = ""
    resume: ResumeToken | None = None

    def __post_init__(self) -> None:
        if self.resume is not None and (self.base or self.goal):
            raise UsageError("--resume knows base and goal; leave --base and --goal out")

    @property
    def given_base(self) -> str:
        """The base that was named, or that the token has."""
        return self.resume.base if self.resume is not None else self.base

    @property
    def given_goal(self) -> str:
        """The goal that was named, or that the token has."""
        return self.resume.goal if self.resume is not None else self.goal


@dataclass(frozen=True, slots=True)
class LvmOptions:
    """How a logical volume is read.

    Attributes:
        since: A snapshot of it: only what changed since then; `last` for the one that was kept.
        quiesced: Whether nobody writes the volume, so that it can be read itself.
        snapshot_bytes: Room for a classic snapshot; 0 to decide by the volume's size.
        rotate: Keep the new snapshot for the next time, in place of the old one.
        base_or_nothing: Where the snapshot that was kept has overflowed, send nothing rather than
            all.
    """

    since: str = ""
    quiesced: bool = False
    snapshot_bytes: int = 0
    rotate: bool = False
    base_or_nothing: bool = False


@dataclass(frozen=True, slots=True)
class VmdkOptions:
    """How a VMDK is read.

    Attributes:
        delta: Only what it holds itself, without its parents.
        outside: Follow names in it that lead out of its folder.
    """

    delta: bool = False
    outside: bool = False


@dataclass(frozen=True, slots=True)
class CaptureOptions:
    """How a disk is read.

    Attributes:
        state_dir: Where is noted which snapshot a target held last.
        states: What the states are called, and what changed between them.
        lvm: Of a logical volume.
        vmdk: Of a VMDK.
        bitmap: Of an NBD export, the dirty bitmap that says what changed; empty for none.
        target: Where it goes, so that each target has a snapshot of its own.
        name: What it is called at a destination that has names; empty for the end of its path.
    """

    state_dir: Path
    states: StateOptions = field(default_factory=StateOptions)
    lvm: LvmOptions = field(default_factory=LvmOptions)
    vmdk: VmdkOptions = field(default_factory=VmdkOptions)
    bitmap: str = ""
    target: str = ""
    name: str = ""
