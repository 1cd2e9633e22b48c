"""The digest and the chain: what makes a stream one thing (SPEC 6)."""

from typing import Protocol

DIGEST_BYTES = 32

# Buffers as a digest or codec function takes them.
Buffer = bytes | bytearray | memoryview


class Digest(Protocol):
    """A running digest, as hashlib and blake3 give it."""

    def update(self, data: Buffer, /) -> object:
        """Take more bytes."""

    def digest(self) -> bytes:
        """Return the 32 bytes for all that was taken."""


class NewDigest(Protocol):
    """Starts a digest, with the first bytes where there are any."""

    def __call__(self, data: Buffer = b"", /) -> Digest:
        """Return a running digest of `data`."""


def link(new_digest: NewDigest, chain: bytes, frame_digest: bytes) -> bytes:
    """Return the chain after one more EXTENTS frame."""
    return new_digest(chain + frame_digest).digest()
