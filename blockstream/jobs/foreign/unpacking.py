"""Streams of our own that somebody has packed on their way, as `| gzip` or `| zstd` does."""

import contextlib
import os
import threading
import zlib
from collections.abc import Iterator

from blockstream.errors import BlockstreamError, IntegrityError
from blockstream.formats.foreign.wrappings import wrapping
from blockstream.jobs.foreign.detect import some_of
from blockstream.linux.buffers import write_stream
from blockstream.linux.streams import widen_pipe
from blockstream.sources.decompressed import Decompressed
from blockstream_protocol import MAGIC

# A block of zstd is unpacked whole, and has at most 128 KiB.
_PEEK_BYTES = 256 << 10
_BUFFER_BYTES = 1 << 20


def packed_ours(fd: int, head: bytes) -> tuple[str, bytes]:
    """Tell whether a stream is one of ours inside, and return all that was read to find out.

    Args:
        fd: Where it comes from.
        head: What was read from it already.

    Returns:
        What it is packed with, `zstd` or `gzip`; empty if it is not ours, or not packed.

    Raises:
        InterruptedTransferError: If it cannot be read.
    """
    kind = wrapping(head)
    while kind and len(head) < _PEEK_BYTES:
        inside = _begin_of(kind, head)
        if len(inside) >= len(MAGIC):
            return (kind if inside.startswith(MAGIC) else ""), head
        more = some_of(fd, _PEEK_BYTES - len(head))
        if not more:
            break
        head += more
    return "", head


def _begin_of(kind: str, head: bytes) -> bytes:
    """Return how the inside begins, as far as it can be told."""
    if kind == "gzip":
        with contextlib.suppress(zlib.error):
            return zlib.decompressobj(wbits=31).decompress(head, len(MAGIC))
        return b""
    import zstandard

    reader = zstandard.ZstdDecompressor().stream_reader(head, read_across_frames=True)
    with contextlib.suppress(zstandard.ZstdError):
        return bytes(reader.read(len(MAGIC)))
    return b""


@contextlib.contextmanager
def unpacking(fd: int, kind: str, head: bytes) -> Iterator[int]:
    """Give the descriptor where the inside of a packed stream comes out.

    What the block raises because the packed one was damaged or cut, is raised as that.

    Args:
        fd: Where it comes from; stays the caller's.
        kind: What it is packed with.
        head: What was read from it already.

    Raises:
        BlockstreamError: If it cannot be unpacked.
    """
    reading, writing = os.pipe()
    widen_pipe(writing)
    packed = Decompressed(fd, kind, head)
    failures: list[BlockstreamError] = []
    came = False

    def pump() -> None:
        nonlocal came
        buffer = memoryview(bytearray(_BUFFER_BYTES))
        try:
            while count := packed.read_into(buffer):
                came = True
                write_stream(writing, [buffer[:count]])
        except BlockstreamError as error:
            failures.append(error)
        except OSError:  # nobody reads any more
            return
        finally:
            os.close(writing)

    thread = threading.Thread(target=pump, name="unpack", daemon=True)
    thread.start()
    try:
        yield reading
    except BlockstreamError as error:
        # That it was cut, the block has found as well, and says how to go on.
        if failures and not came:
            raise failures[0] from error
        if failures and isinstance(failures[0], IntegrityError):
            why = str(failures[0]).removesuffix("; nothing was written")
            raise IntegrityError(f"{why}: {error}") from error
        raise
    finally:
        os.close(reading)
        packed.stop("it is not needed any more")
        thread.join()
        packed.close()
