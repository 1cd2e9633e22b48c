"""`blockstream extents`."""

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import click

from blockstream.captures.lvm_changes import stored_changes, tracked_changes
from blockstream.captures.options import NbdOptions, VmdkOptions
from blockstream.captures.vmdk_chain import listed
from blockstream.cli.console import show
from blockstream.cli.foreground import done
from blockstream.cli.grouped_help import GroupedCommand
from blockstream.cli.location_types import PLACE
from blockstream.cli.nbd_certificates import disk_with_certificates
from blockstream.cli.option_groups import OptionGroups, with_groups
from blockstream.cli.options import (
    ProgressWish,
    reporters,
    warn,
    with_progress,
    with_state_dir,
)
from blockstream.cli.reporter import Reporter
from blockstream.declared import option
from blockstream.errors import UsageError
from blockstream.extents import ExtentMap
from blockstream.formats.extent_lists import Meaning, written
from blockstream.interfaces import Source
from blockstream.locations.interface import DiskLocation, opened_source
from blockstream.locations.local import LocalDisk
from blockstream.locations.nbd import NbdExport
from blockstream.locations.registry import disk_of
from blockstream.locations.vmdk import VmdkFile
from blockstream.run import Run
from blockstream.transfers.compare import changes
from blockstream.units import parse_size

_STORE = "cow:"


@dataclass(frozen=True, slots=True)
class SinceOptions:
    """What is listed.

    Attributes:
        since: What changed since this one; empty for what is allocated.
        size: Of an exception store, bytes of the disk that it is of; 0 if nobody knows.
    """

    since: str = option(
        "",
        "List what changed since OLD: a snapshot of the logical volume SOURCE, which knows it, or "
        "an older copy that is compared.",
        metavar="OLD",
    )
    size: int = option(
        0, "With cow:FILE, the size of the disk that it is of.", metavar="SIZE", parse=parse_size
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtentsGroups(OptionGroups):
    """The options of `extents`."""

    titles: ClassVar = {
        "what": "What is listed",
        "nbd": "An export of an NBD server",
        "vmdk": "A VMware disk, vmdk:FILE",
    }

    what: SinceOptions
    nbd: NbdOptions
    vmdk: VmdkOptions


@click.command(
    "extents", cls=GroupedCommand, short_help="List which parts of a disk hold data, or changed."
)
@click.argument("source", type=PLACE)
@with_groups(ExtentsGroups)
@with_progress
@with_state_dir
def command(
    source: str,
    options: ExtentsGroups,
    state_dir: Path,
    as_json: bool,
    quiet: bool,
    progress: ProgressWish,
) -> None:
    """Write the extents of SOURCE to standard output, as JSON that `send --extents` reads.

    SOURCE is a disk, or cow:FILE: a copy of the exception store of a snapshot, or what thin_delta
    wrote; or an export of an NBD server, as for `send`; or vmdk:FILE: what its chain holds, with
    --delta what changed since its parent.

    \b
    Examples:
      blockstream extents disk.img
      blockstream extents /dev/vg/vm --since vm-snap
      blockstream extents vmdk:vm-000001.vmdk --delta
      blockstream extents disk.img --since yesterday.img > changed.json
      blockstream extents nbd+unix:///?socket=/run/vm.sock --bitmap monday
      blockstream send --base A --goal B --extents changed.json disk.img | ...
    """  # noqa: D301
    since, nbd, vmdk = options.what.since, options.nbd, options.vmdk
    if options.what.size and not source.startswith(_STORE):
        raise UsageError("--size is for cow:FILE; every other SOURCE tells its own")
    if source.startswith(_STORE):
        if since:
            raise UsageError("cow:FILE says itself what changed; leave --since out")
        found = stored_changes(source.removeprefix(_STORE), options.what.size)
        if not options.what.size:
            text = "the disk is taken to end with the last change; --size tells its real size"
            warn(text, as_json=as_json)
        _show(found.extents, Meaning.CHANGED)
        return
    shown = reporters("compare", as_json=as_json, quiet=quiet, progress=progress)
    disk = disk_of(source)
    if nbd.tls_certificates:
        disk = disk_with_certificates(disk, nbd.tls_certificates)
    if nbd.bitmap:
        _show_bitmap(disk, nbd.bitmap, since, as_json=as_json)
    elif vmdk != VmdkOptions():
        _show_vmdk(disk, since, vmdk, as_json=as_json)
    elif not since:
        with opened_source(disk) as opened:
            for text in opened.warnings:
                warn(text, as_json=as_json)
            _show(opened.extents(), Meaning.ALLOCATED)
    else:
        _show_since(disk, since, state_dir, shown, as_json=as_json)


def _show_since(
    disk: DiskLocation, since: str, state_dir: Path, shown: list[Reporter], *, as_json: bool
) -> None:
    """Show what a snapshot knows of it, or else what differs from an older copy."""
    if isinstance(disk, LocalDisk):
        tracked = tracked_changes(disk.path, since, state_dir)
        if tracked is not None:
            _show(tracked.extents, Meaning.CHANGED)
            return
    with opened_source(disk) as new, opened_source(disk_of(since)) as old:
        for text in new.warnings:
            warn(text, as_json=as_json)
        extents = _compared(new, old, shown)
        new.validate()
    _show(extents, Meaning.CHANGED)


def _show_bitmap(source: DiskLocation, bitmap: str, since: str, *, as_json: bool) -> None:
    if since or not isinstance(source, NbdExport):
        raise UsageError("--bitmap is for an export of an NBD server, without --since")
    with contextlib.closing(source.open_source(bitmap=bitmap)) as export:
        for text in export.warnings:
            warn(text, as_json=as_json)
        _show(export.changes().extents, Meaning.CHANGED)


def _show_vmdk(source: DiskLocation, since: str, how: VmdkOptions, *, as_json: bool) -> None:
    if not isinstance(source, VmdkFile) or since:
        raise UsageError("--delta and --allow-outside are for vmdk:FILE, without --since")
    found = listed(
        source.path,
        delta=how.delta,
        outside=how.allow_outside,
        tell=lambda text: warn(text, as_json=as_json),
    )
    _show(found.extents, found.meaning)


def _compared(new: Source, old: Source, seen: list[Reporter]) -> ExtentMap:
    run = Run()
    return done(changes(new, old, run), run, seen)


def _show(extents: ExtentMap, meaning: Meaning) -> None:
    for text in written(extents, meaning):
        show(text)
