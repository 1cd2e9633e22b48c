"""NBD requests that read, and what a server answers to them (nbd/doc/proto.md, transmission).

Nothing is read or written here. Data goes straight into the memory that a request brought, and only
after its place in there was checked.
"""

import errno
import struct
from bisect import bisect
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

from blockstream.errors import NbdError
from blockstream.formats.nbd import Export
from blockstream_protocol import plain_text

_REQUEST: Final = struct.Struct(">IHHQQI")  # magic, flags, type, cookie, offset, length
_SIMPLE: Final = struct.Struct(">IIQ")  # magic, error, cookie
_CHUNK: Final = struct.Struct(">IHHQI")  # magic, flags, type, cookie, length
_OFFSET: Final = struct.Struct(">Q")
_HOLE: Final = struct.Struct(">QI")
_FAULT: Final = struct.Struct(">IH")  # error, length of a text
_U32: Final = struct.Struct(">I")

_REQUEST_MAGIC, _SIMPLE_MAGIC, _CHUNK_MAGIC = 0x25609513, 0x67446698, 0x668E33EF
_READ, _DISCONNECT, _BLOCK_STATUS = 0, 2, 7
_DONE: Final = 1
_NONE, _OFFSET_DATA, _OFFSET_HOLE, _STATUS, _ERROR_BIT = 0, 1, 2, 5, 1 << 15
_SHUTDOWN: Final = 108

# A text of at most 4096 bytes, and what stands around it.
_MOST_FAULT_BYTES: Final = 4096 + 64
# nbdkit gives up to a million extents at once, QEMU a hundred thousand.
_MOST_ROWS: Final = 1 << 20
# Servers give a read in one piece, or cut it at holes of 4 KiB.
_MOST_PIECES: Final = 4096

GOODBYE: Final = _REQUEST.pack(_REQUEST_MAGIC, 0, _DISCONNECT, 0, 0, 0)

Rows = npt.NDArray[np.uint32]


@dataclass(slots=True, eq=False)
class Request:
    """Something that the server is asked.

    Attributes:
        offset: First byte of the range.
        length: Its size in bytes; never zero.
        buffer: Where its bytes go; None to ask for its status instead.
        done: Whether all was answered.
        fault: What the server says went wrong; empty for nothing.
        goes_away: Whether it is the server that shuts down, so that another may do better.
        status: Of each context by its name, rows of length and flags.
        pieces: Which parts of the range came, as start and end in it; ascending.
    """

    offset: int
    length: int
    buffer: memoryview | None = None
    done: bool = False
    fault: str = ""
    goes_away: bool = False
    status: dict[str, Rows] = field(default_factory=dict)
    pieces: list[tuple[int, int]] = field(default_factory=list)

    def begin_again(self) -> None:
        """Forget what was answered, to be asked on another connection."""
        self.done = self.goes_away = False
        self.fault = ""
        self.status.clear()
        self.pieces.clear()


Taking = Generator[int | memoryview, bytes, None]


