"""What LVM knows of the changes in a volume since one of its snapshots."""

from dataclasses import replace
from pathlib import Path

from blockstream.captures.lvm_snapshots import volume_at
from blockstream.errors import NotFoundError, RefusedError, SnapshotInvalidError, SourceError
from blockstream.extents import ExtentMap
from blockstream.formats import thin_delta
from blockstream.formats.exception_store import exceptions, read_with
from blockstream.formats.extent_lists import ExtentList, Meaning
from blockstream.linux import lvm
from blockstream.linux.lvm import Volume
from blockstream.sources.volume import changed_since, flush
from blockstream_protocol import DEVICE_BYTES, Kind

_ALL_UNIT = 1 << 20


def stored_changes(path: str, size: int) -> ExtentList:
    """Return what a file says that holds an exception store, or what thin_delta wrote.

    Args:
        path: The file.
        size: Bytes of the disk; 0 to take the end of the last chunk for it.

    Raises:
        NotFoundError: If it cannot be read.
        SourceError: If it is neither.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise NotFoundError(f"{path} cannot be read: {error.strerror}") from error
    size_or_all = size or DEVICE_BYTES // _ALL_UNIT * _ALL_UNIT
    if data.lstrip()[:1] == b"<":
        found = thin_delta.read(data, size_or_all)
    else:
        try:
            table = read_with(
                exceptions(len(data), size_or_all),
                lambda ranges: b"".join(data[start : start + length] for start, length in ranges),
            )
        except SourceError as error:
            raise SourceError(f"{path}: {error}; nothing is known of what changed") from error
        found = ExtentList(table.extents, Meaning.CHANGED, "exception store", None)
    if size:
        return found
    end = int((found.extents.offsets + found.extents.lengths).max(initial=0))
    extents = ExtentMap(found.extents.offsets, found.extents.lengths, found.extents.kinds, end)
    return replace(found, extents=extents)


def changes_between(older: Volume, newer: Volume, state_dir: Path) -> ExtentList:
    """Return what changed between a snapshot and a later one of the same volume, or the volume.

    Raises:
        SnapshotInvalidError: If a classic one is not valid.
        SourceError: If it cannot be told.
        NotFoundError: If somebody removed the older one.
        RefusedError: If somebody renamed or merges it, or holds the metadata of the pool.
    """
    try:
        return _changes_between(older, newer, state_dir)
    except SnapshotInvalidError:
        raise
    except SourceError:
        lvm.again(older)  # names what somebody else did to it
        raise


def _changes_between(older: Volume, newer: Volume, state_dir: Path) -> ExtentList:
    if not older.is_thin:
        found = changed_since(older)
        return ExtentList(found.extents, Meaning.CHANGED, "exception store", newer.size)
    pool = lvm.find(older.group, older.pool)
    with lvm.metadata_reserved(pool, state_dir / "lvm"):
        text = lvm.thin_delta(pool, older, newer)
    unmapped = Kind.DATA if lvm.shows_external_origin(newer) else Kind.ZERO
    return thin_delta.read(text, newer.size, unmapped=unmapped)


def tracked_changes(source: str, since: str, state_dir: Path) -> ExtentList | None:
    """Return what a snapshot says has changed in its volume since; None where none can say.

    Raises:
        BlockstreamError: As LVM fails, or the snapshot is not valid.
    """
    volume = volume_at(source)
    if volume is None:
        return None
    try:
        older = lvm.of_origin(volume, since)
    except (NotFoundError, RefusedError):
        if Path(since).exists():
            return None  # two disks to be compared
        raise
    with lvm.activated(volume) as active:
        flush(active)
        return changes_between(older, active, state_dir)
