"""`blockstream vsphere`."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import click

from blockstream.captures.options import PasswordOptions
from blockstream.cli.command_group import CommandGroup
from blockstream.cli.console import emit, emit_result, say, show
from blockstream.cli.foreground import done
from blockstream.cli.grouped_help import GroupedCommand
from blockstream.cli.option_groups import OptionGroups, with_groups
from blockstream.cli.options import warn, with_json
from blockstream.cli.vsphere_login import opened_vsphere, password_of
from blockstream.errors import UsageError
from blockstream.locations.vsphere import machine_place
from blockstream.run import Run
from blockstream.words import size_text

if TYPE_CHECKING:
    from blockstream.sources.inventory import Machine


@dataclass(frozen=True, slots=True, kw_only=True)
class PasswordGroups(OptionGroups):
    """Who logs in."""

    titles: ClassVar = {"password": "Logging in"}

    password: PasswordOptions


@click.group(
    "vsphere", cls=CommandGroup, short_help="List machines of VMware, switch change tracking on."
)
def command() -> None:
    """List machines of a vCenter, or of an ESXi host, and let their changes be tracked.

    \b
    Examples:
      blockstream vsphere ls vsphere://administrator@vsphere.local@vcenter.example.org
      blockstream vsphere enable-cbt vsphere://root@esxi.example.org/ha-datacenter/vm/mail
      blockstream send vsphere://root@esxi.example.org/ha-datacenter/vm/mail HOST:/standby/
    """  # noqa: D301


@command.command("ls", cls=GroupedCommand, short_help="List machines and their disks.")
@click.argument("place", metavar="vsphere://USER@HOST[/DATACENTER/vm/NAME]")
@with_groups(PasswordGroups)
@with_json
def list_command(place: str, options: PasswordGroups, as_json: bool) -> None:
    """List machines, their disks, whether changes are tracked, and their snapshots.

    \b
    Example:
      blockstream vsphere ls vsphere://administrator@vsphere.local@vcenter.example.org
    """  # noqa: D301
    found = machine_place(place)
    with opened_vsphere(found, password_of(found, options.password.password_file)) as session:
        machines = [session.machine(found.path)] if found.path else session.machines()
    for machine in machines:
        if as_json:
            from blockstream.events import VirtualMachine

            disks = [
                {
                    "key": each.key,
                    "label": each.label,
                    "size": each.size,
                    "file": each.file,
                    "uuid": each.uuid,
                    "obstacle": each.obstacle,
                    "why_untracked": each.why_untracked if machine.tracked else "",
                }
                for each in machine.disks
            ]
            names = [each.name for each in machine.snapshots]
            made = [each.made.isoformat() if each.made else "" for each in machine.snapshots]
            emit_result(
                VirtualMachine(
                    path=machine.path,
                    uuid=machine.uuid,
                    tracked=machine.tracked,
                    template=machine.template,
                    consolidation=machine.consolidation,
                    disks=disks,
                    snapshots=names,
                    snapshots_made=made,
                )
            )
            continue
        tracked = (
            "template" if machine.template else "tracked" if machine.tracked else "not tracked"
        )
        show(f"{machine.path}   {tracked}\n")
        for disk in machine.disks:
            why = disk.obstacle or (disk.why_untracked if machine.tracked else "")
            note = f"   {why}" if why else ""
            show(f"  {disk.key:>10}{size_text(disk.size):>10}   {disk.file}{note}\n")
        for snapshot in machine.snapshots:
            since = f"   since {snapshot.made:%Y-%m-%d %H:%M %Z}" if snapshot.made else ""
            show(f"  snapshot {snapshot.name}{since}\n")
        if machine.consolidation:
            show("  ! its disks have to be consolidated\n")


@command.command(
    "enable-cbt", cls=GroupedCommand, short_help="Let changes of a machine be tracked."
)
@click.argument("place", metavar="vsphere://USER@HOST/DATACENTER/vm/NAME")
@with_groups(PasswordGroups)
@with_json
def enable_command(place: str, options: PasswordGroups, as_json: bool) -> None:
    """Switch change tracking on, and let it begin by a snapshot that is removed at once.

    It is refused while there are other snapshots: the tracker's map would be wrong.

    \b
    Example:
      blockstream vsphere enable-cbt vsphere://root@esxi.example.org/ha-datacenter/vm/mail
    """  # noqa: D301
    from blockstream.captures.vsphere.snapshots import (  # pyVmomi: 0.2 s
        MachineSnapshots,
        SnapshotPolicy,
        tell_untracked,
    )

    found = machine_place(place)
    if not found.path:
        raise UsageError(f"{place} names no machine")

    def tell(text: str) -> None:
        warn(text, as_json=as_json)

    password, run = password_of(found, options.password.password_file), Run(tell)

    async def enabled() -> "tuple[Machine, bool]":
        async with run.within(opened_vsphere(found, password), harmless=True) as session:
            machine = await run.carry(lambda: session.machine(found.path))
            if machine.tracked:
                return machine, True
            snapshots = MachineSnapshots(session, machine, SnapshotPolicy(), run)
            await run.carry(snapshots.enable_tracking)
            return snapshots.machine, False

    machine, already = done(enabled(), run)
    tell_untracked(machine, tell)
    if as_json:
        from blockstream.events import Tracked

        emit(Tracked(machine.path, already))
    elif already:
        say(f"{machine.path}: changes were tracked already")
