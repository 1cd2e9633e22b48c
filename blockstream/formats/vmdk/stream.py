"""streamOptimized as it arrives: grains one after the other, and nothing is sought.

An export sends its directory last, so whoever reads while it comes goes by the markers.
"""

from collections.abc import Generator
from dataclasses import dataclass
from typing import Final

from blockstream.errors import VmdkError
from blockstream.formats.vmdk.descriptor import SECTOR
from blockstream.formats.vmdk.hosted import (
    END,
    FOOTER,
    GRAIN_MARKER_BYTES,
    MARKER,
    PROGRESS,
    Header,
    inflated,
    parse_footer,
    parse_header,
)

_SKIP_BYTES: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class Grain:
    """A part of a disk, as it came.

    Attributes:
        offset: Its first byte on the disk.
        data: Its bytes; the last grain is cut where the disk ends.
    """

    offset: int
    data: bytes


class GrainStream:
    """Takes the bytes of a stream in any pieces, and gives grains, ascending, each once.

    Holds one compressed grain at most beside what it is fed.
    """

    def __init__(self) -> None:
        """Begin before the first byte."""
        self.header: Header | None = None
        self.descriptor = b""
        self._held = bytearray()
        self._found: list[Grain] = []
        self._steps = self._walked()
        self._wanted = next(self._steps)
        self._between = False  # two structures, where a stream without footer may end
        self._ended = False

    def feed(self, data: bytes) -> list[Grain]:
        """Take the next bytes; return the grains that they completed.

        Raises:
            VmdkError: If the stream is not what it should be. It cannot be fed any more.
        """
        self._held += data
        done = 0
        while not self._ended and len(self._held) - done >= self._wanted:
            piece = bytes(self._held[done : done + self._wanted])
            done += self._wanted
            try:
                self._wanted = self._steps.send(piece)
            except StopIteration:
                self._ended = True
        del self._held[:done]
        if self._ended and self._held:
            raise VmdkError("something follows the end of the stream")
        found, self._found = self._found, []
        return found

    def finish(self) -> None:
        """Take the end of the input.

        Raises:
            VmdkError: If the stream has not ended.
        """
        if not self._ended and (self._held or not self._between):
            raise VmdkError("it is cut off: its last grains are missing")

    def _walked(self) -> Generator[int, bytes, None]:
        """Give how many bytes come next, and take them."""
        header = self.header = parse_header((yield SECTOR))
        if not header.compressed or not header.size:
            raise VmdkError("it is no stream: it is not streamOptimized")
        position = SECTOR
        if header.descriptor_bytes and header.descriptor >= position:
            yield from self._skipped(header.descriptor - position)
            self.descriptor = yield header.descriptor_bytes
            position = header.descriptor + header.descriptor_bytes
        if header.overhead < position:
            raise VmdkError("its data would begin within its header")
        yield from self._skipped(header.overhead - position)
        least = 0
        while True:
            self._between = header.directory is not None  # it has been told where that is
            sector = yield SECTOR
            self._between = False
            value, size, kind = MARKER.unpack_from(sector)
            if size:
                least = yield from self._grain(header, sector, least)
            elif kind == END:
                if header.directory is None:
                    raise VmdkError("it ends without a footer")
                return
            elif kind == FOOTER:
                yield from self._footer(sector)
                return
            elif kind <= PROGRESS:
                yield from self._skipped(value * SECTOR)
            else:
                raise VmdkError(f"it has a marker of type {kind}, which is none")

    def _grain(self, header: Header, sector: bytes, least: int) -> Generator[int, bytes, int]:
        """Take a grain whose first sector was read; return where the next may begin."""
        start, size, _ = MARKER.unpack_from(sector)
        offset = int(start) * SECTOR
        if offset % header.grain or not least <= offset < header.size:
            raise VmdkError(f"it has a grain at {offset}, where none can be")
        if size > 2 * header.grain:
            raise VmdkError(f"the grain at {offset} takes {size} bytes, which no grain does")
        data = sector[GRAIN_MARKER_BYTES : GRAIN_MARKER_BYTES + size]
        rest = GRAIN_MARKER_BYTES + size - SECTOR
        if rest > 0:
            data += (yield -(-rest // SECTOR) * SECTOR)[:rest]
        self._found.append(Grain(offset, inflated(data, header.grain, header.size - offset)))
        return offset + header.grain

    def _footer(self, marker: bytes) -> Generator[int, bytes, None]:
        rest = yield 2 * SECTOR
        parse_footer(marker + rest)

    def _skipped(self, length: int) -> Generator[int, bytes, None]:
        while length:
            step = min(length, _SKIP_BYTES)
            yield step
            length -= step
