"""Which format a stream is in, by how it begins; and what else it may be."""

from blockstream.errors import IntegrityError, InterruptedTransferError, RefusedError
from blockstream.formats.foreign import (
    bdsync,
    blocksync_fast,
    lvmsync,
    raw,
    rbd_diff,
    rbd_image,
    sparsestream,
    thin_send,
)
from blockstream.formats.foreign.events import Format
from blockstream.formats.foreign.wrappings import wrapping
from blockstream_protocol import MAGIC

# Enough to recognise an image by its partition table or file system.
HEAD_BYTES = 4096
_BOM = b"\xef\xbb\xbf"

FORMATS = (
    lvmsync.FORMAT,
    thin_send.FORMAT,
    thin_send.FORMAT_1_0,
    rbd_diff.FORMAT,
    rbd_image.FORMAT,
    bdsync.FORMAT,
    blocksync_fast.FORMAT,
    sparsestream.FORMAT,
    raw.FORMAT,
)
WRITTEN = {each.name: each for each in FORMATS if each.write is not None}
_BY_BEGINNING: tuple[tuple[bytes, Format], ...] = (
    (lvmsync.BANNER + b"\n", lvmsync.FORMAT),
    (lvmsync.BANNER + b"\r\n", lvmsync.FORMAT),
    (thin_send.MAGIC_1_1, thin_send.FORMAT),
    (thin_send.MAGIC_1_0, thin_send.FORMAT_1_0),
    (rbd_diff.BANNER_1, rbd_diff.FORMAT),
    (rbd_diff.BANNER_2, rbd_diff.FORMAT),
    (rbd_image.BANNER, rbd_image.FORMAT),
    (bdsync.BANNER, bdsync.FORMAT),
    (blocksync_fast.MAGIC, blocksync_fast.FORMAT),
    (sparsestream.BEGIN, sparsestream.FORMAT),
)
# Offset and bytes of what only a disk begins with.
_IMAGES = (
    (0x1FE, b"\x55\xaa"),  # MBR, GPT, FAT, NTFS
    (0x438, b"\x53\xef"),  # ext2, 3, 4
    (0, b"XFSB"),
    (0, b"LUKS\xba\xbe"),
    (0x200, b"LABELONE"),  # LVM
    (0xFF6, b"SWAPSPACE2"),
)
_ZFS = (0x2F5BACBAC).to_bytes(8, "little")
_USE_VMDK = "send it as vmdk:FILE"
_OTHERS: tuple[tuple[int, bytes, str, str], ...] = (
    (0, b"lvmsync PROTO[", "a dump of another version of lvmsync", "make it with lvmsync 3"),
    (0, thin_send.MAGIC_OLD, "a stream of an older thin_send", "use thin-send-recv 1.0 or later"),
    (0, b"BDSYNC ", "a patch of another version of bdsync", "use one of bdsync 0.3"),
    (0, b"!BSF#DIG", "a digest file of blocksync-fast, which holds no data", "give the delta"),
    (0, b"COWD", "a VMDK", _USE_VMDK),
    (0, b"KDMV", "a VMDK", _USE_VMDK),
    (0, b"# Disk DescriptorFile", "the descriptor of a VMDK", _USE_VMDK),
    (0, _BOM + b"# Disk DescriptorFile", "the descriptor of a VMDK", _USE_VMDK),
    (0, bytes.fromhex("BEBAFECA00000000"), "a seSparse VMDK", _USE_VMDK),
    (0, b"QFI\xfb", "a qcow2 image", "export it with `qemu-nbd -r`, and send nbd://..."),
    (0, b"conectix", "a VHD", "export it with `qemu-nbd -r -f vpc`, and send nbd://..."),
    (0, b"vhdxfile", "a VHDX", "export it with `qemu-nbd -r`, and send nbd://..."),
    (0, b"\x04\x22\x4d\x18", "compressed with lz4", "unpack it first: lz4 -d | ..."),
    (0, b"\xfd7zXZ\0", "compressed with xz", "unpack it first: xz -d | ..."),
    (0, b"BZh", "compressed with bzip2", "unpack it first: bzip2 -d | ..."),
    (8, _ZFS, "a zfs stream", "receive it with zfs receive"),
    (8, _ZFS[::-1], "a zfs stream", "receive it with zfs receive"),
    (0, b"btrfs-stream\0", "a btrfs stream", "receive it with btrfs receive"),
    (0, b"AGE-", "encrypted with age", "decrypt it first"),
    (0, b"age-encryption.org/", "encrypted with age", "decrypt it first"),
    (0, b'{"format":"blockstream-extents"', "a list of extents", "give it to send --extents"),
    (0, b"\x7fELF", "a program", "give a stream"),
    (0, b"PK\x03\x04", "a zip file", "give what is in it"),
    (257, b"ustar", "a tar file", "give what is in it"),
)


