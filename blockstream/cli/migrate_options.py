"""The options of `migrate`."""

from dataclasses import dataclass
from typing import ClassVar

from blockstream.cli.option_groups import OptionGroups
from blockstream.cli.remote_options import RemoteOptions
from blockstream.declared import option
from blockstream.jobs.migration.domain import Leaving
from blockstream.units import parse_size


@dataclass(frozen=True, slots=True)
class ThereOptions:
    """What the volumes come to lie on.

    Attributes:
        create: Make the volumes there.
        pool: In this thin pool.
        revert: They hold an older state: send what differs.
    """

    create: bool = option(False, "Make the volumes there, of the same size.")
    pool: str = option("", "With --create: in this thin pool.", metavar="POOL")
    revert: bool = option(
        False, "HOST has an older state, as after a migration: send what differs."
    )


@dataclass(frozen=True, slots=True)
class GuestOptions:
    """Who uses the volumes, and how that one is made to stand still and to run.

    Attributes:
        domain: A domain of libvirt.
        leave_by: How that leaves this host.
        pause: Command that makes the guest stand still, here.
        start: Command that makes it run, there.
        roll_back: Command that makes it run here again.
        live: Whether its memory moves too, by QEMU.
        qmp: QEMU's monitor.
        incoming: Command that starts the QEMU that waits there.
        uri: Where that one listens.
        quiesced: Whether there is no guest.
    """

    domain: str = option("", "The guest is this domain of libvirt.", metavar="NAME")
    leave_by: Leaving = option(
        Leaving.SHUTDOWN, "With --domain: shut it down, or save its memory, which goes over too."
    )
    pause: str = option("", "Makes the guest stand still, here.", metavar="CMD")
    start: str = option("", "Makes it run, on the other host.", metavar="CMD")
    roll_back: str = option("", "Makes it run here again if anything fails.", metavar="CMD")
    live: bool = option(False, "The guest's memory moves too, by QEMU: no boot.")
    qmp: str = option("", "With --live: QEMU's monitor, or HOST:PORT.", metavar="SOCKET")
    incoming: str = option("", "With --live: starts the QEMU that waits there.", metavar="CMD")
    uri: str = option("", "With --live: where that one listens.", metavar="URI")
    quiesced: bool = option(False, "Nobody uses the volumes: there is no guest.")


@dataclass(frozen=True, slots=True)
class RoundOptions:
    """The rounds of what changed, and the last one, in which the guest stands still.

    Attributes:
        max_downtime: Seconds that the last pass may take.
        on_no_converge: What to do if the guest writes faster than can be sent: `stop` or `go`.
        verify: Compare both sides before it is started there.
        snapshot_size: Room for each thick snapshot, in bytes; 0 to decide by its volume.
        compress: Codec and level, as they are typed.
        bwlimit: Most bytes a second, or the file that says it; empty for no limit.
    """

    max_downtime: float = option(
        5.0,
        "How long the last pass may take; rounds go on until it fits. The guest stands still "
        "meanwhile, and is woken here when it takes longer.",
        metavar="SECONDS",
        above=0,
    )
    on_no_converge: str = option(
        "stop",
        "What to do if the guest writes faster than can be sent.",
        choices=("stop", "go"),
    )
    verify: bool = option(False, "Compare both sides before it is started there.")
    snapshot_size: int = option(
        0, "Room for each thick snapshot.", metavar="SIZE", parse=parse_size, rare=True
    )
    compress: str = option("auto", "auto, none, zstd or zstd:LEVEL.")
    bwlimit: str = option("", "Most bytes a second, but for the last pass.", metavar="RATE")


@dataclass(frozen=True, slots=True)
class StepOptions:
    """What is done of it.

    Attributes:
        dry_run: Only look at both hosts.
        resume: Go on with what died.
        abort: Clean up what died.
    """

    dry_run: bool = option(False, "Check both hosts; do nothing.", short="-n")
    resume: bool = option(False, "Go on with what died, as it was begun.")
    abort: bool = option(False, "Wake the guest if need be, and clean up both hosts.")


@dataclass(frozen=True, slots=True, kw_only=True)
class MigrateGroups(OptionGroups):
    """The options of `migrate`."""

    titles: ClassVar = {
        "guest": "The guest",
        "there": "The volumes there",
        "rounds": "Rounds",
        "step": "Looking first, and going on",
        "remote": "Another host",
    }

    guest: GuestOptions
    there: ThereOptions
    rounds: RoundOptions
    step: StepOptions
    remote: RemoteOptions

    def kept(self) -> list[str]:
        """Return how it is done, as it can be typed again; without what is only for this time."""
        kept = [each for each in self.typed if each.group is not StepOptions]
        return [word for each in kept for word in each.words]
