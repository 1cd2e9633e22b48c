"""Many small reads or writes in one call (io_submit(2)).

One request a system call costs more than the request itself, because each time the threads of
this process queue for the interpreter; and a disk that is asked for one block at a time never gets
to sort. With a direct descriptor all requests of a batch are in flight together; with a buffered
one the kernel does them one after the other, and still saves the calls.
"""

import contextlib
import ctypes
import errno
import os
import platform
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

# Requests in flight; a frame of 4 KiB blocks holds 256.
DEPTH = 256
# Below this, one call each is as fast.
FEWEST = 4

# include/uapi/linux/aio_abi.h: struct iocb and struct io_event.
_IOCB = struct.Struct("<QIiHhIQQqQII")
_EVENT = struct.Struct("<QQqq")
_PREAD, _PWRITE = 0, 1
_AGAIN = {errno.EINTR, errno.EAGAIN}


@dataclass(frozen=True, slots=True)
class _Numbers:
    """Numbers of the system calls."""

    setup: int
    getevents: int
    submit: int


_GENERIC = _Numbers(setup=0, getevents=4, submit=2)
_NUMBERS = {
    "x86_64": _Numbers(setup=206, getevents=208, submit=209),
    "aarch64": _GENERIC,
    "riscv64": _GENERIC,
}


class _PyBuffer(ctypes.Structure):
    """Py_buffer: the one way to the address of memory that may not be written."""

    _fields_ = (
        ("buf", ctypes.c_void_p),
        ("obj", ctypes.c_void_p),
        ("len", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t),
        ("readonly", ctypes.c_int),
        ("ndim", ctypes.c_int),
        ("format", ctypes.c_char_p),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("suboffsets", ctypes.c_void_p),
        ("internal", ctypes.c_void_p),
    )


_libc = ctypes.CDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long
_syscall.argtypes = [ctypes.c_long, *[ctypes.c_void_p] * 5]


class Batch:
    """A queue of the kernel's, for one thread at a time, until the process ends."""

    def __init__(self) -> None:
        """Set it up.

        Raises:
            OSError: If this kernel, or its limit of queues (fs.aio-max-nr), does not let us.
        """
        numbers = _NUMBERS.get(platform.machine())
        if numbers is None:
            raise OSError(errno.ENOSYS, "no batches on this processor")
        self._numbers = numbers
        self._context = ctypes.c_ulong(0)
        self._call(numbers.setup, DEPTH, ctypes.addressof(self._context))
        self._iocbs = ctypes.create_string_buffer(_IOCB.size * DEPTH)
        self._events = ctypes.create_string_buffer(_EVENT.size * DEPTH)
        first = ctypes.addressof(self._iocbs)
        self._pointers = (ctypes.c_void_p * DEPTH)(
            *range(first, first + _IOCB.size * DEPTH, _IOCB.size)
        )

    def read(
        self, fd: int, offsets: Sequence[int], lengths: Sequence[int], buffer: memoryview
    ) -> list[int]:
        """Read ranges into `buffer`, one after the other; see `_run`."""
        return self._run(_PREAD, fd, offsets, lengths, buffer)

    def write(
        self, fd: int, offsets: Sequence[int], lengths: Sequence[int], buffer: memoryview
    ) -> list[int]:
        """Write `buffer` to ranges, in any order; see `_run`."""
        return self._run(_PWRITE, fd, offsets, lengths, buffer)

    def _run(
        self,
        what: int,
        fd: int,
        offsets: Sequence[int],
        lengths: Sequence[int],
        buffer: memoryview,
    ) -> list[int]:
        """Do all requests and wait for all of them, whatever becomes of each.

        Returns:
            For each the bytes done, or -errno. 0 may mean that it was not even begun.
        """
        address = _address_of(buffer)
        results: list[int] = []
        for begin in range(0, len(offsets), DEPTH):
            some = offsets[begin : begin + DEPTH]
            for index, (offset, length) in enumerate(
                zip(some, lengths[begin : begin + DEPTH], strict=True)
            ):
                _IOCB.pack_into(
                    self._iocbs, index * _IOCB.size,
                    index, 0, 0, what, 0, fd, address, length, offset, 0, 0, 0,
                )  # fmt: skip
                address += length
            results += self._done(len(some))
        return results

    def _done(self, count: int) -> list[int]:
        """Submit what was packed; nothing is in flight any more when this returns."""
        results = [0] * count
        begun = 0
        while begun < count:
            try:
                taken = self._call(
                    self._numbers.submit,
                    self._context.value,
                    count - begun,
                    ctypes.addressof(self._pointers) + begun * ctypes.sizeof(ctypes.c_void_p),
                )
            except OSError as error:
                if error.errno in _AGAIN:
                    continue
                break  # this one cannot be queued; single calls will say why
            for index, result in self._results(taken):
                results[index] = result
            begun += taken
        return results

    def _results(self, count: int) -> Iterator[tuple[int, int]]:
        """Wait for as many events, and give number and result of each."""
        events = ctypes.addressof(self._events)
        waiting = count
        while waiting:
            # A worker never gives up here: the kernel still writes into its buffer.
            try:
                waiting -= self._call(
                    self._numbers.getevents,
                    self._context.value,
                    waiting,
                    waiting,
                    events + (count - waiting) * _EVENT.size,
                    None,
                )
            except OSError as error:
                if error.errno not in _AGAIN:
                    raise
        for index, _, result, _ in _EVENT.iter_unpack(self._events.raw[: count * _EVENT.size]):
            yield index, result

    def _call(self, number: int, *arguments: int | None) -> int:
        padded = (*arguments, *[None] * (5 - len(arguments)))
        result = int(_syscall(number, *padded))
        if result < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
        return result


def _address_of(buffer: memoryview) -> int:
    """Return where memory lies; good as long as the caller holds `buffer`."""
    view = _PyBuffer()
    ctypes.pythonapi.PyObject_GetBuffer(ctypes.py_object(buffer), ctypes.byref(view), 0)
    address = int(view.buf or 0)
    ctypes.pythonapi.PyBuffer_Release(ctypes.byref(view))
    return address


# Queues that nobody uses just now. They live as long as the process: to give one back takes the
# kernel tens of milliseconds each, and at the end of a process it takes that once for all.
_idle: list[Batch] = []


@contextlib.contextmanager
def batch() -> Iterator[Batch | None]:
    """Lend a queue to one thread; None if this kernel has none to give."""
    queue = None
    try:
        queue = _idle.pop()
    except IndexError:
        with contextlib.suppress(OSError):
            queue = Batch()
    try:
        yield queue
    finally:
        if queue is not None:
            _idle.append(queue)
