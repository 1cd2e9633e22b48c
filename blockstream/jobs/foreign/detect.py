"""Whose stream it is, told by how it begins: light, because `recv` asks it each time."""

import os

from blockstream.errors import InterruptedTransferError
from blockstream_protocol import MAGIC

HEAD_BYTES = 4096  # enough to recognise an image by its partition table or file system


def beginning(fd: int, head: bytes = b"", *, given: bool = False) -> bytes:
    """Read as much of a stream as tells whose it is; all of it if it is shorter.

    Args:
        fd: Where it comes from.
        head: What was read from it already.
        given: Whether people have said that it is another tool's.

    Raises:
        InterruptedTransferError: If it cannot be read.
    """
    while len(head) < HEAD_BYTES and (given or len(head) < len(MAGIC) or not _is_ours(head)):
        more = some_of(fd, HEAD_BYTES - len(head))
        if not more:
            break
        head += more
    return head


def some_of(fd: int, most: int) -> bytes:
    """Read some bytes of a stream; none at its end.

    Raises:
        InterruptedTransferError: If it cannot be read.
    """
    try:
        return os.read(fd, most)
    except OSError as error:
        raise InterruptedTransferError(
            f"the stream cannot be read: {error.strerror}; nothing was written"
        ) from error


def is_ours(head: bytes, said: str = "") -> bool:
    """Tell whether a stream is of our own format, or too short to be of any other.

    Only of an image is it believed that it happens to begin like one of ours.

    Args:
        head: How it begins.
        said: The format that people call it; empty for none.
    """
    if len(head) < len(MAGIC):
        return not said
    return said != "raw" and _is_ours(head)


def _is_ours(head: bytes) -> bool:
    # Altered on its way, it is ours all the same, and the decoder says what happened to it.
    return head.startswith(MAGIC[:4])
