"""Streams of other tools, taken in: indexed once, and kept until all of them was seen.

Nothing of such a stream is written anywhere before all of it has been seen. What comes through a
pipe or is compressed is kept in an unnamed file meanwhile; a file is read where it lies. Memory:
what `formats.foreign.layers` states, and a few buffers.
"""

import os
import stat
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from blockstream.errors import (
    BlockstreamError,
    IntegrityError,
    InterruptedTransferError,
    RefusedError,
    SourceError,
    TargetTooSmallError,
)
from blockstream.formats.foreign.events import (
    Asking,
    Base,
    Data,
    Digest,
    Event,
    Fact,
    Format,
    Goal,
    Image,
    Many,
    Packed,
    Remark,
    Size,
    Take,
    Whole,
    Window,
    Zero,
)
from blockstream.formats.foreign.layers import ZEROS, Layers
from blockstream.linux.buffers import write_all
from blockstream.linux.lz4 import Lz4Unpacker
from blockstream.linux.state_directory import make_directory
from blockstream.sources.decompressed import Decompressed
from blockstream.sources.disk import VHD_COOKIE
from blockstream_protocol import DEVICE_BYTES

_BUFFER_BYTES = 1 << 20
_SMALL_BYTES = 4096
_FOOT = 512
_KEPT = 0  # number of the file that the bytes lie in, where there is one only


@dataclass(slots=True)
class StreamContents:
    """What was found in a stream; counts in bytes unless said.

    Attributes:
        layers: Where its ranges lie.
        size: Size of the disk; None if the stream does not say.
        base: State that it belongs onto; empty if it does not say.
        goal: State that it leads to; empty if it does not say.
        whole: Whether what is not listed reads as zeros.
        records: Ranges of data in it.
        data: Bytes of data.
        zeros: Bytes of zeros.
        reach: Where the last range ends.
        wire: Bytes of the stream.
        digest: What the whole disk has afterwards; None if it does not say.
        uncompared: Name of that digest, if nobody here can take it.
        remarks: What people should know.
    """

    layers: Layers = field(default_factory=Layers)
    size: int | None = None
    base: str = ""
    goal: str = ""
    whole: bool = False
    records: int = 0
    data: int = 0
    zeros: int = 0
    reach: int = 0
    wire: int = 0
    digest: Digest | None = None
    uncompared: str = ""
    remarks: list[str] = field(default_factory=list)


