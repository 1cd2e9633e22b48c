"""From a location to the capture of what lies there: one line a kind."""

from dataclasses import replace

from blockstream.captures.interface import Capture
from blockstream.captures.options import CaptureOptions, LvmOptions, VmdkOptions
from blockstream.captures.plain import PlainCapture
from blockstream.errors import UsageError
from blockstream.locations.interface import DiskLocation
from blockstream.locations.local import LocalDisk
from blockstream.locations.vmdk import VmdkFile
from blockstream.run import Run


async def capture_of(
    location: DiskLocation, options: CaptureOptions, run: Run, *, rehearsal: bool = False
) -> Capture:
    """Return how a disk of this host, or an export, is held still.

    Args:
        location: The disk.
        options: How it is read.
        run: Stops it, where LVM has to be asked.
        rehearsal: Make no snapshot: nothing will be sent.

    Raises:
        UsageError: If something was asked for that only another kind of disk has.
        BlockstreamError: As LVM fails.
    """
    if options.bitmap:
        from blockstream.captures.nbd_bitmap import BitmapCapture

        return BitmapCapture(location, options)
    if options.vmdk != VmdkOptions() and not isinstance(location, VmdkFile):
        raise UsageError("--delta and --allow-outside are for vmdk:FILE")
    why = str(location.what).partition(",")[0]
    if isinstance(location, LocalDisk) and location.is_file():
        why = "is a file"
    elif isinstance(location, LocalDisk):
        from blockstream.captures.lvm_snapshots import volume_at, why_no_volume

        path, why = location.path, why_no_volume()
        volume = await run.ask(lambda: volume_at(path))
        if volume is not None:
            from blockstream.captures.lvm import LvmCapture

            return LvmCapture(volume, location, options, rehearsal=rehearsal)
    if replace(options.lvm, on_lost_base="") != LvmOptions():
        raise UsageError(
            f"{location} {why}: --since, --quiesced, --rotate and --snapshot-size are for logical "
            "volumes; nothing was sent"
        )
    if isinstance(location, VmdkFile):
        from blockstream.captures.vmdk_chain import VmdkCapture

        return VmdkCapture(location, options)
    return PlainCapture(location, options)
