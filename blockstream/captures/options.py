"""What people say of how a disk is read: which states are meant, and what each kind can do."""

from dataclasses import dataclass, field
from pathlib import Path

from blockstream.declared import Needs, option
from blockstream.errors import UsageError
from blockstream.pipeline.token import ResumeToken
from blockstream.units import parse_sectors


@dataclass(frozen=True, slots=True)
class StateOptions:
    """What the states are called, and what changed between them, where people say so.

    Attributes:
        base: State that the destination holds; empty for a full copy, or to find out.
        goal: Name of the state that is sent; empty to give it one.
        extents: File with the ranges that changed, or without a base are allocated.
        resume: Token of an unfinished transfer, which knows base and goal.
    """

    base: str = option(
        "",
        "State that TARGET holds; `last` is what was last confirmed to be there.",
        completes="states",
        needs=(Needs.STATES, Needs.ONE_DISK),
    )
    goal: str = option(
        "",
        "Name of the state that is sent.",
        shown="its moment and six letters",
        needs=(Needs.STATES, Needs.NAMED_STATES),
    )
    extents: str = option(
        "",
        "What changed since then: a list by `blockstream extents`, rbd diff, thin_delta or "
        "nbdinfo. Without --base, an allocation map.",
        metavar="FILE",
        completes="files",
        needs=(Needs.STATES, Needs.ONE_DISK, Needs.NAMED_STATES),
    )
    resume: ResumeToken | None = option(
        None,
        "Continue an unfinished transfer.",
        metavar="TOKEN",
        parse=ResumeToken.parse,
        needs=(Needs.NAMED_STATES, Needs.CONFIRMED),
        rare=True,
    )

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
        snapshot_size: Room for a classic snapshot, in bytes; 0 to decide by the volume's size.
        rotate: Keep the new snapshot for the next time, in place of the old one.
        on_lost_base: Where the snapshot that was kept has overflowed, send all, `full`, or nothing,
            `fail`; empty for what is usual.
    """

    since: str = option(
        "",
        "Of a logical volume, what changed since this snapshot of it; `last` is the one that "
        "--rotate kept.",
        metavar="SNAPSHOT",
        needs=(Needs.DISK,),
    )
    quiesced: bool = option(
        False,
        "Read the logical volume itself, without a snapshot: nobody writes it.",
        needs=(Needs.DISK,),
    )
    snapshot_size: int = option(
        0,
        "Room for what is written to a thick volume meanwhile.",
        metavar="SIZE",
        shown="a fifth of it",
        parse=parse_sectors,
        needs=(Needs.DISK,),
        rare=True,
    )
    rotate: bool = option(
        False,
        "Keep the new snapshot for the next `--since last` to this TARGET.",
        needs=(Needs.DISK,),
    )
    on_lost_base: str = option(
        "",
        "What `--since last` does where the snapshot that was kept has overflowed: send all, or "
        "nothing.",
        choices=("full", "fail"),
        shown="full",
        needs=(Needs.DISK,),
        rare=True,
    )


@dataclass(frozen=True, slots=True)
class VmdkOptions:
    """How a VMDK is read.

    Attributes:
        delta: Only what it holds itself, without its parents.
        allow_outside: Follow names in it that lead out of its folder.
    """

    delta: bool = option(
        False,
        "Of vmdk:FILE, what it holds itself: what changed since its parent.",
        needs=(Needs.DISK, Needs.HERE),
    )
    allow_outside: bool = option(
        False,
        "Follow names in a VMDK that lead out of its folder.",
        needs=(Needs.DISK, Needs.HERE),
        rare=True,
    )


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class NbdOptions:
    """How an export of an NBD server is read.

    Attributes:
        bitmap: The dirty bitmap that says what changed; empty for none.
        tls_certificates: Folder with certificates; empty for the authorities of this host.
    """

    bitmap: str = option(
        "",
        "Of an NBD export, what this dirty bitmap of QEMU's says has changed.",
        metavar="NAME",
        needs=(Needs.NBD_EXPORT,),
    )
    tls_certificates: str = option(
        "",
        "Of nbds://..., the folder with ca-cert.pem, and client-cert.pem with client-key.pem if "
        "the server asks for them.",
        metavar="DIR",
        completes="files",
        shown="the authorities of this host",
        rare=True,
    )


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class PasswordOptions:
    """Who logs in to a vCenter or an ESXi host.

    Attributes:
        password_file: Holds the password; None to take it from the environment, or to ask.
    """

    password_file: Path | None = option(
        None,
        "Holds the password; BLOCKSTREAM_VSPHERE_PASSWORD may hold it itself. On a terminal it is "
        "asked for.",
        metavar="FILE",
        variable="BLOCKSTREAM_VSPHERE_PASSWORD_FILE",
    )


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class VsphereOptions(PasswordOptions):
    """How a machine of VMware is read.

    Attributes:
        quiesce_guest: Whether its guest is brought to rest for the snapshot: `try`, `require` or
            `no`.
        enable_cbt: Switch change tracking on where it is off.
        on_cbt_loss: What becomes of a disk when nobody knows what changed: `full` or `fail`.
        verify_cbt: Read all of it and of the target, and send what the tracker missed.
        allocated_from_cbt: For a whole copy, read only what the tracker calls allocated.
    """

    quiesce_guest: str = option(
        "try",
        "Whether its guest is brought to rest for the snapshot.",
        choices=("try", "require", "no"),
        needs=(Needs.MACHINE,),
        rare=True,
    )
    enable_cbt: bool = option(
        False,
        "Switch change tracking on where it is off.",
        needs=(Needs.MACHINE,),
    )
    on_cbt_loss: str = option(
        "full",
        "What becomes of a disk when nobody knows what changed.",
        choices=("full", "fail"),
        needs=(Needs.MACHINE,),
        rare=True,
    )
    verify_cbt: bool = option(
        False,
        "Read all of it and of TARGET, and send what the tracker missed.",
        needs=(Needs.MACHINE, Needs.NO_STORE),
        rare=True,
    )
    allocated_from_cbt: bool = option(
        False,
        "For a whole copy, read only what change tracking calls allocated.",
        needs=(Needs.MACHINE,),
        rare=True,
    )


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