class ForeignStream:
    """Runs a reader over a descriptor: keeps the bytes, and where each range lies."""

    def __init__(
        self,
        fd: int,
        *,
        ahead: bytes = b"",
        wrapping: str = "",
        folder: Path | None,
        number: int = _KEPT,
        layers: Layers | None = None,
        tell: Callable[[int], None] = lambda _count: None,
    ) -> None:
        """Prepare.

        Args:
            fd: Where the stream comes from; stays the caller's.
            ahead: What was read from it already.
            wrapping: What it is compressed with: `zstd`, `gzip`, or nothing.
            folder: Where its bytes are kept if it is no file; None to keep none of them.
            number: Number of the file that the bytes lie in, among several.
            layers: Of the streams before it; none by default.
            tell: Told how many more bytes of the stream were seen.

        Raises:
            RefusedError: If nothing can be kept there.
        """
        self._bytes = Decompressed(fd, wrapping, ahead)
        self._tell = tell
        self._told = 0
        self.stopped = False
        self._number = number
        self._buffer = memoryview(bytearray(_BUFFER_BYTES))
        self._start = self._end = 0
        self._fill = _BUFFER_BYTES
        # Bytes of the stream up to the start of the buffer.
        self._position = 0
        info = os.fstat(fd)
        self._in_place = stat.S_ISREG(info.st_mode) and not wrapping
        self._source = fd
        self._folder = folder
        self._kept = 0
        self._lz4: Lz4Unpacker | None = None
        self._unpacked_bytes = memoryview(b"")
        if self._in_place:
            self._origin = os.lseek(fd, 0, os.SEEK_CUR) - len(ahead)
            self._file_end = info.st_size
            self.fd = os.dup(fd)
        else:
            self._origin = 0
            self.fd = self._kept_in()
        # What the file was before it was read; nothing for what is kept.
        self.before = {number: info} if self._in_place else {}
        self.found = StreamContents(Layers() if layers is None else layers)

    def head(self, length: int) -> bytes:
        """Return how the stream begins, unpacked, without taking it.

        Raises:
            BlockstreamError: If it cannot be read.
        """
        while self._end < length and self._more():
            pass  # until there is enough, or no more
        return bytes(self._buffer[: min(self._end, length)])

    def run(self, how: Format, size: int | None) -> StreamContents:
        """Take the whole stream.

        Args:
            how: Its format.
            size: Bytes of the disk that it goes onto; None if nobody knows.

        Raises:
            BlockstreamError: If it is cut, damaged, or does not fit.
        """
        reader, found = how.read(size), self.found
        answer: bytes | None = None
        try:
            while True:
                wish = next(reader) if answer is None else reader.send(answer)
                answer = self._answer(how, wish, size)
        except StopIteration:
            self._check_unwritten(how)
            return found
        except BlockstreamError:
            self._check_unwritten(how)  # which explains whatever it was
            raise
        finally:
            found.wire = self._seen()

    def _check_unwritten(self, how: Format) -> None:
        """Refuse a file that somebody wrote meanwhile: what was seen may be no stream at all."""
        for info in self.before.values():
            now = os.fstat(self.fd)
            if (now.st_size, now.st_mtime_ns) != (info.st_size, info.st_mtime_ns):
                raise SourceError(
                    f"{how.title} was written while it was read; nothing was written to the "
                    "target; begin again when nobody writes it"
                )

    def stop(self, reason: str) -> None:
        """Make `run` fail soon, for this reason. Any thread, and signal handlers."""
        self.stopped = True
        self._bytes.stop(reason)

    def close(self) -> None:
        """Give everything back."""
        if self.fd >= 0:
            os.close(self.fd)
        self._bytes.close()
        if self._lz4 is not None:
            self._lz4.close()

    def _answer(self, how: Format, wish: Asking | Event, size: int | None) -> bytes | None:
        match wish:
            case Take(length, or_end):
                return self._taken(how, length, or_end=or_end)
            case Window():
                self._more()
                return bytes(self._buffer[self._start : self._end])
            case Many():
                self._many(how, wish, size)
            case Data(offset, length):
                self._fits(how, offset, length, size)
                self._data(how, offset, length)
            case Packed(offset, length):
                self._fits(how, offset, length, size)
                self._unpacked(how, offset, length)
            case Zero(offset, length):
                self._fits(how, offset, length, size)
                self.found.zeros += length
                self.found.layers.add(offset, length, self._number, ZEROS)
            case Image():
                self._image(how, size)
            case Size(stated):
                self._sized(how, stated, size)
            case _:
                self._note(wish)
        return None

    def _note(self, fact: Fact) -> None:
        found = self.found
        match fact:
            case Whole():
                found.whole = True
            case Base(name):
                # Of several diffs that follow one another, the first says where they begin.
                found.base = found.base or ("" if found.whole else name)
            case Goal(name):
                found.goal = name
            case Digest():
                found.digest = fact
            case Remark(text):
                found.remarks.append(text)

    # Bytes.

    def _more(self) -> int:
        """Read more into the buffer; return how much came."""
        if self._start:
            rest = self._end - self._start
            self._buffer[:rest] = self._buffer[self._start : self._end]
            self._position += self._start
            self._start, self._end = 0, rest
        space = self._buffer[self._end : min(_BUFFER_BYTES, self._end + self._fill)]
        if not space:
            return 0
        count = self._bytes.read_into(space)
        self._end += count
        seen, self._told = self._told, self._seen()
        self._tell(self._told - seen)
        self._fill = min(2 * self._fill, _BUFFER_BYTES)
        return count

    def _seen(self) -> int:
        """Return how many bytes of the stream were."""
        return self._position + self._start if self._in_place else self._bytes.wire_bytes

    def _taken(self, how: Format, length: int, *, or_end: bool) -> bytes:
        while self._end - self._start < length:
            if self._more():
                continue
            if or_end and self._end == self._start:
                return b""
            raise _cut(how)
        self._start += length
        return bytes(self._buffer[self._start - length : self._start])

    def _data(self, how: Format, offset: int, length: int) -> None:
        found = self.found
        found.records += 1
        found.data += length
        if self._in_place:
            begin = self._position + self._start
            if self._origin + begin + length > self._file_end:
                raise _cut(how)
            found.layers.add(offset, length, self._number, self._origin + begin)
            self._skip(length)
            return
        found.layers.add(offset, length, self._number, self._kept)
        while length:
            if self._start == self._end and not self._more():
                raise _cut(how)
            step = min(length, self._end - self._start)
            self._keep(self._buffer[self._start : self._start + step])
            self._start += step
            length -= step

    def _unpacked(self, how: Format, offset: int, length: int) -> None:
        """Take a range that is packed with lz4."""
        if self._in_place:
            # None of its bytes lies anywhere as it is.
            os.close(self.fd)
            self._in_place, self._kept = False, 0
            self.fd, self.before = self._kept_in(), {}
        if self._lz4 is None:
            self._lz4 = Lz4Unpacker()
            self._unpacked_bytes = memoryview(bytearray(_BUFFER_BYTES))
        self.found.records += 1
        self.found.data += length
        self.found.layers.add(offset, length, self._number, self._kept)
        ended = False
        while length or not ended:
            if self._start == self._end and not self._more():
                raise _cut(how)
            space = self._unpacked_bytes[: min(length, _BUFFER_BYTES)]
            taken, given, ended = self._lz4.unpack(self._buffer[self._start : self._end], space)
            if not taken and not given:
                raise IntegrityError(
                    f"{how.title} unpacks to more than it claims at {offset}; nothing was written; "
                    "make it again"
                )
            self._start += taken
            self._keep(space[:given])
            length -= given

    def _skip(self, length: int) -> None:
        """Pass over bytes of a file."""
        if self._start + length <= self._end:
            self._start += length
            return
        self._position += self._start + length
        self._start = self._end = 0
        os.lseek(self._source, self._origin + self._position, os.SEEK_SET)
        self._fill = _SMALL_BYTES  # more of the same would be passed over as well

    def _many(self, how: Format, many: Many, size: int | None) -> None:
        """Take ranges of the window at once."""
        found, count = self.found, len(many.offsets)
        last = int(many.offsets.max())
        self._fits(how, last, many.length, size)
        found.records += count
        found.data += count * many.length
        place = many.first
        if self._in_place:
            place += self._origin + self._position + self._start
        else:
            place += self._kept
            self._keep(self._buffer[self._start : self._start + many.taken])
        places = place + many.stride * np.arange(count, dtype=np.int64)
        lengths = np.full(count, many.length, np.int64)
        found.layers.add_columns(many.offsets, lengths, self._number, places)
        self._start += many.taken

    def _image(self, how: Format, target: int | None) -> None:
        """Take everything to the end of input as the disk."""
        found, size, end = self.found, 0, 0
        if self._in_place:
            begin = self._position + self._start
            size = self._file_end - self._origin - begin
            if size:
                found.layers.add(0, size, self._number, self._origin + begin)
                self._skip(size)
            end = self._origin + begin + size
        else:
            while self._end > self._start or self._more():
                count = self._end - self._start
                block = self._buffer[self._start : self._end]
                found.layers.add(size, count, self._number, self._kept)
                self._keep(block)
                self._start = self._end
                size += count
                _check_room(how, size, target)
            end = self._kept
        _check_room(how, size, target)
        if self.fd >= 0 and size >= _FOOT and _is_vhd(os.pread(self.fd, _FOOT, end - _FOOT)):
            found.remarks.append(
                f"{how.title} ends as a VHD of fixed size does: its last {_FOOT} bytes are none of "
                "the disk; export it with `qemu-nbd -r -f vpc`, and send nbd://..."
            )
        found.size = found.data = found.reach = size
        found.records = 1

    def _kept_in(self) -> int:
        return -1 if self._folder is None else unnamed(self._folder)

    def _keep(self, data: memoryview) -> None:
        try:
            if self.fd >= 0:
                write_all(self.fd, data, self._kept)
        except OSError as error:
            raise RefusedError(
                f"the stream cannot be kept until it is whole: {error.strerror}; nothing was "
                "written; make room, or choose another place with --state-dir"
            ) from error
        self._kept += len(data)

    # Facts.

    def _sized(self, how: Format, stated: int, target: int | None) -> None:
        if stated > DEVICE_BYTES:
            raise IntegrityError(
                f"{how.title} is for a disk of {stated} bytes, which there is not; nothing was "
                "written"
            )
        if how.name != "rbd-image":  # its last diff may be of a smaller disk
            _check_room(how, stated, target)
        before, self.found.size = self.found.size, stated
        if before is not None and stated > before:
            self.found.layers.add(before, stated - before, self._number, ZEROS)

    def _fits(self, how: Format, offset: int, length: int, size: int | None) -> None:
        """Refuse what no disk has, or not the one that it goes onto."""
        end = offset + length
        if end > DEVICE_BYTES:
            raise IntegrityError(
                f"{how.title} names {length} bytes at {offset}, where no disk has any; nothing was "
                "written"
            )
        if how.sizeless and size is not None and end > size:
            raise RefusedError(
                f"{how.title} writes {length} bytes at {offset}, past the end of the disk, which "
                f"has {size} bytes; nothing was written; the disk must be as large as its source"
            )
        self.found.reach = max(self.found.reach, end)


def _is_vhd(foot: bytes) -> bool:
    return foot.startswith(VHD_COOKIE)


def _check_room(how: Format, size: int, target: int | None) -> None:
    """Refuse at once what does not fit: the rest of it may be long."""
    if target is not None and size > target:
        least = "at least " if how.name == "raw" else ""  # the rest has not come
        raise TargetTooSmallError(
            f"{how.title} is of a disk of {least}{size} bytes, and the target has {target}; "
            "nothing was written; make it at least as large as the source"
        )


def _cut(how: Format) -> InterruptedTransferError:
    return InterruptedTransferError(
        f"{how.title} was cut: it ends inside a record, or before its end mark; nothing was "
        "written; send it again"
    )


def unnamed(folder: Path) -> int:
    """Return a file without a name, for what must be kept for a while.

    Raises:
        RefusedError: If there can be none.
    """
    make_directory(folder)
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            return os.dup(file.fileno())
    except OSError as error:
        raise RefusedError(
            f"nothing can be kept in {folder}: {error.strerror}; nothing was written; choose "
            "another place with --state-dir"
        ) from error