class Replies:
    """What is asked of one server, and what it answered.

    `take` is run by whoever reads; `ask` by anybody, as long as it is one at a time.

    Attributes:
        pending: What was not answered yet.
        answered: How many requests were.
    """

    def __init__(self, where: str, export: Export) -> None:
        """Begin.

        Args:
            where: What people call the export.
            export: What was agreed on.
        """
        self._where = where
        self._structured = export.structured
        self._contexts = export.contexts
        self._cookie = 0
        self.pending: dict[int, Request] = {}
        self.answered = 0

    def ask(self, request: Request) -> bytes:
        """Return the bytes that ask for it."""
        self._cookie += 1
        self.pending[self._cookie] = request
        kind = _BLOCK_STATUS if request.buffer is None else _READ
        return _REQUEST.pack(_REQUEST_MAGIC, 0, kind, self._cookie, request.offset, request.length)

    def take(self) -> Taking:
        """Take one reply, or one chunk of one.

        Yields how many bytes it wants, or memory that is to be filled. The last of a request marks
        it as done.

        Raises:
            NbdError: If it is no answer to anything that was asked.
        """
        head = yield _SIMPLE.size
        (magic,) = _U32.unpack_from(head)
        if magic == _CHUNK_MAGIC and self._structured:
            head += yield _CHUNK.size - _SIMPLE.size
            _, flags, kind, cookie, length = _CHUNK.unpack(head)
            request = self._asked(cookie)
            yield from self._chunk(request, kind, length, last=bool(flags & _DONE))
            if flags & _DONE:
                self._finish(request, cookie)
        elif magic == _SIMPLE_MAGIC:
            _, error, cookie = _SIMPLE.unpack(head)
            request = self._asked(cookie)
            yield from self._simple(request, error)
            self._finish(request, cookie)
        else:
            raise self._wrong(f"a reply begins with {magic:#x}")

    def _asked(self, cookie: int) -> Request:
        request = self.pending.get(cookie)
        if request is None:
            raise self._wrong(f"it answers a question {cookie} that is not open")
        return request

    def _finish(self, request: Request, cookie: int) -> None:
        if request.buffer is not None and not request.fault:
            given = sum(end - start for start, end in request.pieces)
            if given != request.length:
                raise self._wrong(f"of {_range(request)} it gave {given} bytes")
        del self.pending[cookie]
        request.done = True
        self.answered += 1

    def _simple(self, request: Request, error: int) -> Taking:
        if self._structured and (request.buffer is not None or not error):
            raise self._wrong("it answers simply where a structured reply was agreed on")
        if error:
            self._fail(request, error, "")
        elif request.buffer is not None:
            yield request.buffer
            request.pieces.append((0, request.length))

    def _chunk(self, request: Request, kind: int, length: int, *, last: bool) -> Taking:
        reads = request.buffer is not None
        if kind == _NONE and not length and last:
            return
        if kind == _OFFSET_DATA and reads:
            yield from self._data(request, length)
        elif kind == _OFFSET_HOLE and reads and length == _HOLE.size:
            self._hole(request, *_HOLE.unpack((yield length)))
        elif kind == _STATUS and not reads:
            yield from self._rows(request, length)
        elif kind & _ERROR_BIT:
            yield from self._error(request, length)
        else:
            raise self._wrong(f"it answers {_range(request)} with {length} bytes of type {kind}")

    def _data(self, request: Request, length: int) -> Taking:
        if not _OFFSET.size < length <= _OFFSET.size + request.length:
            raise self._wrong(f"it gives {length - _OFFSET.size} bytes of {_range(request)}")
        (offset,) = _OFFSET.unpack((yield _OFFSET.size))
        yield self._part(request, offset, length - _OFFSET.size)

    def _hole(self, request: Request, offset: int, length: int) -> None:
        view = self._part(request, offset, length)
        view[:] = bytes(len(view))

    def _part(self, request: Request, offset: int, length: int) -> memoryview:
        """Return the memory of a piece that lies in the request, and was not given yet."""
        start = offset - request.offset
        end = start + length
        if request.buffer is None or start < 0 or not length or end > request.length:
            raise self._wrong(f"it gives {length} bytes at offset {offset} for {_range(request)}")
        pieces = request.pieces
        if pieces and pieces[-1][1] == start:
            pieces[-1] = (pieces[-1][0], end)
            return request.buffer[start:end]
        at = bisect(pieces, (start, end))
        before = pieces[at - 1][1] if at else 0
        after = pieces[at][0] if at < len(pieces) else request.length
        if before > start or end > after:
            raise self._wrong(f"it gives offset {offset} twice for {_range(request)}")
        if len(pieces) == _MOST_PIECES:
            raise self._wrong(f"it gives {_range(request)} in more than {_MOST_PIECES} pieces")
        pieces.insert(at, (start, end))
        return request.buffer[start:end]

    def _rows(self, request: Request, length: int) -> Taking:
        count, rest = divmod(length - _U32.size, 2 * _U32.size)
        if rest or not 1 <= count <= min(_MOST_ROWS, request.length):
            raise self._wrong(f"it tells the status of {_range(request)} in {length} bytes")
        data = yield length
        context = self._contexts.get(_U32.unpack_from(data)[0])
        if context is None or context in request.status:
            raise self._wrong(f"it tells another status of {_range(request)}, or one twice")
        rows = np.frombuffer(data, ">u4", offset=_U32.size).reshape(-1, 2).astype(np.uint32)
        # Only the last may go past what was asked, whence it is cut.
        if not rows[:, 0].all() or int(rows[:-1, 0].sum(dtype=np.uint64)) >= request.length:
            raise self._wrong(f"the extents of {_range(request)} are empty, or past its end")
        request.status[context] = rows

    def _error(self, request: Request, length: int) -> Taking:
        if not _FAULT.size <= length <= _MOST_FAULT_BYTES:
            raise self._wrong(f"it tells an error in {length} bytes")
        data = yield length
        error, text = _FAULT.unpack_from(data)
        if not error or _FAULT.size + text > length:
            raise self._wrong("it tells an error that is none")
        words = data[_FAULT.size : _FAULT.size + text].decode(errors="replace")
        self._fail(request, error, plain_text(words))

    def _fail(self, request: Request, error: int, words: str) -> None:
        """Note the first error of a request: whatever data it gave is of no use."""
        if not request.fault:
            name = errno.errorcode.get(error, f"error {error}")
            request.fault = f"{name}: {words}" if words else name
            request.goes_away = error == _SHUTDOWN

    def _wrong(self, what: str) -> NbdError:
        return NbdError(self._where, what)


def _range(request: Request) -> str:
    return f"{request.length} bytes at offset {request.offset}"