def recognised(head: bytes) -> Format:
    """Return the format of a stream.

    Args:
        head: Its first `HEAD_BYTES`, or all of it.

    Raises:
        RefusedError: If it is none that is read; the message says what it looks like.
        InterruptedTransferError: If it was cut before it could be told.
        IntegrityError: If it looks like nothing.
    """
    for beginning, found in _BY_BEGINNING:
        if head.startswith(beginning):
            return found
        if head and beginning.startswith(head):
            raise InterruptedTransferError(
                f"{found.title} was cut after {len(head)} bytes; nothing was written; send it again"
            )
    _refuse_others(head)
    if packed := wrapping(head):
        raise RefusedError(
            f"this is packed twice, with {packed} inside; nothing was written; unpack it once first"
        )
    for offset, magic in _IMAGES:
        if head[offset : offset + len(magic)] == magic:
            return raw.FORMAT
    raise IntegrityError(
        f"this is no stream that is known here: it begins with {_shown(head[:16])}; nothing was "
        "written; if it is the raw image of a disk, say so with --format raw"
    )


def _refuse_others(head: bytes) -> None:
    """Refuse what begins like something that is known and not read.

    Raises:
        RefusedError: If it does.
    """
    for offset, magic, what, advice in _OTHERS:
        if head[offset : offset + len(magic)] == magic:
            if what == "a tar file" and head[:100].rstrip(b"\0").lower().endswith(b".ovf"):
                what, advice = "an OVA", "unpack it with tar, and send vmdk:FILE of its disks"
            raise RefusedError(f"this is {what}; nothing was written; {advice}")


def refuse_as_raw(head: bytes) -> None:
    """Refuse what people call a raw image and what begins like something else.

    Raises:
        RefusedError: If it does.
    """
    begins = (found.title for begin, found in _BY_BEGINNING if head.startswith(begin))
    what = "a stream of ours" if head.startswith(MAGIC[:4]) else next(begins, "")
    try:
        _refuse_others(head)
    except RefusedError as error:
        what = str(error).removeprefix("this is ").partition(";")[0]
    if what:
        raise RefusedError(
            f"this begins as {what} does, and was to be written as a raw image; nothing was "
            "written; leave --format raw out, or give --force-raw if it is one all the same"
        )


def _shown(begin: bytes) -> str:
    """Return bytes as people can read them."""
    if not any(begin):
        return "zeros"
    text = begin.decode("ascii", "replace").replace("\n", " ")
    return repr(text) if text.isprintable() and text.isascii() else begin.hex(" ")


def chosen(head: bytes, given: str, *, force_raw: bool = False) -> Format:
    """Return the format of a stream of which people said what it is.

    Args:
        head: Its first `HEAD_BYTES`, or all of it.
        given: The name that they gave; empty to recognise it.
        force_raw: Believe that it is a raw image, whatever it begins like.

    Raises:
        InterruptedTransferError: If there is nothing.
        RefusedError: If it begins like something else, or is none that is read.
        IntegrityError: If it looks like nothing.
    """
    if not head and given == thin_send.FORMAT_1_0.name:
        return thin_send.FORMAT_1_0  # it says nothing where nothing has changed
    if not head:
        raise InterruptedTransferError("the input is empty; nothing was written")
    if given == raw.FORMAT.name:
        if not force_raw:
            refuse_as_raw(head)
        return raw.FORMAT
    found = recognised(head)
    if given not in {"", found.name}:
        raise RefusedError(f"this is {found.title}, not {given}; nothing was written")
    return found


def by_name(name: str) -> Format:
    """Return the format that an option names."""
    return next(each for each in FORMATS if each.name == name)
