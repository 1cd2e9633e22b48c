"""A descriptor that may be compressed, read as what comes out; bounded, whatever that is."""

import zlib
from collections.abc import Iterator

from blockstream.errors import IntegrityError, InterruptedTransferError
from blockstream.formats.foreign.zstd_frames import WINDOW_BYTES, walked
from blockstream.linux.streams import WakeableReader

_BUFFER_BYTES = 1 << 20


class Decompressed:
    """Reads a descriptor, decompressing; several members or frames count as one."""

    def __init__(self, fd: int, kind: str, ahead: bytes) -> None:
        """Read from `fd`, which stays the caller's.

        Args:
            fd: Where the bytes come from.
            kind: `zstd` or `gzip`; empty for what is not compressed.
            ahead: Bytes that were read from it already.
        """
        self._reader = WakeableReader(fd, ahead)
        self._stopped = ""
        self._kind = kind
        self._given = b""
        if kind:
            self._next = self._gunzipped() if kind == "gzip" else self._unzstd()
        self.wire_bytes = 0

    def read_into(self, buffer: memoryview) -> int:
        """Fill some of `buffer`; 0 at the end of input.

        Raises:
            InterruptedTransferError: If the descriptor cannot be read, or ends too early.
            IntegrityError: If it does not decompress.
        """
        if not self._kind:
            return self._read(buffer)
        while not self._given:
            given = next(self._next, None)
            if given is None:
                return 0
            self._given = given
        count = min(len(self._given), len(buffer))
        buffer[:count] = self._given[:count]
        self._given = self._given[count:]
        return count

    def stop(self, reason: str) -> None:
        """Let every read, waiting or to come, fail. Any thread, and signal handlers."""
        self._stopped = reason
        self._reader.stop()

    def close(self) -> None:
        """Give everything back. Nobody may be reading."""
        self._reader.close()

    def _read(self, buffer: memoryview) -> int:
        try:
            count = self._reader.read_into(buffer)
        except InterruptedTransferError as error:
            raise InterruptedTransferError(f"{error}; nothing was written") from error
        if self._reader.stopped:
            raise InterruptedTransferError(f"{self._stopped}; nothing was written")
        self.wire_bytes += count
        return count

    def _gunzipped(self) -> Iterator[bytes]:
        """Give what the members of a gzip file hold."""
        unpacker, begun = zlib.decompressobj(wbits=31), False
        packed = memoryview(bytearray(_BUFFER_BYTES))
        while count := self._read(packed):
            data = bytes(packed[:count])
            try:
                while data:
                    if unpacker.eof:
                        unpacker = zlib.decompressobj(wbits=31)
                    begun = True
                    yield unpacker.decompress(data, _BUFFER_BYTES)
                    data = unpacker.unused_data if unpacker.eof else unpacker.unconsumed_tail
            except zlib.error as error:
                raise self._damaged(error) from error
        # What it holds yet, where the last bytes gave more than was asked for.
        while begun and not unpacker.eof and (rest := unpacker.decompress(b"", _BUFFER_BYTES)):
            yield rest
        if begun and not unpacker.eof:
            raise self._cut()

    def _unzstd(self) -> Iterator[bytes]:
        """Give what the frames of a zstd stream hold, block by block."""
        import zstandard

        maker = zstandard.ZstdDecompressor(max_window_size=WINDOW_BYTES)
        unpacker = maker.decompressobj()
        steps = walked()
        data = b""
        try:
            wish = next(steps)
            while True:
                data = self._exactly(wish.length, or_end=wish.or_end)
                if data and wish.or_end and unpacker.eof:
                    unpacker = maker.decompressobj()
                wish = steps.send(data)
                given = unpacker.decompress(data) if data else b""
                if given:
                    yield given
        except StopIteration:
            return
        except zstandard.ZstdError as error:
            raise self._damaged(error) from error

    def _exactly(self, length: int, *, or_end: bool) -> bytes:
        found = memoryview(bytearray(length))
        have = 0
        while have < length:
            count = self._read(found[have:])
            if not count:
                if or_end and not have:
                    return b""
                raise self._cut()
            have += count
        return bytes(found)

    def _cut(self) -> InterruptedTransferError:
        return InterruptedTransferError(
            f"the {self._kind} stream was cut; nothing was written; send it again"
        )

    def _damaged(self, error: Exception) -> IntegrityError:
        return IntegrityError(f"the {self._kind} stream is damaged: {error}; nothing was written")
