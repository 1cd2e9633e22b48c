"""`blockstream extents`."""

import contextlib
from pathlib import Path

import click

from blockstream.captures.lvm_changes import stored_changes, tracked_changes
from blockstream.captures.vmdk_chain import listed
from blockstream.cli.console import show
from blockstream.cli.foreground import Reporter, done
from blockstream.cli.lvm_options import with_vmdk_options
from blockstream.cli.nbd_options import disk_with_certificates, with_export_options
from blockstream.cli.options import (
    ProgressWish,
    parse_size,
    reporters,
    warn,
    with_progress,
    with_state_dir,
)
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

_STORE = "cow:"


@click.command("extents", short_help="List which parts of a disk hold data, or changed.")
@click.argument("source")
@click.option(
    "--since",
    metavar="OLD",
    help="List what changed since OLD: a snapshot of the logical volume SOURCE, which knows it, or "
    "an older copy that is compared.",
)
@click.option(
    "--size", default="", metavar="SIZE", help="With cow:FILE, the size of the disk that it is of."
)
@with_export_options
@with_vmdk_options
@with_progress
@with_state_dir
def command(
    source: str,
    since: str | None,
    size: str,
    bitmap: str,
    tls_certificates: str,
    delta: bool,
    allow_outside: bool,
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
    if size and not source.startswith(_STORE):
        raise UsageError("--size is for cow:FILE; every other SOURCE tells its own")
    if source.startswith(_STORE):
        if since is not None:
            raise UsageError("cow:FILE says itself what changed; leave --since out")
        bytes_of_disk = parse_size(size) if size else 0
        found = stored_changes(source.removeprefix(_STORE), bytes_of_disk)
        if not bytes_of_disk:
            text = "the disk is taken to end with the last change; --size tells its real size"
            warn(text, as_json=as_json)
        _show(found.extents, Meaning.CHANGED)
        return
    shown = reporters("compare", as_json=as_json, quiet=quiet, progress=progress)
    disk = disk_of(source)
    if tls_certificates:
        disk = disk_with_certificates(disk, tls_certificates)
    if bitmap:
        _show_bitmap(disk, bitmap, since, as_json=as_json)
    elif delta or allow_outside:
        _show_vmdk(disk, since, delta=delta, outside=allow_outside, as_json=as_json)
    elif since is None:
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


def _show_bitmap(source: DiskLocation, bitmap: str, since: str | None, *, as_json: bool) -> None:
    if since is not None or not isinstance(source, NbdExport):
        raise UsageError("--bitmap is for an export of an NBD server, without --since")
    with contextlib.closing(source.open_source(bitmap=bitmap)) as export:
        for text in export.warnings:
            warn(text, as_json=as_json)
        _show(export.changes().extents, Meaning.CHANGED)


def _show_vmdk(
    source: DiskLocation, since: str | None, *, delta: bool, outside: bool, as_json: bool
) -> None:
    if not isinstance(source, VmdkFile) or since is not None:
        raise UsageError("--delta and --allow-outside are for vmdk:FILE, without --since")
    found = listed(
        source.path, delta=delta, outside=outside, tell=lambda text: warn(text, as_json=as_json)
    )
    _show(found.extents, found.meaning)


def _compared(new: Source, old: Source, seen: list[Reporter]) -> ExtentMap:
    run = Run()
    return done(changes(new, old, run), run, seen)


def _show(extents: ExtentMap, meaning: Meaning) -> None:
    for text in written(extents, meaning):
        show(text)
